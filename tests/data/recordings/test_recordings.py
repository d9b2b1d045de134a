import gc
import re
import tempfile
import uuid
import zipfile

import datasets
import fsspec
import numpy as np
import pytest
from recording_files import (
    make_frames,
    save_depth,
    save_text,
    write_folders,
    write_frame_folders,
    write_r3d,
    write_redwood,
    write_tum,
)

from bifusion_hf.data.frames import frame_features, frame_to_row
from bifusion_hf.data.recordings import LAYOUTS, Recording, open_recording, rows
from bifusion_hf.data.recordings.base import UP_ROTATIONS, ReadOptions, image_files, natural_order, quaternion_pose
from bifusion_hf.data.recordings.folders import read_trajectory_log
from bifusion_hf.data.recordings.tum import _Trajectory
from bifusion_hf.io.files import DataFileError


def write_rows(folder, frames):
    (folder / "data").mkdir(parents=True)
    rows = [{**frame_to_row(frame), "frame_id": f"room_a_{index}"} for index, frame in enumerate(frames)]
    rows.append({**frame_to_row(frames[0]), "frame_id": "room_b_0"})
    data = datasets.Dataset.from_list(rows, features=frame_features())
    data.to_parquet(str(folder / "data" / "val-00000-of-00001.parquet"))


WRITERS = {
    "folders": write_folders,
    "tum": write_tum,
    "redwood": write_redwood,
    "frames": write_frame_folders,
    "rows": write_rows,
}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_gives_the_frames_that_were_written(layout, tmp_path):
    frames = make_frames()
    folder = tmp_path / "place"
    WRITERS[layout](folder, frames)
    options = {"scene": "room_a"} if layout == "rows" else {}
    recording = open_recording(folder, **options)
    assert len(recording) == len(recording.ids) == len(set(recording.ids)) == 3 and recording.posed
    for name, read, frame in zip(recording.ids, recording, frames, strict=True):
        assert read.frame_id == name
        np.testing.assert_allclose(read.depth, frame.depth, atol=1.1e-4 if layout == "tum" else 1e-6)
        np.testing.assert_allclose(read.intrinsics, frame.intrinsics, atol=1e-6)
        np.testing.assert_allclose(read.camera_to_world, frame.camera_to_world, atol=1e-6)
        error = np.abs(read.image.astype(int) - frame.image).mean()
        # Redwood's colour images are JPEGs.
        assert error < 25 if layout == "redwood" else error == 0
        if layout == "frames":
            np.testing.assert_array_equal(read.instance, frame.instance)
    part = open_recording(folder, every=2, **options)
    assert part.ids == recording.ids[::2]
    np.testing.assert_array_equal(part[1].depth, recording[2].depth)
    assert open_recording(folder, limit=2, **options)[1:].ids == recording.ids[1:2]
    assert open_recording(folder, limit=1, **options).ids == recording.ids[:1]
    np.testing.assert_array_equal(recording[-1].depth, recording[2].depth)
    with pytest.raises(IndexError):
        recording[3]


def test_the_json_of_a_frames_folder_goes_before_its_text(tmp_path):
    frames = make_frames(1)
    write_frame_folders(tmp_path, frames)
    save_text(tmp_path / "0" / "intrinsics.txt", 2 * np.eye(3))
    np.testing.assert_allclose(open_recording(tmp_path)[0].intrinsics, frames[0].intrinsics)


@pytest.mark.parametrize(("sizes", "each"), [(True, True), (True, False)])
def test_record3d(sizes, each, tmp_path):
    lzfse = pytest.importorskip("lzfse")
    frames = make_frames()
    path = tmp_path / "take.r3d"
    write_r3d(path, frames, lzfse, sizes=sizes, each=each)
    recording = open_recording(path)
    assert recording.ids == ["take_0", "take_1", "take_2"] and recording.posed
    for read, frame in zip(recording, frames, strict=True):
        np.testing.assert_array_equal(read.depth, frame.depth)
        np.testing.assert_allclose(read.intrinsics, frame.intrinsics, atol=1e-9)
        np.testing.assert_allclose(read.camera_to_world, frame.camera_to_world, atol=1e-9)
        assert read.image.shape == (48, 64, 3)
    given = {"fx": 30, "fy": 31, "cx": 15, "cy": 12, "width": 32, "height": 24}
    assert open_recording(path, intrinsics=given)[0].intrinsics.diagonal().tolist() == [30, 31, 1]
    write_r3d(path, frames, lzfse, sizes=False)
    with pytest.raises(DataFileError, match=r"take\.r3d \(rgbd/0\.depth\): has 768 values; expected one of"):
        open_recording(path)[0]
    path.write_bytes(path.read_bytes()[:-30])
    for metadata in ("[]", "3", '["K", "poses"]'):
        with zipfile.ZipFile(tmp_path / "list.r3d", "w") as archive:
            archive.writestr("metadata", metadata)
        with pytest.raises(DataFileError, match="metadata has no"):
            open_recording(tmp_path / "list.r3d")
    with pytest.raises(DataFileError, match="metadata cannot be unpacked"):
        open_recording(path)


