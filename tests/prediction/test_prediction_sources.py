"""Where frames come from, with stand-ins for recordings."""

from types import SimpleNamespace

import fsspec
import pytest

from bifusion_hf.io.files import DataFileError
from bifusion_hf.prediction import sources
from bifusion_hf.prediction.sources import BrokenFrame, DataSetFrames, Piece, RecordingFrames


def test_rows_of_a_data_set_are_cut_into_pieces_and_keep_their_numbers(frames_folder):
    source = DataSetFrames(str(frames_folder), "val")
    assert source.name == f"{frames_folder} val"
    assert source.shards(4) == {
        "val-00000-of-00003": Piece("", 0, 4),
        "val-00001-of-00003": Piece("", 4, 8),
        "val-00002-of-00003": Piece("", 8, 9),
    }
    (three, third), (four, fourth), (five, _) = source.frames(Piece("", 3, 6))
    assert (three, four, five) == (3, 4, 5) and third.frame_id == "frame 3"
    assert third.instance is None and third.semantic is None, "labels are not looked at"
    assert isinstance(fourth, BrokenFrame) and fourth.frame_id == "frame 4" and "depth has 0 pixels" in fourth.reason


def test_a_broken_row_without_a_name_is_told_by_its_number():
    source = DataSetFrames("nowhere", "val")
    rows = [{"frame_id": "a", "image": None}, {"frame_id": None, "image": None}, {"image": None}]
    source.__dict__["_table"] = SimpleNamespace(rows=lambda start, stop: rows[: stop - start])
    assert [(number, found.frame_id) for number, found in source.frames(Piece("", 7, 10))] == [
        (7, "a"), (8, "row 8"), (9, "row 9")
    ]  # fmt: skip


class Recorded(list):
    """Frames of a recording; those that are text are broken, and it says what is wrong."""

    @property
    def ids(self):
        return [f"id {number}" for number in range(len(self))]

    def __getitem__(self, number):
        frame = super().__getitem__(number)
        if isinstance(frame, str):
            raise ValueError(frame)
        return frame


@pytest.fixture
def opened(monkeypatch):
    """What was opened, with its options; a recording has as many frames as the length of its name."""
    places = []

    def open_recording(place, **options):
        places.append((place.name, options))
        frames = [SimpleNamespace(frame_id="") for _ in place.name]
        return Recorded([*frames[:-1], "it is dark"])

    monkeypatch.setattr(sources, "open_recording", open_recording)
    sources._recording.cache_clear()
    yield places
    sources._recording.cache_clear()


def test_folders_and_files_of_recordings_are_cut_apart(opened, tmp_path):
    for name in ("hall", "r.1"):
        (tmp_path / name).mkdir()
    for name in ("a.sens", "B.R3D", "notes.txt", "README.md"):
        (tmp_path / name).touch()
    source = RecordingFrames(tmp_path, {"stride": 2, "depth_scale": 1000.0})
    assert source.name == str(tmp_path)
    pieces = source.shards(3)
    assert list(pieces) == [f"recordings-{index:05d}-of-00007" for index in range(7)]
    assert sorted(pieces.values()) == [
        ("B.R3D", 0, 3), ("B.R3D", 3, 5), ("a.sens", 0, 3), ("a.sens", 3, 6), ("hall", 0, 3), ("hall", 3, 4),
        ("r.1", 0, 3),
    ]  # fmt: skip
    opened.clear()
    found = [list(source.frames(Piece("hall", *bounds))) for bounds in ((0, 2), (2, 4), (1, None))]
    assert [[number for number, _ in frames] for frames in found] == [[0, 1], [2, 3], [1, 2, 3]]
    assert found[0][1][1].frame_id == "hall/id 1" and found[1][1][1] == BrokenFrame("hall/id 3", "it is dark")
    again = RecordingFrames(tmp_path, {"depth_scale": 1000.0, "stride": 2})
    assert len(list(again.frames(Piece("hall", 0, 3)))) == 3
    assert opened == [("hall", {"depth_scale": 1000.0, "stride": 2})], "once for all of its pieces"


def test_recordings_in_a_store_are_not_opened_to_be_counted(opened, tmp_path):
    address = f"memory://{tmp_path.name}/scans"
    system, root = fsspec.url_to_fs(address)
    for name in ("hall/0000/depth.png", "a.sens", "notes.txt"):
        system.pipe_file(f"{root}/{name}", b"")
    pieces = RecordingFrames(address).shards(1)
    assert list(pieces.values()) == [Piece("a.sens", 0, None), Piece("hall", 0, None)] and opened == []


def test_a_folder_without_recordings_is_refused(opened, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataFileError, match="holds no recording; expected a folder, a .sens or a .r3d for each"):
        RecordingFrames(tmp_path).shards(3)
    assert opened == []
