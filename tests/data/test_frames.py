import io
import warnings

import numpy as np
import pytest
from frame_factory import make_frame
from PIL import Image

from bifusion_hf import RGBDFrame
from bifusion_hf.data.frames import (
    CAMERA_TO_POINTS,
    depth_in_metres,
    frame_features,
    frame_from_row,
    frame_to_row,
    load_frames,
    scale_intrinsics,
)
from bifusion_hf.io.files import DataFileError


INTRINSICS = np.array([[60.0, 0, 31.5], [0, 55.0, 23.0], [0, 0, 1]])


def arguments(**changes):
    rng = np.random.default_rng(0)
    values = {
        "image": rng.integers(0, 255, (48, 64, 3)).astype(np.uint8),
        "depth": rng.uniform(0.5, 4, (48, 64)),
        "intrinsics": INTRINSICS,
        "frame_id": "room_7",
    }
    return {**values, **changes}


def pose(angle=0.3):
    value = np.eye(4)
    value[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    value[:3, :3] = value[:3, :3] @ CAMERA_TO_POINTS
    value[:3, 3] = [1, 2, 1.5]
    return value


def rescaled(factor):
    value = pose()
    value[:3, :3] *= factor
    return value


def few_points():
    depth = np.zeros((48, 64))
    depth[:3, :33] = 1.0
    return depth


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((48, 64, 3))}, "image has shape .* float64; expected uint8"),
        ({"image": np.zeros((48, 64, 4), np.uint8)}, "image has shape"),
        ({"image": np.zeros((64, 48, 3), np.uint8)}, "image is 48x64 while depth is 64x48"),
        ({"depth": np.ones((48, 64), np.uint16)}, "depth .* uint16; expected float"),
        ({"depth": few_points()}, "depth has 99 pixels with a measurement; expected at least 100"),
        ({"depth": np.full((48, 64), np.nan)}, "depth has 0 pixels"),
        ({"intrinsics": np.eye(4)}, r"intrinsics has shape \(4, 4\)"),
        ({"intrinsics": np.diag([0.0, 60, 1])}, "focal"),
        ({"intrinsics": np.diag([60.0, -60, 1])}, "focal"),
        ({"intrinsics": np.diag([60.0, 0, 1])}, "has focal lengths 60, 0; expected positive ones"),
        ({"intrinsics": np.array([[60.0, 0, 70], [0, 60, 23], [0, 0, 1]])}, "the principal point is outside"),
        ({"depth": np.full((48, 64), 2000.0)}, "the median depth is 2e.03 m"),
        ({"depth": np.ones((48, 64, 1))}, r"depth has shape \(48, 64, 1\)"),
        ({"image": np.zeros((48, 64), np.uint8)}, r"image has shape \(48, 64\)"),
        ({"semantic": np.zeros((48, 64), bool)}, "semantic .* bool; expected integers"),
        ({"intrinsics": np.full((3, 3), np.nan)}, "intrinsics is not finite"),
        ({"intrinsics": INTRINSICS.T}, "intrinsics is"),
        ({"camera_to_world": np.eye(3)}, r"camera_to_world has shape \(3, 3\)"),
        ({"camera_to_world": 2 * np.eye(4)}, "rigid"),
        ({"camera_to_world": np.diag([1.0, 1, -1, 1])}, "rigid"),
        ({"camera_to_world": np.full((4, 4), np.nan)}, "camera_to_world is not finite"),
        ({"superpoints": np.zeros((24, 32), int)}, r"superpoints has shape \(24, 32\)"),
        ({"instance": np.zeros((48, 64))}, "instance .* float64; expected integers"),
    ],
)
def test_malformed_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=f"room_7: .*{message}"):
        RGBDFrame(**arguments(**changes))


def test_numbers_of_any_kind_are_taken():
    frame = RGBDFrame(**arguments(intrinsics=INTRINSICS.tolist(), camera_to_world=pose().astype(np.float32).tolist()))
    for value, expected in ((frame.intrinsics, INTRINSICS), (frame.camera_to_world, pose())):
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, expected, atol=1e-6)


