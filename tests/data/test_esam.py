import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from esam_files import POINTS, SCANS, infos_path, write_frame, write_infos, write_scans
from PIL import Image

from bifusion_hf.data.esam import EsamFrames, _pixels, prepare_esam
from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.io.files import DataFileError
from bifusion_hf.io.safe_pickle import load_pickle
from bifusion_hf.processing_bifusion import BiFusionProcessor


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("esam") / "scannet200-sv"
    made = [write_frame(folder, "scene0011_00", 0, 1), write_frame(folder, "scene0011_00", 200, 2)]
    made.append(write_frame(folder, "scene0015_00", 0, 3))
    write_infos(folder, [row for row, _ in made])
    return folder, [origin for _, origin in made]


@pytest.fixture
def data(original, tmp_path):
    """A folder, its rows, and what the frames were made from."""
    folder = tmp_path / "scannet200-sv"
    shutil.copytree(original[0], folder)
    return folder, load_pickle(infos_path(folder))["data_list"], original[1]


def test_points_return_to_their_pixels(data):
    folder, rows, origins = data
    frames = EsamFrames(folder, "val")
    assert len(frames) == 3
    for frame, row, (room, u, v) in zip(frames, rows, origins, strict=True):
        assert frame.frame_id == row["lidar_points"]["lidar_path"][:-4]
        assert np.count_nonzero(frame.depth) == POINTS
        np.testing.assert_allclose(1000 * frame.depth[v, u], room.depth[v, u], atol=0.02)
        np.testing.assert_array_equal(frame.instance[v, u], room.instance[v, u] - 1)
        np.testing.assert_array_equal(frame.semantic[v, u], np.array([-1, 0, 2, 1])[room.raw_ids[v, u]])
        _, expected = np.unique(room.superpoints[v, u], return_inverse=True)
        np.testing.assert_array_equal(frame.superpoints[v, u], expected)
        empty = frame.depth == 0
        for labels in (frame.instance, frame.semantic, frame.superpoints):
            assert (labels[empty] == -1).all()
        np.testing.assert_array_equal(frame.camera_to_world, row["pose"])


def test_the_network_sees_the_very_points_of_the_files(data):
    folder, rows, _ = data
    sample = BiFusionProcessor().prepare_frame(EsamFrames(folder, "val")[1])
    stored = np.fromfile(folder / "points" / rows[1]["lidar_points"]["lidar_path"], np.float32).reshape(-1, 6)
    found = sample["points"] + sample["point_offset"]
    assert len(found) == POINTS
    orders = [np.lexsort(np.round(points[:, ::-1].T, 3)) for points in (found, stored[:, :3])]
    np.testing.assert_allclose(found[orders[0]], stored[orders[1], :3], atol=2e-5)
    np.testing.assert_array_equal(sample["point_rgb"][orders[0]], stored[orders[1], 3:])
    assert sample["point_visible"].all()


def test_the_colour_check_reports_and_refuses(data, caplog):
    folder, rows, _ = data
    with caplog.at_level("INFO"):
        frames = EsamFrames(folder, "val", check_rows=2)
    assert len(frames.color_errors) == 2
    assert max(frames.color_errors) < 0.001
    assert "at most 0.0" in caplog.text
    path = folder / "points" / rows[1]["lidar_points"]["lidar_path"]
    stored = np.fromfile(path, np.float32).reshape(-1, 6)
    stored[:, [0, 1, 2, 5, 4, 3]].tofile(path)
    with pytest.raises(ValueError, match=r"infos_val\.pkl: row 1: the colours .*colour channels"):
        EsamFrames(folder, "val")
    assert EsamFrames(folder, "val", check_rows=1).color_errors[0] < 0.001


def test_images_of_another_frame_are_noticed(data):
    folder, rows, _ = data
    path = folder / "2D" / "scene0011_00" / "color" / "0.jpg"
    Image.fromarray(np.asarray(Image.open(path))[:, ::-1]).save(path, quality=95)
    with pytest.raises(ValueError, match="row 0: the colours"):
        EsamFrames(folder, "val")


