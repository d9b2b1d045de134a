"""spconv's wiring, on the CPU with its Native algorithm; needs a spconv-cuXXX wheel, but no CUDA device."""

import numpy as np
import pytest
import torch
from torch import nn

from bifusion_hf.io.compiled_library import KernelError
from bifusion_hf.sparse import (
    SparseTensor,
    StridedConv3d,
    SubmanifoldConv3d,
    TransposedConv3d,
    VoxelGrid,
    backends,
    set_sparse_backend,
)
from bifusion_hf.sparse.backends import choose_backend, spconv_backend, torch_backend
from bifusion_hf.sparse.backends.self_test import check_against_torch


def wrong_gradient(features, kernel, grid, layer):
    return torch_backend.convolve(features, kernel + 0.01 * (kernel - kernel.detach()), grid, layer)


def test_the_self_test_sees_wrong_results_and_wrong_gradients():
    check_against_torch(torch_backend.convolve, "cpu", (torch.float32, torch.bfloat16))
    with torch.inference_mode(), torch.autocast("cpu"):
        check_against_torch(torch_backend.convolve, "cpu", (torch.float32,))
    with pytest.raises(ArithmeticError, match="gradient of the kernel of a submanifold convolution in torch.float32"):
        check_against_torch(wrong_gradient, "cpu", (torch.float32,))
    with pytest.raises(ArithmeticError, match="result of a submanifold .* expected less than 2e-02"):
        check_against_torch(lambda *args: 1.1 * torch_backend.convolve(*args), "cpu", (torch.bfloat16,))


@pytest.mark.parametrize("kind", ["submanifold", "strided", "transposed"])
def test_the_self_test_asks_every_kind_of_layer(kind):
    def convolve(features, kernel, grid, layer):
        out = torch_backend.convolve(features, kernel, grid, layer)
        return out + 1 if layer.kind == kind else out

    with pytest.raises(ArithmeticError, match=f"the result of a {kind} convolution"):
        check_against_torch(convolve, "cpu", (torch.float32,))


@pytest.fixture
def packages(monkeypatch):
    """Packages with spconv's interface, by name: what computes in their place; the self-test runs on the CPU."""
    found = {}

    def convolve(*args, package):
        return found[package](*args)

    def forget():
        spconv_backend._tried.cache_clear()
        spconv_backend.spconv_unavailable_reason.cache_clear()

    monkeypatch.setattr(spconv_backend, "is_available", found.__contains__)
    monkeypatch.setattr(spconv_backend, "check_build", lambda package: None)
    monkeypatch.setattr(spconv_backend, "_convolve", convolve)
    monkeypatch.setattr(
        spconv_backend, "check_against_torch", lambda function, _, dtypes: check_against_torch(function, "cpu", dtypes)
    )
    monkeypatch.setitem(backends._AUTO, "cuda", ("spconv",))
    forget()
    yield found
    forget()


def broken(*_):
    raise OSError("libcudart.so.12: cannot open shared object file")


def doubled(*args):
    return 2 * torch_backend.convolve(*args)


def wrong_in_half_precision(features, *args):
    out = torch_backend.convolve(features, *args)
    return out if features.dtype == torch.float32 else 2 * out


def test_auto_takes_spconv_where_it_passes_its_test(packages):
    packages["spconv"] = torch_backend.convolve
    assert choose_backend("auto", "cuda", torch.float32) == choose_backend("auto", "cuda", torch.float16) == "spconv"
    assert choose_backend("auto", "cuda", torch.bfloat16) == choose_backend("auto", "cuda", torch.float64) == "torch"
    assert spconv_backend._package_for("cuda") == "spconv"


