"""What computes a sparse convolution.

`torch` runs everywhere that torch does. `compiled` is for CPUs, and needs a C compiler on first use. `spconv` needs
the package of that name, and is made for CUDA devices.
"""

from typing import TYPE_CHECKING

import torch

from ...import_utils import is_available
from . import compiled_backend, spconv_backend, torch_backend
from .compiled_backend import kernels_unavailable_reason


if TYPE_CHECKING:
    from ..convolution import _SparseConvolution
    from ..voxels import VoxelGrid

BACKENDS = ("auto", "torch", "compiled", "spconv")


def check_backend(name: str) -> None:
    """Raises ValueError unless `name` is a backend."""
    if name not in BACKENDS:
        raise ValueError(f"sparse backend is {name!r}; expected one of {', '.join(BACKENDS)}")


def choose_backend(name: str, features: torch.Tensor) -> str:
    """The backend that computes on these features where the layer asks for `name`: one of `BACKENDS` but `"auto"`.

    `"auto"` is each backend for what it is made for: on a CUDA device spconv, where it is installed, for its dtypes;
    on a CPU the compiled kernels, where they can be built, for theirs; and torch for the rest.
    """
    check_backend(name)
    if name != "auto":
        return name
    device, dtype = features.device.type, features.dtype
    if device == "cuda" and dtype in spconv_backend.DTYPES and is_available("spconv"):
        return "spconv"
    if device == "cpu" and dtype in compiled_backend.DTYPES and kernels_unavailable_reason() is None:
        return "compiled"
    return "torch"


def convolve(
    features: torch.Tensor, kernel: torch.Tensor, grid: "VoxelGrid", layer: "_SparseConvolution"
) -> torch.Tensor:
    """Features [V, Cin] on `grid` -> [V', Cout] on the layer's output grid, by the layer's backend."""
    chosen = choose_backend(layer.backend, features)
    if chosen == "compiled":
        return compiled_backend.convolve(features, kernel, grid, layer)
    if chosen == "spconv" and len(grid):
        return spconv_backend.convolve(features, kernel, grid, layer)
    return torch_backend.convolve(features, kernel, grid, layer)
