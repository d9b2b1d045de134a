"""Sparse convolution on a GPU by Triton's kernels (`triton_kernels.py`): a masked implicit matrix product.

Output-stationary: the output rows are sorted by the set of offsets that they use and cut into blocks; a program
gathers a block's inputs offset by offset, over the offsets that any of its rows uses, and multiplies them with the
kernel where it lies. The gradient of the input is the same over the opposite map with the transposed kernel; that of
the kernel is summed over each offset's pairs. Nothing is added atomically, and the shapes alone choose how the work is
cut: the same inputs give the same bits on the same device.

Triton compiles a kernel when it first runs, with the C compiler and Python's headers of the machine for its launcher,
and keeps it in its own cache folder.
"""

import logging
import os
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType

import torch

from ...import_utils import require_package
from ..finish import Finish
from ..gather_plan import offset_set_order
from ..kernel_maps import ConvolutionLayer, KernelMap, KernelMaps
from ..voxels import VoxelGrid
from .differentiation import Products, differentiable
from .folding import convolve_by_maps
from .self_test import check_against_torch


logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Triton's interpreter, which is for tests, has to be chosen before Triton is imported, and works on a CPU.
DEVICES = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)
# The least that Triton multiplies, and the most that a program holds.
MIN_BLOCK, MAX_BLOCK = 16, 128
# From so many rows on, larger blocks still give every multiprocessor several.
MANY_ROWS = 16_384
# Small grids are cut along the offsets too, until there are about so many programs.
WANTED_PROGRAMS = 256
MAX_SPLITS = 8
# Pairs that a program sums at least for a kernel's gradient.
MIN_SHARE = 1024
# Rows of a block where parts are added up.
ADDED_ROWS = 32


def convolve(
    features: torch.Tensor,
    kernel: torch.Tensor,
    grid: VoxelGrid,
    layer: ConvolutionLayer,
    finish: Finish | None = None,
) -> torch.Tensor:
    """Features [N_in, Cin] on `grid`, kernel [K, Cin, Cout] -> [N_out, Cout], of one of `DTYPES`.

    Differentiable once; with `finish`, which is applied to the outputs as they are written, not at all. float32 is
    computed exactly; where torch may take TF32 (`torch.set_float32_matmul_precision("high")`), by three products of
    TF32 for one, which come close to float32 and run on the tensor cores.
    """
    if layer.kernel_size == 1 and finish is None:
        return features @ kernel
    return convolve_by_maps(features, kernel, grid, layer, convolve_over, finish)


def convolve_over(
    features: torch.Tensor, kernel: torch.Tensor, maps: KernelMaps, finish: Finish | None = None
) -> torch.Tensor:
    """Features [N_in, Cin] and kernel [K, Cin, Cout] over kernel maps -> [N_out, Cout], as in `convolve`."""
    if finish is not None:
        return multiply(features, kernel, maps.forward, finish=finish)
    return differentiable(features, kernel, maps, _PRODUCTS)


@cache
def triton_unavailable_reason() -> str | None:
    """Why the kernels do not work here; None where they do. Tried once, and logged.

    In Triton's interpreter they are taken as they are.
    """
    try:
        if not _kernels().IS_INTERPRETED:
            check_against_torch(convolve, "cuda", DTYPES)
    # No Triton, no compiler, no header, a GPU or a version that it cannot serve: all of them end here.
    except Exception as error:
        kind = "" if isinstance(error, (ImportError, ArithmeticError)) else f"{type(error).__name__}: "
        reason = f"Triton's kernels do not work: {kind}{error}".strip()
        logger.warning("sparse convolutions do without Triton: %s", reason)
        return reason
    return None


@dataclass(frozen=True)
class Tile:
    """What one program computes at once.

    Args:
        rows: Rows of the output, or pairs of a kernel's gradient.
        inputs: Channels of the input.
        outputs: Channels of the output.
        warps: Groups of 32 threads.
        stages: Steps of the loop whose loads are under way at a time.
    """

    rows: int
    inputs: int
    outputs: int
    warps: int = 4
    stages: int = 3


