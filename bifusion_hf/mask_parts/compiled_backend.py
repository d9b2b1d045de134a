"""Touching points and connected parts in C; each function does what that of its name in `scipy_backend` does."""

from functools import cache
from pathlib import Path

import numpy as np

from ..io.compiled_library import FLAG, POINTER, REAL, SIZE, CompiledLibrary, KernelError, usable_threads


KERNELS = CompiledLibrary(
    "mask_part_kernels",
    [Path(__file__).with_name("touching.c")],
    # Without contraction distances are rounded as scipy rounds them.
    ["-O3", "-march=native", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off"],
    {
        "touching_points": (FLAG, [POINTER, POINTER, REAL, POINTER, POINTER, SIZE, FLAG, FLAG, FLAG]),
        "connected_parts": (SIZE, [POINTER] * 4 + [SIZE, SIZE, FLAG, FLAG]),
    },
)


@cache
def unavailable_reason() -> str | None:
    """Why the compiled form does not work here; None where it does. Tried once, and logged."""
    return KERNELS.failure(_test_kernels, "parts of masks are found by scipy")


def _test_kernels() -> None:
    """Raises KernelError unless two pairs of points come out as two parts."""
    points = np.array([[0, 0, 0], [9, 0, 0], [1, 0, 0], [9, 1, 0]], dtype=np.float64)
    found = touching_points(points, np.ones(4, bool), 1.5, 1)
    parts, number = connected_parts(np.ones((1, 4), bool), *found)
    if number != 2 or parts.tolist() != [[0, 1, 0, 1]]:
        raise KernelError(f"the kernels of mask parts are wrong: parts {parts.tolist()} of two pairs")


def touching_points(points: np.ndarray, among: np.ndarray, gap: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """See `scipy_backend`; of points in the same distance those of lower numbers are nearer."""
    if not np.isfinite(points).all():
        raise ValueError("points must be finite, check for nan or inf values")
    others = np.zeros((len(points), count + 1), dtype=np.int32)
    touching = np.zeros(len(points), dtype=np.int32)
    inputs = np.ascontiguousarray(points, np.float64), np.ascontiguousarray(among, bool)
    sizes = len(points), count + 1, (count + 1) // 2, usable_threads()
    if not KERNELS.call("touching_points", *inputs, gap, others, touching, *sizes):
        raise MemoryError(f"no memory for the nearest points of {len(points)} points")
    return others, touching


def connected_parts(masks: np.ndarray, others: np.ndarray, touching: np.ndarray) -> tuple[np.ndarray, int]:
    """See `scipy_backend`."""
    parts = np.empty(masks.shape, dtype=np.int32)
    inputs = np.ascontiguousarray(masks, bool), others, touching
    number = KERNELS.call("connected_parts", *inputs, parts, *masks.shape, others.shape[1], usable_threads())
    if number < 0:
        raise MemoryError(f"no memory for the parts of {len(masks)} masks")
    return parts, number
