"""Integer voxel coordinates as sortable keys.

A voxel (sample, x, y, z) becomes one int64: a number with the digits sample, z, y, x in base `_BASE`. The base leaves
`KEY_MARGIN` unused values on either side of every axis, so the key of a neighbour is the key plus a constant, and a
neighbour beyond the end of one axis can never be mistaken for a voxel at the start of the next. x is the last digit:
voxels that follow each other along x have consecutive keys.
"""

import torch


# Largest absolute coordinate: 2.6 km at 2 cm.
COORDINATE_LIMIT = 2**17
# Largest reach (offset x dilation x stride, in finest voxels) of a kernel.
KEY_MARGIN = 2**12
MAX_BATCH_SIZE = 256

_BASE = 2 * (COORDINATE_LIMIT + KEY_MARGIN) + 1
_SHIFT = COORDINATE_LIMIT + KEY_MARGIN


def pack_offset(x: int | torch.Tensor, y: int | torch.Tensor, z: int | torch.Tensor) -> int | torch.Tensor:
    """What to add to a voxel's key to get the key of the voxel at (x, y, z) from it; numbers or int64 tensors."""
    return (z * _BASE + y) * _BASE + x


def pack(coordinates: torch.Tensor) -> torch.Tensor:
    """Keys of integer coordinates [V, 4] (sample, x, y, z) within the limits -> int64 [V]."""
    sample, x, y, z = coordinates.long().unbind(1)
    return ((sample * _BASE + (z + _SHIFT)) * _BASE + (y + _SHIFT)) * _BASE + (x + _SHIFT)


def unpack(keys: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack`: int64 [V] -> int32 [V, 4]."""
    digits = []
    for _ in range(3):
        digits.append(keys % _BASE - _SHIFT)
        keys = keys // _BASE
    return torch.stack([keys, *digits], dim=1).int()


def check_batch_size(batch_size: int) -> None:
    """Raises ValueError unless 1 <= batch_size <= `MAX_BATCH_SIZE`."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise ValueError(f"batch_size is {batch_size!r}; expected an int from 1 to {MAX_BATCH_SIZE}")


def check_coordinates(coordinates: torch.Tensor, batch_size: int, stride: int) -> None:
    """Checks voxel coordinates given by a caller.

    Args:
        coordinates: int32 or int64 [V, 4] (sample, x, y, z).
        batch_size: Number of samples.
        stride: Spacing of the grid; x, y and z must be multiples of it.

    Raises:
        ValueError: Wrong dtype or shape, a sample index or coordinate out of range, or off the grid.
    """
    if coordinates.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"coordinates have dtype {coordinates.dtype}; expected int32 or int64")
    if coordinates.ndim != 2 or coordinates.shape[1] != 4:
        raise ValueError(f"coordinates have shape {tuple(coordinates.shape)}; expected [V, 4] (sample, x, y, z)")
    if not len(coordinates):
        return
    lowest, highest = (values.tolist() for values in coordinates.aminmax(dim=0))
    check_samples(lowest[0], highest[0], batch_size)
    if min(lowest[1:]) < -COORDINATE_LIMIT or max(highest[1:]) > COORDINATE_LIMIT:
        raise ValueError(
            f"coordinates reach from {lowest[1:]} to {highest[1:]}; expected -{COORDINATE_LIMIT} to {COORDINATE_LIMIT}"
        )
    if stride > 1 and (off_grid := int((coordinates[:, 1:] % stride != 0).any(1).sum())):
        raise ValueError(f"{off_grid} of {len(coordinates)} coordinates are no multiples of the stride {stride}")


def check_samples(lowest: int, highest: int, batch_size: int) -> None:
    """Raises ValueError unless sample indices from `lowest` to `highest` fit `batch_size`."""
    if lowest < 0 or highest >= batch_size:
        raise ValueError(f"sample indices reach from {lowest} to {highest}; expected 0 to {batch_size - 1}")
