"""What computes a sparse convolution.

`torch` runs everywhere that torch does. `spconv` needs the package of that name and a CUDA device.
"""

from typing import TYPE_CHECKING

import torch

from . import torch_backend


if TYPE_CHECKING:
    from ..convolution import _SparseConvolution
    from ..voxels import VoxelGrid

BACKENDS = ("auto", "torch", "spconv")


def check_backend(name: str) -> None:
    """Raises ValueError unless `name` is a backend."""
    if name not in BACKENDS:
        raise ValueError(f"sparse backend is {name!r}; expected one of {', '.join(BACKENDS)}")


@torch.compiler.disable
def convolve(
    features: torch.Tensor, kernel: torch.Tensor, grid: "VoxelGrid", layer: "_SparseConvolution"
) -> torch.Tensor:
    """Features [V, Cin] on `grid` -> [V', Cout] on the layer's output grid, by the layer's backend.

    Kernel maps depend on the data, so torch.compile leaves this call out and compiles what lies between.
    """
    return torch_backend.convolve(features, kernel, grid, layer)
