import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from tqdm import tqdm

from bifusion_hf.data.frames import RGBDFrame, frame_features, frame_from_row, frame_to_row, load_frames
from bifusion_hf.data.scannet import shards as shard_module
from bifusion_hf.data.scannet.shards import SkippedFrame, write_shards
from bifusion_hf.io.files import DataFileError


class CountingSource:
    """Units "a3" give three frames; they are noted in a file, so that a test sees what was made, in any process."""

    sequences = False

    def __init__(self, log, stop_at=None):
        self.log = str(log)
        self.stop_at = stop_at

    def rows(self, unit):
        with open(self.log, "a") as file:
            file.write(f"{unit} {os.getpid()}\n")
        if unit == self.stop_at:
            raise KeyboardInterrupt
        if unit.startswith("x"):
            raise DataFileError(unit, "is broken")
        yield "a note"
        for index in range(int(unit[1:])):
            values = np.full((12, 16), 1 + index / 10)
            intrinsics = np.array([[10.0, 0, 7.5], [0, 10, 5.5], [0, 0, 1]])
            yield frame_to_row(
                RGBDFrame(np.zeros((12, 16, 3), np.uint8), values, intrinsics, frame_id=f"{unit}_{index}")
            )
        yield SkippedFrame(f"{unit}_9", "missing", "not there")


SPLITS = {"train": ["a1", "b2", "c3", "d1"], "val": ["e1"]}
SHARDS = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "val-00000-of-00001.parquet"]


def write(tmp_path, splits=SPLITS, settings=None, stop_at=None, **options):
    source = CountingSource(tmp_path / "log", stop_at)
    options = {"units_per_shard": 2, "progress": False} | options
    return write_shards(source, splits, tmp_path / "out", settings or {"a": (1, 2)}, **options)


def made(tmp_path):
    return [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]


def names(tmp_path, split):
    return [row["frame_id"] for row in load_frames(tmp_path / "out", split)]


def shards(tmp_path):
    return sorted(path.name for path in (tmp_path / "out" / "data").iterdir())


ALL = ["a1_0", "b2_0", "b2_1", "c3_0", "c3_1", "c3_2", "d1_0"]


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_records_and_order(tmp_path, workers):
    records = write(tmp_path, workers=workers)
    assert shards(tmp_path) == SHARDS
    assert names(tmp_path, "train") == ALL
    assert names(tmp_path, "val") == ["e1_0"]
    assert records["train"].units == SPLITS["train"]
    assert records["train"].frames == 7
    assert [item.frame_id for item in records["train"].skipped] == ["a1_9", "b2_9", "c3_9", "d1_9"]
    assert records["train"].skipped[1] == SkippedFrame("b2_9", "missing", "not there")
    assert records["train"].notes == {"a note": 4} and records["train"].failed == {}
    pids = {line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}
    assert (str(os.getpid()) in pids) == (workers == 1)


def test_an_interrupted_run_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, stop_at="d1")
    # The shard under work has left nothing, and what a killed process leaves goes with the next run.
    assert shards(tmp_path) == SHARDS[:1]
    leftover = tmp_path / "out" / "data" / ".partial-0-x.parquet"
    assert list(leftover.parent.glob(".*")) == []
    leftover.write_bytes(b"half")
    assert made(tmp_path) == ["a1", "b2", "c3", "d1"]
    (tmp_path / "log").unlink()
    records = write(tmp_path)
    assert made(tmp_path) == ["c3", "d1", "e1"]
    assert names(tmp_path, "train") == ALL
    assert records["train"].frames == 7
    assert not leftover.exists()
    (tmp_path / "log").unlink()
    write(tmp_path)
    assert not (tmp_path / "log").exists()
    assert names(tmp_path, "train") == ALL


@pytest.mark.parametrize("lost", ["data/train-00000-of-00002.parquet", ".preparation/train-00000-of-00002.json"])
def test_a_shard_without_its_record_or_file_is_remade(tmp_path, lost):
    write(tmp_path)
    (tmp_path / "out" / lost).unlink()
    (tmp_path / "log").unlink()
    write(tmp_path)
    assert made(tmp_path) == ["a1", "b2"]
    assert names(tmp_path, "train") == ALL


def test_a_failed_unit_costs_its_shard_alone(tmp_path):
    splits = {"train": ["a1", "x0", "c3"]}
    records = write(tmp_path, splits)
    assert records["train"].failed == {"x0": "x0: is broken"}
    assert names(tmp_path, "train") == ["a1_0", "c3_0", "c3_1", "c3_2"]
    (tmp_path / "log").unlink()
    write(tmp_path, splits)
    assert made(tmp_path) == ["a1", "x0"]


def test_a_worker_that_fails_ends_the_run(tmp_path):
    with pytest.raises(ValueError, match="invalid literal"):
        write(tmp_path, {"train": ["a1", "b2", "cc", "d1"]}, workers=2)
    assert not list((tmp_path / "out" / "data").glob("train-00001*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": {"a": 2}}, "another a;"),
        ({"splits": {"train": ["a1"]}}, "another splits"),
        ({"units_per_shard": 3}, "another units_per_shard"),
        ({"settings": {"a": (1, 2), "b": None}}, ""),
    ],
)
def test_other_settings_never_mix(tmp_path, options, message):
    write(tmp_path)
    if message:
        with pytest.raises(ValueError, match=message):
            write(tmp_path, **options)
    else:
        write(tmp_path, **options)


