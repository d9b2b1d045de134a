import json
import os
import signal
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from frame_factory import make_frame
from PIL import Image
from processes import join, run_processes

from bifusion_hf.batch import LocalEngine, launched_processes
from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.io.files import DataFileError
from bifusion_hf.io.storage import Folder
from bifusion_hf.prediction import shards
from bifusion_hf.prediction.files import merge_results, read_about, read_results
from bifusion_hf.prediction.segmenter import load_segmenter
from bifusion_hf.prediction.shards import PRELOAD, predict_shards
from bifusion_hf.prediction.sources import DataSetFrames, RecordingFrames


SHARDS = [f"shards/val-{index:05d}-of-00003.parquet" for index in range(3)]


def predict(frames_folder, settings, out, source=None, **options):
    source = source or DataSetFrames(str(frames_folder), "val")
    return predict_shards(source, settings, out, **{"shard_size": 3, "device": "cpu", **options})


def content(out):
    return {name: (out / name).read_bytes() for name in [*SHARDS, "report.json"]}


@pytest.fixture(scope="module")
def alone(frames_folder, small_checkpoint, tmp_path_factory):
    """The results of one process, and their report."""
    out = tmp_path_factory.mktemp("alone") / "out"
    settings = shards.PredictionSettings(str(small_checkpoint), threshold=0.3, batch_size=2)
    return out, predict(frames_folder, settings, out, merge=True)


def test_results_are_those_of_the_pipeline(alone, frames_folder, settings):
    out, report = alone
    found = list(read_results(Folder(out), SHARDS))
    assert [frame["number"] for frame in found] == [0, 1, 2, 3, 5, 6, 7, 8]
    segmenter = load_segmenter(settings.checkpoint, "cpu")
    rows = load_frames(frames_folder, "val")
    frames = [frame_from_row(rows[number]) for number in range(3)]
    # In batches of the same frames, so that every digit is the same.
    results = segmenter(frames, threshold=settings.threshold, batch_size=settings.batch_size)
    for frame, expected in zip(found, results, strict=False):
        content = expected.to_json()
        assert frame["frame_id"] == content["frame_id"] and len(frame["segments"]) == len(content["segments"]) > 0
        for mine, theirs in zip(frame["segments"], content["segments"], strict=True):
            np.testing.assert_array_equal(mine.pop("mask"), expected["segmentation"] == theirs["id"])
            assert mine == theirs
    assert (report["shards"], report["frames"]) == (3, 8)
    assert report["instances"] == sum(len(frame["segments"]) for frame in found)


def test_frames_that_cannot_be_used_are_named(alone):
    out, report = alone
    assert list(report["skipped"]) == ["frame 4"] and "depth has 0 pixels" in report["skipped"]["frame 4"]
    assert json.loads((out / "report.json").read_text()) == report
    assert read_about(Folder(out), SHARDS[1])["skipped"] == report["skipped"]


def test_all_in_one_file(alone):
    out, _ = alone
    merged, apart = (list(read_results(Folder(out), names)) for names in (["results.parquet"], SHARDS))
    for frame in (*merged, *apart):
        frame["segments"] = [{**segment, "mask": segment["mask"].tolist()} for segment in frame["segments"]]
    assert merged == apart


def test_files_that_are_no_results_are_named(tmp_path):
    folder = Folder(tmp_path)
    pq.write_table(pa.table({"number": [1], "text": ["a"]}), tmp_path / "table.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    for name, message in (
        ("table.parquet", r"table\.parquet: has the columns \['number', 'text'\]; not results"),
        ("damaged.parquet", r"damaged\.parquet: is no file of results \("),
    ):
        for use in (
            lambda name: list(read_results(folder, [name])),
            lambda name: read_about(folder, name),
            lambda name: merge_results(folder, [name], "all.parquet", {}),
        ):
            with pytest.raises(DataFileError, match=message):
                use(name)
    assert not (tmp_path / "all.parquet").exists()


def test_a_run_goes_on_and_settings_never_mix(alone, frames_folder, settings, tmp_path, capsys):
    out = tmp_path / "out"
    predict(frames_folder, settings, out)
    before = content(out)
    assert before == content(alone[0])
    (out / SHARDS[1]).unlink()
    times = {name: (out / name).stat().st_mtime_ns for name in (SHARDS[0], SHARDS[2])}
    capsys.readouterr()
    predict(frames_folder, settings, out)
    assert content(out) == before and times == {name: (out / name).stat().st_mtime_ns for name in times}
    printed = capsys.readouterr().out
    assert "2 of 3 shards are there" in printed
    assert "val-00001-of-00003: 2 frames, " in printed and printed.count("1 frames skipped") == 1
    other = shards.PredictionSettings(settings.checkpoint, threshold=0.5)
    with pytest.raises(ValueError, match="holds results that was begun with another batch_size, threshold"):
        predict(frames_folder, other, out)
    with pytest.raises(ValueError, match="another frames, shard_size"):
        predict(frames_folder, settings, out, shard_size=4)


