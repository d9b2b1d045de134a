"""The same network in plain spconv, as its users write it: spconv's layers and tensors throughout, none of ours."""

import copy
from typing import Any

import torch
from torch import nn

from bifusion_hf.import_utils import require_package
from bifusion_hf.sparse import (
    SparseTensor,
    StridedConv3d,
    SubmanifoldConv3d,
    TransposedConv3d,
    VoxelGrid,
)
from bifusion_hf.sparse.backends.spconv_backend import check_build


# The coordinates' origin and extent are multiples of this, so that all five levels group voxels as ours do.
ALIGNMENT = 16


class SpconvFeatures:
    """spconv's tensor with the two names by which our networks use a sparse tensor."""

    def __init__(self, tensor: Any):
        self.tensor = tensor
        self.features = tensor.features

    def replace(self, features: torch.Tensor) -> "SpconvFeatures":
        """The same voxels with other features."""
        return SpconvFeatures(self.tensor.replace_feature(features))


class _Layer(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: SparseTensor | SpconvFeatures) -> SpconvFeatures:
        tensor = first_tensor(x) if isinstance(x, SparseTensor) else x.tensor
        return SpconvFeatures(self.layer(tensor))


class _Pointwise(nn.Module):
    def __init__(self, kernel: torch.Tensor):
        super().__init__()
        self.linear = nn.Linear(*kernel.shape, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(kernel.T)

    def forward(self, x: SpconvFeatures) -> SpconvFeatures:
        return x.replace(self.linear(x.features))


def spconv_twin(network: nn.Module) -> nn.Module:
    """A copy of a Res16UNet with spconv's layers in the place of ours.

    On a CPU they take the `Native` algorithm, the only one there.

    Raises:
        ImportError: spconv is not installed.
        ValueError: spconv's build without CUDA is installed, which computes wrongly.
    """
    check_build()
    strides = _input_strides(network)
    twin = copy.deepcopy(network)
    for name, stride in strides.items():
        parent, _, child = name.rpartition(".")
        setattr(twin.get_submodule(parent), child, replacement(twin.get_submodule(name), stride))
    return twin


@torch.no_grad()
def _input_strides(network: nn.Module) -> dict[str, int]:
    """Stride of the grid that each sparse convolution works on, by its name."""
    strides, hooks = {}, []
    for name, module in network.named_modules():
        if isinstance(module, (SubmanifoldConv3d, StridedConv3d, TransposedConv3d)):
            hooks.append(
                module.register_forward_pre_hook(lambda _, x, name=name: strides.update({name: x[0].grid.stride}))
            )
    parameter = next(network.parameters())
    training = network.training
    network.eval()(
        parameter.new_zeros(1, network.stem.in_channels),
        VoxelGrid(torch.zeros(1, 4, dtype=torch.int32, device=parameter.device), 1),
    )
    network.train(training)
    for hook in hooks:
        hook.remove()
    return strides


def replacement(module: nn.Module, stride: int) -> nn.Module:
    """spconv's form of one of our convolutions that works on a grid of this stride."""
    size, kernel = module.kernel_size, module.kernel.detach()
    if size == 1:
        return _Pointwise(kernel)
    spconv = require_package("spconv.pytorch")
    channels = module.in_channels, module.out_channels
    native = require_package("spconv").ConvAlgo.Native if kernel.device.type == "cpu" else None
    shared = {"bias": False, "algo": native}
    if isinstance(module, SubmanifoldConv3d):
        key = f"{stride} {size} {module.dilation}"
        layer = spconv.SubMConv3d(*channels, size, dilation=module.dilation, indice_key=key, **shared)
    elif isinstance(module, StridedConv3d):
        layer = spconv.SparseConv3d(*channels, 2, stride=2, indice_key=f"halving {stride}", **shared)
    else:
        layer = spconv.SparseInverseConv3d(*channels, 2, indice_key=f"halving {stride // 2}", **shared)
    with torch.no_grad():
        layer.weight.copy_(kernel.view(size, size, size, *channels).permute(4, 2, 1, 0, 3))
    return _Layer(layer.to(kernel.device))


def first_tensor(x: SparseTensor) -> Any:
    """Our tensor, of stride 1, as spconv's."""
    coordinates = x.grid.coordinates
    origin = coordinates[:, 1:].amin(0).div(ALIGNMENT, rounding_mode="floor") * ALIGNMENT
    local = coordinates[:, 1:] - origin
    shape = (local.amax(0) // ALIGNMENT + 1) * ALIGNMENT
    indices = torch.cat([coordinates[:, :1], local], dim=1)
    spconv = require_package("spconv.pytorch")
    return spconv.SparseConvTensor(x.features, indices, shape.tolist(), x.grid.batch_size)
