"""Data sets prepared by two Ray nodes, and from an S3 server on loopback: the bytes of one process of this machine."""

import pytest
from recording_files import write_labelled_scan

from bifusion_hf.cli.prepare_scannet200 import main as prepare_scannet200
from bifusion_hf.cli.render_rooms import main as render_rooms
from bifusion_hf.io.storage import Folder


def contents(place):
    """Bytes of each file of a data set by name."""
    folder = Folder(place)
    found = {}
    for name in folder.names("data/*"):
        with folder.open(name) as file:
            found[name] = file.read()
    return found


@pytest.fixture
def scans(tmp_path):
    """Four scans, of which the last is the val split, and the command's options beside the folder of scans."""
    for number in range(4):
        write_labelled_scan(tmp_path / "scans" / f"scene{number:04d}_00", [0, 200])
    (tmp_path / "train.txt").write_text("".join(f"scene{number:04d}_00\n" for number in range(3)))
    (tmp_path / "val.txt").write_text("scene0003_00\n")
    lists = [word for split in ("train", "val") for word in ("--split", f"{split}={tmp_path / split}.txt")]
    return ["--labels", "2d", "--scans_per_shard", "1", *lists]


def test_scans_on_two_ray_nodes(ray_cluster, scans, tmp_path):
    for out, engine in (("here", "local"), ("there", "ray")):
        prepare_scannet200(
            ["--scans", str(tmp_path / "scans"), "--output", str(tmp_path / out), "--engine", engine, *scans]
        )
    here = contents(tmp_path / "here")
    assert len(here) == 4 and contents(tmp_path / "there") == here


def test_rooms_on_two_ray_nodes(ray_cluster, tmp_path):
    pytest.importorskip("embreex")
    for out, engine in (("here", "local"), ("there", "ray")):
        render_rooms(
            ["--output", str(tmp_path / out), "--engine", engine, "--cache", str(tmp_path / "cache"), "--train", "3"]
            + ["--val", "1", "--width", "64", "--height", "48", "--views", "2", "--workers", "2"]
        )
    here = contents(tmp_path / "here")
    assert len(here) >= 2 and contents(tmp_path / "there") == here


def test_scans_in_a_store(bucket, scans, tmp_path):
    prepare_scannet200(["--scans", str(tmp_path / "scans"), "--output", str(tmp_path / "here"), *scans])
    Folder(bucket)._store[0].put(str(tmp_path / "scans"), f"{bucket}/scans", recursive=True)
    prepare_scannet200(["--scans", f"{bucket}/scans", "--output", f"{bucket}/set", "--workers", "2", *scans])
    here = contents(tmp_path / "here")
    assert len(here) == 4 and contents(f"{bucket}/set") == here
