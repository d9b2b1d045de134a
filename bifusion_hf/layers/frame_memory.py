"""Memory between the frames of a sequence: the adapters of ESAM's online mode (Xu et al., "EmbodiedSAM", ICLR 2025).

Behind each encoder level of the U-Net an adapter mixes a frame's features with what a bank remembers of the voxels
around it. The bank is an explicit state: `FrameMemory` goes into the network with a frame and a new one comes out.
Coordinates of all frames of a sequence must be in one world, so points are not centred frame by frame.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import initialization as init

from ..sparse import SparseTensor, SubmanifoldConv3d, VoxelBatchNorm, VoxelGrid, convolve_normalized, take_rows
from .reductions import sample_mean


# Of a frame's bounding box, about its centre: what the adapters see of the bank.
BOX_SCALE = 2.5


@dataclass(frozen=True, eq=False)
class FrameMemory:
    """What the adapters remember of a batch of sequences; never changed in place.

    Args:
        levels: For each encoder level the voxels seen so far and their features; empty before the first frame.
    """

    levels: tuple[SparseTensor, ...] = ()

    def detach(self) -> "FrameMemory":
        """The same without a graph behind it."""
        return self._map(lambda level: level.replace(level.features.detach()))

    def _map(self, change) -> "FrameMemory":
        return replace(self, levels=tuple(change(level) for level in self.levels))

    def state(self) -> dict[str, torch.Tensor]:
        """Coordinates int32 [V, 4] and features [V, C] of each level, by name."""
        tensors = {}
        for index, level in enumerate(self.levels):
            tensors[f"{index}.coordinates"] = level.grid.coordinates
            tensors[f"{index}.features"] = level.features.detach()
        return tensors

    @classmethod
    def from_state(cls, tensors: dict[str, torch.Tensor], batch_size: int = 1) -> "FrameMemory":
        """The memory of a `state`; level i lies behind i + 1 halvings."""
        count = sum(name.endswith(".features") for name in tensors)
        levels = []
        for index in range(count):
            grid = VoxelGrid(tensors[f"{index}.coordinates"], batch_size, 2 ** (index + 1))
            levels.append(SparseTensor(tensors[f"{index}.features"], grid))
        return cls(tuple(levels))


class FrameAdapter(nn.Module):
    """One level: 3x3x3 convolutions of dilation 1 and 3 and the mean over the sample, mixed and added to the input.

    The last norm starts at zero, so that a network with adapters starts as the network without; the original means to.
    """

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.conv_near = SubmanifoldConv3d(channels, channels, kernel_size=3)
        self.norm_near = VoxelBatchNorm(channels, eps=eps)
        self.conv_far = SubmanifoldConv3d(channels, channels, kernel_size=3, dilation=3)
        self.norm_far = VoxelBatchNorm(channels, eps=eps)
        self.conv_mix = SubmanifoldConv3d(3 * channels, channels, kernel_size=1)
        self.norm_mix = VoxelBatchNorm(channels, eps=eps)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """No change at the start: what the adapters are given is not negative."""
        init.zeros_(self.norm_mix.weight)

    def forward(self, x: SparseTensor, around: SparseTensor | None = None) -> SparseTensor:
        """The frame's features, refined.

        Args:
            x: Of the frame.
            around: Of the bank, with all voxels of the frame; None = the frame alone.
        """
        seen = x if around is None else around
        near = convolve_normalized(self.conv_near, self.norm_near, seen).features
        far = convolve_normalized(self.conv_far, self.norm_far, seen).features
        sample = seen.grid.coordinates[:, 0].long()
        mean = take_rows(sample_mean(seen.features, sample, seen.grid.batch_size), sample)
        mixed = seen.replace(torch.cat([near, far, mean], dim=1))
        if around is None:
            return convolve_normalized(self.conv_mix, self.norm_mix, mixed, shortcut=x.features)
        mixed = convolve_normalized(self.conv_mix, self.norm_mix, mixed, is_rectified=False)
        return x.replace(torch.relu(x.features + mixed.features[around.grid.find(x.grid.keys_by_row)]))


def remember(adapter: FrameAdapter, x: SparseTensor, bank: SparseTensor | None) -> tuple[SparseTensor, SparseTensor]:
    """One level of one frame with memory.

    Args:
        adapter: Of the level.
        x: The frame's features.
        bank: What is remembered; None at the first frame.

    Returns:
        The refined features, and the new bank: after the first frame its refined features, as in the original, and
        later the voxelwise maximum of the old bank and the frame's own.
    """
    if bank is None:
        refined = adapter(x)
        return refined, refined
    bank = voxel_maximum(bank, x)
    return adapter(x, within_box(bank, x.grid)), bank


def voxel_maximum(first: SparseTensor, second: SparseTensor) -> SparseTensor:
    """The union of two sets of voxels of one stride, with the larger value of each channel where both have one."""
    keys = torch.cat([first.grid.keys_by_row, second.grid.keys_by_row])
    keys, rows = torch.unique(keys, return_inverse=True)
    values = torch.cat([first.features, second.features.to(first.features.dtype)])
    empty = values.new_zeros(len(keys), values.shape[1])
    largest = empty.scatter_reduce(0, rows[:, None].expand_as(values), values, "amax", include_self=False)
    return SparseTensor(largest, VoxelGrid.from_sorted_keys(keys, first.grid.batch_size, first.grid.stride))


def within_box(bank: SparseTensor, grid: VoxelGrid) -> SparseTensor:
    """The bank's voxels inside each sample's bounding box of the grid, scaled by `BOX_SCALE` about its centre."""
    places, sample = grid.coordinates[:, 1:].float(), grid.coordinates[:, :1].long().expand(-1, 3)
    empty = places.new_zeros(grid.batch_size, 3)
    low = empty.scatter_reduce(0, sample, places, "amin", include_self=False)
    high = empty.scatter_reduce(0, sample, places, "amax", include_self=False)
    margin = (BOX_SCALE - 1) / 2 * (high - low)
    order = bank.grid.order
    coordinates = bank.grid.coordinates if order is None else bank.grid.coordinates[order]
    features = bank.features if order is None else bank.features[order]
    owner = coordinates[:, 0].long()
    at = coordinates[:, 1:].float()
    inside = ((at >= (low - margin)[owner]) & (at <= (high + margin)[owner])).all(dim=1)
    keys = bank.grid.sorted_keys[inside]
    return SparseTensor(features[inside], VoxelGrid.from_sorted_keys(keys, grid.batch_size, grid.stride))
