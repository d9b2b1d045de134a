"""In which order, and in which portions, an output-stationary convolution walks over its output rows."""

from dataclasses import dataclass
from functools import cached_property

import torch


# Rows of one gather and one matrix product. On a CPU, a chunk stays in the cache between the two.
CPU_CHUNK_ROWS = 1024
CUDA_CHUNK_ROWS = 16384
# oneDNN prepares each new shape of a product for about a millisecond and keeps 1024 of them, so the last chunk of a
# grid is filled up with empty rows to one of few sizes, and the used offsets to an even number.
_LAST_CHUNK_ROWS = (32, 64, 128, 256, 384, 512, 768, 1024)


@dataclass(eq=False)
class OffsetSet:
    """Some of a kernel's offsets, in ascending order.

    Args:
        numbers: Which.
        is_all: Whether these are all.
        device: Of `index`.
    """

    numbers: tuple[int, ...]
    is_all: bool
    device: torch.device

    @cached_property
    def index(self) -> torch.Tensor:
        """The same numbers as int64 [u]."""
        return torch.tensor(self.numbers, device=self.device)

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(eq=False)
class Chunk:
    """Output rows that are computed together.

    Args:
        rows: int64 [m], their numbers.
        offsets: The kernel's offsets that any of them uses. Chunks with the same ones share the object.
        indices: int32 [M * u], M >= m: the input row of each output row and offset; the number of inputs = none.
        is_first: Whether no chunk before writes to these rows.
    """

    rows: torch.Tensor
    offsets: OffsetSet
    indices: torch.Tensor
    is_first: bool


class GatherPlan:
    """Output rows sorted by the set of offsets that they use, cut into chunks.

    Neighbours in that order read through nearly the same offsets, so a chunk gathers only the union of its rows'
    offsets: at 2 cm about 21 of 27, where the rows themselves have 15 to 18. The rows are sorted by the rank of their
    set in a Gray code with the rarest offset as the first digit: this wastes least of the orders that were tried
    (plain binary order 5 % more, most frequent first 10 % more).

    A kernel in several parts has its rows sorted and cut for each part on its own, which wastes less (three parts: 19
    of 27; one offset each: nothing), and adds the parts' results up.

    A GPU's chunks are so large that their unions are nearly all offsets: there the rows keep their order and use all,
    and the plan is made without a number that the host would have to wait for.

    Args:
        table: int32 [K, N_out], as in `KernelMap`.
        num_inputs: Number of input rows, which in the table stands for "none".
        parts: In how many parts of equally many offsets to cut the kernel: offset k belongs to part k % parts. The
            part of the middle offset is walked over first: in a submanifold convolution it uses all rows.
    """

    def __init__(self, table: torch.Tensor, num_inputs: int, parts: int = 1):
        self.volume, self.num_outputs = table.shape
        self.parts = parts
        self.chunks: list[Chunk] = []
        self._offset_sets: dict[tuple[int, ...], OffsetSet] = {}
        # Whether chunks with `is_first` write all rows.
        self.covers_rows = False
        if self.num_outputs and table.device.type != "cpu":
            self._add_all(table)
        elif self.num_outputs:
            middle = self.volume // 2
            for part in range(parts):
                self._add_part(range((middle + part) % parts, self.volume, parts), table, num_inputs)

    @property
    def is_single(self) -> bool:
        """Whether every chunk has one offset."""
        return self.parts == self.volume

    def _add_all(self, table: torch.Tensor) -> None:
        self.covers_rows = True
        offsets = OffsetSet(tuple(range(self.volume)), True, table.device)
        reads = table.T.contiguous()
        rows = torch.arange(self.num_outputs, device=table.device)
        for start in range(0, self.num_outputs, CUDA_CHUNK_ROWS):
            chunk = slice(start, start + CUDA_CHUNK_ROWS)
            self.chunks.append(Chunk(rows[chunk], offsets, reads[chunk].view(-1), True))

    def _add_part(self, offsets: range, table: torch.Tensor, num_inputs: int) -> None:
        table = table[offsets.start :: offsets.step]
        present = table < num_inputs
        order = offset_set_order(present)
        # Rows that use no offset of this part are the first in that order.
        order = order[self.num_outputs - int(present.any(0).sum()) :]
        is_first = not self.chunks and len(order) == self.num_outputs
        self.covers_rows |= is_first
        table, present = table.index_select(1, order), present.index_select(1, order)
        starts = range(0, len(order), CPU_CHUNK_ROWS)
        if not starts:
            return
        used = torch.stack([present[:, start : start + CPU_CHUNK_ROWS].any(1) for start in starts]).tolist()
        for start, flags in zip(starts, used, strict=True):
            local = _evened(flags)
            rows = order[start : start + CPU_CHUNK_ROWS]
            columns = table[:, start : start + CPU_CHUNK_ROWS]
            if len(local) < len(flags):
                columns = columns[local]
            padded = next(rows_ for rows_ in _LAST_CHUNK_ROWS if rows_ >= len(rows))
            columns = torch.nn.functional.pad(columns, (0, padded - len(rows)), value=num_inputs)
            offset_set = self._offset_set(tuple(offsets[k] for k in local), table.device)
            self.chunks.append(Chunk(rows, offset_set, columns.T.reshape(-1), is_first))

    def _offset_set(self, numbers: tuple[int, ...], device: torch.device) -> OffsetSet:
        if numbers not in self._offset_sets:
            self._offset_sets[numbers] = OffsetSet(numbers, len(numbers) == self.volume, device)
        return self._offset_sets[numbers]


def _evened(flags: list[bool]) -> list[int]:
    """Numbers of the flags that are set, with another one added where that makes their count even."""
    used = [k for k, flag in enumerate(flags) if flag]
    if len(used) > 1 and len(used) % 2 and len(used) < len(flags):
        used = sorted([*used, flags.index(False)])
    return used


def offset_set_order(present: torch.Tensor) -> torch.Tensor:
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
