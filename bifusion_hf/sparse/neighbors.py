"""Voxels near each voxel."""

import torch

from .coordinates import KEY_MARGIN, pack_offset
from .voxels import VoxelGrid


# Rows searched at once: bounds the working memory, which a dense cloud and a wide radius would let grow to gigabytes.
CHUNK_ROWS = 2048


def radius_neighbors(
    grid: VoxelGrid, radius: int, max_neighbors: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of voxels of one sample whose distance is at most `radius` along each axis.

    Args:
        grid: The grid.
        radius: In voxels of this grid (of its stride, not of the finest).
        max_neighbors: Keep only so many neighbours of each voxel, the nearest by Euclidean distance; equally near ones
            in the order of (z, y, x).

    Returns:
        (row, neighbor), both int64 [E]: rows of the grid, sorted by row, a voxel never its own neighbour. Without
        `max_neighbors`, the pairs are symmetric.

    Raises:
        ValueError: A radius under 0, or beyond the margin of the keys; `max_neighbors` under 1.
    """
    if not isinstance(radius, int) or not 0 <= radius * grid.stride <= KEY_MARGIN:
        raise ValueError(f"radius is {radius!r}; expected an int from 0 to {KEY_MARGIN // grid.stride}")
    if max_neighbors is not None and max_neighbors < 1:
        raise ValueError(f"max_neighbors is {max_neighbors}; expected at least 1")
    chunks = [
        _neighbors_of(
            grid, torch.arange(start, min(start + CHUNK_ROWS, len(grid)), device=grid.device), radius, max_neighbors
        )
        for start in range(0, max(len(grid), 1), CHUNK_ROWS)
    ]
    return torch.cat([row for row, _ in chunks]), torch.cat([neighbor for _, neighbor in chunks])


def _neighbors_of(
    grid: VoxelGrid, rows: torch.Tensor, radius: int, max_neighbors: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`radius_neighbors` of some rows, int64 [R] without gaps."""
    keys = grid.keys_by_row[rows]
    reach = range(-radius * grid.stride, radius * grid.stride + 1, grid.stride)
    lines = [(y, z) for z in reach for y in reach]
    # Keys are consecutive along x, so the neighbours on one line of voxels are a run of the sorted keys.
    first = torch.stack([torch.searchsorted(grid.sorted_keys, keys + pack_offset(reach[0], *line)) for line in lines])
    last = torch.stack(
        [torch.searchsorted(grid.sorted_keys, keys + pack_offset(reach[-1], *line), right=True) for line in lines]
    )
    length = (last - first).T.reshape(-1)
    run = torch.repeat_interleave(length)
    before = torch.cumsum(length, 0) - length
    position = first.T.reshape(-1)[run] + torch.arange(len(run), device=grid.device) - before[run]
    place = run // len(lines)
    neighbor = grid.rows_of_sorted(position)
    other = rows[place] != neighbor
    place, neighbor = place[other], neighbor[other]
    if max_neighbors is None:
        return rows[place], neighbor
    delta = (grid.coordinates[rows[place], 1:] - grid.coordinates[neighbor, 1:]).long() // grid.stride
    distance = delta.square().sum(1)
    order = torch.argsort(place * (3 * radius * radius + 1) + distance, stable=True)
    place, neighbor = place[order], neighbor[order]
    count = torch.bincount(place, minlength=len(rows))
    rank = torch.arange(len(place), device=grid.device) - (torch.cumsum(count, 0) - count)[place]
    kept = rank < max_neighbors
    return rows[place[kept]], neighbor[kept]