def choose_tile(rows: int, in_channels: int, out_channels: int, dtype: torch.dtype) -> Tile:
    """The tile of a convolution.

    Where tensor cores multiply, gathering is what takes time, so a program makes all channels of its rows; exact
    float32 has the ordinary units, where channels that do not exist cost as much as others.
    """
    if dtype == torch.float32:
        outputs = _fitting_block(out_channels, 64) if precision(dtype) == "ieee" else _covering_block(out_channels)
        return Tile(64, _fitting_block(in_channels, 32), outputs)
    outputs = _covering_block(out_channels)
    large = rows >= MANY_ROWS
    return Tile(128 if large else 64, _fitting_block(in_channels, 64), outputs, 8 if large and outputs > 64 else 4)


def choose_gradient_tile(in_channels: int, out_channels: int, dtype: torch.dtype) -> Tile:
    """The tile of a kernel's gradient."""
    if dtype == torch.float32:
        return Tile(32, _fitting_block(in_channels, 64), _fitting_block(out_channels, 64))
    return Tile(64, _fitting_block(in_channels, 64), _covering_block(out_channels))


def choose_shares(rows: int, programs: int) -> int:
    """In how many shares of pairs a kernel's gradient is summed."""
    return max(1, min(2 * WANTED_PROGRAMS // programs, rows // MIN_SHARE))


def precision(dtype: torch.dtype) -> str:
    """Triton's name of how products of this dtype are computed."""
    matmul = torch.backends.cuda.matmul
    # Before torch 2.9 there is one switch alone.
    is_short = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    return "tf32x3" if dtype == torch.float32 and is_short else "ieee"


def _covering_block(channels: int) -> int:
    """The smallest power of two that holds all channels, within bounds."""
    return min(max(1 << (channels - 1).bit_length(), MIN_BLOCK), MAX_BLOCK)


def _fitting_block(channels: int, largest: int) -> int:
    """The largest power of two up to `largest` whose multiples waste at most a quarter over those of `MIN_BLOCK`."""
    size = largest
    while size > MIN_BLOCK and _padded(channels, size) > 1.25 * _padded(channels, MIN_BLOCK):
        size //= 2
    return size


def _padded(channels: int, block: int) -> int:
    return -(-channels // block) * block


class SortedMap:
    """A kernel map with its output rows sorted by the set of offsets that they use; on its device, without a wait.

    Args:
        kernel_map: The map.
    """

    def __init__(self, kernel_map: KernelMap):
        self.num_inputs = kernel_map.num_inputs
        # int64 [N_out], the row of the output that each sorted row is.
        self.order = offset_set_order(kernel_map.table < kernel_map.num_inputs)
        # int32 [K, N_out], the map's table in that order.
        self.table = kernel_map.table.index_select(1, self.order)
        self._blocks: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def of(cls, kernel_map: KernelMap) -> "SortedMap":
        """That of a map, made at the first call."""
        if "triton" not in kernel_map.extras:
            kernel_map.extras["triton"] = cls(kernel_map)
        return kernel_map.extras["triton"]

    def blocks(self, block_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Offsets of each block of rows, those that any row uses first, int32 [blocks, K]; their number [blocks]."""
        if block_rows not in self._blocks:
            present = self.table < self.num_inputs
            volume, rows = present.shape
            padded = torch.nn.functional.pad(present, (0, -rows % block_rows))
            used = padded.view(volume, -1, block_rows).any(2).T
            first = torch.argsort(used.logical_not().byte(), dim=1, stable=True).int()
            self._blocks[block_rows] = first.contiguous(), used.sum(1, dtype=torch.int32)
        return self._blocks[block_rows]

    @cached_property
    def pairs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """By offset, its pairs first: input rows and output rows, int32 [K, N_out] each; their number, int32 [K]."""
        absent = self.table >= self.num_inputs
        place = torch.argsort(absent.byte(), dim=1, stable=True)
        reads, writes = self.table.gather(1, place), self.order.int()[place]
        return reads, writes, absent.logical_not().sum(1, dtype=torch.int32)


def multiply(
    inputs: torch.Tensor,
    kernel: torch.Tensor,
    kernel_map: KernelMap,
    is_transposed: bool = False,
    is_mirrored: bool = False,
    finish: Finish | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """Inputs [N_in, Cin] over a map, with a kernel [K, Cin, Cout], or [K, Cout, Cin] transposed -> [N_out, Cout].

    Args:
        inputs: Of one of `DTYPES`.
        kernel: Of the same.
        kernel_map: The map.
        is_transposed: Whether the kernel's channels are the other way round.
        is_mirrored: Whether offset k of the map has kernel K - 1 - k.
        finish: What the outputs still go through.
        tile: In the place of the chosen one.
    """
    if is_transposed:
        kernel = kernel.transpose(1, 2)
    volume, in_channels, out_channels = kernel.shape
    rows, dtype = kernel_map.num_outputs, inputs.dtype
    out = inputs.new_empty(rows, out_channels)
    if not rows:
        return out
    kernels, inputs = _kernels(), inputs.contiguous()
    tile = tile or choose_tile(rows, in_channels, out_channels, dtype)
    sorted_map = SortedMap.of(kernel_map)
    used, used_counts = sorted_map.blocks(tile.rows)
    programs = len(used) * -(-out_channels // tile.outputs)
    splits = max(1, min(WANTED_PROGRAMS // programs, MAX_SPLITS, volume // 2))
    finishing, is_rectified = (None, None, None), False
    if finish is not None:
        shortcut = None if finish.shortcut is None else finish.shortcut.to(dtype).contiguous()
        finishing, is_rectified = (finish.scale, finish.shift, shortcut), finish.is_rectified
    parts = out if splits == 1 else out.new_empty(splits, rows, out_channels, dtype=torch.float32)
    # Triton launches on the current device.
    with torch.cuda.device_of(inputs):
        kernels.convolve_rows[(programs, splits)](
            *(inputs, kernel, parts, sorted_map.order, sorted_map.table, used, used_counts),
            *(finishing if splits == 1 else (None, None, None)),
            *(rows, kernel_map.num_inputs, volume, in_channels, out_channels, *kernel.stride(), splits),
            BLOCK_ROWS=tile.rows,
            BLOCK_IN=tile.inputs,
            BLOCK_OUT=tile.outputs,
            IS_SPLIT=splits > 1,
            IS_MIRRORED=is_mirrored,
            IS_RECTIFIED=is_rectified,
            **_computing(kernels, dtype, tile),
        )
        if splits > 1:
            kernels.add_splits[(-(-rows // ADDED_ROWS), -(-out_channels // tile.outputs))](
                *(parts, out, *finishing, rows, out_channels, splits),
                BLOCK_ROWS=ADDED_ROWS,
                BLOCK_OUT=tile.outputs,
                IS_RECTIFIED=is_rectified,
            )
    return out


def kernel_gradient(
    inputs: torch.Tensor, grad: torch.Tensor, kernel_map: KernelMap, tile: Tile | None = None
) -> torch.Tensor:
    """For each offset the sum over its pairs of input x gradient, float32 [K, Cin, Cout]."""
    volume, rows = kernel_map.volume, kernel_map.num_outputs
    in_channels, out_channels = inputs.shape[1], grad.shape[1]
    if not rows:
        return inputs.new_zeros(volume, in_channels, out_channels, dtype=torch.float32)
    kernels, inputs, grad = _kernels(), inputs.contiguous(), grad.contiguous()
    tile = tile or choose_gradient_tile(in_channels, out_channels, inputs.dtype)
    reads, writes, counts = SortedMap.of(kernel_map).pairs
    blocks = -(-in_channels // tile.inputs) * -(-out_channels // tile.outputs)
    splits = choose_shares(rows, blocks * volume)
    sums = inputs.new_empty(splits, volume, in_channels, out_channels, dtype=torch.float32)
    with torch.cuda.device_of(inputs):
        kernels.sum_pairs[(blocks, volume, splits)](
            *(inputs, grad, sums, reads, writes, counts, rows, volume, in_channels, out_channels, splits),
            BLOCK_PAIRS=tile.rows,
            BLOCK_IN=tile.inputs,
            BLOCK_OUT=tile.outputs,
            **_computing(kernels, inputs.dtype, tile),
        )
    return sums[0] if splits == 1 else sums.sum(0)


_PRODUCTS = Products(multiply, kernel_gradient)


def _computing(kernels: ModuleType, dtype: torch.dtype, tile: Tile) -> dict[str, object]:
    """Arguments that every kernel with a product takes."""
    is_widened = kernels.IS_INTERPRETED and dtype == torch.bfloat16
    numbers = {"PRECISION": precision(dtype), "IS_WIDENED": is_widened}
    return {**numbers, "num_warps": tile.warps, "num_stages": tile.stages}


@cache
def _kernels() -> ModuleType:
    """The kernels' file, which imports Triton.

    Raises:
        ImportError: Triton is not installed.
    """
    require_package("triton")
    from . import triton_kernels

    return triton_kernels
