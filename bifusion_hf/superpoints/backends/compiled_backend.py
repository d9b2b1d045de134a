"""The stages of the over-segmentation in C; each does what the function of its name in `numpy_backend` does."""

import ctypes
from functools import cache
from pathlib import Path

import numpy as np

from ...io.compiled_library import FLAG, POINTER, REAL, SIZE, CompiledLibrary, KernelError, usable_threads
from ..colour import LINEAR_LIGHT, TO_XYZ, gaussian_taps
from ..geometry import EDGE_BASE, EDGE_QUANTISATION, EDGE_SLOPE, MIN_EDGE_LENGTH


Links = tuple[np.ndarray, np.ndarray]

_FOLDER = Path(__file__).parent
KERNELS = CompiledLibrary(
    "superpoint_kernels",
    [_FOLDER / name for name in ("pixels.c", "regions.c", "region_graph.c")],
    # Without contraction sums and products are rounded as numpy rounds them. Nobody asks whether an operation was
    # invalid, so both sides of a choice may be computed, for several pixels at once.
    ["-O3", "-march=native", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off", "-fno-trapping-math"],
    {
        "lab_planes": (None, [POINTER, SIZE, SIZE, POINTER, POINTER, POINTER, FLAG]),
        "blur_planes": (None, [POINTER, SIZE, SIZE, SIZE, POINTER, SIZE, POINTER, FLAG]),
        "surface_links": (FLAG, [POINTER, SIZE, SIZE, POINTER, SIZE, POINTER, POINTER, FLAG]),
        "normal_planes": (FLAG, [POINTER] * 3 + [SIZE] * 2 + [POINTER, SIZE, ctypes.c_float, POINTER, FLAG]),
        "link_contrast": (None, [POINTER] + [SIZE] * 3 + [POINTER] * 5 + [FLAG]),
        "watershed": (FLAG, [POINTER, POINTER, SIZE, SIZE, POINTER]),
        "number_segments": (SIZE, [POINTER, SIZE, SIZE, POINTER]),
        "connected_segments": (SIZE, [POINTER] * 3 + [SIZE] * 2 + [POINTER]),
        "cut_at_barred_pairs": (SIZE, [POINTER, SIZE] + [POINTER] * 5 + [SIZE] * 2),
        "region_sums": (
            FLAG,
            [POINTER, SIZE, SIZE, SIZE, POINTER, SIZE, POINTER, POINTER, ctypes.c_float, POINTER, POINTER, FLAG],
        ),
        "region_pairs": (POINTER, [POINTER, SIZE] + [POINTER] * 4 + [SIZE] * 2 + [POINTER]),
        "free_pairs": (None, [POINTER]),
        "nearby_pairs": (POINTER, [POINTER, SIZE, POINTER, POINTER, REAL, POINTER, SIZE, SIZE, POINTER, FLAG]),
        "free_near": (None, [POINTER]),
        "new_graph": (POINTER, [SIZE, SIZE, POINTER, POINTER, SIZE] + [POINTER] * 4 + [SIZE, POINTER, POINTER, REAL]),
        "free_graph": (None, [POINTER]),
        "add_near": (FLAG, [POINTER, SIZE] + [POINTER] * 3),
        "absorb_small": (FLAG, [POINTER, SIZE]),
        "merge_to": (FLAG, [POINTER, SIZE, SIZE]),
        "region_roots": (None, [POINTER, POINTER]),
    },
)
_PAIR = np.dtype([("key", np.int64), ("count", np.int64), ("total", np.float64)])
_NEAR = np.dtype([("key", np.int64), ("squared", np.float64)])


@cache
def unavailable_reason() -> str | None:
    """Why the compiled stages do not work here; None where they do. Tried once, and logged."""
    return KERNELS.failure(_test_kernels, "superpoints are found by numpy")


def _test_kernels() -> None:
    """Raises KernelError unless a small labelling comes out right."""
    labels = np.array([[0, 0, 1], [1, 0, 1]], dtype=np.int32)
    found = connected_segments(labels, (np.ones((2, 2), bool), np.ones((1, 3), bool)))
    if found.tolist() != [[0, 0, 1], [2, 0, 1]]:
        raise KernelError(f"the superpoint kernels are wrong: parts {found.tolist()} of {labels.tolist()}")


def _check(good: int) -> int:
    if good <= 0:
        raise MemoryError("no memory for the superpoints of a frame")
    return good


def _array(values: np.ndarray, dtype: type) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=dtype)