def test_auto_passes_over_spconv_where_the_same_bits_are_asked_for(packages):
    packages["spconv"] = torch_backend.convolve
    torch.use_deterministic_algorithms(True)
    try:
        assert choose_backend("auto", "cuda", torch.float32) in ("triton", "torch")
        assert choose_backend("spconv", "cuda", torch.float32) == "spconv"
    finally:
        torch.use_deterministic_algorithms(False)
    assert choose_backend("auto", "cuda", torch.float32) == "spconv"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (broken, r"spconv fails its test: libcudart\.so\.12"),
        (doubled, r"spconv fails its test: the result of a submanifold convolution in torch\.float32 is wrong by"),
        (wrong_in_half_precision, r"spconv fails its test: the result of .* in torch\.float16 is wrong by"),
    ],
)
def test_auto_passes_over_an_spconv_that_does_not_work(packages, caplog, function, message):
    packages["spconv"] = function
    assert choose_backend("auto", "cuda", torch.float32) == choose_backend("auto", "cuda", torch.float32) == "torch"
    (record,) = caplog.records
    assert record.message.startswith("sparse convolutions on CUDA do without spconv: spconv ")
    with pytest.raises(KernelError, match=message):
        spconv_backend._package_for("cuda")


def test_auto_says_what_would_be_faster(packages, caplog):
    assert choose_backend("auto", "cuda", torch.float32) == "torch"
    assert "spconv is not installed. " in caplog.text
    assert choose_backend("auto", "cuda", torch.bfloat16) == "torch" and len(caplog.records) == 1


def test_spconv_triton_stands_in(packages, caplog):
    packages["spconv_triton"] = torch_backend.convolve
    assert choose_backend("auto", "cuda", torch.float32) == "spconv" and not caplog.records
    assert spconv_backend._package_for("cuda") == "spconv_triton"


def test_spconv_triton_stands_in_for_an_spconv_that_does_not_work(packages, caplog):
    packages.update(spconv=broken, spconv_triton=torch_backend.convolve)
    assert choose_backend("auto", "cuda", torch.float32) == "spconv"
    assert "take spconv_triton: spconv fails its test: libcudart" in caplog.text
    assert spconv_backend._package_for("cuda") == "spconv_triton"


def test_a_large_kernel_on_few_channels_is_folded(monkeypatch):
    """spconv's own way with it needs a table of pairs as large as the kernel."""
    seen = []

    def submanifold(features, kernel, grid, dilation, package):
        seen.append((grid.stride, tuple(kernel.shape), dilation, package))
        return torch_backend.convolve_over(features, kernel, grid.kernel_maps("submanifold", 3))

    monkeypatch.setattr(spconv_backend, "_submanifold", submanifold)
    layer = SubmanifoldConv3d(3, 4, 5)
    grid, features = grid_and_features()
    out = spconv_backend._convolve(features, layer.kernel, grid, layer, package="spconv")
    assert seen == [(2, (27, 24, 32), 1, "spconv")]
    assert torch.allclose(out, torch_backend.convolve(features, layer.kernel, grid, layer), atol=1e-5)


def test_auto_never_takes_spconv_on_a_cpu():
    assert choose_backend("auto", "cpu", torch.float32) in ("compiled", "torch")
    with pytest.raises(ValueError, match="'fast'"):
        choose_backend("fast", "cpu", torch.float32)


class SmallUNet(nn.Module):
    """Every kind of layer, over three levels."""

    def __init__(self):
        super().__init__()
        self.stem = SubmanifoldConv3d(3, 8, 5)
        self.down1 = StridedConv3d(8, 8)
        self.mid1 = SubmanifoldConv3d(8, 12, 3)
        self.down2 = StridedConv3d(12, 12)
        self.mid2 = SubmanifoldConv3d(12, 12, 3, dilation=3)
        self.up2 = TransposedConv3d(12, 8)
        self.up1 = TransposedConv3d(8, 8)
        self.last = SubmanifoldConv3d(16, 5, 3)
        self.point = SubmanifoldConv3d(5, 4, 1)

    def forward(self, x):
        skip = self.stem(x)
        x = self.mid2(self.down2(self.mid1(self.down1(skip))))
        x = self.up1(self.up2(x))
        return self.point(self.last(x.replace(torch.cat([x.features, skip.features], 1))))


def grid_and_features(seed=0, shift=(0, 0, 0)):
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randint(-9, 10, (700, 3), generator=generator) + torch.tensor(shift)
    coordinates = torch.unique(torch.cat([torch.randint(0, 3, (700, 1), generator=generator), xyz], 1), dim=0)
    coordinates = coordinates[torch.randperm(len(coordinates), generator=generator)].int()
    return VoxelGrid(coordinates, 4), torch.randn(len(coordinates), 3, generator=generator)