class DyingPredictor(shards.ShardPredictor):
    """It kills its process in the middle of the second shard, the first time."""

    def __call__(self, name, piece):
        self.shard = name
        return super().__call__(name, piece)

    def _prepare(self, frame):
        note = self.folder.path / "died"
        if self.shard.startswith("val-00001") and frame.frame_id == "frame 5" and not note.exists():
            note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._prepare(frame)


def test_processes_give_the_same_bytes_though_one_is_killed(alone, frames_folder, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ShardPredictor", DyingPredictor)
    predict(frames_folder, settings, tmp_path, engine=LocalEngine(2, PRELOAD))
    assert (tmp_path / "died").exists() and content(tmp_path) == content(alone[0])
    assert len(list((tmp_path / "shards").iterdir())) == 3


def launched(frames_folder, settings, out):
    report = predict(frames_folder, settings, out, processes=launched_processes(cpu=True), tell=False)
    rank = int(os.environ["RANK"])
    assert (report is None) == (rank == 1)
    (out / f"rank-{rank}").touch()


def launched_to_die(frames_folder, settings, out):
    """The second process dies in the middle of its first shard."""
    if os.environ["RANK"] == "1":
        shards.ShardPredictor._prepare = lambda self, frame: os.kill(os.getpid(), signal.SIGKILL)
    launched(frames_folder, settings, out)


def test_launched_processes_share_the_shards_and_a_dead_one_loses_nothing(alone, frames_folder, settings, tmp_path):
    out = tmp_path / "out"
    first, second = run_processes(launched_to_die, 2, frames_folder, settings, out)
    second.join(300)
    assert second.exitcode == -signal.SIGKILL
    # As torchrun does when a process has died; the other one has time for its own two shards.
    limit = time.monotonic() + 300
    while not (out / SHARDS[2]).exists() and time.monotonic() < limit:
        time.sleep(0.1)
    first.kill()
    first.join()
    assert sorted(path.name for path in (out / "shards").glob("[!.]*")) == [
        name.partition("/")[2] for name in (SHARDS[0], SHARDS[2])
    ]
    join(run_processes(launched, 2, frames_folder, settings, out))
    assert content(out) == content(alone[0]) and not list((out / "shards").glob(".partial*"))


def test_a_folder_of_recordings_as_coco(settings, tmp_path):
    folder = tmp_path / "recordings"
    for recording, count in (("hall", 3), ("desk", 1)):
        for number in range(count):
            frame = make_frame(96, 128, seed=number)
            place = folder / recording / f"{number:04d}"
            place.mkdir(parents=True)
            Image.fromarray(frame.image).save(place / "colour.png")
            Image.fromarray(np.rint(frame.depth * 1000).astype(np.uint16)).save(place / "depth.png")
            (place / "intrinsics.json").write_text(json.dumps(frame.intrinsics.tolist()))
            np.savetxt(place / "pose.txt", np.eye(4))
    (folder / "hall" / "0001" / "depth.png").write_bytes(b"damaged")
    (folder / "notes.txt").touch()
    source = RecordingFrames(folder, {"depth_scale": 1000.0})
    report = predict(None, settings, tmp_path / "out", source, kind="coco", shard_size=2, merge=True)
    assert (report["shards"], report["frames"]) == (3, 3)
    assert [*report["skipped"]] == ["hall/hall_0001"] and "depth.png" in report["skipped"]["hall/hall_0001"]
    merged = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(image["id"], image["file_name"], image["number"]) for image in merged["images"]] == [
        (0, "desk/desk_0000", 0), (1, "hall/hall_0000", 0), (2, "hall/hall_0002", 2)
    ]  # fmt: skip
    assert [annotation["id"] for annotation in merged["annotations"]] == list(range(1, report["instances"] + 1))
    parts = [
        json.loads((tmp_path / "out" / "shards" / f"recordings-{i:05d}-of-00003.json").read_text()) for i in range(3)
    ]
    masks = [annotation["segmentation"] for part in parts for annotation in part["annotations"]]
    assert [annotation["segmentation"] for annotation in merged["annotations"]] == masks
    names = {image["id"]: image["file_name"] for image in merged["images"]}
    assert {names[annotation["image_id"]] for annotation in merged["annotations"]} == set(names.values())
    assert merged["info"]["frames"] == 3
    with pytest.raises(ValueError, match="holds no recording"):
        predict(None, settings, tmp_path / "other", RecordingFrames(folder / "hall" / "0000"))
