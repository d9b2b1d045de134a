"""What computes a sparse convolution.

`torch` runs everywhere that torch does. `spconv` needs the package of that name, and is made for CUDA devices.
"""

from typing import TYPE_CHECKING

import torch

from ...import_utils import is_available
from . import spconv_backend, torch_backend


if TYPE_CHECKING:
    from ..convolution import _SparseConvolution
    from ..voxels import VoxelGrid

BACKENDS = ("auto", "torch", "spconv")


def check_backend(name: str) -> None:
    """Raises ValueError unless `name` is a backend."""
    if name not in BACKENDS:
        raise ValueError(f"sparse backend is {name!r}; expected one of {', '.join(BACKENDS)}")


def choose_backend(name: str, features: torch.Tensor) -> str:
    """The backend that computes on these features where the layer asks for `name`: `"torch"` or `"spconv"`.

    `"auto"` is spconv for what it is made for: float32 and float16 on a CUDA device, where it is installed.
    """
    check_backend(name)
    if name == "auto":
        fits = features.device.type == "cuda" and features.dtype in spconv_backend.DTYPES
        return "spconv" if fits and is_available("spconv") else "torch"
    return name


def convolve(
    features: torch.Tensor, kernel: torch.Tensor, grid: "VoxelGrid", layer: "_SparseConvolution"
) -> torch.Tensor:
    """Features [V, Cin] on `grid` -> [V', Cout] on the layer's output grid, by the layer's backend."""
    if choose_backend(layer.backend, features) == "spconv" and len(grid):
        return spconv_backend.convolve(features, kernel, grid, layer)
    return torch_backend.convolve(features, kernel, grid, layer)
