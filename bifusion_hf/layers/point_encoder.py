"""The point branch: a sparse-convolution U-Net over colour voxels.

Res16UNet is the residual U-Net of MinkowskiNet (Choy et al., "4D Spatio-Temporal ConvNets", CVPR 2019); with the
default `BiFusionPointConfig` it is the Res16UNet34C that Mask3D, OneFormer3D and ESAM use.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from ..configuration_bifusion import BiFusionPointConfig
from ..sparse import (
    SparseTensor,
    StridedConv3d,
    SubmanifoldConv3d,
    TransposedConv3d,
    VoxelBatchNorm,
    VoxelGrid,
    convolve_normalized,
)
from .frame_memory import FrameAdapter, FrameMemory, remember


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with a shortcut, which is a 1x1x1 convolution where the width changes.

    With `gradient_checkpointing`, which transformers switches, it keeps only its input for the backward pass.
    """

    gradient_checkpointing = False

    def __init__(self, in_channels: int, out_channels: int, config: BiFusionPointConfig):
        super().__init__()
        eps = config.batch_norm_eps
        self.conv1 = SubmanifoldConv3d(in_channels, out_channels, kernel_size=3)
        self.norm1 = VoxelBatchNorm(out_channels, eps=eps)
        self.conv2 = SubmanifoldConv3d(out_channels, out_channels, kernel_size=3)
        self.norm2 = VoxelBatchNorm(out_channels, eps=eps)
        self.shortcut_conv = self.shortcut_norm = None
        if in_channels != out_channels:
            self.shortcut_conv = SubmanifoldConv3d(in_channels, out_channels, kernel_size=1)
            self.shortcut_norm = VoxelBatchNorm(out_channels, eps=eps, momentum=config.batch_norm_momentum)

    def forward(self, x: SparseTensor) -> SparseTensor:
        if self.gradient_checkpointing and self.training:
            return x.replace(self._gradient_checkpointing_func(_Recomputable(self, x), x.features))
        return self.compute(x)

    def compute(self, x: SparseTensor) -> SparseTensor:
        """What `forward` gives, with everything kept that gradients need."""
        shortcut = x.features
        if self.shortcut_conv is not None:
            shortcut = convolve_normalized(self.shortcut_conv, self.shortcut_norm, x, is_rectified=False).features
        x = convolve_normalized(self.conv1, self.norm1, x)
        return convolve_normalized(self.conv2, self.norm2, x, shortcut)


class _Recomputable:
    """A block as a function of its input's features, which the backward pass may ask a second time.

    The second time leaves the running statistics as they are: the batch has been counted.
    """

    def __init__(self, block: ResidualBlock, x: SparseTensor):
        self.block, self.x = block, x
        self.has_run = False

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        statistics = _statistics_apart(self.block) if self.has_run else nullcontext()
        self.has_run = True
        with statistics:
            return self.block.compute(self.x.replace(features)).features


@contextmanager
def _statistics_apart(module: nn.Module) -> Iterator[None]:
    """Buffers that are changed meanwhile are copies."""
    kept = [(part, dict(part._buffers)) for part in module.modules()]
    for part, buffers in kept:
        part._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()}
    try:
        yield
    finally:
        for part, buffers in kept:
            part._buffers = buffers


class Res16UNet(nn.Module):
    """Sparse U-Net with four halvings and four doublings; skip connections are concatenated as [upsampled, skip]."""

    def __init__(self, config: BiFusionPointConfig):
        super().__init__()
        planes, eps, momentum = config.planes, config.batch_norm_eps, config.batch_norm_momentum

        def norm(channels: int) -> VoxelBatchNorm:
            return VoxelBatchNorm(channels, eps=eps, momentum=momentum)

        def level(in_channels: int, index: int) -> nn.ModuleList:
            widths = [in_channels] + [planes[index]] * config.blocks[index]
            return nn.ModuleList(
                ResidualBlock(width, planes[index], config) for width, _ in zip(widths, widths[1:], strict=False)
            )

        self.stem = SubmanifoldConv3d(config.in_channels, config.stem_channels, kernel_size=config.stem_kernel_size)
        self.stem_norm = norm(config.stem_channels)

        skips = [config.stem_channels, *planes[:3]]
        self.down_convs = nn.ModuleList(StridedConv3d(width, width) for width in skips)
        self.down_norms = nn.ModuleList(norm(width) for width in skips)
        self.down_blocks = nn.ModuleList(level(width, index) for index, width in enumerate(skips))
        self.frame_adapters = None
        if config.use_frame_adapters:
            self.frame_adapters = nn.ModuleList(FrameAdapter(width, eps) for width in planes[:4])

        deep = [planes[3], *planes[4:7]]
        self.up_convs = nn.ModuleList(TransposedConv3d(width, planes[4 + index]) for index, width in enumerate(deep))
        self.up_norms = nn.ModuleList(norm(width) for width in planes[4:])
        self.up_blocks = nn.ModuleList(
            level(planes[4 + index] + skip, 4 + index) for index, skip in enumerate(reversed(skips))
        )

    def forward(
        self, voxel_features: torch.Tensor, grid: VoxelGrid, memory: FrameMemory | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, FrameMemory]:
        """Features of the voxels.

        Args:
            voxel_features: [V, in_channels] float, mean colour of each voxel.
            grid: The voxels, at stride 1.
            memory: Of the frames before; None = every frame is a first one.

        Returns:
            [V, out_channels] in the grid's row order; where a memory was given a pair of that and of the memory with
            this frame.

        Raises:
            ValueError: A memory is given to a network without frame adapters, or one of another number of levels.
        """
        if memory is not None:
            levels = 0 if self.frame_adapters is None else len(self.frame_adapters)
            if len(memory.levels) not in (0, levels) or levels == 0:
                raise ValueError(
                    f"frame_memory has {len(memory.levels)} levels; the network has {levels} frame adapters "
                    "(point_config.use_frame_adapters)"
                )
        remembered: list[SparseTensor] = []
        x = convolve_normalized(self.stem, self.stem_norm, SparseTensor(voxel_features, grid))
        skips = [x]
        for index, (conv, norm, blocks) in enumerate(
            zip(self.down_convs, self.down_norms, self.down_blocks, strict=True)
        ):
            x = convolve_normalized(conv, norm, x)
            for block in blocks:
                x = block(x)
            # The adapters change what the decoder reads; the next encoder level sees the unadapted features.
            skip = x
            if memory is not None:
                bank = memory.levels[index] if memory.levels else None
                skip, bank = remember(self.frame_adapters[index], x, bank)
                remembered.append(bank)
            elif self.frame_adapters is not None:
                skip = self.frame_adapters[index](x)
            skips.append(skip)
        x = skips.pop()
        for conv, norm, blocks in zip(self.up_convs, self.up_norms, self.up_blocks, strict=True):
            skip = skips.pop()
            x = convolve_normalized(conv, norm, x)
            x = x.replace(torch.cat([x.features, skip.features], dim=1))
            for block in blocks:
                x = block(x)
        return x.features if memory is None else (x.features, FrameMemory(tuple(remembered)))