def _bytes(links: Links) -> Links:
    return tuple(np.ascontiguousarray(link, dtype=bool) for link in links)


def _camera(intrinsics: np.ndarray, dtype: type) -> np.ndarray:
    return np.array([intrinsics[i] for i in ((0, 0), (1, 1), (0, 2), (1, 2))], dtype=dtype)


def pixel_features(
    image: np.ndarray,
    depth: np.ndarray,
    intrinsics: np.ndarray,
    links: Links,
    *,
    sigma: float,
    window: int,
    color_scale: float,
    normal_scale: float,
) -> np.ndarray:
    """See `numpy_backend`."""
    height, width = depth.shape
    features, lab = np.empty((6, height, width), np.float32), np.empty((3, height, width), np.float32)
    KERNELS.call("lab_planes", _array(image, np.uint8), height, width, LINEAR_LIGHT, TO_XYZ, lab, usable_threads())
    taps = gaussian_taps(sigma)
    scaled = (taps / np.float32(np.sqrt(color_scale))).astype(np.float32)
    KERNELS.call("blur_planes", lab, len(lab), height, width, scaled, len(taps) // 2, features[:3], usable_threads())
    _normal_planes(depth, intrinsics, links, window, 1 / normal_scale, features[3:])
    return features


def surface_links(depth: np.ndarray) -> Links:
    """See `numpy_backend`."""
    height, width = depth.shape
    right, down = np.empty((height, width - 1), bool), np.empty((height - 1, width), bool)
    threshold = np.array([EDGE_BASE, EDGE_SLOPE, EDGE_QUANTISATION], np.float32)
    sizes = height, width, threshold, 2 * MIN_EDGE_LENGTH
    _check(KERNELS.call("surface_links", _array(depth, np.float32), *sizes, right, down, usable_threads()))
    return right, down


def estimate_normals(depth: np.ndarray, intrinsics: np.ndarray, links: Links, window: int) -> np.ndarray:
    """See `numpy_backend`."""
    normals = np.empty((3, *depth.shape), np.float32)
    _normal_planes(depth, intrinsics, links, window, 1.0, normals)
    return np.moveaxis(normals, 0, -1)


def _normal_planes(
    depth: np.ndarray, intrinsics: np.ndarray, links: Links, window: int, factor: float, planes: np.ndarray
) -> None:
    camera = _camera(intrinsics, np.float32)
    inputs = _array(depth, np.float32), *_bytes(links), *depth.shape, camera
    _check(KERNELS.call("normal_planes", *inputs, window, factor, planes, usable_threads()))


def link_contrast(features: np.ndarray, links: Links) -> tuple[Links, np.ndarray]:
    """See `numpy_backend`."""
    channels, height, width = features.shape
    right, down = np.empty((height, width - 1), np.float32), np.empty((height - 1, width), np.float32)
    levels = np.empty((height, width), np.uint16)
    inputs = _array(features, np.float32), channels, height, width, *_bytes(links)
    KERNELS.call("link_contrast", *inputs, right, down, levels, usable_threads())
    return (right, down), levels


def watershed(levels: np.ndarray, seeds: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """See `numpy_backend`."""
    labels = np.array(seeds, dtype=np.int32, order="C")
    _check(KERNELS.call("watershed", _array(levels, np.uint16), _array(mask, bool), *labels.shape, labels))
    return labels


def number_segments(labels: np.ndarray) -> np.ndarray:
    """See `numpy_backend`."""
    labels = _array(labels, np.int32)
    numbered = np.empty_like(labels)
    bound = int(labels.max(initial=-1)) + 1
    _check(1 + KERNELS.call("number_segments", labels, labels.size, bound, numbered))
    return numbered


def connected_segments(labels: np.ndarray, links: Links) -> np.ndarray:
    """See `numpy_backend`."""
    labels = _array(labels, np.int32)
    parts = np.empty_like(labels)
    _check(1 + KERNELS.call("connected_segments", labels, *_bytes(links), *labels.shape, parts))
    return parts


def cut_at_barred_pairs(labels: np.ndarray, depth: np.ndarray, links: Links, barred: Links) -> np.ndarray:
    """See `numpy_backend`."""
    labels = np.array(labels, dtype=np.int32, order="C")
    inputs = _array(depth, np.float32), *_bytes(links), *_bytes(barred)
    count = int(labels.max(initial=-1)) + 1
    _check(1 + KERNELS.call("cut_at_barred_pairs", labels, count, *inputs, *labels.shape))
    return labels


def region_means(
    labels: np.ndarray, features: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray, position_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """See `numpy_backend`."""
    labels = _array(labels, np.int32)
    number, channels = int(labels.max(initial=-1)) + 1, len(features)
    sizes, sums = np.zeros(number, np.int64), np.zeros((channels + 3, number))
    inputs = labels, *labels.shape, number, _array(features, np.float32), channels, _array(depth, np.float32)
    camera = _camera(intrinsics, np.float64)
    _check(KERNELS.call("region_sums", *inputs, camera, position_scale, sizes, sums, usable_threads()))
    return sizes, (sums / sizes).T


def _taken(pointer: int | None, count: ctypes.c_int64, dtype: np.dtype, free: str) -> np.ndarray:
    """A copy of what a kernel has allocated, which is freed."""
    _check(0 if pointer is None else 1)
    made = np.frombuffer(ctypes.string_at(pointer, count.value * dtype.itemsize), dtype)
    KERNELS.call(free, pointer)
    return made


def region_pairs(
    labels: np.ndarray, pairs: Links, weights: Links | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """See `numpy_backend`."""
    labels, count = _array(labels, np.int32), ctypes.c_int64()
    number = int(labels.max(initial=-1)) + 1
    given = (None, None) if weights is None else tuple(_array(weight, np.float32) for weight in weights)
    inputs = labels, number, *_bytes(pairs), *given, *labels.shape
    found = _taken(KERNELS.call("region_pairs", *inputs, ctypes.addressof(count)), count, _PAIR, "free_pairs")
    low, high = np.divmod(found["key"], number)
    return low, high, found["count"], found["total"]


def nearby_pairs(
    labels: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray, small: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `numpy_backend`."""
    labels, count = _array(labels, np.int32), ctypes.c_int64()
    camera = _camera(intrinsics, np.float64)
    inputs = labels, len(small), _array(small, bool), _array(depth, np.float32), radius, camera, *labels.shape
    pointer = KERNELS.call("nearby_pairs", *inputs, ctypes.addressof(count), usable_threads())
    found = _taken(pointer, count, _NEAR, "free_near")
    first = np.ones(len(found), bool)
    first[1:] = found["key"][1:] != found["key"][:-1]
    low, high = np.divmod(found["key"][first], len(small))
    return low, high, np.sqrt(found["squared"][first])


class RegionGraph:
    """See `graph.RegionGraph`."""

    def __init__(
        self,
        sizes: np.ndarray,
        features: np.ndarray,
        adjacent: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
        barred: np.ndarray,
        size_power: float,
    ):
        self._number = len(sizes)
        features, barred = _array(features, np.float64), _array(np.asarray(barred).T, np.int64)
        low, high, count, total = adjacent
        pairs = _array(low, np.int64), _array(high, np.int64), _array(count, np.int64), _array(total, np.float64)
        regions = len(sizes), features.shape[1], _array(sizes, np.int64), features
        self._graph = KERNELS.call(
            "new_graph", *regions, len(low), *pairs, barred.shape[1], barred[0], barred[1], size_power
        )
        _check(0 if self._graph is None else 1)

    def __del__(self):
        # At the interpreter's end the library may be gone, and with it all memory.
        if getattr(self, "_graph", None) is not None and KERNELS is not None:
            KERNELS.call("free_graph", self._graph)

    def add_near(self, low: np.ndarray, high: np.ndarray, distance: np.ndarray) -> None:
        """See `graph.RegionGraph`."""
        pairs = _array(low, np.int64), _array(high, np.int64), _array(distance, np.float64)
        _check(KERNELS.call("add_near", self._graph, len(low), *pairs))

    def absorb_small(self, min_size: int) -> None:
        """See `graph.RegionGraph`."""
        _check(KERNELS.call("absorb_small", self._graph, min_size))

    def merge_to(self, number: int, min_size: int) -> None:
        """See `graph.RegionGraph`."""
        _check(KERNELS.call("merge_to", self._graph, number, min_size))

    def roots(self) -> np.ndarray:
        """See `graph.RegionGraph`."""
        roots = np.empty(self._number, np.int64)
        KERNELS.call("region_roots", self._graph, roots)
        return roots
