import warnings

import numpy as np
import pytest
from frame_factory import make_frame

from bifusion_hf.data.alignment import ALIGNMENT_THRESHOLD, check_alignment
from bifusion_hf.data.projection import project_points
from bifusion_hf.processing_bifusion import BiFusionProcessor


@pytest.fixture(scope="module", params=[True, False])
def frame(request):
    return make_frame(240, 320, with_pose=request.param)


def test_projection_undoes_the_unprojection(frame):
    keep = np.flatnonzero(frame.depth)[::7]
    pixels, depth = project_points(frame.unproject().reshape(-1, 3)[keep], frame)
    rows, columns = np.divmod(keep, 320)
    np.testing.assert_allclose(pixels, np.stack([(columns + 0.5) / 320, (rows + 0.5) / 240], axis=1), atol=1e-5)
    np.testing.assert_allclose(depth, frame.depth[rows, columns], atol=1e-5)


def test_a_point_beside_or_behind_the_image_has_a_place_outside_or_no_depth(frame):
    centre = np.zeros(3) if frame.camera_to_world is None else frame.camera_to_world[:3, 3]
    axes = frame.camera_rotation
    pixels, depth = project_points(np.stack([centre + 5 * axes[:, 0] + axes[:, 2], centre - axes[:, 2]]), frame)
    assert pixels[0, 0] > 1 and depth[0] == pytest.approx(1) and depth[1] == pytest.approx(-1)


def test_points_in_the_plane_of_the_camera_give_no_warning():
    frame = make_frame(with_pose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        depth = project_points([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [1.0, 1.0, 2.0]], frame)[1]
    assert depth.tolist() == [0, 0, 1]


def test_a_good_pose_passes_and_wrong_ones_are_caught(frame):
    sample = BiFusionProcessor().prepare_frame(frame)
    points = sample["points"].astype(np.float64) + sample["point_offset"]
    pose = np.eye(4) if frame.camera_to_world is None else frame.camera_to_world

    def checked(turn, shift):
        # Moving the cloud is the same as a wrong pose, and works without one too.
        moved = (points - pose[:3, 3]) @ turn.T + pose[:3, 3] + shift
        places, depth = project_points(moved, frame)
        seen = (depth > 0) & ((places >= 0) & (places < 1)).all(axis=1)
        assert seen.mean() > 0.5
        return check_alignment({**sample, "point_pixels": places, "point_visible": seen})

    assert checked(np.eye(3), 0) < 2 / 255
    cos, sin = np.cos(np.deg2rad(6)), np.sin(np.deg2rad(6))
    for turn, shift in ((np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]), 0), (np.eye(3), [0, 0, 0.1])):
        with pytest.raises(ValueError, match=f"misaligned.*expected at most {255 * ALIGNMENT_THRESHOLD}"):
            checked(turn, shift)
