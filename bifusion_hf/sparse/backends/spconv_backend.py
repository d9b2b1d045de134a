"""Sparse convolution by spconv (https://github.com/traveller59/spconv, 2.3), with the same kernels and results.

The package `spconv_triton` has spconv's interface, in Triton, and is taken where spconv is missing or does not work.
What differs between the two worlds, and is bridged here:

- spconv's weight is [Cout, x, y, z, Cin], this package's kernel [x + K y + K^2 z, Cin, Cout];
- spconv wants coordinates from 0 on, and silently computes wrongly with negative ones: they are shifted;
- its strided convolution groups voxels from that origin on, and silently loses the last plane of an odd extent: shift
  and extent are multiples of the coarser stride;
- the rows of its coarser grid come in an order of its own: they are put in ours.
"""

import logging
from functools import cache, partial
from typing import Any

import torch

from ...import_utils import how_to_install, is_available, require_package
from ...io.compiled_library import KernelError
from ..coordinates import pack
from ..kernel_maps import ConvolutionLayer
from ..voxels import VoxelGrid
from . import torch_backend
from .folding import convolve_folded, is_foldable
from .self_test import check_against_torch


logger = logging.getLogger(__name__)

# spconv has no bfloat16 and no float64.
DTYPES = (torch.float32, torch.float16)
# Those with spconv's interface, in the order in which they are tried.
PACKAGES = ("spconv", "spconv_triton")


def convolve(features: torch.Tensor, kernel: torch.Tensor, grid: VoxelGrid, layer: ConvolutionLayer) -> torch.Tensor:
    """Features [N_in, Cin] on `grid`, kernel [K, Cin, Cout] -> [N_out, Cout].

    On a CPU it takes spconv's `Native` algorithm, the only one that a CPU has: right, but for tests and comparisons.

    Raises:
        ValueError: A dtype that spconv does not have, or spconv's build without CUDA, which computes wrongly with more
            than one thread.
        ImportError: No package is installed.
        KernelError: None that is installed works on CUDA.
    """
    if not len(grid):
        return torch_backend.convolve(features, kernel, grid, layer)
    if features.dtype not in DTYPES:
        raise ValueError(f"features have dtype {features.dtype}; spconv has float32 and float16 only")
    return _convolve(features, kernel, grid, layer, package=_package_for(features.device.type))


@cache
def spconv_unavailable_reason() -> str | None:
    """Why no package with spconv's interface works on CUDA here; None where one does. Tried once, and logged."""
    reason = _tried()[1]
    if reason is not None:
        logger.warning("sparse convolutions on CUDA do without spconv: %s", reason)
    return reason


@cache
def _tried() -> tuple[str | None, str | None]:
    """The first package that passes its test on CUDA, and why those before it, or all, do not."""
    reasons = []
    for package in filter(is_available, PACKAGES):
        try:
            check_build(package)
            check_against_torch(partial(_convolve, package=package), "cuda", DTYPES)
        # A package built for another CUDA, torch or GPU fails in many ways; all of them end here with their reason.
        except Exception as error:
            reasons.append(f"{package} fails its test: {error or type(error).__name__}")
            continue
        if reasons:
            logger.warning("sparse convolutions on CUDA take %s: %s", package, "; ".join(reasons))
        return package, None
    return None, "; ".join(reasons) or f"{PACKAGES[0]} is not installed. {how_to_install(PACKAGES[0])}"


def _package_for(device: str) -> str:
    """The package to compute with on a type of device."""
    if device == "cuda" and any(map(is_available, PACKAGES)):
        package, reason = _tried()
        if package is None:
            raise KernelError(reason)
        return package
    check_build(PACKAGES[0])
    return PACKAGES[0]


def check_build(package: str = PACKAGES[0]) -> None:
    """Raises ImportError without the package, ValueError for spconv's build without CUDA."""
    require_package(package)
    if package != "spconv":
        return
    from spconv.cppconstants import CPU_ONLY_BUILD

    if CPU_ONLY_BUILD:
        raise ValueError(
            "the installed spconv is the build without CUDA, whose results are wrong with more than one thread; "
            f"install a spconv-cuXXX instead. {how_to_install('spconv')}"
        )


