"""The gradients of a convolution over kernel maps, for backends that compute without autograd."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable

from ..kernel_maps import KernelMap, KernelMaps


@dataclass(frozen=True)
class Products:
    """What a backend computes.

    Args:
        convolve: (inputs [N_in, C], kernel [K, C, D], map) -> [N_out, D]. With `is_transposed` the kernel is
            [K, D, C], and with `is_mirrored` offset k of the map has kernel K - 1 - k.
        kernel_gradient: (inputs [N_in, C], gradient [N_out, D], map) -> [K, C, D], for each offset the sum over its
            pairs of input x gradient, in float32.
    """

    convolve: Callable[..., torch.Tensor]
    kernel_gradient: Callable[[torch.Tensor, torch.Tensor, KernelMap], torch.Tensor]


def differentiable(features: torch.Tensor, kernel: torch.Tensor, maps: KernelMaps, products: Products) -> torch.Tensor:
    """Features [N_in, Cin] and kernel [K, Cin, Cout] over kernel maps -> [N_out, Cout], differentiable once."""
    return _Convolution.apply(features, kernel, maps, products)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, kernel, maps, products):
        ctx.save_for_backward(features, kernel)
        ctx.maps, ctx.products = maps, products
        return products.convolve(features, kernel, maps.forward)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        features, kernel = ctx.saved_tensors
        needs_features, needs_kernel, *_ = ctx.needs_input_grad
        maps, products = ctx.maps, ctx.products
        grad_features = grad_kernel = None
        if needs_features:
            grad_features = products.convolve(
                grad, kernel, maps.backward, is_transposed=True, is_mirrored=maps.is_mirrored
            )
        if needs_kernel:
            grad_kernel = products.kernel_gradient(features, grad, maps.forward).to(kernel.dtype)
        return grad_features, grad_kernel, None, None
