"""Intrinsics in the forms in which people have them."""

import json
import zipfile

import numpy as np
import pytest

from bifusion_hf.data.camera_files import load_array, read_camera, read_intrinsics, read_numbers


MATRIX = np.array([[525.0, 0, 319.5], [0, 520.0, 239.5], [0, 0, 1]])


@pytest.mark.parametrize(
    "mapping",
    [
        {"fx": 525, "fy": 520, "cx": 319.5, "cy": 239.5},
        {"fx": "525", "fy": "520", "ppx": "319.5", "ppy": "239.5"},
        # Open3D and Record3D write the columns one after the other, everyone else the rows.
        {"intrinsic_matrix": MATRIX.T.flatten().tolist()},
        {"camera_matrix": {"rows": 3, "cols": 3, "data": MATRIX.flatten().tolist()}},
        {"K": MATRIX.flatten().tolist()},
        {"K": MATRIX.tolist()},
        {"intrinsic_matrix": MATRIX.tolist()},
        # A camera that has a name of its own, and fields that say that its lens does not distort.
        {"camera_matrix": {"fx": 525, "fy": 520, "cx": 319.5, "cy": 239.5}, "distortion": "none", "k1": None},
        {"K": MATRIX.tolist(), "dist": {"model": "plumb_bob"}, "D": [0.0, 0.0], "p2": 0},
        # Only the names of coefficients are theirs.
        {"K": MATRIX.tolist(), "k10": 3, "k_1": 2, "ok1": 1},
    ],
)
def test_mappings(mapping, tmp_path):
    np.testing.assert_array_equal(read_intrinsics(mapping), MATRIX)
    path = tmp_path / "camera.json"
    path.write_text(json.dumps(mapping))
    np.testing.assert_array_equal(read_intrinsics(path), MATRIX)


@pytest.mark.parametrize("values", [(525.0, 520.0, 319.5), (525.0, 520.0, 319.5, 239.5, 1.0), MATRIX])
def test_numbers_that_are_not_four(values):
    with pytest.raises(ValueError, match="expected the four numbers fx fy cx cy"):
        read_intrinsics(values)
    np.testing.assert_array_equal(read_intrinsics((525, 520, 319.5, 239.5)), MATRIX)
    assert read_intrinsics((525, 520, 320, 240)).dtype == read_intrinsics(np.float32([1, 1, 0, 0])).dtype == np.float64


@pytest.mark.parametrize("shape", [(4,), (3, 3), (9,), (4, 4), (16,)])
def test_text(shape, tmp_path):
    values = np.array([525, 520, 319.5, 239.5])
    if shape != (4,):
        size = 3 if 9 in (shape[0], shape[0] ** 2) else 4
        values = np.eye(size)
        values[:3, :3] = MATRIX
    path = tmp_path / "intrinsics.txt"
    np.savetxt(path, values.reshape(shape)[None] if len(shape) == 1 else values)
    array, listed = tmp_path / "intrinsics.npy", tmp_path / "intrinsics.JSON"
    np.save(array, values.reshape(shape))
    listed.write_text(json.dumps(values.reshape(shape).tolist()))
    for source in (path, array, listed):
        camera = read_camera(source)
        np.testing.assert_array_equal(camera.intrinsics, MATRIX)
        assert camera.source == str(source) and camera.size is None


def test_the_size_is_width_and_height(tmp_path):
    sizes, matrix = {"width": "640", "height": 480.0}, MATRIX.tolist()
    path = tmp_path / "camera.yml"
    for content in (
        {"K": matrix, **sizes},
        {"fx": 525, "fy": 520, "cx": 319.5, "cy": 239.5, "image_width": 640, "image_height": 480},
        {"intrinsics": {"K": matrix, "w": 640, "h": 480}},
        {"intrinsics": {"K": matrix}, **sizes},
        {"intrinsics": {"K": matrix, **sizes}, "width": 320, "height": 240},
    ):
        path.write_text(json.dumps(content))
        for source, name in ((content, "intrinsics"), (path, str(path))):
            camera = read_camera(source)
            assert str(camera.size) == "(640, 480)" and camera.source == name
    for content in ({}, {"width": 640}, {"height": 480, "width": None}):
        assert read_camera({"K": matrix, **content}).size is None
    with pytest.raises(ValueError, match="intrinsics: inf is no width or height of an image"):
        read_camera({"K": matrix, "width": float("inf"), "height": 480})


def test_intrinsics_are_of_a_depth_image_of_their_size_alone():
    camera = read_camera({"K": MATRIX.tolist(), "width": 640, "height": 480})
    assert camera.of_depth((480, 640)) is camera.intrinsics
    with pytest.raises(ValueError, match="intrinsics: is of images of 640x480; the depth image is 480x640"):
        camera.of_depth((640, 480))
    anywhere = read_camera([525, 520, 319.5, 239.5])
    assert anywhere.of_depth((5, 7)) is anywhere.intrinsics


def test_rows_of_text_may_have_commas_comments_and_empty_lines_between_them(tmp_path):
    path = tmp_path / "k.txt"
    path.write_text("# fx\n\n525, 0,319.5  # first\n   \n0 520 239.5\n\t#\n0 0 1\n")
    assert read_numbers(path) == MATRIX.tolist()


def test_what_holds_no_array_of_numbers_is_refused(tmp_path):
    # Objects are pickles, which can run anything.
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"objects.npy: not a .npy array \(Object arrays cannot be loaded"):
        read_camera(tmp_path / "objects.npy")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("depth", "far")
    with pytest.raises(ValueError, match="text.npz: its depth is no array"):
        load_array(tmp_path / "text.npz")
    np.savez(tmp_path / "two.npz", mask=np.ones(1), depth=np.arange(3))
    np.testing.assert_array_equal(load_array(str(tmp_path / "two.npz"), ("far", "depth")), [0, 1, 2])
    with pytest.raises(
        ValueError, match=r"two.npz: has the arrays \['mask', 'depth'\]; expected one, or mask or depth"
    ):
        load_array(tmp_path / "two.npz", ("mask", "depth"))


def test_what_is_no_camera_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"intrinsics: has the keys \['focal'\]"):
        read_camera({"focal": 525})
    with pytest.raises(ValueError, match="has the distortion coefficients"):
        read_camera({"K": MATRIX.tolist(), "distortion_coefficients": [0.1, 0, 0, 0]})
    with pytest.raises(ValueError, match="has the distortion coefficients k2 -0.1"):
        read_camera({"K": MATRIX.tolist(), "k2": -0.1})
    (tmp_path / "column.txt").write_text("525\n520\n319.5\n239.5\n")
    with pytest.raises(ValueError, match=r"column.txt: intrinsics have shape \(4, 1\)"):
        read_camera(tmp_path / "column.txt")
    path = tmp_path / "six.txt"
    path.write_text("1 2 3\n4 5 6\n")
    with pytest.raises(ValueError, match=r"six.txt: intrinsics have shape \(2, 3\)"):
        read_camera(path)
