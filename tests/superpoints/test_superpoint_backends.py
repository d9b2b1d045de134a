"""The compiled stages of the over-segmentation against those of numpy, and both against slow forms."""

import heapq
import multiprocessing

import numpy as np
import pytest
import torch
from built_kernels import skip_where_not_built

from bifusion_hf.io import compiled_library
from bifusion_hf.superpoints.backends import choose_backend, compiled_backend, numpy_backend
from bifusion_hf.superpoints.segmentation import segment_superpoints


SIZES = [(60, 80), (37, 51), (1, 9), (9, 1), (2, 2), (1, 1)]
STAGES = [numpy_backend, compiled_backend]


@pytest.fixture(autouse=True)
def kernels():
    skip_where_not_built(compiled_backend.KERNELS, compiled_backend.unavailable_reason)


def make_frame(height, width, seed=0):
    """Boxes of other depths and colours before a slanted wall, noise, holes, and single pixels that stick out."""
    rng = np.random.default_rng(seed)
    depth = 2 + 0.01 * np.arange(width) + 0.005 * np.arange(height)[:, None]
    image = np.full((height, width, 3), 120, np.int64)
    for _ in range(8):
        top, left = rng.integers(0, height), rng.integers(0, width)
        box = slice(top, top + rng.integers(1, 20)), slice(left, left + rng.integers(1, 20))
        depth[box] = rng.uniform(0.8, 3)
        image[box] = rng.integers(0, 256, 3)
    depth += 0.003 * rng.standard_normal(depth.shape)
    depth[rng.random(depth.shape) < 0.03] += 0.5
    depth[rng.random(depth.shape) < 0.05] = 0
    image = np.clip(image + rng.integers(-12, 13, image.shape), 0, 255).astype(np.uint8)
    intrinsics = np.array([[0.9 * width, 0, width / 2], [0, 0.95 * width, height / 3], [0, 0, 1]])
    return image, depth.astype(np.float32), intrinsics


