"""Voxels near each voxel."""

import torch

from .coordinates import KEY_MARGIN, pack_offset
from .voxels import VoxelGrid


# Rows searched at once: bounds the working memory, which a dense cloud and a wide radius would let grow to gigabytes.
# A GPU has more of it, and waits once for each chunk.
CPU_CHUNK_ROWS = 2048
CUDA_CHUNK_ROWS = 16384


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
    size = CPU_CHUNK_ROWS if grid.device.type == "cpu" else CUDA_CHUNK_ROWS
    chunks = [
        _neighbors_of(
            grid, torch.arange(start, min(start + size, len(grid)), device=grid.device), radius, max_neighbors
        )
        for start in range(0, max(len(grid), 1), size)
    ]
    return torch.cat([row for row, _ in chunks]), torch.cat([neighbor for _, neighbor in chunks])


def _neighbors_of(
    grid: VoxelGrid, rows: torch.Tensor, radius: int, max_neighbors: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`radius_neighbors` of some rows, int64 [R] without gaps."""
    keys = grid.keys_by_row.index_select(0, rows)
    first, last = _runs(grid, keys, radius)
    length = last - first
    count = length.sum(1)
    kept = count - 1 if max_neighbors is None else (count - 1).clamp(max=max_neighbors)
    # The only wait for a GPU: how many pairs there are, and how many of them stay.
    num_pairs, num_kept = torch.stack([count.sum(), kept.sum()]).tolist()
    position = _expand(first.reshape(-1), length.reshape(-1), num_pairs)
    before = count.cumsum(0) - count
    if max_neighbors is None:
        # All but the voxel itself, which lies on the line in the middle.
        middle = length.shape[1] // 2
        itself = length[:, :middle].sum(1) + torch.searchsorted(grid.sorted_keys, keys) - first[:, middle]
        chosen = _expand(before, kept, num_kept)
        place = torch.repeat_interleave(kept, output_size=num_kept)
        chosen = chosen + (chosen - before[place] >= itself[place])
        return rows[place], grid.rows_of_sorted(position[chosen])
    place = torch.repeat_interleave(count, output_size=num_pairs)
    neighbor = grid.rows_of_sorted(position)
    delta = (grid.coordinates[rows[place], 1:] - grid.coordinates[neighbor, 1:]).long() // grid.stride
    distance = delta.square().sum(1)
    order = torch.argsort(place * (3 * radius * radius + 1) + distance, stable=True)
    # The nearest voxel is the voxel itself.
    chosen = order[_expand(before + 1, kept, num_kept)]
    return rows[place[chosen]], neighbor[chosen]


def _runs(grid: VoxelGrid, keys: torch.Tensor, radius: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the neighbours on each line of voxels begin and end among the sorted keys, int64 [R, lines] each.

    Keys are consecutive along x, so the neighbours on one line are a run of the sorted keys.
    """
    reach = grid.stride * torch.arange(-radius, radius + 1, device=grid.device)
    lines = pack_offset(0, reach, reach[:, None]).reshape(-1, 1)
    # One row a line: searches of voxels that follow each other end close to each other.
    first = torch.searchsorted(grid.sorted_keys, keys + (lines + reach[0]))
    last = torch.searchsorted(grid.sorted_keys, keys + (lines + reach[-1]), right=True)
    return first.T, last.T


def _expand(first: torch.Tensor, length: torch.Tensor, total: int) -> torch.Tensor:
    """The numbers of runs, one run after the other: int64 [N] where each begins, [N] its length -> [total]."""
    # What to add to the place in the result.
    shift = first - (length.cumsum(0) - length)
    return torch.repeat_interleave(shift, length, output_size=total) + torch.arange(total, device=first.device)