def test_a_wrong_pose_is_noticed(data):
    folder, rows, _ = data
    rows[0]["pose"] = rows[1]["pose"]
    write_infos(folder, rows)
    with pytest.raises(DataFileError, match=r"scene0011_00_0\.bin: has .* points outside of the image"):
        EsamFrames(folder, "val")
    # Turned a little about the camera: the points stay inside, but not on pixels.
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(2e-3), -np.sin(2e-3)], [np.sin(2e-3), np.cos(2e-3)]]
    rows[0]["pose"] = np.load(folder / "pose_centered" / "scene0011_00" / "0.npy") @ turned
    write_infos(folder, rows)
    with pytest.raises(DataFileError, match="beside pixel centres"):
        EsamFrames(folder, "val")


def test_a_row_without_pose_takes_the_file_beside(data):
    folder, rows, _ = data
    expected = rows[0].pop("pose")
    write_infos(folder, rows)
    np.testing.assert_array_equal(EsamFrames(folder, "val")[0].camera_to_world, expected)
    (folder / "pose_centered" / "scene0011_00" / "0.npy").unlink()
    with pytest.raises(DataFileError, match=r"0\.npy"):
        EsamFrames(folder, "val")


BAD_NAMES = (
    "../points/secret.bin",
    "/etc/passwd",
    "a/b.bin",
    "..",
    "",
    "C:\\x.bin",
    "a\\..\\..\\x.bin",
    "a\0b",
    7,
    None,
)


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("key", ["lidar_path", "super_pts_path", "pts_instance_mask_path", "pts_semantic_mask_path"])
def test_names_that_leave_the_folder_are_refused(data, key, name):
    folder, rows, _ = data
    (rows[0]["lidar_points"] if key == "lidar_path" else rows[0])[key] = name
    write_infos(folder, rows)
    with pytest.raises(DataFileError, match=r"infos_val\.pkl: .*(names the file|has the file name)"):
        EsamFrames(folder, "val")


@pytest.mark.parametrize(
    "name", ["2D/../../secret.jpg", "/etc/passwd", "../2D/scene0011_00/color/0.jpg", "2D/x/..\\..\\..\\0.jpg", 5]
)
def test_image_names_that_leave_the_folder_are_refused(data, name):
    folder, rows, _ = data
    rows[0]["img_path"] = name
    write_infos(folder, rows)
    with pytest.raises(DataFileError, match=r"infos_val\.pkl"):
        EsamFrames(folder, "val")


@pytest.mark.parametrize(
    "prefix", ["", "./data/scannet200-sv/", "/home/someone/ESAM/data/scannet200-sv/", "data\\scannet200-sv\\"]
)
def test_image_names_begin_anywhere(data, prefix):
    folder, rows, _ = data
    rows[0]["img_path"] = f"{prefix}2D/scene0011_00/color/0.jpg"
    write_infos(folder, rows)
    assert EsamFrames(folder, "val", check_rows=1)[0].frame_id == "scene0011_00_0"


def test_pixels_of_places():
    u, v = np.array([0, 639, 320]), np.array([0, 479, 100])
    places = np.stack([(u + 0.5) / 640, (v + 0.5) / 480], axis=1)
    np.testing.assert_array_equal(_pixels(places, np.ones(3), Path("frame.bin")), np.stack([u, v], axis=1))
    for wrong in ((-1, 5), (640, 5), (5, -1), (5, 480), (np.nan, 5)):
        places[1] = (np.array(wrong) + 0.5) / (640, 480)
        with pytest.raises(DataFileError, match="frame.bin: has 1 of 3 points outside of the image"):
            _pixels(places, np.ones(3), Path("frame.bin"))
    places[1] = 0.5
    with pytest.raises(DataFileError, match="has 1 of 3 points outside"):
        _pixels(places, np.array([1.0, 1.0, -1.0]), Path("frame.bin"))


def test_damaged_files_are_named(data):
    folder, rows, _ = data
    name = "scene0011_00_0.bin"
    for path, content, message in (
        (folder / "points" / name, b"\0" * 23, "multiple of 24"),
        (folder / "points" / name, b"", "multiple of 24"),
        (folder / "points" / name, np.full(6, np.nan, np.float32).tobytes(), "not finite"),
        (folder / "points" / name, np.full(6, 300, np.float32).tobytes(), "outside of 0..255"),
        (folder / "super_points" / name, bytes(8 * 7), "has 7 entries"),
        (folder / "instance_mask" / name, np.full(POINTS, -1).tobytes(), "expected 0"),
        (folder / "semantic_mask" / name, np.full(POINTS, 1400).tobytes(), "expected 0..1357"),
        (folder / "2D" / "scene0011_00" / "color" / "0.jpg", b"\xff\xd8\xff", "no readable PNG or JPEG"),
    ):
        original = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(DataFileError, match=message) as error:
            EsamFrames(folder, "val")
        assert str(error.value).startswith(str(path))
        path.write_bytes(original)
    EsamFrames(folder, "val")


