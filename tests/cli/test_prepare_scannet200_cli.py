import json
import multiprocessing
import signal
import threading
import time

import pytest
import torch
from recording_files import write_labelled_scan
from tqdm import tqdm

from bifusion_hf.cli.prepare_scannet200 import build_parser, main
from bifusion_hf.data.frames import frame_from_row, load_frames


@pytest.fixture
def arguments(tmp_path):
    for scan in ("scene0000_00", "scene0001_00"):
        write_labelled_scan(tmp_path / "scans" / scan, [0, 20, 200, 220, 400])
    (tmp_path / "train.txt").write_text("scene0000_00\n")
    (tmp_path / "val.txt").write_text("scene0001_00\n")
    lists = ["--split", f"train={tmp_path / 'train.txt'}", "--split", f"val={tmp_path / 'val.txt'}"]
    return ["--scans", str(tmp_path / "scans"), "--out", str(tmp_path / "out"), "--labels", "2d", *lists]


def test_prepares_and_prints_the_report(arguments, tmp_path, capsys):
    main(arguments)
    output = capsys.readouterr().out
    assert "train: 3 frames of 1 scans" in output
    assert "labels: 2d: 1 scans" in output
    assert str(tmp_path / "out" / "report.txt") in output
    rows = load_frames(tmp_path / "out", "val")
    assert rows["frame_id"] == ["scene0001_00_0", "scene0001_00_200", "scene0001_00_400"]
    frame = frame_from_row(rows[0])
    assert frame.instance[20, 30] == 4
    assert frame.semantic[20, 30] == 2
    assert frame.semantic[0, 0] == 0
    assert rows[0]["image"]["bytes"].startswith(b"\xff\xd8")


def test_options_arrive(arguments, tmp_path):
    main([*arguments, "--frame_interval", "20", "--image_size", "32", "24", "--jpeg_quality", "0"])
    rows = load_frames(tmp_path / "out", "val")
    assert len(rows) == 5
    assert frame_from_row(rows[0]).image.shape == (24, 32, 3)
    assert rows[0]["image"]["bytes"].startswith(b"\x89PNG")
    settings = json.loads((tmp_path / "out" / "report.json").read_text())["settings"]
    assert settings["image_size"] == [32, 24]
    assert settings["jpeg_quality"] is None


def test_a_failed_scan_ends_with_an_error_after_the_others_are_written(arguments, tmp_path, capsys):
    (tmp_path / "scans" / "scene0000_00" / "intrinsic" / "intrinsic_depth.txt").unlink()
    (tmp_path / "train.txt").write_text("scene0000_00\nscene0002_00\n")
    write_labelled_scan(tmp_path / "scans" / "scene0002_00", [0])
    with pytest.raises(SystemExit, match="1 scans failed"):
        main(arguments)
    assert "failed: " in capsys.readouterr().out
    assert load_frames(tmp_path / "out", "train")["frame_id"] == ["scene0002_00_0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: [*a, "--labels", "mesh"], "label_map is missing"),
        (lambda a: [*a, "--split", "test=/nowhere.txt"], "/nowhere.txt: No such file"),
        (lambda a: [*a, "--frame_interval", "0"], "frame_interval is 0"),
    ],
)
def test_errors_are_one_line(arguments, change, message):
    with pytest.raises(SystemExit) as error:
        main(change(arguments))
    assert message in str(error.value)
    assert str(error.value).startswith("bifusion-prepare-scannet200: error: ")


@pytest.mark.parametrize("change", [["--split", "train"], ["--split", "train=a"], ["--esam", "x"]])
def test_malformed_arguments_show_the_usage(arguments, change, capsys):
    with pytest.raises(SystemExit) as error:
        main([*arguments, *change])
    assert error.value.code == 2
    assert "usage: bifusion-prepare-scannet200" in capsys.readouterr().err


def test_esam_is_handed_on(monkeypatch, tmp_path, capsys):
    calls = []

    def prepare_esam(*arguments, **options):
        calls.append((arguments, options))
        return {"settings": {}, "splits": {}}

    monkeypatch.setattr("bifusion_hf.cli.prepare_scannet200.prepare_esam", prepare_esam)
    main(["--esam", str(tmp_path), "--out", "out", "--split", "train", "--split", "val", "--workers", "3"])
    ((folder, _, splits), options) = calls[0]
    assert (folder, splits) == (tmp_path, ["train", "val"])
    assert options.pop("engine").processes == 3
    assert options == {"scans_per_shard": 16, "jpeg_quality": None}


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for action in build_parser()._actions:
        assert action.help
        assert action.option_strings[-1] in text


def _main_in_a_fork(arguments):
    # Progress bars of this process would share the lock with it, which may be killed while it holds it.
    tqdm.set_lock(threading.RLock())
    torch.set_num_threads(1)
    main(arguments)


@pytest.mark.slow
def test_a_killed_run_goes_on(arguments, tmp_path):
    """Killed without warning while it works: the next run makes what is missing, and the result is whole."""
    scans, numbers = [f"scene{index:04d}_00" for index in range(2, 18)], range(0, 4000, 200)
    for scan in scans:
        write_labelled_scan(tmp_path / "scans" / scan, numbers)
    (tmp_path / "train.txt").write_text("\n".join(scans))
    arguments = [*arguments, "--scans_per_shard", "2"]
    process = multiprocessing.get_context("fork").Process(target=_main_in_a_fork, args=(arguments,))
    process.start()
    shards = tmp_path / "out" / "data"
    while process.is_alive() and len(list(shards.glob("[!.]*.parquet"))) < 2:
        time.sleep(0.01)
    process.kill()
    process.join()
    done = {path: path.stat().st_mtime_ns for path in shards.glob("[!.]*.parquet")}
    assert 2 <= len(done) < 9 and process.exitcode == -signal.SIGKILL
    main(arguments)
    # The last shard may have been without its record.
    assert sum(path.stat().st_mtime_ns == time_ns for path, time_ns in done.items()) >= len(done) - 1
    rows = load_frames(tmp_path / "out", "train")
    assert rows["frame_id"] == [f"{scan}_{number}" for scan in scans for number in numbers]
    assert not [path for folder in (shards, tmp_path / "out" / ".preparation") for path in folder.glob(".partial*")]