def _convolve(
    features: torch.Tensor, kernel: torch.Tensor, grid: VoxelGrid, layer: ConvolutionLayer, package: str
) -> torch.Tensor:
    """`convolve` by one package, on a grid that is not empty."""
    # spconv would turn everything to float16 under autocast; the caller has chosen the dtype already.
    with torch.autocast(features.device.type, enabled=False):
        if layer.kind == "strided":
            return _strided(features, kernel, grid, package)
        if layer.kind == "transposed":
            return _transposed(features, kernel, grid, package)
        if is_foldable(layer):
            # For a kernel this large spconv takes `Native`, whose table of pairs is as large as the kernel.
            return convolve_folded(features, kernel, grid, partial(_submanifold, dilation=1, package=package))
        return _submanifold(features, kernel, grid, layer.dilation, package)


def _submanifold(
    features: torch.Tensor, kernel: torch.Tensor, grid: VoxelGrid, dilation: int, package: str
) -> torch.Tensor:
    # Pairs that were found while no gradient was in view lack what a gradient needs.
    key = (package, "pairs", torch.is_grad_enabled())
    known = grid.extras.get(key) or _sparse_tensor(features, grid, package)
    out = _apply("submanifold", kernel, known.replace_feature(features), package, dilation)
    grid.extras[key] = _without_features(out)
    return out.features


def _strided(features: torch.Tensor, kernel: torch.Tensor, grid: VoxelGrid, package: str) -> torch.Tensor:
    out = _apply("strided", kernel, _sparse_tensor(features, grid, package), package)
    coarse = grid.coarser()
    coordinates = out.indices.long()
    coordinates[:, 1:] = coordinates[:, 1:] * coarse.stride + _origin(grid)
    rows = coarse.find(pack(coordinates))
    grid.extras[package, "halving"] = _without_features(out), rows
    return out.features[torch.argsort(rows)]


def _transposed(features: torch.Tensor, kernel: torch.Tensor, grid: VoxelGrid, package: str) -> torch.Tensor:
    fine = grid.finer()
    if (package, "halving") not in fine.extras:
        # spconv finds the pairs in the strided convolution that this one undoes; none was run, so one is, on nothing.
        channels = kernel.shape[1]
        _strided(features.new_zeros(len(fine), channels), kernel.new_zeros(8, channels, channels), fine, package)
    halved, rows = fine.extras[package, "halving"]
    return _apply("transposed", kernel, halved.replace_feature(features[rows]), package).features


def _origin(grid: VoxelGrid) -> torch.Tensor:
    """Where spconv's coordinates of a grid begin: int32 [3], a multiple of the coarser stride."""
    alignment = 2 * grid.stride
    return grid.coordinates[:, 1:].amin(0).div(alignment, rounding_mode="floor") * alignment


def _sparse_tensor(features: torch.Tensor, grid: VoxelGrid, package: str) -> Any:
    spconv = require_package(f"{package}.pytorch")
    local = (grid.coordinates[:, 1:] - _origin(grid)) // grid.stride
    shape = (local.amax(0) // 2 * 2 + 2).tolist()
    indices = torch.cat([grid.coordinates[:, :1], local], dim=1)
    return spconv.SparseConvTensor(features, indices, shape, grid.batch_size)


def _without_features(tensor: Any) -> Any:
    """What is worth keeping of spconv's tensor: coordinates, shape and pairs."""
    return tensor.replace_feature(tensor.features.new_empty(0, 0))


def _apply(kind: str, kernel: torch.Tensor, tensor: Any, package: str, dilation: int = 1) -> Any:
    """spconv's tensor after its layer of this kind, with this kernel."""
    volume, in_channels, out_channels = kernel.shape
    size = round(volume ** (1 / 3))
    weight = kernel.view(size, size, size, in_channels, out_channels).permute(4, 2, 1, 0, 3).contiguous()
    on_cpu = kernel.device.type == "cpu"
    module = _module(package, kind, in_channels, out_channels, size, dilation, on_cpu)
    # In spconv's evaluation mode nothing has a gradient.
    module.train(torch.is_grad_enabled())
    return torch.func.functional_call(module, {"weight": weight}, (tensor,))


@cache
def _module(
    package: str, kind: str, in_channels: int, out_channels: int, size: int, dilation: int, on_cpu: bool
) -> Any:
    """spconv's layer, without a weight of its own."""
    spconv = require_package(f"{package}.pytorch")
    shared = {
        "bias": False,
        "indice_key": f"submanifold {size} {dilation}" if kind == "submanifold" else "halving",
        "algo": require_package(package).ConvAlgo.Native if on_cpu else None,
    }
    with torch.device("meta"):
        if kind == "submanifold":
            return spconv.SubMConv3d(in_channels, out_channels, size, dilation=dilation, **shared)
        if kind == "strided":
            return spconv.SparseConv3d(in_channels, out_channels, 2, stride=2, **shared)
        return spconv.SparseInverseConv3d(in_channels, out_channels, 2, **shared)