@pytest.mark.parametrize(
    ("each", "own"),
    [
        ([[90.0, 92, 30, 20]], [True, False, False]),
        ([[90.0, 92, 30], [90.0, 92, 30, 20], "none"], [False, True, False]),
        # What follows the four numbers is of no camera.
        ([None, [], [90.0, 92, 30, 20, 7, 8]], [False, False, True]),
        ({"0": [90.0, 92, 30, 20]}, [False] * 3),
    ],
)
def test_a_frame_of_record3d_without_a_camera_of_its_own_has_that_of_all(each, own, tmp_path):
    frames = make_frames()
    write_r3d(tmp_path / "take.r3d", frames, pytest.importorskip("lzfse"), each=each)
    for read, frame, is_own in zip(open_recording(tmp_path / "take.r3d"), frames, own, strict=True):
        expected = [[45, 0, 14.75], [0, 46, 9.75], [0, 0, 1]] if is_own else frame.intrinsics
        np.testing.assert_allclose(read.intrinsics, expected, atol=1e-9)


def test_frames_without_poses(tmp_path):
    write_folders(tmp_path, make_frames(), poses=False)
    recording = open_recording(tmp_path)
    assert not recording.posed and "no poses" in repr(recording)
    assert recording[0].camera_to_world is None


def test_a_pose_that_is_missing_or_lost_is_named(tmp_path):
    write_folders(tmp_path, make_frames())
    (tmp_path / "pose" / "10.txt").unlink()
    save_text(tmp_path / "pose" / "20.txt", np.full((4, 4), -np.inf))
    recording = open_recording(tmp_path)
    recording[0]
    with pytest.raises(DataFileError, match=r"pose: has no pose of frame 10"):
        recording[1]
    with pytest.raises(ValueError, match=f"{tmp_path.name}_20: camera_to_world is not finite"):
        recording[2]


def test_depth_has_the_users_scale_and_camera_first(tmp_path):
    frames = make_frames(1)
    write_folders(tmp_path, frames)
    frame = open_recording(tmp_path, depth_scale=2000, intrinsics=[30, 31, 15, 12])[0]
    np.testing.assert_allclose(frame.depth, frames[0].depth / 2, atol=1e-6)
    assert frame.intrinsics[0, 0] == 30 and frame.intrinsics[1, 2] == 12
    for scale in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"depth_scale is {scale}; expected positive units per metre"):
            open_recording(tmp_path, depth_scale=scale)
    save_depth(tmp_path / "depth" / "0.png", frames[0], scale=1)
    np.testing.assert_array_equal(open_recording(tmp_path, depth_scale=1)[0].depth, np.rint(frames[0].depth))
    (tmp_path / "intrinsic.txt").unlink()
    with pytest.raises(DataFileError, match=r"has no intrinsics \(intrinsic/intrinsic_depth\.txt"):
        open_recording(tmp_path)
    # Floating-point depth is in metres whatever the layout's convention for integers is.
    (tmp_path / "depth" / "0.png").unlink()
    np.save(tmp_path / "depth" / "0.npy", frames[0].depth)
    np.testing.assert_array_equal(open_recording(tmp_path, intrinsics=[30, 31, 15, 12])[0].depth, frames[0].depth)


