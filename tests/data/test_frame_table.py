import pickle

import datasets
import fsspec
import numpy as np
import pyarrow.parquet
import pytest
from frame_factory import make_frame

from bifusion_hf.data import frame_table
from bifusion_hf.data.frame_table import FrameTable
from bifusion_hf.data.frames import frame_features, frame_from_row, frame_to_row, load_frames
from bifusion_hf.io.files import DataFileError


COUNTS = (5, 1, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten frames in three files, of row groups of two."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "data").mkdir()
    frames, first = [make_frame(30, 40, seed=seed, frame_id=f"frame {seed}") for seed in range(sum(COUNTS))], 0
    for index, count in enumerate(COUNTS):
        rows = [frame_to_row(frame) for frame in frames[first : first + count]]
        data = datasets.Dataset.from_list(rows, features=frame_features())
        data.to_parquet(folder / "data" / f"val-{index:05d}-of-00003.parquet", batch_size=2)
        first += count
    return folder


@pytest.mark.parametrize(("place", "batch"), [("disk", 1), ("disk", 3), ("disk", 100), ("store", 3)])
def test_every_range_of_rows(folder, place, batch, monkeypatch):
    monkeypatch.setattr(frame_table, "_BATCH", batch)
    source = folder
    if place == "store":
        source = f"memory://table-{folder.name}"
        store = fsspec.filesystem("memory")
        store.put(str(folder / "data"), f"/table-{folder.name}/data", recursive=True)
    table = FrameTable(source, "val")
    assert len(table) == 10
    for start in range(11):
        for stop in range(start, 12):
            names = [row["frame_id"] for row in table.rows(start, stop)]
            assert names == [f"frame {index}" for index in range(start, min(stop, 10))]


def test_only_row_groups_that_hold_wanted_rows_are_read(folder, monkeypatch):
    read, iter_batches = [], pyarrow.parquet.ParquetFile.iter_batches

    def record(self, *arguments, row_groups, **options):
        read.append(row_groups)
        return iter_batches(self, *arguments, row_groups=row_groups, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", record)
    table = FrameTable(folder, "val")
    # Files of the rows 0-1, 2-3, 4 | 5 | 6-7, 8-9.
    for rows, groups in (((2, 4), [[1]]), ((1, 3), [[0, 1]]), ((4, 7), [[2], [0], [0]]), ((8, 9), [[1]])):
        assert len(list(table.rows(*rows))) == rows[1] - rows[0] and read == groups
        read.clear()


def test_rows_are_those_of_load_frames(folder):
    for row, other in zip(
        FrameTable(folder, "val").rows(4, 6), load_frames(folder, "val").select([4, 5]), strict=True
    ):
        first, second = frame_from_row(row), frame_from_row(other)
        for name in ("image", "depth", "intrinsics", "instance", "semantic"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_of_an_address_load_frames_reads_all(folder):
    assert load_frames(f"file://{folder}", "val")["frame_id"] == load_frames(folder, "val")["frame_id"]
    assert [row["frame_id"] for row in load_frames(f"file://{folder}", "val", streaming=True)][:1] == ["frame 0"]


def test_what_is_no_data_set_is_named(folder, tmp_path):
    with pytest.raises(DataFileError, match=r"has no data/train-\*.parquet"):
        FrameTable(folder, "train")
    with pytest.raises(FileNotFoundError, match="no such folder, and no id of the Hub"):
        FrameTable(tmp_path / "nothing", "val")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val-0.parquet").write_bytes(b"no table")
    with pytest.raises(DataFileError, match="val-0.parquet: is no Parquet file"):
        len(FrameTable(tmp_path, "val"))


def test_a_file_that_is_damaged_within_is_named(folder, tmp_path):
    (tmp_path / "data").mkdir()
    content = bytearray((folder / "data" / "val-00000-of-00003.parquet").read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    (tmp_path / "data" / "val-0.parquet").write_bytes(content)
    table = FrameTable(str(tmp_path), "val")
    assert len(table) == 5
    with pytest.raises(DataFileError, match=r"data/val-0.parquet: cannot be read \("):
        list(table.rows(0, 5))


def test_a_table_goes_to_another_process_with_what_it_has_read(folder, monkeypatch):
    state = pickle.dumps(FrameTable(folder, "val"))
    table = pickle.loads(state)
    monkeypatch.setattr(FrameTable, "_open", None)
    assert len(table) == 10 and list(table.rows(3, 3)) == [] and (table.source, table.split) == (str(folder), "val")


@pytest.mark.parametrize("revision", ["", "@v2"])
def test_a_data_set_of_the_hub_is_read_at_its_revision(revision, monkeypatch):
    asked = []

    class Folder:
        def __init__(self, address):
            asked.append(address)

        def names(self, pattern):
            asked.append(pattern)
            return [pattern.replace("*", "0")]

    monkeypatch.setattr(frame_table, "Folder", Folder)
    assert FrameTable(f"org/rooms{revision}", "val").files == ["data/val-0.parquet"]
    assert asked == [f"hf://datasets/org/rooms{revision}", "data/val-*.parquet"]


def test_the_package_carries_one():
    assert len(FrameTable("sample", "val")) == 32 and next(FrameTable("sample", "val").rows(0, 1))["frame_id"]