def changed(matrix, row, column, by):
    result = matrix.copy()
    result[row, column] += by
    return result


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("camera_to_world", changed(pose(), 3, 0, 5e-7), changed(pose(), 3, 0, 2e-6)),
        ("camera_to_world", changed(pose(), 3, 2, -5e-7), changed(pose(), 3, 2, -2e-6)),
        ("camera_to_world", changed(pose(), 3, 3, 5e-6), changed(pose(), 3, 3, 5e-5)),
        ("camera_to_world", rescaled(1.0004), rescaled(1.0006)),
        ("intrinsics", changed(INTRINSICS, 0, 1, 0.05), changed(INTRINSICS, 0, 1, 0.07)),
        ("intrinsics", changed(INTRINSICS, 0, 1, -0.05), changed(INTRINSICS, 0, 1, -0.07)),
        ("intrinsics", changed(INTRINSICS, 1, 0, 5e-7), changed(INTRINSICS, 1, 0, 2e-6)),
        ("intrinsics", changed(INTRINSICS, 1, 0, -5e-7), changed(INTRINSICS, 1, 0, -2e-6)),
        ("intrinsics", changed(INTRINSICS, 2, 2, 5e-6), changed(INTRINSICS, 2, 2, 5e-5)),
        ("intrinsics", INTRINSICS, changed(INTRINSICS, 2, 0, 1e-6)),
    ],
)
def test_matrices_may_be_rounded_and_no_more(name, taken, refused):
    RGBDFrame(**arguments(**{name: taken}))
    with pytest.raises(ValueError, match=f"room_7: {name} is "):
        RGBDFrame(**arguments(**{name: refused}))


def test_a_hundred_measurements_are_enough_and_labels_are_of_32_bits():
    depth = few_points()
    depth[10, 10] = 2
    labels = {name: np.ones((48, 64), np.int64) for name in ("instance", "semantic", "superpoints")}
    frame = RGBDFrame(**arguments(depth=depth, **labels))
    assert {getattr(frame, name).dtype for name in labels} == {np.dtype(np.int32)}
    assert RGBDFrame(frame.image, frame.depth, INTRINSICS).frame_id == "frame"


def test_the_rotation_of_a_camera_is_a_copy():
    for camera_to_world, axes in ((None, "camera axes relabelled x right, y forward, z up"), (pose(), "world")):
        frame = RGBDFrame(**arguments(camera_to_world=camera_to_world))
        expected = CAMERA_TO_POINTS.copy() if camera_to_world is None else camera_to_world[:3, :3].copy()
        frame.camera_rotation[:] = 7
        np.testing.assert_array_equal(frame.camera_rotation, expected)
        assert frame.axes == axes


def test_no_measurement_is_zero():
    depth = np.full((48, 64), 2.0)
    depth[0, :6] = [0, -1, np.nan, np.inf, -np.inf, 1e60]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = RGBDFrame(**arguments(depth=depth))
    assert frame.depth.dtype == np.float32 and not frame.depth[0, :6].any() and (frame.depth[1:] == 2).all()


def test_colour_may_be_larger_than_depth_at_the_same_aspect():
    assert RGBDFrame(**arguments(image=np.zeros((480, 640, 3), np.uint8))).image.shape == (480, 640, 3)


@pytest.mark.parametrize("depth", [(48, 64), (64, 48), (12, 16)])
def test_sizes_may_be_rounded_by_a_pixel_at_either_size(depth):
    """16x13 for 16x12 is within a pixel; 16x14 is another aspect."""
    height, width = depth
    intrinsics = np.array([[width, 0, (width - 1) / 2], [0, width, (height - 1) / 2], [0, 0, 1]], dtype=float)
    image = (13, 16) if width > height else (16, 13)
    RGBDFrame(np.zeros((*image, 3), np.uint8), np.ones(depth), intrinsics)
    image = (14, 16) if width > height else (16, 14)
    with pytest.raises(ValueError, match="while depth is"):
        RGBDFrame(np.zeros((*image, 3), np.uint8), np.ones(depth), intrinsics)


@pytest.mark.parametrize("camera_to_world", [None, pose()])
def test_unproject_is_the_inverse_of_projection(camera_to_world):
    frame = RGBDFrame(**arguments(camera_to_world=camera_to_world))
    points = frame.unproject().reshape(-1, 3).astype(np.float64)
    if camera_to_world is None:
        camera = points @ CAMERA_TO_POINTS
    else:
        camera = (np.c_[points, np.ones(len(points))] @ np.linalg.inv(camera_to_world).T)[:, :3]
    pixels = camera @ frame.intrinsics.T
    v, u = np.mgrid[:48, :64]
    np.testing.assert_allclose(pixels[:, 0] / pixels[:, 2], u.ravel(), atol=1e-4)
    np.testing.assert_allclose(pixels[:, 1] / pixels[:, 2], v.ravel(), atol=1e-4)
    np.testing.assert_allclose(camera[:, 2], frame.depth.ravel(), atol=1e-5)
    chosen = np.array([64 * 47 + 3, 0, 64])
    assert frame.unproject().dtype == frame.unproject(chosen).dtype == np.float32
    np.testing.assert_array_equal(frame.unproject(chosen), frame.unproject()[[47, 0, 1], [3, 0, 0]])


