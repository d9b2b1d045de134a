import numpy as np
import pytest

from bifusion_hf.visualization.cameras import CAMERA_PRESETS, nominal_intrinsics


ALL_MODES = [
    pytest.param(name, mode, id=f"{name} {mode.width}x{mode.height}")
    for name, preset in CAMERA_PRESETS.items()
    for mode in preset.modes
]


def test_the_cameras_that_users_ask_for():
    assert set(CAMERA_PRESETS) == {
        "Intel RealSense D435",
        "Azure Kinect",
        "Kinect v1",
        "Kinect v2",
        "iPhone LiDAR",
        "ScanNet",
    }
    assert all(preset.source and preset.depth_scale == 1000 for preset in CAMERA_PRESETS.values())


@pytest.mark.parametrize(("name", "mode"), ALL_MODES)
def test_own_size_gives_the_published_numbers(name, mode):
    matrix = nominal_intrinsics(name, mode.width, mode.height)
    np.testing.assert_allclose(matrix, [[mode.fx, 0, mode.cx], [0, mode.fy, mode.cy], [0, 0, 1]])
    # Square pixels, a principal point near the middle, a field of view that such cameras have.
    assert abs(mode.fx / mode.fy - 1) < 0.01
    assert abs(mode.cx - mode.width / 2) < 0.02 * mode.width and abs(mode.cy - mode.height / 2) < 0.04 * mode.height
    assert 50 < np.degrees(2 * np.arctan(mode.width / 2 / mode.fx)) < 95


@pytest.mark.parametrize(("name", "mode"), ALL_MODES)
def test_the_field_of_view_does_not_change_with_the_size(name, mode):
    """The rays through the corners of the image (pixel edges) are those of the full size."""
    width, height = mode.width // 2, mode.height // 2
    small = nominal_intrinsics(name, width, height)
    large = nominal_intrinsics(name, mode.width, mode.height)
    for x, y in ((0, 0), (1, 0), (1, 1)):
        rays = [
            np.linalg.solve(matrix, [x * size[0] - 0.5, y * size[1] - 0.5, 1])
            for matrix, size in ((small, (width, height)), (large, (mode.width, mode.height)))
        ]
        np.testing.assert_allclose(rays[0], rays[1], atol=1e-12)


def test_the_aspect_chooses_the_mode():
    """Known values: D435 at 1280x720 (two thirds of 1386) and at 640x480."""
    assert nominal_intrinsics("Intel RealSense D435", 1280, 720)[0, 0] == pytest.approx(924)
    assert nominal_intrinsics("Intel RealSense D435", 640, 480)[0, 0] == pytest.approx(616)
    # 848x480 is 16:9 up to rounding.
    assert nominal_intrinsics("Intel RealSense D435", 848, 480)[0, 0] == pytest.approx(1386 * 848 / 1920)
    assert nominal_intrinsics("iPhone LiDAR", 256, 192)[1, 1] == pytest.approx(1465 / 7.5)


@pytest.mark.parametrize("name", CAMERA_PRESETS)
def test_one_mode_for_each_aspect(name):
    modes = CAMERA_PRESETS[name].modes
    for mode in modes:
        assert [other for other in modes if other.has_aspect_of(mode.width, mode.height)] == [mode]


def test_refusals_say_what_is_expected():
    with pytest.raises(ValueError, match=r"Kinect v2: depth is 640x480; expected the aspect of 512x424, 1920x1080"):
        nominal_intrinsics("Kinect v2", 640, 480)
    with pytest.raises(ValueError, match=r"camera is 'GoPro'; expected one of Intel RealSense D435"):
        nominal_intrinsics("GoPro", 640, 480)
