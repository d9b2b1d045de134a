"""Folders of pictures: which files of several count, and what a layout may lack."""

import json

import numpy as np
import pytest
from recording_files import make_frames, save_depth, save_image, save_text, write_folders, write_frame_folders
from scannet_files import DEPTH_INTRINSICS, pose, write_exported_scan, write_sens_scan

from bifusion_hf.data.recordings import open_recording
from bifusion_hf.data.recordings.base import ReadOptions
from bifusion_hf.data.recordings.folders import open_color_depth, read_trajectory_log
from bifusion_hf.io.files import DataFileError


GIVEN = [40.0, 41.0, 15.0, 12.0]


def test_a_stream_has_the_users_camera_and_unit_of_depth(tmp_path):
    folder = tmp_path / "scene0000_00"
    write_sens_scan(folder, [pose()], annotation=False)
    own = open_recording(folder)
    assert own.kind == "sens" and own.images == ["color/0"] and own.posed
    np.testing.assert_allclose(own[0].intrinsics, DEPTH_INTRINSICS, rtol=1e-6)
    # The size of the images tells which principal points are possible.
    given = open_recording(folder, intrinsics=[50, 51, 31, 23], depth_scale=500, up="-z")[0]
    assert given.intrinsics.diagonal().tolist() == [50, 51, 1]
    np.testing.assert_allclose(given.depth, 2 * own[0].depth)
    np.testing.assert_allclose(given.camera_to_world[2], -own[0].camera_to_world[2], atol=1e-6)


def test_a_stream_without_frames_is_refused(tmp_path):
    write_exported_scan(tmp_path / "empty", {})
    with pytest.raises(DataFileError, match="empty: has no frame"):
        open_recording(tmp_path / "empty")


def test_an_error_of_a_scans_frame_names_the_frame_once(tmp_path):
    folder = tmp_path / "scene0000_00"
    write_exported_scan(folder, {5: pose(), 7: pose()})
    save_text(folder / "pose" / "7.txt", np.full((4, 4), -np.inf))
    with pytest.raises(ValueError, match="^scene0000_00_7: camera_to_world is not finite"):
        open_recording(folder)[1]
    save_text(folder / "intrinsic" / "intrinsic_depth.txt", np.diag([114.0, 114, 1, 1]))
    with pytest.raises(ValueError, match="^scene0000_00_5: depth is .*, its intrinsics are of an image of"):
        open_recording(folder)[0]
    # A file's error names the file instead.
    (folder / "color" / "5.jpg").unlink()
    (folder / "color" / "5.jpg").mkdir()
    save_text(folder / "pose" / "5.txt", np.zeros(3))
    with pytest.raises(DataFileError, match=r"^.*pose/5\.txt: has 3 numbers"):
        open_recording(folder)[0]


@pytest.mark.parametrize("lacks", ["intrinsic/intrinsic_color.txt", "pose", "color", "nothing but the user's camera"])
def test_what_is_no_whole_export_is_read_as_folders(lacks, tmp_path):
    folder = tmp_path / "scene0000_00"
    write_exported_scan(folder, {5: pose()}, color_size=(64, 48))
    assert open_recording(folder).kind == "ScanNet export"
    if (folder / lacks).exists():
        # What is not there is read from elsewhere, where it can be: colour from a folder of another name.
        (folder / lacks).rename(folder / ("rgb" if lacks == "color" else "other"))
    options = {"intrinsics": GIVEN} if "user" in lacks else {}
    recording = open_recording(folder, **options)
    assert recording.kind == "color and depth folders" and recording.posed == (lacks != "pose")
    np.testing.assert_allclose(recording[0].intrinsics.diagonal(), [40, 41, 1] if options else [57, 57, 1])


def test_pictures_without_depth_are_no_recording(tmp_path):
    save_image(tmp_path / "color" / "0.png", np.zeros((24, 32, 3), dtype=np.uint8))
    for name in "hgfedcba":
        (tmp_path / f"{name}.txt").touch()
    with pytest.raises(
        DataFileError, match=r"it has a\.txt, b\.txt, c\.txt, color, d\.txt, e\.txt, f\.txt, g\.txt\. Expected"
    ):
        open_recording(tmp_path)
    with pytest.raises(DataFileError, match="expected folders color or colour or .*, and depth"):
        open_color_depth(tmp_path, ReadOptions())
    (tmp_path / "color").rename(tmp_path / "depth")
    with pytest.raises(DataFileError, match="expected folders color or colour or .*, and depth"):
        open_color_depth(tmp_path, ReadOptions())