def test_points_without_pose_are_z_up():
    depth = np.full((48, 64), 2.0)
    points = RGBDFrame(**arguments(depth=depth)).unproject()
    assert np.allclose(points[..., 1], 2.0), "depth is forward, y"
    assert (np.diff(points[:, 10, 2]) < 0).all(), "lower in the image is lower in the room"
    assert (np.diff(points[10, :, 0]) > 0).all()


def test_scaled_intrinsics_keep_the_rays():
    scaled = scale_intrinsics(INTRINSICS, 0.5, 0.5)
    # Pixel (0.5, 0.5) of the full image is the centre of pixel (0, 0) of the half image.
    np.testing.assert_allclose(np.linalg.inv(scaled) @ [0, 0, 1], np.linalg.inv(INTRINSICS) @ [0.5, 0.5, 1])


@pytest.mark.parametrize("camera_to_world", [None, pose()])
def test_rows_keep_a_frame(camera_to_world, tmp_path):
    import datasets

    rng = np.random.default_rng(1)
    depth = np.round(arguments()["depth"], 3)
    labels = {name: rng.integers(-1, 300, (48, 64)) for name in ("instance", "semantic", "superpoints")}
    frame = RGBDFrame(**arguments(depth=depth, camera_to_world=camera_to_world, **labels))
    row = frame_to_row(frame)
    (tmp_path / "data").mkdir()
    table = datasets.Dataset.from_list([row, row], features=frame_features())
    table.to_parquet(tmp_path / "data" / "val-00000-of-00001.parquet")
    for streaming in (False, True):
        for stored in load_frames(tmp_path, "val", streaming=streaming):
            assert set(stored["image"]) == set(stored["superpoints"] or stored["image"]) == {"bytes", "path"}
            loaded = frame_from_row(stored)
            assert loaded.frame_id == "room_7"
            np.testing.assert_array_equal(loaded.image, frame.image)
            np.testing.assert_allclose(loaded.depth, frame.depth, atol=1e-6)
            np.testing.assert_array_equal(loaded.intrinsics, frame.intrinsics)
            if camera_to_world is None:
                assert loaded.camera_to_world is None
            else:
                np.testing.assert_array_equal(loaded.camera_to_world, camera_to_world)
            for name, values in labels.items():
                np.testing.assert_array_equal(getattr(loaded, name), values)
    with pytest.raises(
        ValueError, match=r"no data/train-\*.parquet; its shards: \['data/val-00000-of-00001.parquet'\]"
    ):
        load_frames(tmp_path, "train")


