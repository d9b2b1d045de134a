"""Sparse convolutions on voxel grids, with kernels in MinkowskiEngine's layout.

Bias-free throughout: every convolution of the networks in view is followed by a normalisation.
"""

import math

import torch
from torch import nn

from . import backends
from .finish import Finish, can_finish
from .voxels import SparseTensor, VoxelGrid


class _SparseConvolution(nn.Module):
    kind: str

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.backend = "auto"
        shape = (in_channels, out_channels) if kernel_size == 1 else (kernel_size**3, in_channels, out_channels)
        self.kernel = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    @property
    def initial_std(self) -> float:
        """Standard deviation of He's normal initialisation with the fan of the output."""
        volume = 1 if self.kind == "transposed" else self.kernel_size**3
        return math.sqrt(2 / (self.out_channels * volume))

    def reset_parameters(self) -> None:
        """He's normal initialisation."""
        # transformers builds a network that it then loads on the meta device. There is nothing to fill there, which
        # takes torch a fifth of a second to find out.
        if not self.kernel.is_meta:
            nn.init.normal_(self.kernel, std=self.initial_std)

    def extra_repr(self) -> str:
        dilation = f", dilation={self.dilation}" if self.dilation != 1 else ""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}{dilation}"

    def output_grid(self, grid: VoxelGrid) -> VoxelGrid:
        return grid

    def can_finish(self, features: torch.Tensor) -> bool:
        """Whether the backend that would take these features applies a `Finish`."""
        device, dtype = features.device.type, features.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return backends.can_finish(backends.choose_backend(self.backend, device, dtype))

    # Kernel maps depend on the data: torch.compile leaves the layer out and compiles what lies between.
    @torch.compiler.disable
    def forward(self, x: SparseTensor, finish: Finish | None = None) -> SparseTensor:
        features = x.features
        if features.shape[1] != self.in_channels:
            raise ValueError(f"features have {features.shape[1]} channels; this layer expects {self.in_channels}")
        if features.device != self.kernel.device:
            raise ValueError(f"features are on {features.device} and the kernel on {self.kernel.device}")
        kernel = self.kernel
        if torch.is_autocast_enabled(features.device.type):
            dtype = torch.get_autocast_dtype(features.device.type)
            features, kernel = features.to(dtype), kernel.to(dtype)
        if features.dtype != kernel.dtype:
            raise ValueError(f"features have dtype {features.dtype} and the kernel {kernel.dtype}; expected one")
        out = self.output_grid(x.grid)
        return SparseTensor(backends.convolve(features, kernel, x.grid, self, finish), out)


class SubmanifoldConv3d(_SparseConvolution):
    """A convolution whose output has the voxels of its input.

    Graham, Engelcke, van der Maaten: 3D Semantic Segmentation with Submanifold Sparse Convolutional Networks,
    CVPR 2018.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: 1, or another odd size. A size of 1 is a plain matrix product, with a 2-D kernel.
        dilation: Spacing of the kernel's offsets in voxels.

    Raises:
        ValueError: An even kernel size, or a dilation under 1.
    """

    kind = "submanifold"

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1):
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; expected an odd number")
        if dilation < 1:
            raise ValueError(f"dilation is {dilation}; expected at least 1")
        super().__init__(in_channels, out_channels, kernel_size, dilation)


class StridedConv3d(_SparseConvolution):
    """A convolution of kernel 2 and stride 2: each voxel of the coarser grid sums over its up to 8 children.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
    """

    kind = "strided"

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=2)

    def output_grid(self, grid: VoxelGrid) -> VoxelGrid:
        return grid.coarser()


class TransposedConv3d(_SparseConvolution):
    """The transposed convolution of kernel 2 and stride 2, back onto the finer grid that the input's was made from.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
    """

    kind = "transposed"

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=2)

    def output_grid(self, grid: VoxelGrid) -> VoxelGrid:
        return grid.finer()


def convolve_normalized(
    convolution: nn.Module,
    norm: nn.Module,
    x: SparseTensor,
    shortcut: torch.Tensor | None = None,
    is_rectified: bool = True,
) -> SparseTensor:
    """A convolution, its normalisation, a shortcut that is added, and a rectifier.

    In evaluation without gradients, the compiled backend does all of it while it writes the convolution's outputs, as
    does any other that can.

    Args:
        convolution: A sparse convolution, of this package or with its interface.
        norm: Normalisation of [V, C]; only a `VoxelBatchNorm` can be left to the kernel.
        x: The input.
        shortcut: [V', C] on the output's grid, or None.
        is_rectified: Whether negative results become 0.
    """
    if isinstance(convolution, _SparseConvolution) and can_finish(norm) and convolution.can_finish(x.features):
        return convolution(x, Finish(*norm(None), shortcut, is_rectified))
    out = convolution(x)
    features = norm(out.features)
    if shortcut is not None:
        features = features + shortcut
    # In place: neither normalisation nor sum needs its own result for its gradient.
    return out.replace(torch.relu_(features) if is_rectified else features)


def set_sparse_backend(module: nn.Module, name: str) -> None:
    """Chooses the backend of every sparse convolution in `module`.

    Args:
        module: Any module.
        name: `"auto"` (on CUDA tensors spconv or triton where they work, on a CPU the compiled kernels where they can
            be built, torch otherwise), `"torch"`, `"compiled"`, `"spconv"` or `"triton"`.

    Raises:
        ValueError: No such backend.
    """
    backends.check_backend(name)
    for part in module.modules():
        if isinstance(part, _SparseConvolution):
            part.backend = name
