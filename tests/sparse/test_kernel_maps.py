from dataclasses import replace

import pytest
import torch
from launch_counter import DEVICE, LaunchCounter
from sparse_examples import random_grid

from bifusion_hf.sparse import VoxelGrid, gather_plan
from bifusion_hf.sparse.backends import torch_backend
from bifusion_hf.sparse.gather_plan import GatherPlan
from bifusion_hf.sparse.kernel_maps import KernelMap, KernelMaps, kernel_offsets


def slow_table(from_grid, to_grid, offsets):
    row = {tuple(c): i for i, c in enumerate(from_grid.coordinates.tolist())}
    return torch.tensor(
        [
            [row.get((s, x + dx, y + dy, z + dz), len(from_grid)) for s, x, y, z in to_grid.coordinates.tolist()]
            for dx, dy, dz in offsets
        ]
    )


def test_offsets_have_x_fastest():
    assert kernel_offsets(3)[:4] == [(-1, -1, -1), (0, -1, -1), (1, -1, -1), (-1, 0, -1)]
    assert kernel_offsets(2, step=4)[:3] == [(0, 0, 0), (4, 0, 0), (0, 4, 0)]
    assert kernel_offsets(5)[62] == (0, 0, 0)


@pytest.mark.parametrize(
    ("size", "dilation", "stride"), [(3, 1, 1), (5, 1, 1), (3, 3, 1), (3, 2, 1), (3, 1, 8), (3, 3, 2), (7, 1, 1)]
)
def test_submanifold(size, dilation, stride):
    grid = random_grid(stride=stride)
    maps = grid.kernel_maps("submanifold", size, dilation)
    assert maps is grid.kernel_maps("submanifold", size, dilation)
    wanted = slow_table(grid, grid, kernel_offsets(size, dilation * stride))
    assert torch.equal(maps.forward.table.long(), wanted)
    assert maps.forward.num_pairs == int((wanted < len(grid)).sum())
    assert maps.is_mirrored and maps.backward is maps.forward


def test_sorted_rows():
    grid = random_grid()
    ordered = VoxelGrid(grid.coordinates[torch.argsort(grid.keys_by_row)], 2)
    assert ordered.order is None
    wanted = slow_table(ordered, ordered, kernel_offsets(3))
    assert torch.equal(ordered.kernel_maps("submanifold", 3).forward.table.long(), wanted)


@pytest.mark.parametrize("stride", [1, 4])
def test_strided_and_transposed(stride):
    grid = random_grid(stride=stride)
    coarse = grid.coarser()
    down = grid.kernel_maps("strided", 2)
    wanted = slow_table(grid, coarse, kernel_offsets(2, stride))
    assert torch.equal(down.forward.table.long(), wanted)
    up = coarse.kernel_maps("transposed", 2)
    assert up.forward is down.backward and up.backward is down.forward
    # The same pairs, seen from the other end.
    seen = torch.full((8, len(grid)), len(coarse))
    k, u = torch.nonzero(wanted < len(grid), as_tuple=True)
    seen[k, wanted[k, u]] = u
    assert torch.equal(up.forward.table.long(), seen)
    assert (seen < len(coarse)).sum(0).eq(1).all()


def test_neighbours_do_not_wrap_around():
    """Voxels at opposite ends of the range, and in neighbouring samples, are no neighbours."""
    limit = 2**17
    coordinates = torch.tensor(
        [[0, limit, 0, 0], [0, -limit, 1, 0], [0, 0, limit, 0], [0, 0, -limit, 1], [0, 0, 0, limit], [1, 0, 0, -limit]]
    )
    grid = VoxelGrid(coordinates, 2)
    assert grid.kernel_maps("submanifold", 5).forward.num_pairs == len(grid)
    assert grid.kernel_maps("submanifold", 3, dilation=4096).forward.num_pairs == len(grid)
    with pytest.raises(ValueError, match="kernel 3 with dilation 4097 at stride 1 reaches 4097 voxels"):
        grid.kernel_maps("submanifold", 3, dilation=4097)
    with pytest.raises(ValueError, match="kernel 5 with dilation 1025 at stride 2 reaches 4100 voxels"):
        VoxelGrid(2 * coordinates[:1] * 0, 2, 2).kernel_maps("submanifold", 5, dilation=1025)
    with pytest.raises(ValueError, match="reaches 6144 voxels; expected at most 4096"):
        grid.kernel_maps("submanifold", 3, dilation=6144)


@pytest.mark.parametrize("volume", [2, 8, 27, 31, 32])
def test_rows_are_ordered_by_the_rank_of_their_offsets_in_a_gray_code(volume):
    """The rarest offset is the first digit; of more than 31 offsets rows keep their order."""
    generator = torch.Generator().manual_seed(volume)
    present = torch.rand(volume, 60, generator=generator) < torch.rand(volume, 1, generator=generator)
    rarest_first = sorted(range(volume), key=lambda k: int(present[k].sum()))
    ranks = []
    for column in present.T.tolist():
        rank = digit = 0
        for k in rarest_first:
            digit ^= column[k]
            rank = 2 * rank + digit
        ranks.append(rank)
    expected = list(range(60)) if volume > 31 else sorted(range(60), key=ranks.__getitem__)
    assert gather_plan.offset_set_order(present).tolist() == expected


