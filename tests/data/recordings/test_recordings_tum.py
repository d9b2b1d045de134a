"""The lists of the TUM RGB-D benchmark: what belongs together in time, and which camera it is."""

from pathlib import Path

import numpy as np
import pytest
from recording_files import pose_words, save_image
from scipy.spatial.transform import Rotation

from bifusion_hf.data.recordings import open_recording
from bifusion_hf.data.recordings.base import ReadOptions
from bifusion_hf.data.recordings.tum import _camera
from bifusion_hf.io.files import DataFileError


# Pictures that every entry of the lists names: two of colour, by their level, and one of depth.
LEVELS = {"rgb/low.png": 50, "rgb/high.png": 200}
CAMERA = [30.0, 31.0, 15.0, 12.0]


@pytest.fixture
def folder(tmp_path):
    for name, level in LEVELS.items():
        save_image(tmp_path / name, np.full((24, 32, 3), level, dtype=np.uint8))
    save_image(tmp_path / "depth" / "a.png", np.full((24, 32), 10_000, dtype=np.uint16))
    return tmp_path


def write_lists(folder, depths, colors=(("0", "rgb/low.png"),), poses=None, pose_file="groundtruth.txt"):
    (folder / "depth.txt").write_text("\n".join(f"{time} depth/a.png" for time in depths))
    (folder / "rgb.txt").write_text("\n".join(" ".join(row) for row in colors))
    if poses is not None:
        lines = [" ".join(map(str, [time, *pose_words(pose)])) for time, pose in poses]
        (folder / pose_file).write_text("\n".join(lines))


def read(folder, **options):
    return open_recording(folder, **{"intrinsics": CAMERA, "max_difference": 0.25, **options})


