"""How the compiled stages take their arguments, give back memory, and say that they found none."""

import numpy as np
import pytest
from built_kernels import skip_where_not_built
from test_superpoint_backends import flatten, make_frame, make_regions

from bifusion_hf.superpoints.backends import compiled_backend, numpy_backend
from bifusion_hf.superpoints.backends.compiled_backend import KERNELS


SETTINGS = {"sigma": 0.7, "window": 5, "color_scale": 5.0, "normal_scale": 0.4}


@pytest.fixture(autouse=True)
def kernels():
    skip_where_not_built(KERNELS, compiled_backend.unavailable_reason)


def every_call(seed=0, size=(23, 31)):
    """Arguments of each stage that is a function."""
    image, depth, intrinsics = make_frame(*size, seed)
    labels, links, barred = make_regions(depth, seed)
    rng = np.random.default_rng(seed)
    parts = numpy_backend.connected_segments(labels, links)
    features = rng.random((6, *size), dtype=np.float32)
    levels = rng.integers(0, 90, size).astype(np.uint16)
    seeds = np.where(rng.random(size) < 0.05, rng.permutation(levels.size).reshape(size) + 1, 0)
    weights = tuple(rng.random(link.shape, dtype=np.float32) for link in links)
    small = np.bincount(parts[parts >= 0]) < 4
    everywhere = tuple(np.ones_like(link) for link in links)
    whole = numpy_backend.connected_segments(np.where(depth > 0, 0, -1), everywhere)
    return {
        "pixel_features": (image, depth, intrinsics, links),
        "surface_links": (depth,),
        "estimate_normals": (depth, intrinsics, links, 5),
        "link_contrast": (features, links),
        "watershed": (levels, seeds, depth > 0),
        "number_segments": (parts,),
        "connected_segments": (labels, links),
        "cut_at_barred_pairs": (whole, depth, everywhere, barred),
        "region_means": (parts, features, depth, intrinsics, 0.5),
        "region_pairs": (parts, links, weights),
        "nearby_pairs": (parts, depth, intrinsics, small, 0.2),
    }


def call(name, arguments):
    found = getattr(compiled_backend, name)(*arguments, **(SETTINGS if name == "pixel_features" else {}))
    return flatten(found if isinstance(found, tuple) else (found,))


def changed(value, change):
    if isinstance(value, tuple):
        return tuple(changed(part, change) for part in value)
    return change(value) if isinstance(value, np.ndarray) and value.ndim > 1 else value


def wider(array):
    """The same numbers in the widest type of their kind."""
    return array.astype({"i": np.int64, "f": np.float64}.get(array.dtype.kind, array.dtype))


def spread(array):
    """The same numbers with others between them in memory."""
    memory = np.zeros((2 * array.shape[0], *array.shape[1:-1], 3 * array.shape[-1]), array.dtype)
    memory[::2, ..., ::3] = array
    return memory[::2, ..., ::3]


@pytest.mark.parametrize("change", [wider, spread, np.asfortranarray])
@pytest.mark.parametrize("name", every_call())
def test_type_and_order_in_memory_change_nothing(name, change):
    arguments = every_call()[name]
    expected = call(name, arguments)
    given = changed(arguments, change)
    before = changed(given, np.copy)
    for one, two in zip(expected, call(name, given), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(two, one)
    for one, two in zip(flatten(before), flatten(given), strict=True):
        np.testing.assert_array_equal(two, one)


@pytest.mark.parametrize("name", sorted(set(every_call()) - {"link_contrast"}))
def test_memory_that_there_is_not_is_told(name, monkeypatch):
    """A kernel without memory gives 0, no pointer, or -1 in the place of a number."""
    without = {"number_segments": -1, "connected_segments": -1, "cut_at_barred_pairs": -1}
    lacking = {"region_pairs": None, "nearby_pairs": None}
    answers = {**without, **lacking}
    monkeypatch.setattr(KERNELS, "call", lambda kernel, *_: answers.get(kernel, 0))
    with pytest.raises(MemoryError, match="no memory for the superpoints of a frame"):
        call(name, every_call()[name])


def make_graph():
    pairs = np.array([0]), np.array([1]), np.array([3]), np.array([0.5])
    return compiled_backend.RegionGraph(np.array([2, 5, 4]), np.eye(3), pairs, np.zeros((0, 2), int), 0.5)


@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        ("add_near", (np.array([0]), np.array([2]), np.array([0.1]))),
        ("absorb_small", (3,)),
        ("merge_to", (1, 1)),
    ],
)
def test_a_graph_without_memory_says_so(kernel, arguments, monkeypatch):
    graph, of_kernels = make_graph(), KERNELS.call
    monkeypatch.setattr(KERNELS, "call", lambda name, *given: 0 if name == kernel else of_kernels(name, *given))
    with pytest.raises(MemoryError, match="no memory for the superpoints"):
        getattr(graph, kernel)(*arguments)
    monkeypatch.setattr(KERNELS, "call", lambda name, *given: None)
    with pytest.raises(MemoryError, match="no memory for the superpoints"):
        make_graph()


def test_what_kernels_allocate_is_freed_once(monkeypatch):
    made, freed, of_kernels = [], [], KERNELS.call
    frees = {"new_graph": "free_graph", "region_pairs": "free_pairs", "nearby_pairs": "free_near"}

    def note(name, *arguments):
        if name in frees.values():
            freed.append((name, arguments[0]))
        answer = of_kernels(name, *arguments)
        if name in frees:
            made.append((frees[name], answer))
        return answer

    monkeypatch.setattr(KERNELS, "call", note)
    for name in ("region_pairs", "nearby_pairs"):
        call(name, every_call()[name])
    graph = make_graph()
    assert len(made) == 3 and freed == made[:2]
    del graph
    assert freed == made


def test_kernels_that_are_wrong_are_not_used(monkeypatch, caplog):
    monkeypatch.setattr(compiled_backend, "connected_segments", lambda labels, links: labels)
    compiled_backend.unavailable_reason.cache_clear()
    try:
        assert "parts [[0, 0, 1], [1, 0, 1]] of [[0, 0, 1], [1, 0, 1]]" in compiled_backend.unavailable_reason()
        assert "superpoints are found by numpy" in caplog.text
    finally:
        compiled_backend.unavailable_reason.cache_clear()
