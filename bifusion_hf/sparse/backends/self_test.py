"""A small example that a backend computes before it is trusted, against `torch`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..kernel_maps import ConvolutionLayer
from ..voxels import VoxelGrid
from . import torch_backend


# Of the largest value: float32, and the half precisions.
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2


@dataclass(frozen=True)
class _Layer:
    """What backends have to know of a layer."""

    kind: str
    kernel_size: int
    in_channels: int = 16
    out_channels: int = 24
    dilation: int = 1
    backend: str = "auto"


# A transposed layer goes back onto the grid that a strided one came from, as in a network.
_LAYERS = (_Layer("submanifold", 3), _Layer("strided", 2), _Layer("transposed", 2))


# The first call may come from within inference, whose tensors have no gradients, or from within autocast.
@torch.inference_mode(False)
def check_against_torch(
    convolve: Callable[[torch.Tensor, torch.Tensor, VoxelGrid, ConvolutionLayer], torch.Tensor],
    device: str,
    dtypes: tuple[torch.dtype, ...],
) -> None:
    """Compares results and gradients of each kind of layer with those of `torch` in float32.

    Args:
        convolve: As of a backend.
        device: To compute on.
        dtypes: To compute in.

    Raises:
        ArithmeticError: They differ by more than rounding; the message says in what.
    """
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        for dtype in dtypes:
            tolerance = TOLERANCE if dtype == torch.float32 else HALF_TOLERANCE
            for layer in _LAYERS:
                expected = _results(torch_backend.convolve, layer, device, dtype, torch.float32)
                found = _results(convolve, layer, device, dtype, dtype)
                for name, ours in expected.items():
                    error = float((found[name].float() - ours).abs().max() / ours.abs().max())
                    if not error < tolerance:
                        raise ArithmeticError(
                            f"the {name} of a {layer.kind} convolution in {dtype} is wrong by {error:.1e} of the "
                            f"largest value; expected less than {tolerance:.0e}"
                        )


def _results(
    convolve, layer: _Layer, device: str, dtype: torch.dtype, compute: torch.dtype
) -> dict[str, torch.Tensor]:
    """Result and gradients of a layer on a grid of its own, of values rounded to `dtype`."""
    generator = torch.Generator().manual_seed(0)
    coordinates = torch.randint(-5, 6, (400, 4), generator=generator, dtype=torch.int32)
    coordinates[:, 0] = coordinates[:, 0].remainder(2)
    finest = VoxelGrid(torch.unique(coordinates, dim=0).to(device), 2)
    grid = finest.coarser() if layer.kind == "transposed" else finest
    outputs = {"submanifold": finest, "strided": finest.coarser(), "transposed": finest}[layer.kind]
    shapes = (
        (len(grid), layer.in_channels),
        (layer.kernel_size**3, layer.in_channels, layer.out_channels),
        (len(outputs), layer.out_channels),
    )
    values = [torch.randn(shape, generator=generator).to(device, dtype).to(compute) for shape in shapes]
    features, kernel = (value.requires_grad_() for value in values[:2])
    out = convolve(features, kernel, grid, layer)
    of_features, of_kernel = torch.autograd.grad(out, (features, kernel), values[2])
    return {"result": out.detach(), "gradient of the input": of_features, "gradient of the kernel": of_kernel}
