"""Sparse convolution with torch operations alone, on any device.

Output-stationary: the output rows are sorted by the set of offsets that they use and cut into chunks; a chunk gathers
its inputs side by side, [rows, offsets x channels], multiplies them once with the kernels of those offsets, and writes
its rows. Rows of a chunk are distinct, so the result depends on no order of execution. The gradient of the input has
the same form over the opposite map, and the gradient of the kernel comes from the same gathered rows.
"""

import torch
from torch.autograd.function import once_differentiable

from ..gather_plan import GatherPlan, OffsetSet
from ..kernel_maps import ConvolutionLayer, KernelMap, KernelMaps
from ..voxels import VoxelGrid
from .folding import convolve_folded, is_foldable
from .products import multiply, multiply_to_float32


def convolve(features: torch.Tensor, kernel: torch.Tensor, grid: VoxelGrid, layer: ConvolutionLayer) -> torch.Tensor:
    """Features [N_in, Cin] on `grid`, kernel [K, Cin, Cout] -> [N_out, Cout], differentiable once."""
    if is_foldable(layer):
        return convolve_folded(features, kernel, grid, _convolve_coarse)
    return convolve_over(features, kernel, grid.kernel_maps(layer.kind, layer.kernel_size, layer.dilation))


def _convolve_coarse(features: torch.Tensor, kernel: torch.Tensor, grid: VoxelGrid) -> torch.Tensor:
    return convolve_over(features, kernel, grid.kernel_maps("submanifold", 3))