@pytest.mark.parametrize(
    "infos", [[], {"data_list": []}, {"data_list": [3]}, {"data_list": {"a": 1}}, {"metainfo": {}}]
)
def test_other_infos_are_refused(data, infos):
    folder, _, _ = data
    infos_path(folder).write_bytes(pickle.dumps(infos))
    with pytest.raises(DataFileError, match="no data_list"):
        EsamFrames(folder, "val")


def test_infos_that_run_something_are_refused(data):
    folder, rows, _ = data
    infos_path(folder).write_bytes(b"cposix\nsystem\n(S'touch /nonexistent/x'\ntR.")
    with pytest.raises(DataFileError, match="object of posix.system"):
        EsamFrames(folder, "val")


def test_conversion_keeps_the_frames(data, tmp_path):
    folder, rows, _ = data
    write_infos(folder, rows[:2], "train")
    write_infos(folder, rows[2:], "val")
    report = prepare_esam(folder, tmp_path / "out", progress=False)
    assert {split: part["frames"] for split, part in report["splits"].items()} == {"train": 2, "val": 1}
    assert len(report["settings"]["colour difference of the first rows, in 255"]["train"]) == 2
    for split in ("train", "val"):
        for row, expected in zip(load_frames(tmp_path / "out", split), EsamFrames(folder, split), strict=True):
            found = frame_from_row(row)
            np.testing.assert_allclose(found.depth, expected.depth, atol=2e-5)
            for name in ("image", "instance", "semantic", "superpoints", "intrinsics", "camera_to_world"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["frame_id"] == ["scene0011_00_0", "scene0011_00_200"]


def test_conversion_reports_rows_that_cannot_be_read(data, tmp_path):
    folder, rows, _ = data
    write_infos(folder, [rows[0]] * 8 + rows[1:], "val")
    (folder / "instance_mask" / "scene0015_00_0.bin").write_bytes(b"")
    report = prepare_esam(folder, tmp_path / "out", ["val"], progress=False)
    assert report["splits"]["val"]["frames"] == 9
    assert report["splits"]["val"]["skipped_by_reason"] == {"unreadable": 1}


@pytest.mark.parametrize("broken", [0, 7, 8])
def test_a_broken_row_is_left_out_wherever_it_is(data, tmp_path, broken):
    folder, rows, _ = data
    rows = [dict(rows[0]) for _ in range(10)]
    rows[broken]["pose"] = np.full((4, 4), np.nan)
    write_infos(folder, rows, "val")
    report = prepare_esam(folder, tmp_path / "out", ["val"], progress=False)
    assert report["splits"]["val"]["frames"] == 9
    assert report["splits"]["val"]["skipped_by_reason"] == {"unreadable": 1}
    assert len(report["settings"]["colour difference of the first rows, in 255"]["val"]) == 8
    with pytest.raises(DataFileError, match="camera_to_world is not finite"):
        EsamFrames(folder, "val", check_rows=9)


def test_where_all_rows_are_broken_the_first_is_named(data, tmp_path):
    folder, rows, _ = data
    shutil.rmtree(folder / "2D")
    with pytest.raises(DataFileError, match=r"scene0011_00/color/0.jpg: No such file"):
        prepare_esam(folder, tmp_path / "out", ["val"], progress=False)


def test_data_that_were_made_anew_are_read_anew(data, tmp_path):
    folder, rows, _ = data
    for number in (1, 3):
        write_infos(folder, rows[:number], "val")
        report = prepare_esam(folder, tmp_path / f"out {number}", ["val"], progress=False)
        assert report["splits"]["val"]["frames"] == number


def test_fuzzed_files_end_in_an_error_that_names_one(data, count=300):
    """Bits flipped, files cut: a frame or an error with the name of a file, nothing else."""
    folder, rows, _ = data
    rng = np.random.default_rng(0)
    failed = 0
    paths = [
        folder / part / "scene0011_00_0.bin" for part in ("points", "super_points", "instance_mask", "semantic_mask")
    ]
    paths += [folder / "2D" / "scene0011_00" / "color" / "0.jpg", infos_path(folder)]
    for trial in range(count):
        path = paths[trial % len(paths)]
        original = path.read_bytes()
        content = bytearray(original)
        if trial % 4 == 0:
            del content[int(rng.integers(len(content))) :]
        for bit in rng.integers(8 * max(1, len(content)), size=rng.integers(0, 30)):
            content[bit // 8 : bit // 8 + 1] = bytes([content[bit // 8] ^ 1 << bit % 8]) if content else b""
        path.write_bytes(content)
        try:
            frames = EsamFrames(folder, "val", check_rows=0)
            frames.read_frame(0)
        except DataFileError as error:
            assert str(folder) in str(error)
            failed += 1
        path.write_bytes(original)
    assert failed > count / 3


@pytest.fixture(scope="module")
def scans_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("esam_mv") / "scannet200-mv"
    return folder, write_scans(folder)


def test_frames_of_multiple_views_are_in_the_world_of_their_scan(scans_folder):
    folder, origins = scans_folder
    frames = EsamFrames(folder, "val")
    assert frames.sequences and len(frames) == 5
    assert frames.indices_by_scan() == {"scene0011_00": [0, 1, 2], "scene0015_00": [3, 4]}
    for index, (name, (room, u, v)) in enumerate(origins.items()):
        frame = frames[index]
        assert frame.frame_id == name
        np.testing.assert_array_equal(frame.camera_to_world, room.pose)
        np.testing.assert_allclose(1000 * frame.depth[v, u], room.depth[v, u], atol=0.02)
        np.testing.assert_array_equal(frame.instance[v, u], room.instance[v, u] - 1)
        stored = frames.read_cloud(index).points
        np.testing.assert_allclose(frame.unproject()[v, u], stored, atol=1e-4)


def test_scans_are_written_as_sequences_with_boxes_of_what_was_seen(scans_folder, tmp_path):
    folder, _ = scans_folder
    report = prepare_esam(folder, tmp_path / "out", ["val"], progress=False)
    assert report["settings"]["sequences"] is True and report["splits"]["val"]["frames"] == 5
    rows = load_frames(tmp_path / "out", "val")
    assert rows["scene_id"] == ["scene0011_00"] * 3 + ["scene0015_00"] * 2
    for scan in SCANS:
        own = [row for row in rows if row["scene_id"] == scan]
        frames = [frame_from_row(row) for row in own]
        assert own[0]["object_ids"] == [0, 1, 3]
        for name, box in zip(own[0]["object_ids"], own[0]["object_boxes"], strict=True):
            points = np.concatenate([frame.unproject()[frame.instance == name] for frame in frames])
            # The stored depth is of whole millimetres.
            np.testing.assert_allclose(box, [*points.min(axis=0), *points.max(axis=0)], atol=2e-3)
        assert all(row["object_boxes"] == own[0]["object_boxes"] for row in own)


def test_single_views_are_written_as_before(data, tmp_path):
    folder, _, _ = data
    report = prepare_esam(folder, tmp_path / "out", ["val"], progress=False)
    assert "sequences" not in report["settings"]
    assert "scene_id" not in load_frames(tmp_path / "out", "val").column_names


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("poses", None, "row 1 has no list poses"),
        ("img_paths", ["a"], "row 1 has no list img_paths with an entry for each of its frames"),
        ("pts_paths", [3, 4], "row 1 has pts_paths that are no names"),
        ("pts_paths", ["a", 4], "row 1 has pts_paths that are no names"),
        ("super_pts_paths", ["0.bin", "40.bin"], "expected a scan's folder and a name"),
        (
            "pts_instance_mask_paths",
            ["../../a.bin", "../../b.bin"],
            "frame 3: names the file '../a.bin'; expected one inside",
        ),
    ],
)
def test_a_damaged_row_of_a_scan_is_named(key, value, message, scans_folder, tmp_path):
    path = tmp_path / "infos.pkl"
    infos = load_pickle(scans_folder[0] / "scannet200_mv_oneformer3d_infos_val.pkl")
    infos["data_list"][1][key] = value
    path.write_bytes(pickle.dumps(infos, protocol=2))
    with pytest.raises(DataFileError, match=message):
        EsamFrames(scans_folder[0], path, check_rows=5)


def test_infos_of_both_kinds_need_the_path_of_one(scans_folder, tmp_path):
    for kind in ("sv", "mv"):
        (tmp_path / f"scannet200_{kind}_oneformer3d_infos_val.pkl").write_bytes(b"")
    with pytest.raises(DataFileError, match="give the path of one of them"):
        EsamFrames(tmp_path, "val")
