"""Intrinsics in the forms in which people have them."""

import json

import numpy as np
import pytest

from bifusion_hf.data.camera_files import read_camera, read_intrinsics


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


@pytest.mark.parametrize("shape", [(4,), (3, 3), (9,), (4, 4), (16,)])
def test_text(shape, tmp_path):
    values = np.array([525, 520, 319.5, 239.5])
    if shape != (4,):
        size = 3 if 9 in (shape[0], shape[0] ** 2) else 4
        values = np.eye(size)
        values[:3, :3] = MATRIX
    path = tmp_path / "intrinsics.txt"
    np.savetxt(path, values.reshape(shape)[None] if len(shape) == 1 else values)
    camera = read_camera(path)
    np.testing.assert_array_equal(camera.intrinsics, MATRIX)
    assert camera.source == str(path)


def test_the_size_is_width_and_height():
    sizes = {"width": 640, "height": 480}
    assert read_camera({"K": MATRIX.tolist(), **sizes}).size == (640, 480)
    assert read_camera({"K": MATRIX.tolist()}).size is None


def test_what_is_no_camera_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"intrinsics: has the keys \['focal'\]"):
        read_camera({"focal": 525})
    with pytest.raises(ValueError, match="has the distortion coefficients"):
        read_camera({"K": MATRIX.tolist(), "distortion_coefficients": [0.1, 0, 0, 0]})
    path = tmp_path / "six.txt"
    path.write_text("1 2 3\n4 5 6\n")
    with pytest.raises(ValueError, match=r"six.txt: intrinsics have shape \(2, 3\)"):
        read_camera(path)