@pytest.mark.parametrize("up", UP_ROTATIONS)
def test_worlds_with_another_axis_up_are_turned(up, tmp_path):
    rotation = UP_ROTATIONS[up]
    axis = np.eye(3)["xyz".index(up[-1])] * (-1 if up[0] == "-" else 1)
    np.testing.assert_allclose(rotation @ axis, [0, 0, 1])
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3))
    assert np.isclose(np.linalg.det(rotation), 1)
    frames = make_frames(1)
    write_folders(tmp_path, frames)
    pose = open_recording(tmp_path, up=up)[0].camera_to_world
    np.testing.assert_allclose(pose[:3], rotation @ frames[0].camera_to_world[:3], atol=1e-6)


def test_tum_interpolates_between_poses_and_refuses_gaps(tmp_path):
    folder = tmp_path / "rgbd_dataset_freiburg2_desk"
    frames = make_frames()
    write_tum(folder, frames)
    (folder / "intrinsics.txt").unlink()
    recording = open_recording(folder)
    with pytest.raises(ValueError, match="freiburg2: is of images of 640x480; the depth image is 32x24"):
        recording[0]
    save_text(folder / "intrinsics.txt", frames[0].intrinsics)
    lines = (folder / "groundtruth.txt").read_text().splitlines()
    # Two poses 0.06 s around the first frame, and none near the second.
    first = [float(word) for word in lines[1].split()]
    moved = [first[0] + 0.04, first[1] + 0.06, *first[2:]]
    far = [200.0, *first[1:]]
    text = [" ".join(map(str, row)) for row in ([first[0] - 0.02, *first[1:]], moved, far)]
    (folder / "groundtruth.txt").write_text("\n".join(text))
    recording = open_recording(folder)
    pose = recording[0].camera_to_world
    np.testing.assert_allclose(pose[:3, 3] - frames[0].camera_to_world[:3, 3], [0.03, 0, 0], atol=1e-3)
    with pytest.raises(
        DataFileError, match=r"groundtruth\.txt: has no pose within 0\.02 s of 100\.507\d*, the next is 0\.4"
    ):
        recording[1]
    assert len(open_recording(folder, max_difference=0.01)) == 3
    with pytest.raises(DataFileError, match="no depth image has a colour image"):
        open_recording(folder, max_difference=0.001)
    inside = (folder / "depth.txt").read_text().splitlines()[-1].split()[1]
    (folder / "depth.txt").write_text(f"1.0 {inside}\n2.0 ../../outside.png\n")
    (folder / "rgb.txt").write_text(f"1.0 ../../outside.png\n2.0 {inside}\n")
    for index in range(2):
        with pytest.raises(DataFileError, match="expected one inside"):
            open_recording(folder)[index]
    (folder / "rgb.txt").write_text("now rgb/a.png\n")
    with pytest.raises(DataFileError, match=r"rgb\.txt \(line 1\)"):
        open_recording(folder)
    (folder / "rgb.txt").write_text("# timestamp filename\n\n")
    with pytest.raises(DataFileError, match=r"rgb\.txt: has no entry"):
        open_recording(folder)
    other = folder.rename(tmp_path / "desk")
    write_tum(other, frames)
    (other / "intrinsics.txt").unlink()
    with pytest.raises(DataFileError, match="has no intrinsics"):
        open_recording(other)


def test_trajectories_of_some_frames(tmp_path):
    frames = make_frames()
    write_redwood(tmp_path, frames)
    lines = (tmp_path / "trajectory.log").read_text().splitlines()
    (tmp_path / "trajectory.log").write_text("\n".join(lines[:5] + lines[10:]))
    recording = open_recording(tmp_path)
    np.testing.assert_allclose(recording[2].camera_to_world, frames[2].camera_to_world, atol=1e-6)
    with pytest.raises(DataFileError, match=r"trajectory\.log: has no pose of frame 1 \(0000002-000002\)"):
        recording[1]
    (tmp_path / "trajectory.log").write_text("\n".join(lines[:7]))
    with pytest.raises(DataFileError, match="has 7 lines; expected five for each pose"):
        read_trajectory_log(tmp_path / "trajectory.log")
    (tmp_path / "trajectory.log").write_text("\n".join(["0 0 x", *lines[1:5]]))
    with pytest.raises(DataFileError, match=r"trajectory\.log \(line 1\)"):
        read_trajectory_log(tmp_path / "trajectory.log")


