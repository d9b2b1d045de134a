import dataclasses

import numpy as np
import pytest
from frame_factory import make_frame

from bifusion_hf.data.point_sample import points_of_pixels


def sample_corner(**choice):
    """Parts of two rows of a frame, in two superpoints."""
    frame = make_frame(holes=False)
    pixels = np.concatenate([np.arange(30 * 160 + 5, 30 * 160 + 45), np.arange(90 * 160 + 5, 90 * 160 + 45)])
    superpoints = np.full((120, 160), 3)
    superpoints[60:] = 8
    return frame, pixels, points_of_pixels(frame, pixels, superpoints, **choice)


def test_points_are_those_of_their_pixels_around_their_mean():
    frame, pixels, sample = sample_corner()
    expected = frame.unproject().reshape(-1, 3)[pixels].astype(np.float64)
    np.testing.assert_allclose(sample["point_offset"], expected.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(sample["points"], expected - expected.mean(axis=0), atol=1e-6)
    rows, columns = pixels // 160, pixels % 160
    np.testing.assert_allclose(sample["point_pixels"], np.stack([(columns + 0.5) / 160, (rows + 0.5) / 120], 1))
    np.testing.assert_array_equal(sample["point_rgb"], frame.image[rows, columns])
    assert sample["point_visible"].all() and sample["depth_size"] == (120, 160)
    np.testing.assert_array_equal(sample["pixel_indices"], pixels)
    np.testing.assert_array_equal(sample["superpoint_ids"], np.repeat([0, 1], 40))
    np.testing.assert_array_equal(sample["superpoint_map"], np.repeat([0, 1], 60)[:, None].repeat(160, 1))
    assert sample["up_source"] == "pose" and float(sample["point_scale"]) == 1
    kinds = {name: sample[name].dtype for name in ("points", "point_pixels", "camera_rotation", "point_rotation")}
    assert set(kinds.values()) == {np.dtype(np.float32)}


def test_the_scale_is_the_reference_over_the_median_depth_of_the_points():
    frame, pixels, _ = sample_corner()
    median = np.median(frame.depth.reshape(-1)[pixels])
    plain = sample_corner()[2]
    for reference, scale in ((2 * median, 2), (median, 1), (0.5 * median, 1)):
        sample = sample_corner(reference_depth=reference)[2]
        assert sample["point_scale"] == pytest.approx(scale) and sample["point_scale"].dtype == np.float32
        np.testing.assert_allclose(sample["points"], scale * plain["points"], rtol=1e-5, atol=1e-6)


def test_without_a_pose_the_cameras_axes_stay():
    frame, pixels, _ = sample_corner()
    frame = dataclasses.replace(frame, camera_to_world=None)
    sample = points_of_pixels(frame, pixels, np.zeros((120, 160), int))
    assert sample["up_source"] == "camera"
    np.testing.assert_array_equal(sample["point_rotation"], np.eye(3))
