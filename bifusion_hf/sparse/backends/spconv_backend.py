"""Sparse convolution by spconv (https://github.com/traveller59/spconv, 2.3), with the same kernels and results.

What differs between the two worlds, and is bridged here:

- spconv's weight is [Cout, x, y, z, Cin], this package's kernel [x + K y + K^2 z, Cin, Cout];
- spconv wants coordinates from 0 on, and silently computes wrongly with negative ones: they are shifted;
- its strided convolution groups voxels from that origin on, and silently loses the last plane of an odd extent: shift
  and extent are multiples of the coarser stride;
- the rows of its coarser grid come in an order of its own: they are put in ours.
"""

from functools import cache
from typing import Any

import torch

from ...import_utils import require_package
from ..coordinates import pack
from ..kernel_maps import ConvolutionLayer
from ..voxels import VoxelGrid


# spconv has no bfloat16 and no float64.
DTYPES = (torch.float32, torch.float16)


def convolve(features: torch.Tensor, kernel: torch.Tensor, grid: VoxelGrid, layer: ConvolutionLayer) -> torch.Tensor:
    """Features [N_in, Cin] on `grid`, which is not empty, kernel [K, Cin, Cout] -> [N_out, Cout].

    On a CPU it takes spconv's `Native` algorithm, the only one that a CPU has: right, but for tests and comparisons.

    Raises:
        ValueError: A dtype that spconv does not have, or spconv's build without CUDA, which computes wrongly with more
            than one thread.
        ImportError: spconv is not installed.
    """
    if features.dtype not in DTYPES:
        raise ValueError(f"features have dtype {features.dtype}; spconv has float32 and float16 only")
    check_build()
    # spconv would turn everything to float16 under autocast; the caller has chosen the dtype already.
    with torch.autocast(features.device.type, enabled=False):
        if layer.kind == "strided":
            return _strided(features, kernel, grid)
        if layer.kind == "transposed":
            return _transposed(features, kernel, grid)
        return _submanifold(features, kernel, grid, layer.dilation)


def check_build() -> None:
    """Raises ImportError without spconv, ValueError for its build without CUDA."""
    require_package("spconv")
    from spconv.cppconstants import CPU_ONLY_BUILD

    if CPU_ONLY_BUILD:
        raise ValueError(
            "the installed spconv is the build without CUDA, whose results are wrong with more than one thread; "
            'install a spconv-cuXXX instead: pip install "bifusion_hf[spconv]"'
        )


def _submanifold(features: torch.Tensor, kernel: torch.Tensor, grid: VoxelGrid, dilation: int) -> torch.Tensor:
    # Pairs that were found while no gradient was in view lack what a gradient needs.
    key = ("spconv pairs", torch.is_grad_enabled())
    known = grid.extras.get(key) or _sparse_tensor(features, grid)
    out = _apply("submanifold", kernel, known.replace_feature(features), dilation)
    grid.extras[key] = _without_features(out)
    return out.features


def _strided(features: torch.Tensor, kernel: torch.Tensor, grid: VoxelGrid) -> torch.Tensor:
    out = _apply("strided", kernel, _sparse_tensor(features, grid))
    coarse = grid.coarser()
    coordinates = out.indices.long()
    coordinates[:, 1:] = coordinates[:, 1:] * coarse.stride + _origin(grid)
    rows = coarse.find(pack(coordinates))
    grid.extras["spconv halving"] = _without_features(out), rows
    return out.features[torch.argsort(rows)]


def _transposed(features: torch.Tensor, kernel: torch.Tensor, grid: VoxelGrid) -> torch.Tensor:
    fine = grid.finer()
    if "spconv halving" not in fine.extras:
        # spconv finds the pairs in the strided convolution that this one undoes; none was run, so one is, on nothing.
        channels = kernel.shape[1]
        _strided(features.new_zeros(len(fine), channels), kernel.new_zeros(8, channels, channels), fine)
    halved, rows = fine.extras["spconv halving"]
    return _apply("transposed", kernel, halved.replace_feature(features[rows])).features


def _origin(grid: VoxelGrid) -> torch.Tensor:
    """Where spconv's coordinates of a grid begin: int32 [3], a multiple of the coarser stride."""
    alignment = 2 * grid.stride
    return grid.coordinates[:, 1:].amin(0).div(alignment, rounding_mode="floor") * alignment


def _sparse_tensor(features: torch.Tensor, grid: VoxelGrid) -> Any:
    spconv = require_package("spconv.pytorch")
    local = (grid.coordinates[:, 1:] - _origin(grid)) // grid.stride
    shape = (local.amax(0) // 2 * 2 + 2).tolist()
    indices = torch.cat([grid.coordinates[:, :1], local], dim=1)
    return spconv.SparseConvTensor(features, indices, shape, grid.batch_size)


def _without_features(tensor: Any) -> Any:
    """What is worth keeping of spconv's tensor: coordinates, shape and pairs."""
    return tensor.replace_feature(tensor.features.new_empty(0, 0))


def _apply(kind: str, kernel: torch.Tensor, tensor: Any, dilation: int = 1) -> Any:
    """spconv's tensor after its layer of this kind, with this kernel."""
    volume, in_channels, out_channels = kernel.shape
    size = round(volume ** (1 / 3))
    weight = kernel.view(size, size, size, in_channels, out_channels).permute(4, 2, 1, 0, 3).contiguous()
    on_cpu = kernel.device.type == "cpu"
    module = _module(kind, in_channels, out_channels, size, dilation, on_cpu)
    # In spconv's evaluation mode nothing has a gradient.
    module.train(torch.is_grad_enabled())
    return torch.func.functional_call(module, {"weight": weight}, (tensor,))


@cache
def _module(kind: str, in_channels: int, out_channels: int, size: int, dilation: int, on_cpu: bool) -> Any:
    """spconv's layer, without a weight of its own."""
    spconv = require_package("spconv.pytorch")
    shared = {
        "bias": False,
        "indice_key": f"submanifold {size} {dilation}" if kind == "submanifold" else "halving",
        "algo": require_package("spconv").ConvAlgo.Native if on_cpu else None,
    }
    with torch.device("meta"):
        if kind == "submanifold":
            return spconv.SubMConv3d(in_channels, out_channels, size, dilation=dilation, **shared)
        if kind == "strided":
            return spconv.SparseConv3d(in_channels, out_channels, 2, stride=2, **shared)
        return spconv.SparseInverseConv3d(in_channels, out_channels, 2, **shared)