def test_what_is_no_recording_is_refused_with_what_was_found(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataFileError, match=r"is no recording; it has notes\.txt\. Expected a \.sens file"):
        open_recording(tmp_path)
    with pytest.raises(DataFileError, match=r"notes\.txt: is no recording"):
        open_recording(tmp_path / "notes.txt")
    with pytest.raises(DataFileError, match="no such file or folder"):
        open_recording(tmp_path / "nowhere")
    with pytest.raises(DataFileError, match="nowhere: no such folder"):
        image_files(tmp_path / "nowhere")
    (tmp_path / "color").mkdir()
    (tmp_path / "depth").mkdir()
    with pytest.raises(DataFileError, match="color: has no images"):
        open_recording(tmp_path)
    for options, message in (
        ({"up": "w"}, "up is 'w'"),
        ({"every": 0}, "every is 0"),
        ({"limit": 0}, "limit 0"),
        ({"depth_scale": -1}, "depth_scale is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            open_recording(tmp_path, **options)


@pytest.mark.parametrize("name", ["{}", "take 2, frame {}", "{}-000001"])
@pytest.mark.parametrize("place", ["{part}/{name}.png", "{part}/{name}.NPY", "{name}/{part}.png"])
def test_frames_come_in_the_order_of_the_numbers_in_their_names(place, name, tmp_path):
    """Not in that of their letters, where 11 comes before 9."""
    save_text(tmp_path / "intrinsic.txt", np.eye(3))
    for number in (100, 9, 11, 0, 2):
        for part in ("color", "depth"):
            path = tmp_path / place.format(part=part, name=name.format(number))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            # What is no frame lies beside them.
            path.with_name("notes.txt").touch()
    (tmp_path / "notes").mkdir()
    found = open_recording(tmp_path).ids
    assert found == [f"{tmp_path.name}_{name.format(number)}" for number in (0, 2, 9, 11, 100)]


def test_images_of_different_names_or_numbers(tmp_path):
    frames = make_frames()
    write_folders(tmp_path, frames)
    (tmp_path / "depth" / "20.png").unlink()
    assert len(open_recording(tmp_path)) == 2
    for path in sorted((tmp_path / "depth").iterdir()):
        path.rename(path.with_name(f"d{path.name}"))
    with pytest.raises(DataFileError, match="3 colour images and 2 depth images of other names"):
        open_recording(tmp_path)
    (tmp_path / "color" / "0.jpg").write_bytes(b"")
    with pytest.raises(DataFileError, match="has both"):
        open_recording(tmp_path)


def test_damaged_images_are_named(tmp_path):
    write_folders(tmp_path, make_frames())
    (tmp_path / "color" / "10.png").write_bytes(b"none")
    (tmp_path / "depth" / "20.png").write_bytes(b"none")
    recording = open_recording(tmp_path)
    with pytest.raises(DataFileError, match=r"color/10\.png: is no readable picture"):
        recording[1]
    with pytest.raises(DataFileError, match=r"depth/20\.png: is no readable picture"):
        recording[2]


def test_a_scene_of_several_has_to_be_named(tmp_path):
    write_rows(tmp_path, make_frames())
    with pytest.raises(ValueError, match="has 2 scenes; give scene: room_a, room_b$"):
        open_recording(tmp_path)
    with pytest.raises(ValueError, match="has no scene 'room_c'"):
        open_recording(tmp_path, scene="room_c")
    assert open_recording(tmp_path, scene="room_b").ids == ["room_b_0"]


def test_names_are_ordered_by_their_numbers_and_numbers_come_before_letters():
    """In every order that a folder may list them, and also with digits that are no decimal numbers."""
    names = ["", "2", "9b", "10", "10a", "010b", "a", "a2", "a2b", "a10", "b1", "\u00b2"]
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(names).tolist()
        assert sorted(shuffled, key=natural_order) == names


def test_between_poses_far_apart_the_nearer_one_counts_if_it_is_near(tmp_path):
    path = tmp_path / "groundtruth.txt"
    path.write_text("10 1 0 0 0 0 0 1\n20 2 0 0 0 0 0 1\n")
    trajectory = _Trajectory(path, 0.02)
    for time, x in ((9.99, 1), (10.0, 1), (10.015, 1), (19.99, 2), (20.01, 2)):
        assert trajectory.at(time)[0, 3] == x
    for time, gap in ((9.9, "0.100"), (10.5, "0.500"), (19.7, "0.300"), (21, "1.000")):
        with pytest.raises(DataFileError, match=rf"no pose within 0\.02 s of {time:.6f}, the next is {gap} s off"):
            trajectory.at(time)


@pytest.mark.parametrize(
    ("source", "is_data_set"),
    [("frames", True), ("user/frames", True), ("a/b/c", False), ("take.r3d", False), ("/nowhere/frames", False)],
)
def test_what_is_not_here_and_may_be_a_name_is_looked_for_on_the_hub(source, is_data_set, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = []
    empty = Recording("data set", source, [], True, None)
    monkeypatch.setattr(rows, "open_rows", lambda place, options: asked.append((str(place), options.split)) or empty)
    if is_data_set:
        assert len(open_recording(source, split="test")) == 0 and asked == [(source, "test")]
    else:
        with pytest.raises(DataFileError, match=f"{source}: no such file or folder"):
            open_recording(source)
        assert not asked


def test_a_lost_pose_stays_as_it_is():
    """The frame refuses it then, by its name."""
    pose = np.eye(4, dtype=np.float32)
    pose[0, 1] = -np.inf
    for options in (ReadOptions(up="-z"), ReadOptions()):
        found = options.upright(pose, "y")
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, pose)


def test_a_pose_of_a_quaternion():
    half = np.sqrt(0.5)
    # A quarter of a turn about x, of any length.
    for length in (1, 3, 1e-6 / half):
        pose = quaternion_pose([length * half, 0, 0, length * half, 1, 2, 3], "here")
        np.testing.assert_allclose(pose, [[1, 0, 0, 1], [0, 0, -1, 2], [0, 1, 0, 3], [0, 0, 0, 1]], atol=1e-12)
    for values in ([1e-7, 0, 0, 0, 1, 2, 3], [0, 0, 0, 1, np.nan, 2, 3], [0, 0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 2, 3, 4]):
        with pytest.raises(DataFileError, match=r"here: has the pose \[.*expected qx qy qz qw tx ty tz"):
            quaternion_pose(values, "here")
    with pytest.raises(DataFileError, match="here: has the pose 'x'; expected qx qy qz qw tx ty tz"):
        quaternion_pose("x", "here")


def test_a_recording_of_a_store_is_copied_while_it_is_in_use(tmp_path, monkeypatch):
    write_folders(tmp_path / "desk", make_frames())
    store = fsspec.filesystem("memory")
    address = f"memory://{uuid.uuid4().hex}"
    store.put(str(tmp_path / "desk"), f"{address}/desk", recursive=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    (tmp_path / "copies").mkdir()
    recording = open_recording(f"{address}/desk/", every=2)
    assert recording.ids == ["desk_0", "desk_20"] and recording.path == f"{address}/desk/"
    part, here = recording[1:], open_recording(tmp_path / "desk")
    del recording
    gc.collect()
    np.testing.assert_array_equal(part[0].depth, here[2].depth)
    assert list((tmp_path / "copies").iterdir())
    del part
    gc.collect()
    assert not list((tmp_path / "copies").iterdir())
    # Of what is no recording nothing stays, and nothing is copied of a data set.
    store.rm(f"{address}/desk/depth", recursive=True)
    with pytest.raises(DataFileError, match="is no recording; it has color, intrinsic.txt, pose"):
        open_recording(f"{address}/desk")
    gc.collect()
    assert not list((tmp_path / "copies").iterdir())
    write_rows(tmp_path / "set", make_frames())
    store.put(str(tmp_path / "set"), f"{address}/set", recursive=True)
    asked = []
    monkeypatch.setattr(
        rows, "open_rows", lambda place, options: asked.append(place) or Recording("", "", "", True, None)
    )
    open_recording(f"{address}/set")
    assert asked == [f"{address}/set"] and not list((tmp_path / "copies").iterdir())


@pytest.mark.parametrize(
    ("layout", "word"),
    [
        ("sens", r"\.sens file"), ("folders", "folders color/"), ("tum", r"rgb\.txt"), ("r3d", r"\.r3d file"),
        ("frames", r"colour\.png"), ("rows", r"\.parquet"),
    ],
)  # fmt: skip
def test_layouts_are_told_by_what_they_have(layout, word):
    assert [name for name, text in LAYOUTS.items() if re.search(word, text)] == [layout]
