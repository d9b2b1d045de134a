import numpy as np
import pytest

from bifusion_hf.data.frames import load_frames
from bifusion_hf.data.recordings import open_recording
from bifusion_hf.rooms.dataset import build_dataset
from bifusion_hf.rooms.generate import RoomGenerator, RoomSettings
from bifusion_hf.rooms.paths import MAX_STEP, MAX_TURN, _turn, room_sequence


def settings(tmp_path, **changes):
    values = {"furniture": (), "libraries": (), "cache": str(tmp_path / "cache"), "width": 80, "height": 60}
    return RoomSettings(**{**values, **changes})


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    return room_sequence(RoomGenerator(settings(tmp_path_factory.mktemp("rooms"))), "val", 0, 12)


def test_a_walk_is_smooth_and_level(sequence):
    assert len(sequence.frames) == len({frame.frame_id for frame in sequence.frames}) == 12
    poses = [frame.camera_to_world for frame in sequence.frames]
    for first, second in zip(poses, poses[1:], strict=False):
        step = np.linalg.norm(first[:3, 3] - second[:3, 3])
        turn = np.abs((_turn(second) - _turn(first) + np.pi) % (2 * np.pi) - np.pi)
        # Smoothing the way shortens its steps; height adds to them.
        assert step + turn.max() > 0 and step < 1.5 * MAX_STEP and turn.max() < MAX_TURN + 1e-6
        assert abs(_turn(second)[2]) < np.radians(12)
    assert max(np.linalg.norm(pose[:3, 3] - poses[0][:3, 3]) for pose in poses) > 0.3


def test_an_object_keeps_its_id_and_lies_in_its_box(sequence):
    boxes = dict(zip(sequence.instance_ids.tolist(), sequence.instance_boxes, strict=True))
    classes, frames_of = {}, {}
    for frame in sequence.frames:
        points = frame.unproject()
        for index in np.unique(frame.instance[frame.instance >= 0]).tolist():
            inside = (frame.instance == index) & (frame.depth > 0)
            classes.setdefault(index, set()).update(np.unique(frame.semantic[frame.instance == index]).tolist())
            frames_of[index] = frames_of.get(index, 0) + 1
            if np.count_nonzero(inside) > 20:
                low, high = boxes[index][:3], boxes[index][3:]
                # Depth noise and flying pixels leave the box a little.
                within = ((points[inside] > low - 0.1) & (points[inside] < high + 0.1)).all(axis=1)
                assert within.mean() > 0.9, index
    assert all(len(names) == 1 for names in classes.values())
    assert max(frames_of.values()) > 2 and set(frames_of) <= set(boxes)
    assert all((box[3:] > box[:3]).all() or np.isclose(box[3:] - box[:3], 0).any() for box in boxes.values())


def test_walks_depend_on_seed_split_and_number_alone(sequence, tmp_path):
    again = room_sequence(RoomGenerator(settings(tmp_path)), "val", 0, 12)
    for first, second in zip(sequence.frames, again.frames, strict=True):
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.depth, second.depth)
        np.testing.assert_array_equal(first.camera_to_world, second.camera_to_world)
    np.testing.assert_array_equal(sequence.instance_boxes, again.instance_boxes)


def test_a_data_set_of_walks_is_read_scene_by_scene(tmp_path):
    summary = build_dataset(tmp_path / "walks", settings(tmp_path, views=3, path=True), {"val": 6}, progress=False)
    assert summary["path"] is True
    data = load_frames(tmp_path / "walks", "val")
    assert len(data) == 6 and len(set(data["scene_id"])) == 2
    row = data[0]
    assert len(row["object_ids"]) == len(row["object_boxes"]) > 0 and len(row["object_boxes"][0]) == 6
    recording = open_recording(tmp_path / "walks", scene=row["scene_id"])
    assert len(recording) == 3 and recording.posed and recording.ids == list(data["frame_id"][:3])
    with pytest.raises(ValueError, match="path is True, asked for False"):
        build_dataset(tmp_path / "walks", settings(tmp_path, views=3), {"val": 6}, progress=False)
    with pytest.raises(ValueError, match="world is 'tabletop' with path"):
        settings(tmp_path, world="tabletop", path=True)
