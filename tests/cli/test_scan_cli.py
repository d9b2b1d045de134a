import json
import os
import shlex
import signal

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from PIL import Image
from ply_files import read_ply
from processes import another_in
from recording_files import make_frames, save_text, write_folders

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.cli import predict, scan
from bifusion_hf.data.frames import frame_features, frame_to_row
from bifusion_hf.scenes import SceneSession
from bifusion_hf.scenes.files import animation_format
from bifusion_hf.visualization import instance_colors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint")
    point_config = {"stem_channels": 8, "planes": [8] * 8, "blocks": [1] * 8}
    config = BiFusionConfig.from_preset("tiny", point_config=point_config, hidden_size=8)
    BiFusionForInstanceSegmentation(config).save_pretrained(path)
    BiFusionProcessor.from_config(config, num_points=400).save_pretrained(path)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    write_folders(tmp_path / "room", make_frames(5))
    return tmp_path / "room"


def arguments(folder, out, checkpoint, *more):
    options = ["--checkpoint", checkpoint, "--threshold", "0", "--min_score", "0", "--min_views", "1"]
    return [str(folder), "--output", str(out), *options, "--device", "cpu", *more]


def content(out):
    """What a scan wrote, but for the session's file."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != scan.SESSION_FILE)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_a_scan_writes_its_files(checkpoint, folder, tmp_path, capsys):
    out = tmp_path / "out"
    scan.main(arguments(folder, out, checkpoint))
    kind = animation_format()
    pictures = [f"frames/room_{number}.jpg" for number in (0, 10, 20, 30, 40)]
    assert sorted(content(out)) == sorted([*pictures, "objects.json", "scene.ply", f"scene.{kind}"])
    found = json.loads((out / "objects.json").read_text())
    assert found["num_frames"] == 5 and found["skipped"] == [] and found["merging"] == "geometric"
    assert found["layout"] == "color and depth folders" and found["objects"]
    cloud = read_ply(out / "scene.ply")
    assert set(np.unique(cloud["instance"])) - {-1} == {item["id"] for item in found["objects"] if item["num_points"]}
    for item in found["objects"]:
        own = cloud["instance"] == item["id"]
        assert np.count_nonzero(own) == item["num_points"]
        assert item["color"] == instance_colors(item["id"] + 1)[-1].tolist()
        tints = np.stack([cloud[name][own] for name in ("red", "green", "blue")], axis=1)
        assert (tints == item["color"]).all()
    with Image.open(out / f"scene.{kind}") as animation:
        assert animation.n_frames == 5 and animation.width == 480
    assert f"5 frames, {len(found['objects'])} objects" in capsys.readouterr().out


def test_a_stopped_scan_goes_on_and_ends_as_one_that_was_not(checkpoint, folder, tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    scan.main(arguments(folder, whole, checkpoint))
    update, seen = SceneSession.update, []

    def stopped(self, frame):
        seen.append(frame.frame_id)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return update(self, frame)

    monkeypatch.setattr(SceneSession, "update", stopped)
    with pytest.raises(SystemExit, match="130"):
        scan.main(arguments(folder, out, checkpoint, "--save_every", "2"))
    # A killed process leaves what was saved last: two of the three frames.
    scan.main(arguments(folder, out, checkpoint, "--save_every", "2"))
    assert seen[4:] == ["room_20", "room_30", "room_40"] and "going on at frame 2 of 5" in capsys.readouterr().out
    assert content(out) == content(whole)
    scan.main(arguments(folder, out, checkpoint, "--save_every", "2"))
    assert len(seen) == 7 and content(out) == content(whole)
    for option in (["--voxel_size", "0.1"], ["--every", "2"]):
        with pytest.raises(SystemExit, match="is of another scan: .*Give another --output, or --overwrite"):
            scan.main(arguments(folder, out, checkpoint, *option))
    scan.main(arguments(folder, out, checkpoint, "--every", "2", "--overwrite", "--animation", "none"))
    assert json.loads((out / "objects.json").read_text())["num_frames"] == 3


def test_a_signal_lets_a_scan_finish_its_frame_and_says_how_to_go_on(
    checkpoint, folder, tmp_path, monkeypatch, capsys
):
    whole, out = tmp_path / "whole", tmp_path / "my out"
    scan.main(arguments(folder, whole, checkpoint))
    update = SceneSession.update

    def signalled(self, frame):
        if frame.frame_id == "room_10":
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, frame)

    monkeypatch.setattr(SceneSession, "update", signalled)
    words = arguments(folder, out, checkpoint)
    with pytest.raises(SystemExit) as stopped:
        scan.main([*words, "--overwrite"])
    assert stopped.value.code == 143
    shown = capsys.readouterr().err
    assert shlex.split(shown[shown.index("It goes on with:") :].splitlines()[1]) == ["bifusion-scan", *words]
    monkeypatch.setattr(SceneSession, "update", update)
    scan.main(words)
    assert "going on at frame 2 of 5" in capsys.readouterr().out and content(out) == content(whole)


def test_frames_of_one_name_keep_a_picture_each(checkpoint, tmp_path):
    frames = make_frames(3)
    for frame, name in zip(frames, ("a/1", "a 1", "a_1-2"), strict=True):
        frame.frame_id = name
    rows = [{**frame_to_row(frame), "scene_id": "room"} for frame in frames]
    (tmp_path / "rows" / "data").mkdir(parents=True)
    features = Features({**frame_features(), "scene_id": Value("string")})
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows" / "data" / "val-00000-of-00001.parquet")
    scan.main(arguments(tmp_path / "rows", tmp_path / "out", checkpoint, "--animation", "gif"))
    pictures = sorted(path.name for path in (tmp_path / "out" / "frames").iterdir())
    assert pictures == ["a_1-2.jpg", "a_1-3.jpg", "a_1.jpg"]
    with Image.open(tmp_path / "out" / "scene.gif") as animation:
        assert animation.n_frames == 3


def test_frames_that_cannot_be_used_are_skipped_by_name_or_stop_the_scan(checkpoint, folder, tmp_path, capsys):
    (folder / "pose" / "10.txt").unlink()
    save_text(folder / "pose" / "20.txt", np.full((4, 4), np.nan))
    (folder / "color" / "40.png").write_bytes(b"none")
    out = tmp_path / "out"
    scan.main(arguments(folder, out, checkpoint, "--animation", "none"))
    found = json.loads((out / "objects.json").read_text())
    assert found["num_frames"] == 2 and len(found["skipped"]) == 3
    reasons = ("no pose of frame 10", "room_20: camera_to_world", "40.png")
    assert all(reason in text for text, reason in zip(found["skipped"], reasons, strict=True))
    assert "3 of 5 frames were skipped" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no pose of frame 10"):
        scan.main(arguments(folder, tmp_path / "strict", checkpoint, "--strict"))
    for number in (0, 30):
        (folder / "pose" / f"{number}.txt").unlink()
    with pytest.raises(SystemExit, match="none of 5 frames could be used; the first: .*no pose of frame 0"):
        scan.main(arguments(folder, tmp_path / "none", checkpoint))


def test_what_cannot_be_scanned_is_refused(checkpoint, folder, tmp_path):
    write_folders(tmp_path / "unposed", make_frames(2), poses=False)
    with pytest.raises(SystemExit, match="color and depth folders without poses"):
        scan.main(arguments(tmp_path / "unposed", tmp_path / "out", checkpoint))
    with pytest.raises(SystemExit, match="no such file or folder"):
        scan.main(arguments(tmp_path / "nowhere", tmp_path / "out", checkpoint))
    with pytest.raises(SystemExit, match="needs a network with a box head"):
        scan.main(arguments(folder, tmp_path / "out", checkpoint, "--merging", "learned"))
    for options in (["--intrinsics", "1", "2", "3"], ["--save_every", "0"]):
        with pytest.raises(SystemExit) as error:
            scan.main(arguments(folder, tmp_path / "out", checkpoint, *options))
        assert error.value.code == 2


def test_rerun_file(checkpoint, folder, tmp_path):
    pytest.importorskip("rerun")
    out = tmp_path / "out"
    scan.main(arguments(folder, out, checkpoint, "--rerun", "--animation", "none"))
    assert (out / "scene.rrd").stat().st_size > 5000


def test_rerun_is_asked_for_before_the_work(checkpoint, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("bifusion_hf.import_utils.is_available", lambda package: package != "rerun")
    with pytest.raises(SystemExit, match=r'pip install "bifusion_hf\[rerun\]"'):
        scan.main(arguments(folder, tmp_path / "out", checkpoint, "--rerun"))
    assert not (tmp_path / "out").exists()


def test_predict_takes_the_frames_of_a_recording_one_by_one(checkpoint, folder, tmp_path):
    out = tmp_path / "out"
    options = ["--checkpoint", checkpoint, "--threshold", "0", "--output", str(out), "--device", "cpu"]
    predict.main(["--recording", str(folder), "--every", "3", *options])
    assert sorted(path.name for path in out.glob("*.json")) == ["room_0.json", "room_30.json"]
    assert json.loads((out / "room_30.json").read_text())["coordinates"] == "world"
    write_folders(tmp_path / "unposed", make_frames(1), poses=False)
    predict.main(["--recording", str(tmp_path / "unposed"), *options])
    assert json.loads((out / "unposed_0.json").read_text())["coordinates"].startswith("camera axes")
    with pytest.raises(SystemExit) as error:
        predict.main(["--recording", str(folder), "--image", "a.png", *options])
    assert error.value.code == 2


def test_a_scan_in_progress_is_not_joined(checkpoint, folder, tmp_path):
    with another_in(tmp_path / "out"), pytest.raises(SystemExit, match="out is in use by process"):
        scan.main(arguments(folder, tmp_path / "out", checkpoint))
