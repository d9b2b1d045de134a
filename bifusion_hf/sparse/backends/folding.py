"""A 5x5x5 convolution of few channels, as a 3x3x3 convolution on the coarser grid.

The 125 neighbours of a voxel lie within the 27 neighbours of its parent. With the 8 children of a parent side by
side as channels, the large kernel becomes a small one: 27 reads of a long row in the place of 125 reads of a short
one, over a kernel map that the next level of a network needs anyway. It multiplies some zeros: worthwhile for a
network's stem, with its 3 channels, and not for wide layers.
"""

from collections.abc import Callable
from functools import cache

import torch

from ..finish import Finish
from ..kernel_maps import ConvolutionLayer, kernel_offsets
from ..voxels import VoxelGrid


MAX_FOLDED_CHANNELS = 8


def is_foldable(layer: ConvolutionLayer) -> bool:
    """Whether a layer is better computed on the coarser grid."""
    return layer.kernel_size == 5 and layer.dilation == 1 and layer.in_channels <= MAX_FOLDED_CHANNELS


def convolve_by_maps(
    features: torch.Tensor,
    kernel: torch.Tensor,
    grid: VoxelGrid,
    layer: ConvolutionLayer,
    convolve_over: Callable[..., torch.Tensor],
    finish: Finish | None = None,
) -> torch.Tensor:
    """A layer by `convolve_over(features, kernel, maps, finish)`, folded where that is better -> [N_out, Cout]."""
    if is_foldable(layer):
        finish = None if finish is None else finish.repeated(8)
        return convolve_folded(
            *(features, kernel, grid),
            lambda blocks, folded, coarse: convolve_over(blocks, folded, coarse.kernel_maps("submanifold", 3), finish),
        )
    maps = grid.kernel_maps(layer.kind, layer.kernel_size, layer.dilation)
    # A kernel of size 1 is stored as a matrix.
    return convolve_over(features, kernel.view(-1, *kernel.shape[-2:]), maps, finish)


def convolve_folded(
    features: torch.Tensor,
    kernel: torch.Tensor,
    grid: VoxelGrid,
    convolve_coarse: Callable[[torch.Tensor, torch.Tensor, VoxelGrid], torch.Tensor],
) -> torch.Tensor:
    """Features [V, Cin] on `grid`, kernel [125, Cin, Cout] -> [V, Cout].

    `convolve_coarse` does the 3x3x3 convolution, of features and kernel on the coarser grid.
    """
    in_channels, out_channels = kernel.shape[1:]
    children = grid.kernel_maps("strided", 2).forward.table.T.reshape(-1)
    padded = torch.nn.functional.pad(features, (0, 0, 0, 1))
    blocks = padded.index_select(0, children).view(-1, 8 * in_channels)
    places = _folded_offsets(kernel.device)
    folded = torch.nn.functional.pad(kernel, (0, 0, 0, 0, 0, 1)).index_select(0, places.reshape(-1))
    folded = folded.view(27, 8, 8, in_channels, out_channels).transpose(2, 3).reshape(27, 8 * in_channels, -1)
    out = convolve_coarse(blocks, folded, grid.coarser())
    return out.view(-1, out_channels).index_select(0, 8 * grid.parents + grid.octants)


@cache
def _folded_offsets(device: torch.device) -> torch.Tensor:
    """int64 [27, 8, 8] (offset of the parent, octant read, octant written): the 5x5x5 kernel's offset, 125 = none."""
    octants = torch.tensor(kernel_offsets(2))
    parents = torch.tensor(kernel_offsets(3))
    place = 2 * parents[:, None, None] + octants[None, :, None] - octants[None, None, :] + 2
    offset = place[..., 0] + 5 * place[..., 1] + 25 * place[..., 2]
    return torch.where(((place >= 0) & (place < 5)).all(-1), offset, 125).to(device)