def make_regions(depth, seed=0):
    """Labels of patches, -1 without depth, and the links and barred pairs of the frame."""
    height, width = depth.shape
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 7, (-(-height // 5), -(-width // 5)))
    labels = np.kron(patches, np.ones((5, 5), int))[:height, :width]
    labels = np.where(depth > 0, labels, -1).astype(np.int32)
    links = numpy_backend.surface_links(depth)
    valid = depth > 0
    return labels, links, (~links[0] & valid[:, :-1] & valid[:, 1:], ~links[1] & valid[:-1] & valid[1:])


def flatten(result):
    return [each for part in result for each in flatten(part)] if isinstance(result, tuple) else [result]


def assert_equal(name, *arguments, tolerance=0.0, **keywords):
    expected, found = (flatten(getattr(stages, name)(*arguments, **keywords)) for stages in STAGES)
    assert len(expected) == len(found)
    for one, two in zip(expected, found, strict=True):
        assert one.shape == two.shape
        np.testing.assert_allclose(two, one, rtol=0, atol=tolerance)
    return expected


@pytest.mark.parametrize("stages", STAGES)
def test_regions_that_touch_are_paired_whichever_lies_to_the_right(stages):
    labels = np.array([[2, 0, -1], [0, 1, 1]], np.int32)
    links = np.ones((2, 2), bool), np.ones((1, 3), bool)
    weights = np.array([[1, 2], [4, 8]], np.float32), np.array([[16, 32, 64]], np.float32)
    low, high, count, total = stages.region_pairs(labels, links, weights)
    assert (low.tolist(), high.tolist(), count.tolist(), total.tolist()) == ([0, 0], [1, 2], [2, 2], [36, 17])


@pytest.mark.parametrize("size", SIZES)
def test_links_are_equal(size):
    for seed in range(4):
        assert_equal("surface_links", make_frame(*size, seed)[1])


@pytest.mark.parametrize("size", SIZES)
def test_features_and_contrast_are_equal_but_for_rounding(size):
    image, depth, intrinsics = make_frame(*size)
    links = numpy_backend.surface_links(depth)
    settings = {"window": 5, "color_scale": 5.0, "normal_scale": 0.4}
    for sigma in (0.5, 1.0, 2.3):
        (features,) = assert_equal(
            "pixel_features", image, depth, intrinsics, links, sigma=sigma, tolerance=3e-5, **settings
        )
    assert_equal("estimate_normals", depth, intrinsics, links, 7, tolerance=2e-6)
    expected, found = (flatten(stages.link_contrast(features, links)) for stages in STAGES)
    for one, two in zip(expected[:2], found[:2], strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-6)
    # The last bit of a sum may move a level by one.
    assert np.abs(expected[2].astype(int) - found[2]).max(initial=0) <= 1
    unlinked = np.zeros_like(depth, bool)
    unlinked[:, :-1] |= ~links[0]
    unlinked[:, 1:] |= ~links[0]
    unlinked[:-1] |= ~links[1]
    unlinked[1:] |= ~links[1]
    assert ((found[2] == 0x7F80) == unlinked).all()


def slow_watershed(levels, seeds, mask):
    labels, heap, age = np.where(mask, seeds, 0), [], 0
    for y, x in zip(*np.nonzero(labels), strict=True):
        heap.append((-1, age := age + 1, y, x))
    heapq.heapify(heap)
    while heap:
        level, _, y, x = heapq.heappop(heap)
        for v, u in ((y - 1, x), (y, x - 1), (y, x + 1), (y + 1, x)):
            inside = 0 <= v < labels.shape[0] and 0 <= u < labels.shape[1]
            if inside and mask[v, u] and not labels[v, u]:
                labels[v, u] = labels[y, x]
                heapq.heappush(heap, (max(level, int(levels[v, u])), age := age + 1, v, u))
    return labels


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", [3, 40, 65536])
def test_the_watershed_is_that_of_a_heap(size, steps):
    rng = np.random.default_rng(steps)
    levels = rng.integers(0, steps, size).astype(np.uint16)
    mask = rng.random(size) < 0.9
    seeds = np.where(rng.random(size) < 0.05, rng.permutation(levels.size).reshape(size) + 1, 0).astype(np.int32)
    expected = slow_watershed(levels, seeds, mask)
    for stages in STAGES:
        given = seeds.copy()
        np.testing.assert_array_equal(stages.watershed(levels, given, mask), expected)
        np.testing.assert_array_equal(given, seeds)


@pytest.mark.parametrize("size", SIZES)
def test_regions_are_equal_to_the_bit(size):
    image, depth, intrinsics = make_frame(*size)
    labels, links, barred = make_regions(depth)
    assert_equal("number_segments", np.where(labels >= 0, 6 - labels, -1))
    # Whatever is negative is none.
    assert_equal("number_segments", np.where(labels >= 3, labels, labels - 4))
    (parts,) = assert_equal("connected_segments", labels, links)
    (cut,) = assert_equal("cut_at_barred_pairs", parts, depth, links, barred)
    # Also of segments that barred pairs run all through, which takes several rounds.
    everywhere = tuple(np.ones_like(link) for link in links)
    (whole,) = assert_equal("connected_segments", np.where(depth > 0, 0, -1), everywhere)
    assert_equal("cut_at_barred_pairs", whole, depth, everywhere, barred)
    assert_equal("region_pairs", parts, links)
    assert_equal("region_pairs", cut, barred)
    weights = tuple(np.random.default_rng(1).random(link.shape, dtype=np.float32) for link in links)
    assert_equal("region_pairs", parts, links, weights)
    if parts.max() >= 0:
        features = np.random.default_rng(2).random((6, *size), dtype=np.float32)
        assert_equal("region_means", parts, features, depth, intrinsics, 0.5)
        small = np.bincount(parts[parts >= 0]) < 4
        for radius in (0.03, 0.3):
            assert_equal("nearby_pairs", parts, depth, intrinsics, small, radius, tolerance=1e-12)


@pytest.mark.parametrize("size", SIZES[:2])
def test_equal_depths_are_cut_alike(size):
    """Steps of one height have an order, and what lies halfway up a step is on one side."""
    _, depth, intrinsics = make_frame(*size, seed=3)
    depth = np.where(depth > 0, np.clip(np.round(2 * depth), 1, 6), 0).astype(np.float32)
    labels, links, barred = make_regions(depth, seed=3)
    everywhere = tuple(np.ones_like(link) for link in links)
    for parts in (labels, np.where(depth > 0, 0, -1), np.where(depth > 0, np.arange(size[1]) // 30, -1)):
        (whole,) = assert_equal("connected_segments", parts, everywhere)
        (cut,) = assert_equal("cut_at_barred_pairs", whole, depth, everywhere, barred)
        assert cut.max() > whole.max()
    (parts,) = assert_equal("connected_segments", labels, links)
    for small in (np.zeros(parts.max() + 1, bool), np.bincount(parts[parts >= 0]) < 6):
        assert_equal("nearby_pairs", parts, depth, intrinsics, small, 0.1, tolerance=1e-12)


def build_graph(stages, seed):
    """A graph of random regions, pairs and bars."""
    rng = np.random.default_rng(seed)
    number = int(rng.integers(2, 60))
    pairs = np.unique(np.sort(rng.integers(0, number, (4 * number, 2)), axis=1), axis=0)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    touching, barred, near = np.array_split(rng.permutation(pairs), [len(pairs) // 2, len(pairs) // 2 + number // 4])
    sizes = rng.integers(1, 50, number)
    # Few values, so that costs are often equal.
    features = rng.integers(0, 3, (number, 4)).astype(float)
    count = rng.integers(1, 5, len(touching))
    adjacent = (*touching.T, count, rng.integers(0, 4, len(touching)).astype(float))
    graph = stages.RegionGraph(sizes, features, adjacent, barred, float(rng.choice([0.0, 0.5, 1.0])))
    return graph, (*near.T, rng.integers(1, 4, len(near)).astype(float)), rng.integers(2, 40, 4)


def test_graphs_merge_the_same_on_200_random_ones():
    for seed in range(200):
        (one, near, limits), (two, _, _) = (build_graph(stages, seed) for stages in STAGES)
        first, second, *last = limits.tolist()
        steps = ("absorb_small", [first]), ("add_near", near), ("absorb_small", [second]), ("merge_to", last)
        for name, arguments in steps:
            for graph in (one, two):
                getattr(graph, name)(*arguments)
            np.testing.assert_array_equal(two.roots(), one.roots(), err_msg=f"seed {seed}, {name}")


def test_threads_change_no_bit():
    frame = make_frame(60, 80)
    links = numpy_backend.surface_links(frame[1])
    settings = {"sigma": 1.0, "window": 5, "color_scale": 5.0, "normal_scale": 0.4}
    before, features = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            features.append(compiled_backend.pixel_features(*frame, links, **settings))
    finally:
        torch.set_num_threads(before)
    assert (features[0] == features[1]).all() and (features[0] == features[2]).all()


def _segment(connection, frame):
    connection.send(segment_superpoints(*frame, num_segments=20))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_forked_child_does_not_wait_for_its_parents_threads():
    frame = make_frame(60, 80)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = segment_superpoints(*frame, num_segments=20)
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=_segment, args=(theirs, frame))
        child.start()
        assert ours.poll(60), "the child hangs"
        np.testing.assert_array_equal(ours.recv(), expected)
        child.join(60)
    finally:
        torch.set_num_threads(before)
        if child.is_alive():
            child.kill()


def test_without_a_compiler_numpy_finds_the_same_segments(monkeypatch, caplog):
    frame = make_frame(120, 160)
    expected = segment_superpoints(*frame, num_segments=40)
    monkeypatch.setenv(compiled_library.SWITCH, "0")
    compiled_backend.KERNELS.forget()
    compiled_backend.unavailable_reason.cache_clear()
    try:
        assert choose_backend() is numpy_backend
        assert "superpoints are found by numpy, which is slower" in caplog.text
        found = segment_superpoints(*frame, num_segments=40)
    finally:
        monkeypatch.undo()
        compiled_backend.KERNELS.forget()
        compiled_backend.unavailable_reason.cache_clear()
    assert choose_backend() is compiled_backend
    # Rounding may decide for one pixel in a thousand.
    assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_frames_of_any_shape_are_segmented(size):
    image, depth, intrinsics = make_frame(*size)
    found = segment_superpoints(image, depth, intrinsics, num_segments=5)
    assert ((found >= 0) == (depth > 0)).all()
    assert set(np.unique(found[found >= 0])) == set(range(found.max() + 1))