@pytest.mark.parametrize("parts", [1, 3, 27])
def test_a_cpu_multiplies_few_shapes(parts):
    """An even number of offsets where there are more than one, unless it is all; rows of one of eight numbers."""
    grid = random_grid(count=3000, low=-11, high=11, samples=1)
    table = grid.kernel_maps("submanifold", 3).forward.table
    chunks = GatherPlan(table, len(grid), parts).chunks
    used = [len(chunk.offsets) for chunk in chunks]
    assert all(count == 1 or count % 2 == 0 or count == 27 // parts for count in used)
    assert parts == 27 or any(count % 4 == 2 for count in used)
    for chunk in chunks:
        rows = len(chunk.indices) // len(chunk.offsets)
        assert rows in (32, 64, 128, 256, 384, 512, 768, 1024) and rows >= len(chunk.rows)
        present = (table[chunk.offsets.index][:, chunk.rows] < len(grid)).any(1).sum()
        # No more than one that no row uses.
        assert len(chunk.offsets) - int(present) in ((0, 1) if len(chunk.offsets) % 2 == 0 else (0,))
        assert chunk.offsets.is_all == (len(chunk.offsets) == 27)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        *[(rows, [rows]) for rows in (32, 64, 128, 256, 384, 512, 768, 1024)],
        *[(1, [32]), (33, [64]), (65, [128]), (129, [256]), (257, [384]), (385, [512]), (513, [768]), (769, [1024])],
        *[(1025, [1024, 32]), (2048, [1024, 1024])],
    ],
)
def test_the_last_rows_are_filled_up_to_the_next_size(count, sizes):
    chunks = GatherPlan(torch.zeros(2, count, dtype=torch.int32), 1).chunks
    assert [len(chunk.indices) for chunk in chunks] == [2 * size for size in sizes]
    assert [len(chunk.rows) for chunk in chunks] == [min(1024, count), count - 1024][: len(sizes)]
    assert all((chunk.indices[: 2 * len(chunk.rows)] == 0).all() for chunk in chunks)
    assert all((chunk.indices[2 * len(chunk.rows) :] == 1).all() for chunk in chunks)


def check_plan(plan, table, grid):
    found = torch.zeros_like(table) + len(grid)
    times = torch.zeros_like(table)
    for chunk in plan.chunks:
        assert chunk.rows.unique().numel() == len(chunk.rows)
        indices = chunk.indices.view(-1, len(chunk.offsets))
        assert indices[len(chunk.rows) :].eq(len(grid)).all()
        indices = indices[: len(chunk.rows)]
        found[chunk.offsets.index[:, None], chunk.rows] = indices.T
        times[chunk.offsets.index[:, None], chunk.rows] += 1
        assert chunk.offsets.index.tolist() == sorted(chunk.offsets.numbers) == list(chunk.offsets.numbers)
    assert torch.equal(found, table)
    assert times[table < len(grid)].eq(1).all()
    # The first part is the middle offset's, so its chunks write every row before others add to it.
    first = torch.cat([chunk.rows for chunk in plan.chunks if chunk.is_first])
    assert plan.covers_rows and torch.equal(first.sort().values, torch.arange(len(grid)))


@pytest.mark.parametrize("parts", [1, 3, 9, 27])
@pytest.mark.parametrize("count", [1, 40, 900, 3000])
def test_plan_covers_every_pair_once(parts, count):
    grid = random_grid(count=count, low=-8, high=8, samples=1)
    table = grid.kernel_maps("submanifold", 3).forward.table
    check_plan(GatherPlan(table, len(grid), parts), table, grid)


@pytest.mark.parametrize("count", [1, 100, 101, 250])
def test_plan_of_a_gpu_covers_every_pair_once_in_the_order_of_the_rows(count, monkeypatch):
    monkeypatch.setattr(gather_plan, "CUDA_CHUNK_ROWS", 100)
    grid = random_grid(count=count, low=-8, high=8, samples=1)
    table = grid.kernel_maps("submanifold", 3).forward.table
    with LaunchCounter() as counter:
        on_device = table.to(DEVICE)
        waits = counter.waits.total()
        plan = GatherPlan(on_device, len(grid))
        assert counter.waits.total() == waits
        assert (
            {chunk.rows.device for chunk in plan.chunks} == {chunk.indices.device for chunk in plan.chunks} == {DEVICE}
        )
        for chunk in plan.chunks:
            chunk.rows, chunk.indices = chunk.rows.cpu(), chunk.indices.cpu()
            chunk.offsets = replace(chunk.offsets, device=chunk.rows.device)
    assert all(len(chunk.rows) <= 100 and chunk.offsets.is_all and chunk.is_first for chunk in plan.chunks)
    assert torch.equal(torch.cat([chunk.rows for chunk in plan.chunks]), torch.arange(len(grid)))
    check_plan(plan, table, grid)


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_a_row_without_pairs_is_zero(parts, monkeypatch):
    """No chunk writes it, so it has to be there before."""
    monkeypatch.setattr(torch_backend, "_kernel_parts", lambda *_: parts)
    table = torch.randint(0, 6, (8, 9), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    table[:, 4] = 5
    kernel_map = KernelMap(table, 5)
    assert not GatherPlan(table, 5, parts).covers_rows
    features, kernel = torch.ones(5, 3), torch.ones(8, 3, 2)
    found = torch_backend.convolve_over(features, kernel, KernelMaps(kernel_map, kernel_map, is_mirrored=False))
    assert torch.equal(found, 3.0 * (table < 5).sum(0)[:, None].expand(-1, 2)) and not found[4].any()


def test_plan_without_rows():
    maps = VoxelGrid(torch.zeros(0, 4, dtype=torch.int32), 1).kernel_maps("submanifold", 3)
    assert maps.forward.table.shape == (27, 0) and maps.forward.num_pairs == 0
    assert GatherPlan(torch.zeros(27, 0, dtype=torch.int32), 0).chunks == []
