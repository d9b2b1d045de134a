"""Depth edges and normals of both forms against slow ones."""

import numpy as np
import pytest
from built_kernels import skip_where_not_built

from bifusion_hf.superpoints import geometry
from bifusion_hf.superpoints.backends import compiled_backend, numpy_backend


@pytest.fixture(params=[numpy_backend, compiled_backend], ids=["numpy", "compiled"])
def stages(request):
    if request.param is compiled_backend:
        skip_where_not_built(compiled_backend.KERNELS, compiled_backend.unavailable_reason)
    return request.param


def steep_frame(seed, height=14, width=17, start=2.0):
    """Steps about as large as the threshold, some of them on slopes, and holes."""
    rng = np.random.default_rng(seed)
    steps = rng.choice([-0.13, -0.07, -0.04, 0, 0.03, 0.05, 0.06, 0.08, 0.12], (2, height, width))
    depth = start + np.cumsum(steps[0], axis=1) + np.cumsum(steps[1], axis=0)
    depth[rng.random(depth.shape) < 0.08] = 0
    return np.clip(depth, 0, None).astype(np.float32)


def slow_edges(depth):
    """Between each pixel of a row and the next."""
    found = np.zeros((depth.shape[0], depth.shape[1] - 1), bool)
    for y, row in enumerate(depth.astype(float).tolist()):
        for x, (here, beside) in enumerate(zip(row, row[1:], strict=False)):
            if here > 0 and beside > 0:
                sign = 1 if beside > here else -1
                before = here - row[x - 1] if x > 0 and row[x - 1] > 0 else 0
                after = row[x + 2] - beside if x + 2 < len(row) and row[x + 2] > 0 else 0
                slope = max(0, min(sign * before, sign * after))
                near = min(here, beside)
                excess = abs(beside - here) - slope - (0.02 + 0.01 * near + 0.0057 * near**2)
                assert abs(excess) > 1e-6
                found[y, x] = excess > 0
    return found


@pytest.mark.parametrize(("seed", "start"), [(0, 2.0), (1, 2.0), (2, 1.0), (3, 4.0)])
def test_a_step_is_an_edge_beyond_the_slope_and_the_noise_of_its_distance(stages, seed, start, monkeypatch):
    for module in (geometry, compiled_backend):
        monkeypatch.setattr(module, "MIN_EDGE_LENGTH", 0)
    depth = steep_frame(seed, start=start)
    valid = depth > 0
    right, down = slow_edges(depth), slow_edges(depth.T).T
    for found, edge, both in zip(
        stages.surface_links(depth),
        (right, down),
        (valid[:, :-1] & valid[:, 1:], valid[:-1] & valid[1:]),
        strict=True,
    ):
        assert 0.1 < edge[both].mean() < 0.9
        np.testing.assert_array_equal(found, both & ~edge)


@pytest.mark.parametrize("is_upright", [False, True])
@pytest.mark.parametrize("window", [3, 5])
def test_one_step_gives_the_normals_of_all_pixels_within_two_windows(stages, window, is_upright):
    """As far as that they have a share of it, and further away nothing to compare with."""
    depth = np.zeros((34, 40), np.float32)
    intrinsics = np.array([[30.0, 0, 17], [0, 36.0, 12], [0, 0, 1]])
    y, x, reach = 16, 18, window - 1
    if is_upright:
        depth[y : y + 2, x] = 2.0, 2.01
    else:
        depth[y, x : x + 2] = 2.0, 2.01
    near = [(y + reach, x + reach), (y - reach, x - reach), (y - reach, x + reach), (y + reach, x - reach)]
    far = [(y + reach + 1, x), (y - reach - 1, x), (y, x - reach - 1), (y, x + reach + 1)]
    for place in near + far:
        depth[place] = 1.5
    # Nothing is divided by zero, nor is there a difference of what is no number.
    with np.errstate(divide="raise", invalid="raise"):
        links = stages.surface_links(depth)
        assert links[0].sum() + links[1].sum() == 1
        found = stages.estimate_normals(depth, intrinsics, links, window)
    step = 1 / 2.01 - 1 / 2.0
    for v, u in near:
        centre = 1 / 1.5 - step * ((v - 12) if is_upright else (u - 17))
        normal = np.array([0, 36 * step, centre] if is_upright else [30 * step, 0, centre])
        np.testing.assert_allclose(found[v, u], -normal / np.linalg.norm(normal), atol=1e-4)
        assert abs(found[v, u, int(is_upright)]) > 0.05
    for place in far:
        np.testing.assert_allclose(found[place], (0, 0, -1), atol=1e-6)
    assert not found[depth == 0].any()