def run(network, backend, seed=0, shift=(0, 0, 0)):
    set_sparse_backend(network, backend)
    grid, features = grid_and_features(seed, shift)
    features.requires_grad_()
    network.zero_grad()
    out = network(SparseTensor(features, grid)).features
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), features.grad, *(parameter.grad for parameter in network.parameters())]


@pytest.fixture
def spconv():
    pytest.importorskip("spconv.pytorch", reason="needs a spconv-cuXXX wheel")


# Coordinates from all sides of zero, odd origins, odd extents.
@pytest.mark.parametrize("shift", [(0, 0, 0), (5, -7, 3), (100, 101, -203)])
def test_both_backends_agree(spconv, shift):
    torch.manual_seed(0)
    network = SmallUNet()
    for ours, theirs in zip(run(network, "torch", 1, shift), run(network, "spconv", 1, shift), strict=True):
        assert (ours - theirs).abs().max() < 2e-5 * ours.abs().max()


def test_transposed_alone(spconv):
    """The strided convolution ran on the other backend, so spconv has no pairs yet."""
    torch.manual_seed(0)
    down, up = StridedConv3d(3, 8), TransposedConv3d(8, 6)
    results = []
    for backend in ("torch", "spconv"):
        up.backend = backend
        grid, features = grid_and_features()
        results.append(up(down(SparseTensor(features, grid))).features)
    assert torch.allclose(*results, atol=1e-5)


def test_pairs_found_without_gradient_are_not_used_with_one(spconv):
    torch.manual_seed(0)
    layer = SubmanifoldConv3d(3, 4, 3)
    grid, features = grid_and_features()
    gradients = []
    for backend in ("torch", "spconv"):
        layer.backend = backend
        layer.zero_grad()
        with torch.no_grad():
            layer(SparseTensor(features, grid))
        layer(SparseTensor(features, grid)).features.square().sum().backward()
        gradients.append(layer.kernel.grad.clone())
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-3)


def test_empty_grid_and_other_dtypes(spconv):
    layer = SubmanifoldConv3d(3, 4, 3)
    layer.backend = "spconv"
    empty = VoxelGrid(torch.zeros(0, 4, dtype=torch.int32), 2)
    assert layer(SparseTensor(torch.zeros(0, 3), empty)).features.shape == (0, 4)
    grid, features = grid_and_features()
    with pytest.raises(ValueError, match="bfloat16"):
        layer.bfloat16()(SparseTensor(features.bfloat16(), grid))


def test_reference(spconv, reference):
    """MinkowskiEngine's strided case through spconv, gradients included."""
    data = np.load(reference / "sparse_conv.npz")
    layer = StridedConv3d(*data["k2s2_kernel"].shape[1:])
    layer.backend = "spconv"
    with torch.no_grad():
        layer.kernel.copy_(torch.from_numpy(data["k2s2_kernel"]))
    grid = VoxelGrid(torch.from_numpy(data["k2s2_in_coords"]), 2)
    out = layer(SparseTensor(torch.from_numpy(data["k2s2_in_feats"]), grid))
    row = {tuple(c): i for i, c in enumerate(out.grid.coordinates.tolist())}
    found = out.features[torch.tensor([row[tuple(c)] for c in data["k2s2_out_coords"].tolist()])]
    wanted = torch.from_numpy(data["k2s2_out_feats"])
    (found * torch.from_numpy(data["k2s2_grad_weights"])).sum().backward()
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    gradient = torch.from_numpy(data["k2s2_grad_kernel"])
    assert (layer.kernel.grad - gradient).abs().max() < 1e-5 * gradient.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_both_backends_agree_on_cuda(spconv, dtype):
    torch.manual_seed(0)
    network = SmallUNet().to("cuda", dtype)
    grid, features = grid_and_features()
    outputs = []
    for backend in ("torch", "spconv"):
        set_sparse_backend(network, backend)
        cuda_grid = VoxelGrid(grid.coordinates.cuda(), grid.batch_size)
        outputs.append(network(SparseTensor(features.to("cuda", dtype), cuda_grid)).features.float())
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert (outputs[0] - outputs[1]).abs().max() < tolerance * outputs[0].abs().max()
