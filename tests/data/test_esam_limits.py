"""What of ESAM's data is just taken and what is not, and which frames stand for those that cannot be read."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from esam_files import POINTS, write_frame, write_infos, write_scans

from bifusion_hf.data import esam
from bifusion_hf.data.esam import EsamFrames, _pixels, prepare_esam
from bifusion_hf.data.frames import load_frames
from bifusion_hf.io.files import DataFileError
from bifusion_hf.io.safe_pickle import load_pickle


NAME = "scene0011_00_0.bin"
FILE = Path("frame.bin")


@pytest.fixture
def data(tmp_path):
    """A folder of one frame, and its row."""
    folder = tmp_path / "scannet200-sv"
    row, _ = write_frame(folder, "scene0011_00", 0, 1)
    write_infos(folder, [row])
    return folder, row


def change(path, dtype, place, value):
    values = np.fromfile(path, dtype)
    values[place] = value
    values.tofile(path)


@pytest.mark.parametrize(
    ("part", "taken", "refused"),
    [("super_points", POINTS, POINTS + 1), ("instance_mask", 2**15, 2**15 + 1), ("semantic_mask", 1357, 1358)],
)
def test_labels_are_taken_up_to_the_largest(data, part, taken, refused):
    folder, _ = data
    for value in (0, taken):
        change(folder / part / NAME, np.int64, 5, value)
        EsamFrames(folder, "val").read_cloud(0)
    change(folder / part / NAME, np.int64, 5, refused)
    with pytest.raises(DataFileError, match=rf"has values 0..{refused}; expected 0..{taken}"):
        EsamFrames(folder, "val")
    change(folder / part / NAME, np.int64, 5, -1)
    with pytest.raises(DataFileError, match=rf"has values -1..\d+; expected 0..{taken}"):
        EsamFrames(folder, "val")


def test_colours_are_rounded_and_within_their_range(data):
    folder, _ = data
    change(folder / "points" / NAME, np.float32, slice(3, 6), [254.6, 255, 0.4])
    cloud = EsamFrames(folder, "val").read_cloud(0)
    assert cloud.colors[0].tolist() == [255, 255, 0] and cloud.colors.dtype == np.uint8
    for value in (255.5, -0.5, np.inf):
        change(folder / "points" / NAME, np.float32, 4, value)
        with pytest.raises(DataFileError, match="not finite, or colours outside of 0..255"):
            EsamFrames(folder, "val").read_cloud(0)


def test_colours_may_differ_by_eight_in_the_mean(data):
    folder, _ = data
    stored = np.fromfile(folder / "points" / NAME, np.float32).reshape(-1, 6)
    stored[:, 3:] += 8
    stored.tofile(folder / "points" / NAME)
    assert EsamFrames(folder, "val").color_errors == [8 / 255]
    stored[0, 3] += 1
    stored.tofile(folder / "points" / NAME)
    with pytest.raises(ValueError, match="row 0: the colours of the points differ .* by 8.0/255"):
        EsamFrames(folder, "val")


def test_points_lie_within_a_tenth_of_a_pixel():
    u, v = np.array([0, 639, 320]), np.array([0, 479, 100])
    for shift, is_taken in ((0.09, True), (-0.09, True), (0.11, False), (-0.11, False)):
        places = np.stack([(u + 0.5 + shift) / 640, (v + 0.5 + shift) / 480], axis=1)
        if is_taken:
            found = _pixels(places, np.ones(3), FILE)
            assert found.dtype == np.int64 and found.tolist() == np.stack([u, v], axis=1).tolist()
        else:
            with pytest.raises(DataFileError, match=r"0 of 3 points outside of the image, and they lie 0.110 pixels"):
                _pixels(places, np.ones(3), FILE)
    places = np.stack([(u + 0.5) / 640, (v + 0.5) / 480], axis=1)
    with pytest.raises(DataFileError, match="has 2 of 3 points outside"):
        _pixels(places, np.array([0.0, 0.5, -1]), FILE)


def test_a_pose_is_a_matrix_of_numbers(data):
    folder, row = data
    pose = row.pop("pose")
    write_infos(folder, [row])
    path = folder / "pose_centered" / "scene0011_00" / "0.npy"
    np.save(path, pose.astype(np.float32).ravel())
    found = EsamFrames(folder, "val")[0].camera_to_world
    assert found.dtype == np.float64 and found.shape == (4, 4)
    np.save(path, pose[:3])
    with pytest.raises(DataFileError, match=r"0.npy: has a pose that is no 4x4 matrix"):
        EsamFrames(folder, "val")
    np.save(path, np.array([{}] * 16), allow_pickle=True)
    with pytest.raises(DataFileError, match=r"0.npy: is no readable array \(ValueError"):
        EsamFrames(folder, "val")
    write_infos(folder, [{**row, "pose": pose.tolist()}])
    np.testing.assert_array_equal(EsamFrames(folder, "val")[-1].camera_to_world, pose)
    write_infos(folder, [{**row, "pose": "unknown"}])
    with pytest.raises(DataFileError, match=r"infos_val.pkl: row 0: has a pose that is no 4x4 matrix"):
        EsamFrames(folder, "val")


def test_so_many_broken_rows_in_a_row_are_enough(data):
    folder, row = data
    lost = [{**row, "lidar_points": {"lidar_path": f"scene0011_00_{index}.bin"}} for index in range(1, 9)]
    write_infos(folder, [*lost[:7], row, row])
    assert len(EsamFrames(folder, "val", check_rows=2, skip_broken=True).color_errors) == 1
    write_infos(folder, [*lost[:6], row, row, row])
    assert len(EsamFrames(folder, "val", check_rows=2, skip_broken=True).color_errors) == 2
    write_infos(folder, [*lost, row])
    with pytest.raises(DataFileError, match=r"scene0011_00_1.bin: No such file"):
        EsamFrames(folder, "val", check_rows=2, skip_broken=True)
    write_infos(folder, [row, lost[0]])
    with pytest.raises(DataFileError, match=r"scene0011_00_1.bin: No such file"):
        EsamFrames(folder, "val")
    for index in (2, -3):
        with pytest.raises(IndexError):
            EsamFrames(folder, "val", check_rows=0)[index]


def test_a_report_has_the_differences_of_the_colours_and_shards_have_their_scans(data, tmp_path, capsys):
    folder, row = data
    stored = np.fromfile(folder / "points" / NAME, np.float32).reshape(-1, 6)
    stored[:, 3] += 7
    stored.tofile(folder / "points" / NAME)
    other, _ = write_frame(folder, "scene0015_00", 40, 3)
    write_infos(folder, [row, other])
    for scans, shards in ((None, 1), (1, 2)):
        options = {} if scans is None else {"scans_per_shard": scans}
        report = prepare_esam(folder, tmp_path / f"out {scans}", ["val"], **options)
        assert "2/2" in capsys.readouterr().err, "a bar tells how far it is"
        assert len(list((tmp_path / f"out {scans}" / "data").iterdir())) == shards
    settings = report["settings"]
    assert settings["colour difference of the first rows, in 255"] == {"val": [2.33, 0.0]}
    assert settings["source"] == "data prepared for ESAM" and settings["jpeg_quality"] is None
    rows = load_frames(tmp_path / "out 1", "val")
    assert rows["depth_scale"] == [1000.0] * 2 and rows["frame_id"] == ["scene0011_00_0", "scene0015_00_40"]


def test_shards_are_made_as_they_are_asked_for(data, tmp_path, monkeypatch):
    folder, _ = data
    asked = []
    monkeypatch.setattr(esam, "write_data_set", lambda *arguments, **options: asked.append((arguments, options)))
    engine = object()
    chosen = {"workers": 3, "engine": engine, "progress": False}
    prepare_esam(folder, tmp_path / "out", ["val"])
    prepare_esam(folder, tmp_path / "out", ["val"], jpeg_quality=90, scans_per_shard=7, **chosen)
    default = {"units_per_shard": 16, "workers": 1, "engine": None, "progress": True}
    assert [options for _, options in asked] == [default, {"units_per_shard": 7, **chosen}]
    (source, units, out, settings), _ = asked[1]
    assert source == esam.EsamSource(folder, 90) and units == {"val": ["val/scene0011_00"]}
    assert out == tmp_path / "out" and settings["jpeg_quality"] == 90


@pytest.fixture(scope="module")
def scans_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("esam_limits") / "scannet200-mv"
    write_scans(folder)
    return folder


def boxes_by_hand(folder, frames):
    points, labels = [], []
    for frame in frames:
        points.append(np.fromfile(folder / "points" / "scene0011_00" / f"{frame}.bin", np.float32).reshape(-1, 6))
        labels.append(np.fromfile(folder / "instance_mask" / "scene0011_00" / f"{frame}.bin", np.int64))
    points, labels = np.concatenate(points)[:, :3], np.concatenate(labels)
    return [[*points[labels == name].min(axis=0), *points[labels == name].max(axis=0)] for name in (1, 2, 4)]


def test_the_objects_of_a_scan_are_those_of_the_frames_that_can_be_read(scans_folder):
    frames = EsamFrames(scans_folder, "val", check_rows=0)
    ids, boxes = frames.scan_objects("scene0011_00")
    assert ids.tolist() == [0, 1, 3] and ids.dtype == np.int64 and boxes.dtype == np.float64
    np.testing.assert_allclose(boxes, boxes_by_hand(scans_folder, (0, 40, 80)), rtol=1e-6)
    path = scans_folder / "instance_mask" / "scene0011_00" / "40.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    np.testing.assert_allclose(frames.scan_objects("scene0011_00")[1], boxes_by_hand(scans_folder, (0, 80)), rtol=1e-6)
    path.write_bytes(content)


def test_names_of_multiple_views_begin_anywhere(scans_folder, tmp_path):
    infos = load_pickle(scans_folder / "scannet200_mv_oneformer3d_infos_val.pkl")
    row = infos["data_list"][0]
    row["pts_paths"] = [f"/home/someone\\data\\{name}".replace("points/", "points\\") for name in row["pts_paths"]]
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(infos, protocol=2))
    assert [EsamFrames(scans_folder, path, check_rows=1).frame_id(index) for index in (0, 2, 3)] == [
        "scene0011_00_0",
        "scene0011_00_80",
        "scene0015_00_0",
    ]


def test_splits_are_all_of_one_kind(scans_folder, tmp_path):
    row, _ = write_frame(scans_folder, "scene0020_00", 0, 5)
    write_infos(scans_folder, [row], "train")
    with pytest.raises(ValueError, match=r"of multiple views are {'train': False, 'val': True}; expected all splits"):
        prepare_esam(scans_folder, tmp_path / "out", progress=False)