def convolve_over(features: torch.Tensor, kernel: torch.Tensor, maps: KernelMaps) -> torch.Tensor:
    """Features [N_in, Cin] and kernel [K, Cin, Cout] over kernel maps -> [N_out, Cout], differentiable once."""
    return _Convolution.apply(features, kernel, maps)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, kernel, maps):
        ctx.save_for_backward(features, kernel)
        ctx.maps = maps
        plan = maps.forward.plan(_kernel_parts(features, kernel, maps.forward))
        out, _ = _walk(plan, features, _ForwardWeights(kernel), None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        features, kernel = ctx.saved_tensors
        needs_features, needs_kernel, _ = ctx.needs_input_grad
        maps = ctx.maps
        grad_features = grad_kernel = None
        if needs_features:
            plan = maps.backward.plan(_kernel_parts(grad, kernel, maps.backward))
            weights = _BackwardWeights(kernel, maps.is_mirrored)
            grad_features, sums = _walk(plan, grad, weights, features if needs_kernel else None)
            if needs_kernel:
                grad_kernel = sums.flip(0) if maps.is_mirrored else sums
        elif needs_kernel:
            plan = maps.forward.plan(_kernel_parts(features, kernel, maps.forward))
            _, sums = _walk(plan, features, None, grad)
            grad_kernel = sums.transpose(1, 2)
        return grad_features, None if grad_kernel is None else grad_kernel.to(kernel.dtype), None


def _kernel_parts(features: torch.Tensor, kernel: torch.Tensor, kernel_map: KernelMap) -> int:
    """In how many parts the kernel is walked over: more parts multiply fewer zeros, and write the output more often.

    Measured on a CPU: three parts pay from about 96 x 96 channels in float32 (bfloat16 multiplies too fast for that),
    single offsets for wide layers on grids so small that a chunk's rows have little in common. A GPU's chunks are too
    large to differ.
    """
    work = kernel.shape[1] * kernel.shape[2]
    if features.device.type != "cpu" or kernel_map.volume != 27 or work < 96 * 96:
        return 1
    if work >= 192 * 192 and kernel_map.num_outputs < 2048:
        return 27
    return 1 if features.dtype == torch.bfloat16 else 3


class _ForwardWeights:
    """The kernels [K, Cin, Cout] side by side, for sets of offsets."""

    def __init__(self, kernel: torch.Tensor):
        self.kernel = kernel
        self.num_channels = kernel.shape[2]

    def of(self, offsets: OffsetSet) -> torch.Tensor:
        """[u * Cin, Cout]; no copy for one offset and for all."""
        if len(offsets) == 1:
            return self.kernel[offsets.numbers[0]]
        chosen = self.kernel if offsets.is_all else self.kernel.index_select(0, offsets.index)
        return chosen.reshape(-1, self.num_channels)


class _BackwardWeights:
    """The transposed kernels side by side, for sets of offsets of the backward map."""

    def __init__(self, kernel: torch.Tensor, is_mirrored: bool):
        self.kernel = kernel
        self.is_mirrored = is_mirrored
        self.num_channels = kernel.shape[1]
        self._by_channel: torch.Tensor | None = None  # [Cin, K, Cout]

    def of(self, offsets: OffsetSet) -> torch.Tensor:
        """[u * Cout, Cin], a transposed view of contiguous memory; no copy for one offset and for all."""
        if len(offsets) == 1:
            (number,) = offsets.numbers
            return self.kernel[len(self.kernel) - 1 - number if self.is_mirrored else number].T
        if self._by_channel is None:
            kernel = self.kernel.flip(0) if self.is_mirrored else self.kernel
            self._by_channel = kernel.transpose(0, 1).contiguous()
        chosen = self._by_channel if offsets.is_all else self._by_channel.index_select(1, offsets.index)
        return chosen.view(self.num_channels, -1).T


def _walk(
    plan: GatherPlan,
    inputs: torch.Tensor,
    weights: _ForwardWeights | _BackwardWeights | None,
    partners: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """One walk over a plan's chunks.

    Args:
        plan: The plan.
        inputs: [N_in, C], the rows to gather.
        weights: The kernels, or None where no output is wanted.
        partners: [N_out, R], or None where no sums are wanted.

    Returns:
        The output [N_out, D], and for each offset the sum over its pairs of partner x input, [K, R, C], in float32 or
        float64.
    """
    channels = inputs.shape[1]
    sum_dtype = torch.promote_types(inputs.dtype, torch.float32)
    padded = torch.nn.functional.pad(inputs, (0, 0, 0, 1))  # the row that "none" reads
    buffer = inputs.new_empty(max((len(chunk.indices) for chunk in plan.chunks), default=0), channels)
    out = sums = offsets = weight = None
    if weights is not None:
        create = torch.empty if plan.covers_rows else torch.zeros
        # Parts are added up in float32 at least.
        dtype = inputs.dtype if plan.parts == 1 else sum_dtype
        out = create(plan.num_outputs, weights.num_channels, dtype=dtype, device=inputs.device)
    if partners is not None:
        # By offset where chunks have one offset each; else in the order in which products come, by partner channel.
        shape = (plan.volume, partners.shape[1]) if plan.is_single else (partners.shape[1], plan.volume)
        sums = torch.zeros(*shape, channels, dtype=sum_dtype, device=inputs.device)
    for chunk in plan.chunks:
        gathered = buffer[: len(chunk.indices)]
        torch.index_select(padded, 0, chunk.indices, out=gathered)
        gathered = gathered.view(-1, len(chunk.offsets) * channels)
        if weights is not None:
            if chunk.offsets is not offsets:
                offsets, weight = chunk.offsets, weights.of(chunk.offsets)
            product = multiply(gathered, weight)[: len(chunk.rows)]
            if chunk.is_first:
                out.index_copy_(0, chunk.rows, product.to(out.dtype))
            else:
                out.index_add_(0, chunk.rows, product.to(out.dtype))
        if partners is not None:
            part = partners.index_select(0, chunk.rows)
            part = torch.nn.functional.pad(part, (0, 0, 0, len(gathered) - len(part))).T.contiguous()
            _add_sums(sums, multiply_to_float32(part, gathered), chunk.offsets, plan.is_single)
    if sums is not None and not plan.is_single:
        sums = sums.transpose(0, 1)
    return None if out is None else out.to(inputs.dtype), sums


def _add_sums(sums: torch.Tensor, product: torch.Tensor, offsets: OffsetSet, is_single: bool) -> None:
    """Adds [R, u * C] to the sums of these offsets."""
    if is_single:
        sums[offsets.numbers[0]] += product
        return
    product = product.view(len(product), len(offsets), -1)
    if offsets.is_all:
        sums += product
    else:
        sums.index_add_(1, offsets.index, product)
