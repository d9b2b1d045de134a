"""Rows of a data set as scenes and recordings."""

import datasets
import numpy as np
import pyarrow as pa
import pytest
from recording_files import make_frames

from bifusion_hf.data.frames import frame_features, frame_to_row
from bifusion_hf.data.recordings import open_recording, rows
from bifusion_hf.data.recordings.base import ReadOptions
from bifusion_hf.data.recordings.rows import RowScenes, rows_recording, scene_of, scenes_of
from bifusion_hf.io.files import DataFileError


FRAMES = make_frames(3)
ROWS = [frame_to_row(frame) for frame in FRAMES]


def table(names, **columns):
    """Rows of these names, of the frames in turn."""
    rows = [{**ROWS[index % 3], "frame_id": name} for index, name in enumerate(names)]
    data = datasets.Dataset.from_list(rows, features=frame_features())
    data = data.cast_column("image", datasets.Image(decode=False)).cast_column("depth", datasets.Image(decode=False))
    for name, values in columns.items():
        data = data.add_column(name, values)
    return data


def write(folder, names, split="val", **columns):
    (folder / "data").mkdir(exist_ok=True)
    table(names, **columns).to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


@pytest.mark.parametrize(
    ("row", "scene"),
    [
        ({"frame_id": "room_a_12"}, "room_a"),
        ({"frame_id": "room 2/frame 7"}, "room 2/frame"),
        ({"frame_id": "hall.-_/ 3"}, "hall"),
        ({"frame_id": "hall"}, "hall"),
        ({"frame_id": "0012"}, "0012"),
        ({"frame_id": None}, "frame"),
        ({}, "frame"),
        ({"frame_id": "room_a_12", "scene_id": "flat 5"}, "flat 5"),
        ({"frame_id": "room_a_12", "scene_id": None}, "room_a"),
    ],
)
def test_the_scene_of_a_row(row, scene):
    assert scene_of(row) == scene


def test_scenes_keep_the_order_of_the_rows():
    data = table(["b_1", "a_2", "b_0", "c_0"])
    assert list(scenes_of(data).items()) == [("b", [0, 2]), ("a", [1]), ("c", [3])]
    assert scenes_of(data.add_column("scene_id", ["x", None, "x", "a"])) == {"x": [0, 2], "a": [1, 3]}
    scenes = RowScenes("place", data)
    assert list(scenes) == ["b", "a", "c"] and len(scenes) == 3
    recording = scenes["b"]
    assert recording.ids == ["b_1", "b_0"] and recording.path == "place" and recording.kind == "data set"
    np.testing.assert_allclose(recording[1].camera_to_world, FRAMES[2].camera_to_world)
    assert list(RowScenes("place", data, limit=2)) == ["b", "a"]


def test_rows_without_a_name_or_pose():
    data = table(["a_1", None, ""])
    recording = rows_recording("place", data, [2, 1, 0], ReadOptions(up="-z"))
    assert recording.ids == ["row 2", "row 1", "a_1"] and recording.posed
    expected = np.diag([1, -1, -1]) @ FRAMES[1].camera_to_world[:3]
    np.testing.assert_allclose(recording[1].camera_to_world[:3], expected)
    recording = rows_recording("place", data.remove_columns("camera_to_world"), [1], ReadOptions())
    assert not recording.posed and recording[0].camera_to_world is None


def test_a_damaged_row_is_named_with_its_data_set():
    data = table(["a_1", "a_2"]).map(lambda row: {"image": {"bytes": b"none", "path": None}})
    with pytest.raises(DataFileError, match="place: a_2: image.*no readable"):
        rows_recording("place", data, [0, 1], ReadOptions())[1]


def test_one_scene_needs_no_name_and_of_several_five_are_told(tmp_path):
    assert open_recording(write(tmp_path, ["a_0", "a_1"])).ids == ["a_0", "a_1"]
    names = [f"{letter}_0" for letter in "abcde"]
    with pytest.raises(ValueError, match=r"'val' has 5 scenes; give scene: a, b, c, d, e$"):
        open_recording(write(tmp_path, names))
    with pytest.raises(ValueError, match=r"'val' has 6 scenes; give scene: a, b, c, d, e, \.\.\.$"):
        open_recording(write(tmp_path, [*names, "f_0"]))
    with pytest.raises(ValueError, match=r"'val' has no scene 'g'; it has a, b, c, d, e, \.\.\.$"):
        open_recording(tmp_path, scene="g")
    write(tmp_path, ["z_0"], "train")
    assert open_recording(tmp_path, split="train").ids == ["z_0"]


def test_a_data_set_without_rows_or_names_is_none_of_frames(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "val-00000-of-00001.parquet"
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(str(path))
    with pytest.raises(DataFileError, match=r"has the columns \['text'\]; expected frame_id and those of a frame"):
        open_recording(tmp_path)
    # The Hub has data sets without rows.
    monkeypatch.setattr(rows, "load_frames", lambda *_: table(["a_0"]).select([]))
    with pytest.raises(DataFileError, match="'val' has no frames"):
        open_recording(tmp_path)
    offsets = pa.py_buffer(np.array([0, 1], dtype=np.int32).tobytes())
    broken = pa.table({"frame_id": pa.StringArray.from_buffers(1, offsets, pa.py_buffer(b"\xff"))})
    monkeypatch.setattr(rows, "load_frames", lambda *_: datasets.Dataset(broken))
    with pytest.raises(DataFileError, match=f"{tmp_path.name}: has a frame_id or scene_id that is no text"):
        open_recording(tmp_path)
