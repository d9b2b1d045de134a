"""Sparse convolution with torch operations alone, on any device.

Output-stationary: the output rows are sorted by the set of offsets that they use and cut into chunks; a chunk gathers
its inputs side by side, [rows, offsets x channels], multiplies them once with the kernels of those offsets, and writes
its rows. Rows of a chunk are distinct, so the result depends on no order of execution. The gradient of the input has
the same form over the opposite map, and the gradient of the kernel comes from the same gathered rows.
"""

from typing import TYPE_CHECKING

import torch
from torch.autograd.function import once_differentiable

from ..gather_plan import GatherPlan
from ..kernel_maps import KernelMap
from .folding import convolve_folded, is_foldable
from .products import multiply


if TYPE_CHECKING:
    from ..convolution import _SparseConvolution
    from ..voxels import VoxelGrid


def convolve(
    features: torch.Tensor, kernel: torch.Tensor, grid: "VoxelGrid", layer: "_SparseConvolution"
) -> torch.Tensor:
    """Features [N_in, Cin] on `grid`, kernel [K, Cin, Cout] -> [N_out, Cout], differentiable once."""
    if is_foldable(layer):
        return convolve_folded(features, kernel, grid, convolve_over)
    return convolve_over(features, kernel, grid.kernel_map(layer.kind, layer.kernel_size, layer.dilation))


def convolve_over(features: torch.Tensor, kernel: torch.Tensor, kernel_map: KernelMap) -> torch.Tensor:
    """Features [N_in, Cin] and kernel [K, Cin, Cout] over a kernel map -> [N_out, Cout], differentiable once."""
    return _Convolution.apply(features, kernel, kernel_map)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, kernel, kernel_map):
        ctx.save_for_backward(features, kernel)
        ctx.kernel_map = kernel_map
        plan = kernel_map.plan(_kernel_parts(features, kernel, kernel_map))
        out, _ = _walk(plan, features, kernel, None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        features, kernel = ctx.saved_tensors
        needs_features, needs_kernel, _ = ctx.needs_input_grad
        kernel_map = ctx.kernel_map
        grad_features = grad_kernel = None
        if needs_features:
            plan = kernel_map.backward_map.plan(_kernel_parts(grad, kernel, kernel_map.backward_map))
            opposite = kernel[kernel_map.backward_offsets].transpose(1, 2).contiguous()
            grad_features, sums = _walk(plan, grad, opposite, features if needs_kernel else None)
            if needs_kernel:  # [Cin, K, Cout], by the offsets of the opposite map
                grad_kernel = torch.empty_like(kernel)
                grad_kernel[kernel_map.backward_offsets] = sums.transpose(0, 1).to(kernel.dtype)
        elif needs_kernel:
            plan = kernel_map.plan(_kernel_parts(features, kernel, kernel_map))
            _, sums = _walk(plan, features, None, grad)  # [Cout, K, Cin]
            grad_kernel = sums.permute(1, 2, 0).to(kernel.dtype)
        return grad_features, grad_kernel, None


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


def _walk(
    plan: GatherPlan, inputs: torch.Tensor, kernel: torch.Tensor | None, partners: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """One walk over a plan's chunks.

    Args:
        plan: The plan.
        inputs: [N_in, C], the rows to gather.
        kernel: [K, C, D], or None where no output is wanted.
        partners: [N_out, R], or None where no sums are wanted.

    Returns:
        The output [N_out, D], and the sums over the pairs of each offset of partner x input, [R, K, C] in float32 (or
        float64).
    """
    channels = inputs.shape[1]
    inputs = torch.nn.functional.pad(inputs, (0, 0, 0, 1))  # the row that "none" reads
    out = sums = weight = None
    sum_dtype = torch.promote_types(inputs.dtype, torch.float32)
    if kernel is not None:
        dtype = inputs.dtype if plan.parts == 1 else sum_dtype
        out = torch.zeros(plan.num_outputs, kernel.shape[2], dtype=dtype, device=inputs.device)
    if partners is not None:
        sums = torch.zeros(partners.shape[1], plan.volume, channels, dtype=sum_dtype, device=inputs.device)
    buffer = inputs.new_empty(max((len(chunk.indices) for chunk in plan.chunks), default=0), channels)
    selected = plan  # of no chunk
    for chunk in plan.chunks:
        gathered = buffer[: len(chunk.indices)]
        torch.index_select(inputs, 0, chunk.indices, out=gathered)
        offsets = plan.volume if chunk.offsets is None else len(chunk.offsets)
        gathered = gathered.view(-1, offsets * channels)
        rows = chunk.rows
        if out is not None:
            if chunk.offsets is not selected:
                selected = chunk.offsets
                weight = kernel if selected is None else kernel.index_select(0, selected)
                weight = weight.reshape(-1, kernel.shape[2])
            product = multiply(gathered, weight)[: len(rows)]
            if plan.parts == 1:
                out.index_copy_(0, rows, product)
            else:
                out.index_add_(0, rows, product.to(out.dtype))
        if sums is not None:
            part = partners.index_select(0, rows)
            part = torch.nn.functional.pad(part, (0, 0, 0, len(gathered) - len(rows))).T.contiguous()
            part = multiply(part, gathered).view(-1, offsets, channels).to(sums.dtype)
            if chunk.offsets is None:
                sums += part
            else:
                sums.index_add_(1, chunk.offsets, part)
    return None if out is None else out.to(inputs.dtype), sums
