"""Sparse convolution on a CPU by compiled kernels (`kernels/convolution.c`), in float32 and bfloat16.

The pairs of a kernel map are listed by block of output rows and by offset. The gradient of the input is a convolution
over the opposite map with the transposed kernels; the gradient of the kernel comes from the forward map's pairs.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch

from ...io.compiled_library import KernelError, usable_threads
from ..finish import Finish
from ..kernel_maps import ConvolutionLayer, KernelMap, KernelMaps
from ..kernels import KERNELS
from ..voxels import VoxelGrid
from . import torch_backend
from .differentiation import Products, differentiable
from .folding import convolve_by_maps


DTYPES = (torch.float32, torch.bfloat16)
MIN_BLOCK_ROWS, MAX_BLOCK_ROWS = 32, 256
# Small grids are cut into about so many blocks, for the threads to share.
WANTED_BLOCKS = 8
SELF_TEST_TOLERANCE = 1e-4


def convolve(
    features: torch.Tensor,
    kernel: torch.Tensor,
    grid: VoxelGrid,
    layer: ConvolutionLayer,
    finish: Finish | None = None,
) -> torch.Tensor:
    """Features [N_in, Cin] on `grid`, kernel [K, Cin, Cout] -> [N_out, Cout], of one of `DTYPES`.

    Differentiable once; with `finish`, which is applied to the outputs as they are written, not at all.
    """
    return convolve_by_maps(features, kernel, grid, layer, convolve_over, finish)


def convolve_over(
    features: torch.Tensor, kernel: torch.Tensor, maps: KernelMaps, finish: Finish | None = None
) -> torch.Tensor:
    """Features [N_in, Cin] and kernel [K, Cin, Cout] over kernel maps -> [N_out, Cout], as in `convolve`."""
    if features.dtype == torch.bfloat16 and not KERNELS.call("has_bfloat16"):
        if finish is not None and finish.shortcut is not None:
            finish = replace(finish, shortcut=finish.shortcut.float())
        return convolve_over(features.float(), kernel.float(), maps, finish).bfloat16()
    if finish is not None:
        return _multiply(features, kernel, maps.forward, finish=finish)
    return differentiable(features, kernel, maps, _PRODUCTS)


@cache
def kernels_unavailable_reason() -> str | None:
    """Why the kernels do not work here; None where they do. Tried once, and logged."""
    return KERNELS.failure(_test_kernels, "sparse convolutions take the torch backend")


@dataclass(eq=False)
class PairLists:
    """The pairs of a kernel map by block of output rows and, within it, by offset.

    Args:
        starts: int64 [blocks * K + 1], where each list begins.
        reads: int32 [pairs], input row.
        writes: int16 [pairs], output row within its block.
        block_rows: Rows of a block; the last one may have fewer.
    """

    starts: torch.Tensor
    reads: torch.Tensor
    writes: torch.Tensor
    block_rows: int

    @classmethod
    def of(cls, kernel_map: KernelMap) -> "PairLists":
        """The lists of a map on a CPU, made at the first call."""
        if "pairs" not in kernel_map.extras:
            kernel_map.extras["pairs"] = cls._from_table(kernel_map)
        return kernel_map.extras["pairs"]

    @classmethod
    def _from_table(cls, kernel_map: KernelMap) -> "PairLists":
        volume, outputs = kernel_map.volume, kernel_map.num_outputs
        block_rows = -(-outputs // (WANTED_BLOCKS * MIN_BLOCK_ROWS)) * MIN_BLOCK_ROWS
        block_rows = min(max(block_rows, MIN_BLOCK_ROWS), MAX_BLOCK_ROWS)
        starts = torch.empty(-(-outputs // block_rows) * volume + 1, dtype=torch.int64)
        sizes = volume, outputs, kernel_map.num_inputs, block_rows, usable_threads()
        count = KERNELS.call("count_pairs", kernel_map.table, starts, *sizes)
        reads, writes = torch.empty(count, dtype=torch.int32), torch.empty(count, dtype=torch.int16)
        KERNELS.call("fill_pairs", kernel_map.table, starts, reads, writes, *sizes)
        return cls(starts, reads, writes, block_rows)


def _multiply(
    inputs: torch.Tensor,
    kernel: torch.Tensor,
    kernel_map: KernelMap,
    is_transposed: bool = False,
    is_mirrored: bool = False,
    finish: Finish | None = None,
) -> torch.Tensor:
    """Inputs [N_in, Cin] over a map, with a kernel [K, Cin, Cout], or [K, Cout, Cin] transposed -> [N_out, Cout]."""
    pairs = PairLists.of(kernel_map)
    is_half, threads = inputs.dtype == torch.bfloat16, usable_threads()
    if is_half and inputs.shape[1] % 2:
        # Halves are multiplied two by two.
        inputs = torch.nn.functional.pad(inputs, (0, 1))
        kernel = torch.nn.functional.pad(kernel, (0, 1) if is_transposed else (0, 0, 0, 1))
    volume, in_channels, out_channels = kernel.shape
    if is_transposed:
        in_channels, out_channels = out_channels, in_channels
    inputs, weights = inputs.contiguous(), kernel.contiguous()
    is_packed = is_half or is_transposed or not KERNELS.call("is_packed", out_channels)
    if is_packed:
        weights = torch.empty(KERNELS.call("packed_units", volume, in_channels, out_channels, is_half))
        form = volume, in_channels, out_channels, is_transposed, is_mirrored, is_half
        KERNELS.call("pack_weights", kernel.contiguous(), weights, *form, threads)
    outputs = inputs.new_empty(kernel_map.num_outputs, out_channels)
    finishing = None, None, None
    if finish is not None:
        shortcut = None if finish.shortcut is None else finish.shortcut.to(outputs.dtype).contiguous()
        finishing = finish.scale, finish.shift, shortcut
    lists = pairs.starts, pairs.reads, pairs.writes
    sizes = len(outputs), pairs.block_rows, volume, in_channels, out_channels
    is_rectified = finish is not None and finish.is_rectified
    KERNELS.call(
        "convolve", inputs, weights, outputs, *lists, *finishing, *sizes, is_packed, is_rectified, is_half, threads
    )
    return outputs


def _kernel_gradient(features: torch.Tensor, grad: torch.Tensor, kernel_map: KernelMap) -> torch.Tensor:
    """For each offset the sum over its pairs of feature x gradient, float32 [K, Cin, Cout]."""
    pairs = PairLists.of(kernel_map)
    shape = kernel_map.volume, features.shape[1], grad.shape[1]
    sums = torch.zeros(shape)
    lists = pairs.starts, pairs.reads, pairs.writes
    sizes = kernel_map.num_outputs, pairs.block_rows, *shape
    is_half = features.dtype == torch.bfloat16
    inputs, grad = features.contiguous(), grad.contiguous()
    if KERNELS.call("kernel_gradient", inputs, grad, sums, *lists, *sizes, is_half, usable_threads()):
        raise MemoryError("the gradient of a sparse convolution's kernel found no memory")
    return sums


_PRODUCTS = Products(_multiply, _kernel_gradient)


# The first call may come from within inference, whose tensors have no gradients.
@torch.inference_mode(False)
def _test_kernels() -> None:
    """Raises KernelError unless the kernels give what the torch backend gives, on a small example."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(0, 60, (8, 40), dtype=torch.int32, generator=generator)
    # Every row is read, and each by one output for an offset, as the map of the gradient wants it; 40 = none.
    table = torch.where(table < 40, torch.stack([torch.randperm(40, generator=generator) for _ in range(8)]), 40).int()
    opposite = torch.full((8, 41), 40, dtype=torch.int32)
    opposite.scatter_(1, table.long(), torch.arange(40, dtype=torch.int32).expand(8, -1))
    maps = KernelMaps(KernelMap(table, 40), KernelMap(opposite[:, :40].contiguous(), 40), is_mirrored=False)
    features = torch.randn(40, 21, generator=generator)
    kernel = torch.randn(8, 21, 35, generator=generator)
    weights = torch.randn(40, 35, generator=generator)
    for dtype in DTYPES:
        results = []
        # Or from within autocast.
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            for function, compute in ((torch_backend.convolve_over, torch.float32), (convolve_over, dtype)):
                leaves = [value.to(dtype).to(compute).requires_grad_() for value in (features, kernel)]
                out = function(*leaves, maps)
                results.append([out.detach(), *torch.autograd.grad(out, leaves, weights.to(dtype).to(compute))])
        tolerance = SELF_TEST_TOLERANCE if dtype == torch.float32 else 2e-2
        for expected, found in zip(*results, strict=True):
            error = float((found.float() - expected).abs().max() / expected.abs().max())
            if not error < tolerance:
                raise KernelError(f"the compiled kernels are wrong by {error:.1e} of the largest value in {dtype}")