def test_names_that_only_some_pictures_share(tmp_path):
    write_folders(tmp_path, make_frames(3))
    (tmp_path / "color" / "10.png").rename(tmp_path / "color" / "11.png")
    recording = open_recording(tmp_path)
    assert recording.ids == [f"{tmp_path.name}_{name}" for name in (0, 20)]
    assert recording.images == ["color/0", "color/20"] and recording[1:].images == ["color/20"]
    assert recording[1:][-1].frame_id == f"{tmp_path.name}_20"


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_poses_of_other_files(suffix, tmp_path):
    frames = make_frames(2)
    write_folders(tmp_path, frames)
    for name, frame in (("0", frames[1]), ("10", frames[0])):
        path = tmp_path / "pose" / f"{name}{suffix}"
        if suffix == ".npy":
            np.save(path, frame.camera_to_world)
        else:
            path.write_text(json.dumps(frame.camera_to_world.tolist()))
    # Text goes before them.
    np.testing.assert_allclose(open_recording(tmp_path)[0].camera_to_world, frames[0].camera_to_world)
    (tmp_path / "pose" / "0.txt").unlink()
    np.testing.assert_allclose(open_recording(tmp_path)[0].camera_to_world, frames[1].camera_to_world)


def test_a_trajectory_goes_by_the_first_number_where_all_are_different(tmp_path):
    path = tmp_path / "trajectory.log"

    def read(*heads):
        blocks = [
            "\n".join(
                [head, *(f"{int(row == 0)} {int(row == 1)} {int(row == 2)} {index}" for row in range(3)), "0 0 0 1"]
            )
            for index, head in enumerate(heads)
        ]
        path.write_text("\n\n".join(blocks))
        return {number: pose[0, 3] for number, pose in read_trajectory_log(path).items()}

    assert read("7 0 1", "3 0 1", "5 0 1") == {7: 0, 3: 1, 5: 2}
    assert read("0 7 1", "0 3 2", "1 5 3") == {0: 0, 1: 1, 2: 2}
    with pytest.raises(DataFileError, match=r"trajectory\.log \(line 6\)"):
        read("0 0 1", "1 0")
    path.write_text("\n")
    with pytest.raises(DataFileError, match="has 0 lines; expected five for each pose"):
        read_trajectory_log(path)


def test_folders_of_frames(tmp_path):
    """In their own unit of depth unless the user has another; what holds half a frame is passed over."""
    frames = make_frames(3)
    write_frame_folders(tmp_path, frames)
    save_image(tmp_path / "5" / "semantic.png", (frames[1].semantic + 1).astype(np.uint16))
    save_image(tmp_path / "2" / "colour.png", frames[0].image)
    save_depth(tmp_path / "3" / "depth.png", frames[0])
    recording = open_recording(tmp_path)
    assert recording.ids == [f"{tmp_path.name}_{name}" for name in (0, 5, 10)]
    assert recording.images == ["0/colour", "5/colour", "10/colour"]
    np.testing.assert_array_equal(recording[1].semantic, frames[1].semantic)
    assert recording[0].semantic is None
    again = open_recording(tmp_path, depth_scale=1000, intrinsics=GIVEN, up="-z")[1]
    np.testing.assert_allclose(again.depth, 2 * frames[1].depth, rtol=1e-6)
    assert again.intrinsics.diagonal().tolist() == [40, 41, 1]
    np.testing.assert_allclose(again.camera_to_world[2], -frames[1].camera_to_world[2], atol=1e-6)


def test_a_folder_of_frames_has_poses_where_every_frame_has_one(tmp_path):
    frames = make_frames(2)
    write_frame_folders(tmp_path, frames)
    # The world as it was measured, where there is none with the vertical axis up.
    (tmp_path / "0" / "pose_gravity.txt").unlink()
    recording = open_recording(tmp_path)
    assert recording.posed and np.array_equal(recording[0].camera_to_world, np.eye(4))
    (tmp_path / "0" / "pose.txt").unlink()
    recording = open_recording(tmp_path)
    assert not recording.posed and recording[0].camera_to_world is None
    np.testing.assert_allclose(recording[1].camera_to_world, frames[1].camera_to_world, atol=1e-6)


def test_a_folder_of_frames_without_a_unit_of_depth(tmp_path):
    frames = make_frames(1)
    write_frame_folders(tmp_path, frames)
    path = tmp_path / "0" / "intrinsics.json"
    path.write_text(json.dumps(frames[0].intrinsics.tolist()))
    with pytest.raises(ValueError, match="depth_scale is None; expected depth_scale"):
        open_recording(tmp_path)[0]
    np.testing.assert_allclose(open_recording(tmp_path, depth_scale=2000)[0].depth, frames[0].depth)
    path.unlink()
    save_text(path.with_suffix(".txt"), frames[0].intrinsics)
    np.testing.assert_allclose(open_recording(tmp_path, depth_scale=1000)[0].depth, 2 * frames[0].depth, rtol=1e-6)
