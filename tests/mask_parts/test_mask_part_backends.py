import numpy as np
import pytest
import torch
from built_kernels import skip_where_not_built

from bifusion_hf.mask_parts import compiled_backend, scipy_backend, separation


@pytest.fixture(autouse=True)
def compiled():
    skip_where_not_built(compiled_backend.KERNELS, compiled_backend.unavailable_reason)


def clumps(count, seed=0):
    """Points of very different densities, as a camera sees them near and far."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log(0.01), np.log(2), 8))
    which = rng.integers(0, 8, count)
    points = rng.normal(5 * rng.random((8, 3))[which], sizes[which, None])
    return points.astype(np.float32).astype(np.float64), rng


@pytest.mark.parametrize("count", [2, 3, 15, 16, 17, 18, 33, 257, 4000])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_touching_points_are_scipys(count, share):
    points, rng = clumps(count)
    among = rng.random(count) < share
    among[0] = True
    for gap in (0.0, 0.05, 1.0):
        for wanted in {1, 2, min(16, count - 1)} - {count}:
            expected = scipy_backend.touching_points(points, among, gap, wanted)
            found = compiled_backend.touching_points(points, among, gap, wanted)
            for values, others in zip(found, expected, strict=True):
                assert values.dtype == others.dtype
                np.testing.assert_array_equal(values, others)


def test_of_points_in_the_same_distance_those_of_lower_numbers_come_first():
    """On a grid nearly all distances occur several times."""
    grid = np.stack(np.meshgrid(*[np.arange(9.0)] * 3), axis=-1).reshape(-1, 3)
    points = np.random.default_rng(1).permutation(grid)
    others, touching = compiled_backend.touching_points(points, np.ones(len(points), bool), 1.0, 16)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.testing.assert_array_equal(others, np.argsort(distances, axis=1, kind="stable")[:, :17])
    assert (touching == 17).any()
    # One place for all: the kernel has no order in space to go by.
    others, touching = compiled_backend.touching_points(np.ones((50, 3)), np.ones(50, bool), 0.0, 16)
    assert (touching == 17).all() and (others == np.arange(17)).all()


@pytest.mark.parametrize("backend", [scipy_backend, compiled_backend])
def test_points_that_lie_exactly_so_far_apart_touch(backend):
    # Nine in each of two places: the nearest half of a point's neighbours is where it is itself.
    points = np.array([[0.0, 0, 0], [0.5, 0, 0]]).repeat(9, 0)
    for gap, number in ((0.5, 17), (np.nextafter(0.5, 0), 9)):
        assert (backend.touching_points(points, np.ones(18, bool), gap, 16)[1] == number).all()


@pytest.mark.parametrize("count", [1, 40, 3000])
def test_parts_are_scipys(count):
    points, rng = clumps(count, seed=2)
    shares = np.array([0.05, 0.2, 0.5, 0.9, 1.0, 0.0])[:, None]
    masks = rng.random((6, count)) < shares
    if count == 1:
        others, touching = np.zeros((1, 1), np.int32), np.zeros(1, np.int32)
    else:
        others, touching = scipy_backend.touching_points(points, masks.any(axis=0), 0.02, 8)
    expected, number = scipy_backend.connected_parts(masks, others, touching)
    found, found_number = compiled_backend.connected_parts(masks, others, touching)
    assert found_number == number and found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    if count > 1:
        assert number > len(masks)
    nothing, none = compiled_backend.connected_parts(masks[:0], others, touching)
    assert nothing.shape == (0, count) and none == 0


def test_threads_change_nothing():
    points, rng = clumps(3000, seed=3)
    masks = rng.random((7, 3000)) < 0.5
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            touching = compiled_backend.touching_points(points, masks[0], 0.05, 16)
            results.append([*touching, compiled_backend.connected_parts(masks, *touching)[0]])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for values, others in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(values, others)


def test_points_that_are_nowhere_are_refused_by_both():
    points = np.zeros((20, 3))
    points[3, 1] = np.nan
    for backend in (scipy_backend, compiled_backend):
        with pytest.raises(ValueError, match="must be finite"):
            backend.touching_points(points, np.ones(20, bool), 0.05, 16)


def test_kernels_that_are_wrong_are_not_used(monkeypatch, caplog):
    monkeypatch.setattr(compiled_backend, "connected_parts", lambda masks, *_: (np.zeros(masks.shape, int), 1))
    compiled_backend.unavailable_reason.cache_clear()
    try:
        assert "mask parts are wrong" in compiled_backend.unavailable_reason()
        assert separation.choose_backend() is scipy_backend
        assert "parts of masks are found by scipy" in caplog.text
    finally:
        compiled_backend.unavailable_reason.cache_clear()


def test_kernels_that_work_are_used():
    assert separation.choose_backend() is compiled_backend


def test_kernels_without_memory_say_so(monkeypatch):
    monkeypatch.setattr(compiled_backend.KERNELS, "call", lambda name, *_: {"touching_points": 0}.get(name, -1))
    with pytest.raises(MemoryError, match="no memory for the nearest points of 5 points"):
        compiled_backend.touching_points(np.zeros((5, 3)), np.ones(5, bool), 0.05, 2)
    with pytest.raises(MemoryError, match="no memory for the parts of 2 masks"):
        compiled_backend.connected_parts(np.ones((2, 5), bool), np.zeros((5, 3), np.int32), np.zeros(5, np.int32))