@pytest.mark.parametrize("options", [{"units_per_shard": 0}, {"workers": 0}])
def test_shards_and_workers_are_at_least_one(tmp_path, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"{name}( is)? {value}"):
        write(tmp_path, **options)
    assert not (tmp_path / "out").exists()


class LeavingSource(CountingSource):
    """Notes what is in the folder while a unit is read, and leaves what a worker that is killed does."""

    def __init__(self, log, out, seen):
        super().__init__(log)
        self.out, self.seen = out, seen

    def rows(self, unit):
        self.seen.append(sorted(path.name for path in self.out.rglob("*") if path.is_file()))
        for place in self.places():
            place.write_bytes(b"half")
        yield from super().rows(unit)

    def places(self):
        return [self.out / folder / ".partial-0-x" for folder in ("data", ".preparation")]


def test_what_killed_workers_leave_goes_before_and_after(tmp_path):
    out, seen = tmp_path / "a" / "out", []
    source = LeavingSource(tmp_path / "log", out, seen)
    options = {"units_per_shard": 2, "progress": False, "beside": {"names.txt": "cup"}}
    write_shards(source, {"val": ["e1"]}, out, {}, **options)
    # What belongs to the shards is there before the first of them is made.
    (first,) = seen
    assert "names.txt" in first and (out / "names.txt").read_text() == "cup"
    assert not [place for place in source.places() if place.exists()]
    (out / "data" / "val-00000-of-00001.parquet").unlink()
    for place in source.places():
        place.write_bytes(b"half")
    write_shards(source, {"val": ["e1"]}, out, {}, **options)
    assert len(seen) == 2 and ".partial-0-x" not in seen[1]


class OwnEngine:
    """Makes shards here, the last one first."""

    def __init__(self):
        self.made = []

    def run(self, build, shards):
        work = build()
        for name in reversed(shards):
            work(name, shards[name])
            self.made.append(name)
            yield name, None


def test_shards_may_be_made_by_an_engine(tmp_path):
    engine = OwnEngine()
    records = write(tmp_path, engine=engine)
    assert engine.made == [name.removesuffix(".parquet") for name in reversed(SHARDS)]
    assert names(tmp_path, "train") == ALL and records["train"].frames == 7 and records["val"].units == ["e1"]


def test_the_bar_counts_units_with_those_that_were_there(tmp_path, monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, **options):
            super().__init__(**{**options, "disable": True})
            self.options, self.steps = options, []
            bars.append(self)

        def update(self, count):
            self.steps.append(count)

    monkeypatch.setattr(shard_module, "tqdm", Bar)
    write(tmp_path, progress=True, unit="room")
    (tmp_path / "out" / "data" / SHARDS[0]).unlink()
    write(tmp_path, progress=True)
    write(tmp_path)
    units = [f"a{index}" for index in [0] * 17]
    write_shards(CountingSource(tmp_path / "other"), {"val": units}, tmp_path / "rest", {})
    # In this process, sixteen to a shard.
    assert set((tmp_path / "other").read_text().split()) == {"a0", str(os.getpid())}
    assert bars[-1].steps == [0, 16, 1] and not bars.pop().options["disable"]
    # Shards of two units, two and one; then only the first of them is made.
    assert [bar.steps for bar in bars] == [[0, 2, 2, 1], [3, 2], [5]]
    assert [(bar.options["total"], bar.options["unit"], bar.options["disable"]) for bar in bars] == [
        (5, "room", False),
        (5, "scan", False),
        (5, "scan", True),
    ]


def test_a_failure_does_not_keep_the_records_of_other_shards_from_being_added(tmp_path):
    record = write(tmp_path, {"train": ["a1", "x0", "x1", "b2"]})["train"]
    assert record.failed == {"x0": "x0: is broken", "x1": "x1: is broken"}
    assert (record.units, record.frames, record.notes) == (["a1", "x0", "x1", "b2"], 3, {"a note": 2})


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "train-00000-of-00001.parquet").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        write(tmp_path)


def test_a_reader_of_a_stream_holds_fifty_rows_at_a_time(tmp_path):
    write(tmp_path, {"val": ["a51"]})
    file = pq.ParquetFile(tmp_path / "out" / "data" / "val-00000-of-00001.parquet")
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [50, 1]


def test_rows_are_frames(tmp_path):
    write(tmp_path)
    found, expected = load_frames(tmp_path / "out", "train").features, frame_features()
    assert all(found[name] == expected[name] for name in ("intrinsics", "camera_to_world", "depth_scale"))
    frame = frame_from_row(load_frames(tmp_path / "out", "train")[2])
    assert frame.frame_id == "b2_1"
    np.testing.assert_allclose(frame.depth, 1.1, atol=1e-6)
    record = json.loads((tmp_path / "out" / ".preparation" / "val-00000-of-00001.json").read_text())
    assert record["frames"] == 1