def pose_at(x, degrees=0.0):
    """A pose at (x, 2x, -x), turned about the axis z."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    pose[:3, 3] = x, 2 * x, -x
    return pose


def test_depth_belongs_to_the_nearest_colour_within_the_limit(folder):
    write_lists(folder, ["0", "1.126", "0.5", "0.625"], [("0.875", "rgb/high.png"), ("0.25", "rgb/low.png")])
    recording = read(folder)
    # 1.126 has none by a thousandth of a second; the others come in the order of time, as the first lies at the limit.
    assert recording.ids == [f"{folder.name}_{time}" for time in ("0.000000", "0.500000", "0.625000")]
    assert recording.images == ["rgb/low", "rgb/low", "rgb/high"]
    assert [frame.image[0, 0, 0] for frame in recording] == [50, 50, 200]
    assert [frame.frame_id for frame in recording] == recording.ids
    # The layout's own unit of depth is a fifth of a millimetre.
    assert recording[0].depth[0, 0] == 2 and read(folder, depth_scale=2500)[0].depth[0, 0] == 4
    assert len(read(folder, max_difference=0.251)) == 4
    # Of two that are as near, the first of the list.
    write_lists(folder, ["0"], [("0", "rgb/low.png"), ("0", "rgb/high.png")])
    assert read(folder).images == ["rgb/low"]
    write_lists(folder, ["0.75"], [("0.5", "rgb/low.png")])
    with pytest.raises(
        DataFileError, match=r"depth\.txt: no depth image has a colour image of rgb\.txt within 0\.1 s"
    ):
        read(folder, max_difference=0.1)


def test_without_a_list_of_poses_there_are_none(folder):
    write_lists(folder, ["0"])
    recording = read(folder)
    assert not recording.posed and recording[0].camera_to_world is None
    # Other programs name it otherwise, and the benchmark's own goes before those.
    for x, name in enumerate(("poses.txt", "trajectory.txt", "groundtruth.txt")):
        write_lists(folder, ["0"], poses=[("0", pose_at(x))], pose_file=name)
        recording = read(folder)
        assert recording.posed and recording[0].camera_to_world[0, 3] == x
    turned = read(folder, up="-z")[0].camera_to_world
    np.testing.assert_allclose(turned[:3], [[1, 0, 0, 2], [0, -1, 0, -4], [0, 0, -1, 2]], atol=1e-12)


def test_a_pose_is_interpolated_between_two(folder):
    """A quarter of the way, in place and angle, whatever the order of the lines."""
    write_lists(folder, ["10.25"], [("10.25", "rgb/low.png")], poses=[("11", pose_at(5, 80)), ("10", pose_at(1))])
    np.testing.assert_allclose(read(folder)[0].camera_to_world, pose_at(2, 20), atol=1e-12)


@pytest.mark.parametrize(("apart", "is_near"), [("1.25", True), ("1.251", False), ("1.375", False)])
def test_poses_between_which_one_is_interpolated_are_five_limits_apart_at_most(folder, apart, is_near):
    write_lists(folder, ["0.5"], [("0.5", "rgb/low.png")], poses=[("0", pose_at(0)), (apart, pose_at(5))])
    if is_near:
        np.testing.assert_allclose(read(folder)[0].camera_to_world, pose_at(2), atol=1e-12)
    else:
        with pytest.raises(DataFileError, match=r"no pose within 0\.25 s of 0\.500000, the next is 0\.500 s off"):
            read(folder)[0]


@pytest.mark.parametrize(("time", "x"), [("0.75", 1), ("1.25", 1), ("3.75", 4), ("4.25", 4)])
def test_a_pose_at_the_limit_is_near_enough(folder, time, x):
    write_lists(folder, [time], [(time, "rgb/low.png")], poses=[("1", pose_at(1)), ("4", pose_at(4))])
    assert read(folder)[0].camera_to_world[0, 3] == x
    with pytest.raises(DataFileError, match=r"no pose within 0\.249 s of"):
        read(folder, max_difference=0.249)[0]


def test_lists_may_have_commas_and_remarks(folder):
    write_lists(folder, [])
    (folder / "depth.txt").write_text("# time, name\n\n 0.5,depth/a.png # the first\n0.75, depth/a.png\n")
    (folder / "rgb.txt").write_text("0.5,rgb/high.png")
    assert read(folder).images == ["rgb/high"] * 2


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("rgb.txt", "nan rgb/low.png", "expected a time and 1 entries"),
        ("rgb.txt", "inf rgb/low.png", "expected a time and 1 entries"),
        ("rgb.txt", "1.0", "expected a time and 1 entries"),
        ("depth.txt", "1.0 depth/a.png depth/b.png", "expected a time and 1 entries"),
        ("groundtruth.txt", "1.0 0 0 0 0 0 1", "expected a time and 7 entries"),
    ],
)
def test_a_line_of_another_form_is_refused_with_its_number(folder, name, line, message):
    write_lists(folder, ["0"], poses=[("0", pose_at(0))])
    with (folder / name).open("a") as file:
        file.write(f"\n{line}")
    with pytest.raises(DataFileError, match=rf"{name} \(line 2\): is {line!r}; {message}"):
        read(folder)


def test_poses_that_are_no_numbers_are_refused(folder):
    write_lists(folder, ["0"], poses=[("0", pose_at(0))])
    (folder / "groundtruth.txt").write_text("0 0 0 x 0 0 0 1")
    with pytest.raises(DataFileError, match=r"groundtruth\.txt: could not convert.*expected numbers"):
        read(folder)
    (folder / "groundtruth.txt").write_text("0 1 2 3 0 0 0 0")
    with pytest.raises(DataFileError, match=r"groundtruth\.txt \(time 0\.000000\): has the pose \[0\.0, 0\.0"):
        read(folder)[0]


@pytest.mark.parametrize("missing", ["rgb.txt", "depth.txt"])
def test_one_list_alone_says_nothing_and_the_folders_are_read_by_themselves(folder, missing):
    write_lists(folder, ["0"])
    (folder / "rgb" / "high.png").unlink()
    assert read(folder).kind == "TUM RGB-D"
    (folder / missing).unlink()
    recording = read(folder)
    assert recording.kind == "color and depth folders" and recording.ids == [f"{folder.name}_a"]
    # There integers are millimetres.
    assert recording[0].depth[0, 0] == 10


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rgbd_dataset_freiburg1_room", [517.3, 516.5, 318.6, 255.3]),
        ("rgbd_dataset_freiburg2_desk", [520.9, 521.0, 325.1, 249.7]),
        ("rgbd_dataset_Freiburg3_teddy", [535.4, 539.2, 320.1, 247.6]),
    ],
)
def test_the_calibration_of_a_tum_sequence_goes_by_its_name(tmp_path, name, expected, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    for folder in (tmp_path / name, Path()):
        camera = _camera(folder, ReadOptions())
        matrix = camera.of_depth((480, 640))
        assert [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]] == expected
        with pytest.raises(ValueError, match=rf"the calibration of {name[13:22].lower()}: is of images of 640x480"):
            camera.of_depth((640, 480))
    # What the user says goes before it, and what the folder holds.
    assert _camera(tmp_path / name, ReadOptions(CAMERA)).intrinsics[1, 1] == 31
    (tmp_path / name / "camera.json").write_text('{"fx": 40, "fy": 41, "cx": 15, "cy": 12}')
    assert _camera(tmp_path / name, ReadOptions()).intrinsics[1, 1] == 41