def test_frames_that_cannot_be_read_are_refused_by_the_name_of_their_place(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val-0.parquet").write_bytes(b"no table")
    with pytest.raises(DataFileError, match=r"data/val-\*.parquet cannot be read \(") as error:
        load_frames(str(tmp_path), "val")
    assert str(error.value).startswith(str(tmp_path))
    (tmp_path / "other.parquet").touch()
    with pytest.raises(ValueError, match=r"shards: \['other.parquet', 'data/val-0.parquet'\]"):
        load_frames(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="no such folder, and no id of the Hub"):
        load_frames(tmp_path / "nothing", "val")


@pytest.mark.parametrize(("source", "revision"), [("org/rooms", None), ("org/rooms@v2", "v2")])
def test_a_data_set_of_the_hub_is_asked_for_by_its_revision(source, revision, monkeypatch):
    import datasets

    asked = []
    features = datasets.Features({"image": datasets.Image(), "frame_id": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"image": [None], "frame_id": ["a"]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: asked.append((names, options)) or table)
    for streaming in (False, True):
        rows = load_frames(source, "val", streaming=streaming)
        assert rows.features["image"].decode is False and rows["frame_id"] == ["a"]
    expected = {"split": "val", "revision": revision}
    assert asked == [(("org/rooms",), {**expected, "streaming": streaming}) for streaming in (False, True)]


def test_decoded_rows_are_read_too():
    frame = RGBDFrame(**arguments(instance=np.zeros((48, 64), int)))
    row = frame_to_row(frame)
    row["image"] = Image.fromarray(frame.image).convert("RGBA")
    row["instance"] = Image.fromarray(np.ones((48, 64), np.uint16))
    loaded = frame_from_row(row)
    np.testing.assert_array_equal(loaded.image, frame.image)
    np.testing.assert_array_equal(loaded.instance, frame.instance)


def test_rows_without_a_column_are_named():
    row = frame_to_row(RGBDFrame(**arguments()))
    row["intrinsics"] = None
    with pytest.raises(ValueError, match="room_7: row has no intrinsics"):
        frame_from_row(row)
    del row["depth"], row["frame_id"]
    with pytest.raises(ValueError, match="frame: row has no depth, intrinsics; it has .*'camera_to_world', 'depth_sc"):
        frame_from_row(row)


def decoded(column):
    return Image.open(io.BytesIO(column["bytes"]))


def test_depth_is_stored_in_millimetres_and_labels_with_one_added():
    depth = np.full((48, 64), 1.2344)
    # The last is half a millimetre and a little more.
    depth[0, :4] = [0, 2.0006, 1.2344, 1.2345]
    labels = np.full((48, 64), 65534)
    labels[0, :2] = [-1, 0]
    frame = RGBDFrame(**arguments(depth=depth, semantic=labels))
    row = frame_to_row(frame)
    assert row["depth_scale"] == 1000.0 and type(row["depth_scale"]) is float
    assert np.asarray(decoded(row["depth"]))[0, :4].tolist() == [0, 2001, 1234, 1235]
    assert np.asarray(decoded(row["semantic"]))[0, :3].tolist() == [0, 1, 65535]
    assert row["instance"] is row["superpoints"] is row["camera_to_world"] is None
    row = frame_to_row(frame, 5000)
    assert np.asarray(decoded(row["depth"]))[0, :3].tolist() == [0, 10003, 6172]
    np.testing.assert_allclose(frame_from_row(row).depth, np.rint(frame.depth.astype(float) * 5000) / 5000, rtol=1e-6)
    for value, message in ((-2, "values -1..1 do not fit 16 bits"), (65535, "values 1..65536 do not fit 16 bits")):
        labels = np.zeros((48, 64), int)
        labels[5, 5] = value
        with pytest.raises(ValueError, match=message):
            frame_to_row(RGBDFrame(**arguments(instance=labels)))


def test_colours_are_stored_as_they_are_or_as_a_jpeg_whose_colours_are_not_coarser():
    frame = RGBDFrame(**arguments(image=np.tile([[[200, 40, 40], [40, 40, 200]]], (48, 32, 1)).astype(np.uint8)))
    assert decoded(frame_to_row(frame)["image"]).format == "PNG"
    sizes = []
    for quality in (30, 98):
        column = frame_to_row(frame, jpeg_quality=quality)["image"]
        assert column["path"] is None and decoded(column).format == "JPEG"
        sizes.append(len(column["bytes"]))
    # Columns of red and blue by turns would be one colour if chroma had half the columns.
    assert np.abs(np.asarray(decoded(column)).astype(int) - frame.image).max() < 12
    assert sizes[0] < sizes[1]


def test_depth_beyond_16_bits_is_refused():
    depth = np.full((48, 64), 7.0)
    depth[0, 0] = 70
    with pytest.raises(ValueError, match="16 bits"):
        frame_to_row(RGBDFrame(**arguments(depth=depth)))


def test_depth_in_metres_takes_what_is_stored():
    stored = np.array([[0, 1500], [40000, 2]], np.uint16)
    np.testing.assert_array_equal(depth_in_metres(stored, 5000, "a"), stored.astype(np.float64) / 5000)
    metres = np.array([[0.5, np.nan]], np.float32)
    np.testing.assert_array_equal(depth_in_metres(metres, None, "a"), metres.astype(np.float64))
    # The largest number of 16 bits is what some cameras store where they see nothing.
    unseen = np.array([[65535, 500], [800, 1000]], np.uint16)
    found = depth_in_metres(unseen, np.float32(1000), "a")
    assert found.dtype == np.float64 and found.tolist() == [[0, 0.5], [0.8, 1.0]]
    for scale in (2.0, 0.5):
        np.testing.assert_array_equal(depth_in_metres(metres, scale, "a"), metres.astype(np.float64) / scale)
    for values, scale, message in (
        (stored, None, "a: depth has dtype uint16 and depth_scale is None; expected depth_scale, the units per metre"),
        (stored, 0, "a: depth_scale is 0; expected positive"),
        (metres, float("nan"), "a: depth_scale is nan; expected positive"),
        (metres, float("inf"), "a: depth_scale is inf; expected positive"),
        (stored, -1000, "a: depth_scale is -1000; expected positive"),
        (stored, np.array([1000.0]), r"a: depth_scale is \[1000.\]; expected positive units per metre, one number"),
        (stored, "1000", "a: depth_scale is 1000; expected positive"),
        (metres.astype(np.complex64), None, "a: depth has dtype complex64; expected integers or floating point"),
        (stored > 0, None, "a: depth has dtype bool"),
    ):
        with pytest.raises(ValueError, match=message):
            depth_in_metres(values, scale, "a")


def test_a_row_whose_scale_means_nothing_is_refused():
    row = frame_to_row(make_frame())
    for scale in (0.0, -1000.0, float("inf")):
        with pytest.raises(
            ValueError, match=f"synthetic 0: depth_scale is {scale}; expected positive units per metre"
        ):
            frame_from_row({**row, "depth_scale": scale})
