"""Sparse convolution with torch operations alone.

Output-stationary: each output row gathers its inputs and is written once, so there is no scattered sum: the result
does not depend on the order of anything, and the backward pass has the same form.
"""

import torch
from torch.autograd.function import once_differentiable

from ..kernel_maps import KernelMap


CHUNK_ROWS = 512


def convolve(features: torch.Tensor, kernel: torch.Tensor, kernel_map: KernelMap) -> torch.Tensor:
    """Features [N_in, Cin], kernel [K, Cin, Cout] -> [N_out, Cout], differentiable once."""
    return _Convolution.apply(features, kernel, kernel_map)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, kernel, kernel_map):
        ctx.save_for_backward(features, kernel)
        ctx.kernel_map = kernel_map
        return _gather_product(features, kernel, kernel_map)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        features, kernel = ctx.saved_tensors
        kernel_map = ctx.kernel_map
        grad_features = grad_kernel = None
        if ctx.needs_input_grad[0]:
            flipped = kernel[kernel_map.backward_offsets].transpose(1, 2).contiguous()
            grad_features = _gather_product(grad, flipped, kernel_map.backward_map)
        if ctx.needs_input_grad[1]:
            grad_kernel = _kernel_gradient(features, grad, kernel_map).to(kernel.dtype)
        return grad_features, grad_kernel, None


def _gather_product(features: torch.Tensor, kernel: torch.Tensor, kernel_map: KernelMap) -> torch.Tensor:
    padded = torch.cat([features, features.new_zeros(1, features.shape[1])])
    out = features.new_empty(kernel_map.num_outputs, kernel.shape[2])
    weight = kernel.reshape(-1, kernel.shape[2])
    for start in range(0, kernel_map.num_outputs, CHUNK_ROWS):
        rows = kernel_map.table[start : start + CHUNK_ROWS]
        gathered = padded.index_select(0, rows.reshape(-1)).view(len(rows), -1)
        out[start : start + CHUNK_ROWS] = gathered @ weight
    return out


def _kernel_gradient(features: torch.Tensor, grad: torch.Tensor, kernel_map: KernelMap) -> torch.Tensor:
    padded = torch.cat([features, features.new_zeros(1, features.shape[1])])
    total = 0
    for start in range(0, kernel_map.num_outputs, CHUNK_ROWS):
        rows = kernel_map.table[start : start + CHUNK_ROWS]
        gathered = padded.index_select(0, rows.reshape(-1)).view(len(rows), -1)
        total = total + (gathered.T @ grad[start : start + CHUNK_ROWS]).float()
    return total.view(kernel_map.volume, features.shape[1], grad.shape[1])
