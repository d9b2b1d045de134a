"""In which order, and in which portions, an output-stationary convolution walks over its output rows."""

from dataclasses import dataclass

import torch


# Rows of one gather and one matrix product. On a CPU, a chunk stays in the cache between the two.
CPU_CHUNK_ROWS = 512
CUDA_CHUNK_ROWS = 16384
# oneDNN prepares each new shape of a product for about a millisecond and keeps 1024 of them, so the last chunk of a
# grid is filled up with empty rows to one of few sizes, and the used offsets to an even number.
_LAST_CHUNK_ROWS = (32, 64, 128, 256, 384, 512)


@dataclass(eq=False)
class Chunk:
    """Output rows that are computed together.

    Args:
        rows: int64 [m], their numbers.
        offsets: int64 [u], the kernel's offsets that any of them uses; None = all.
        indices: int32 [M * u], M >= m: the input row of each output row and offset; the number of inputs = none.
    """

    rows: torch.Tensor
    offsets: torch.Tensor | None
    indices: torch.Tensor


class GatherPlan:
    """Output rows sorted by the set of offsets that they use, cut into chunks.

    Neighbours in that order read through nearly the same offsets, so a chunk gathers only the union of its rows'
    offsets: at 2 cm about 21 of 27, where the rows themselves have 15 to 18. The rows are sorted by the rank of their
    set in a Gray code with the rarest offset as the first digit: this wastes least of the orders that were tried
    (plain binary order 5 % more, most frequent first 10 % more).

    Args:
        table: int32 [K, N_out], as in `KernelMap`.
        num_inputs: Number of input rows, which in the table stands for "none".
    """

    def __init__(self, table: torch.Tensor, num_inputs: int):
        volume, count = table.shape
        self.volume = volume
        self.num_outputs = count
        self.chunks: list[Chunk] = []
        if not count:
            return
        on_cpu = table.device.type == "cpu"
        size = CPU_CHUNK_ROWS if on_cpu else CUDA_CHUNK_ROWS
        present = table < num_inputs
        order = _offset_set_order(present)
        table, present = table.index_select(1, order), present.index_select(1, order)
        starts = range(0, count, size)
        used = torch.stack([present[:, start : start + size].any(1) for start in starts]).tolist()
        shared: dict[tuple[int, ...], torch.Tensor] = {}
        for start, flags in zip(starts, used, strict=True):
            offsets = _evened([k for k in range(volume) if flags[k]], volume)
            rows = order[start : start + size]
            part = table[:, start : start + size]
            if len(offsets) < volume:
                selected = shared.setdefault(offsets, torch.tensor(offsets, device=table.device))
                part = part.index_select(0, selected)
            else:
                selected = None
            if on_cpu:
                padded = next(rows_ for rows_ in _LAST_CHUNK_ROWS if rows_ >= len(rows))
                part = torch.nn.functional.pad(part, (0, padded - len(rows)), value=num_inputs)
            self.chunks.append(Chunk(rows, selected, part.T.reshape(-1)))


def _evened(used: list[int], volume: int) -> tuple[int, ...]:
    """The used offsets, with an unused one added where that makes their number even."""
    if len(used) > 1 and len(used) % 2 and len(used) < volume:
        used = sorted([*used, next(k for k in range(volume) if k not in used)])
    return tuple(used)


def _offset_set_order(present: torch.Tensor) -> torch.Tensor:
    """Order of the columns of bool [K, N] described in `GatherPlan`, int64 [N]."""
    volume, count = present.shape
    if volume > 31:
        # A kernel this large has no two rows with the same set: the order of the voxels is as good, and free.
        return torch.arange(count, device=present.device)
    rarest_first = torch.argsort(present.sum(1), stable=True)
    weight = torch.empty(volume, dtype=torch.int32, device=present.device)
    weight[rarest_first] = 1 << torch.arange(volume - 1, -1, -1, dtype=torch.int32, device=present.device)
    code = torch.where(present, weight[:, None], 0).sum(0, dtype=torch.int32)
    for shift in (1, 2, 4, 8, 16):  # the rank of a word in the Gray code
        code ^= code >> shift
    return torch.sort(code, stable=True).indices
