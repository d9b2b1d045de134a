"""What computes a sparse convolution.

`torch` runs everywhere that torch does. `compiled` is for CPUs, and needs a C compiler on first use. `spconv` needs
the package of that name, and is made for CUDA devices.
"""

import torch

from ...import_utils import is_available
from ..finish import Finish
from ..kernel_maps import ConvolutionLayer
from ..voxels import VoxelGrid
from . import compiled_backend, spconv_backend, torch_backend
from .compiled_backend import kernels_unavailable_reason


BACKENDS = ("auto", "torch", "compiled", "spconv")


def check_backend(name: str) -> None:
    """Raises ValueError unless `name` is a backend."""
    if name not in BACKENDS:
        raise ValueError(f"sparse backend is {name!r}; expected one of {', '.join(BACKENDS)}")


def choose_backend(name: str, device: str, dtype: torch.dtype) -> str:
    """The backend for features of a device type and dtype where the layer asks for `name`: any but `"auto"`.

    `"auto"` is each backend for what it is made for: on a CUDA device spconv, where it is installed, for its dtypes;
    on a CPU the compiled kernels, where they can be built, for theirs; and torch for the rest. `"compiled"` leaves the
    dtypes that it lacks to torch.

    Raises:
        ValueError: No such backend, or `"compiled"` for another device than a CPU.
        KernelError: `"compiled"` where the kernels cannot be built.
    """
    check_backend(name)
    if name == "compiled":
        if device != "cpu":
            raise ValueError(f"features are on {device}; the compiled sparse backend works on a CPU")
        compiled_backend.check_kernels()
        return name if dtype in compiled_backend.DTYPES else "torch"
    if name != "auto":
        return name
    if device == "cuda" and dtype in spconv_backend.DTYPES and is_available("spconv"):
        return "spconv"
    if device == "cpu" and dtype in compiled_backend.DTYPES and kernels_unavailable_reason() is None:
        return "compiled"
    return "torch"


def convolve(
    features: torch.Tensor,
    kernel: torch.Tensor,
    grid: VoxelGrid,
    layer: ConvolutionLayer,
    finish: Finish | None = None,
) -> torch.Tensor:
    """Features [V, Cin] on `grid` -> [V', Cout] on the layer's output grid, by the layer's backend.

    Only the compiled backend knows `finish`.
    """
    chosen = choose_backend(layer.backend, features.device.type, features.dtype)
    if chosen == "compiled":
        return compiled_backend.convolve(features, kernel, grid, layer, finish)
    if layer.kernel_size == 1:
        return features @ kernel
    if chosen == "spconv" and len(grid):
        return spconv_backend.convolve(features, kernel, grid, layer)
    return torch_backend.convolve(features, kernel, grid, layer)
