import numpy as np
import pytest

from bifusion_hf.boxes import OUTERMOST, bounding_box, describe_points, oriented_box


def block(size, count=4000, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (count, 3)) * size


def rotation(seed):
    matrix = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))[0]
    return matrix * np.linalg.det(matrix)


def test_a_face_leaves_stray_points_out():
    points = block((0.3, 0.2, 0.1))
    strays = points[:8] + [0.4, 0, 0]
    low, high = bounding_box(np.concatenate([points, strays])).reshape(2, 3)
    np.testing.assert_allclose(high - low, [0.3, 0.2, 0.1], rtol=0.05)
    # All of them would have more than doubled it.
    assert np.ptp(np.concatenate([points, strays])[:, 0]) > 0.6
    # More costs more than it saves: twice as many are no strays.
    low, high = bounding_box(np.concatenate([points, strays, strays])).reshape(2, 3)
    assert high[0] - low[0] > 0.45


@pytest.mark.parametrize("seed", range(5))
def test_the_oriented_box_turns_with_its_points(seed):
    turn, place = rotation(seed), np.array([1.0, -2.0, 0.5])
    points = block((0.5, 0.2, 0.1), seed=seed) @ turn.T + place
    box = oriented_box(points)
    np.testing.assert_allclose(box["size"], [0.5, 0.2, 0.1], rtol=0.05)
    np.testing.assert_allclose(box["center"], place, atol=0.01)
    np.testing.assert_allclose(box["rotation"] @ box["rotation"].T, np.eye(3), atol=1e-9)
    assert np.linalg.det(box["rotation"]) > 0
    assert np.abs(np.diag(box["rotation"].T @ turn)).min() > 0.98
    inside = np.abs((points - box["center"]) @ box["rotation"]) <= box["size"] / 2
    assert inside.all(axis=1).mean() > 0.93


@pytest.mark.parametrize("seed", range(5))
def test_the_sign_of_a_long_axis_is_that_of_its_largest_component(seed):
    """Or equal points could give different boxes."""
    axes = oriented_box(block((0.5, 0.2, 0.1), seed=seed) @ rotation(seed).T)["rotation"]
    for axis in axes.T[:2]:
        assert axis[np.abs(axis).argmax()] > 0


@pytest.mark.parametrize("count", [1, 2, 3, 99, 100, 101, 4000])
def test_a_box_is_that_of_two_quantiles(count):
    points = block((3, 2, 1), count, seed=count)
    for share in (0.0, OUTERMOST, 0.01):
        expected = np.quantile(points, [share, 1 - share], axis=0).ravel()
        np.testing.assert_allclose(bounding_box(points, share), expected, atol=1e-12)
    np.testing.assert_array_equal(bounding_box(points), bounding_box(points, OUTERMOST))


@pytest.mark.parametrize("count", [2, 300])
def test_points_of_single_precision_have_the_box_of_the_same_points_in_double(count):
    points = block((3, 2, 1), count).astype(np.float32) + np.float32(1000)
    found, expected = bounding_box(points), bounding_box(points.astype(np.float64))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)
    found, expected = oriented_box(points), oriented_box(points.astype(np.float64))
    for name, value in expected.items():
        assert found[name].dtype == np.float64
        np.testing.assert_array_equal(found[name], value)


def test_a_few_points_and_none():
    one = describe_points(np.array([[1.0, 2.0, 3.0]], dtype=np.float32))
    assert one["centroid"] == [1, 2, 3] and one["box_3d"] == [1, 2, 3, 1, 2, 3]
    assert one["oriented_box_3d"]["center"] == [1, 2, 3] and one["oriented_box_3d"]["size"] == [0, 0, 0]
    line = describe_points(np.array([[0.0, 0, 0], [0, 0, 1], [0, 0, 2]]))
    np.testing.assert_allclose(line["oriented_box_3d"]["size"], [2, 0, 0], atol=0.05)
    assert line["centroid"] == [0, 0, 1]
    # Single precision would lose the ones.
    far = describe_points(np.array([[2**24, 0, 0], [1, 0, 0], [1, 3, 0]], dtype=np.float32))
    assert far["centroid"] == [(2**24 + 2) / 3, 1, 0]
    assert set(describe_points(np.zeros((0, 3))).values()) == {None}
