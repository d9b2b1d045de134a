import numpy as np
import pytest
import torch
from built_kernels import skip_where_not_built
from sparse_examples import random_coordinates, random_grid, slow_convolution
from torch import nn

from bifusion_hf.sparse import (
    SparseTensor,
    StridedConv3d,
    SubmanifoldConv3d,
    TransposedConv3d,
    VoxelGrid,
    backends,
    set_sparse_backend,
)
from bifusion_hf.sparse.backends import compiled_backend, products, torch_backend
from bifusion_hf.sparse.backends.self_test import check_against_torch
from bifusion_hf.sparse.kernel_maps import kernel_offsets
from bifusion_hf.sparse.kernels import KERNELS


CASES = {
    "k5s1": "submanifold",
    "k3s1": "submanifold",
    "k3s1_stride4": "submanifold",
    "k3dil3": "submanifold",
    "k3dil3_stride2": "submanifold",
    "k1": "submanifold",
    "k1_transposed": "submanifold",
    "k2s2": "strided",
    "k2s2_stride4": "strided",
    "k2s2_transposed": "transposed",
    "k2s2_transposed_stride4": "transposed",
}


@pytest.fixture(params=["torch", "compiled"])
def backend(request):
    if request.param == "compiled":
        skip_where_not_built(KERNELS, compiled_backend.kernels_unavailable_reason)
    return request.param


@pytest.fixture
def exact(backend):
    """The backend with its most exact dtype."""
    return backend, torch.float64 if backend == "torch" else torch.float32


def prepared(layer, exact):
    backend, dtype = exact
    set_sparse_backend(layer, backend)
    return layer.to(dtype)


def assert_close(found, wanted):
    """To 1e-12 of the largest value in float64, 3e-6 in float32."""
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    error = (found - wanted).abs().max() / wanted.abs().max()
    assert error < (1e-12 if wanted.dtype == torch.float64 else 3e-6), float(error)


def match_rows(wanted, found):
    """Index such that found[index] has the rows of wanted, for two sets of unique coordinates."""
    position = {tuple(row): i for i, row in enumerate(found.tolist())}
    assert len(position) == len(wanted) == len(found)
    return torch.tensor([position[tuple(row)] for row in wanted.tolist()])


@pytest.mark.parametrize("case", CASES)
def test_reference(reference, case, backend):
    """MinkowskiEngine's own results and gradients, to 1e-5 of each one's largest value."""
    data = np.load(reference / "sparse_conv.npz")
    value = {
        key: torch.from_numpy(data[f"{case}_{key}"])
        for key in (
            "in_coords",
            "in_feats",
            "kernel",
            "out_coords",
            "out_feats",
            "grad_weights",
            "grad_in_feats",
            "grad_kernel",
        )
    }
    kind, size, dilation = CASES[case], int(data[f"{case}_kernel_size"]), int(data[f"{case}_dilation"])
    channels = value["kernel"].shape[-2:]
    if kind == "transposed":
        fine = VoxelGrid(value["out_coords"], 2, int(data[f"{case}_out_stride"]))
        grid, layer = fine.coarser(), TransposedConv3d(*channels)
    else:
        grid = VoxelGrid(value["in_coords"], 2, int(data[f"{case}_in_stride"]))
        layer = StridedConv3d(*channels) if kind == "strided" else SubmanifoldConv3d(*channels, size, dilation)
    set_sparse_backend(layer, backend)
    to_reference = match_rows(value["in_coords"], grid.coordinates)
    to_grid = torch.argsort(to_reference)
    assert layer.kernel.shape == value["kernel"].shape
    with torch.no_grad():
        layer.kernel.copy_(value["kernel"])
    features = value["in_feats"].clone().requires_grad_()
    out = layer(SparseTensor(features[to_grid], grid))
    assert out.grid.stride == int(data[f"{case}_out_stride"])
    result = out.features[match_rows(value["out_coords"], out.grid.coordinates)]
    (result * value["grad_weights"]).sum().backward()
    for found, name in ((result, "out_feats"), (features.grad, "grad_in_feats"), (layer.kernel.grad, "grad_kernel")):
        wanted = value[name]
        error = (found.detach() - wanted).abs().max() / wanted.abs().max()
        assert error < 1e-5, (name, float(error))


def features_on(grid, channels, dtype=torch.float32, seed=1):
    return torch.randn(len(grid), channels, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def layers(in_channels, out_channels):
    """Every kind of layer, as (name, layer)."""
    return {
        "k1": SubmanifoldConv3d(in_channels, out_channels, 1),
        "k3": SubmanifoldConv3d(in_channels, out_channels, 3),
        "k3_dilated": SubmanifoldConv3d(in_channels, out_channels, 3, dilation=2),
        "k5": SubmanifoldConv3d(in_channels, out_channels, 5),
        "strided": StridedConv3d(in_channels, out_channels),
        "transposed": TransposedConv3d(in_channels, out_channels),
    }


KINDS = list(layers(1, 1))


def input_grid(name, grid):
    return grid.coarser() if name == "transposed" else grid


@pytest.mark.parametrize("kind", KINDS)
def test_finite_differences(kind):
    grid = random_grid(count=60, low=-2, high=3)
    layer = layers(2, 3)[kind].double()
    where = input_grid(kind, grid)
    features = features_on(where, 2, torch.float64).requires_grad_()

    def run(features, kernel):
        return torch.func.functional_call(layer, {"kernel": kernel}, (SparseTensor(features, where),)).features

    assert torch.autograd.gradcheck(run, (features, layer.kernel))


# A kernel of few channels is folded onto the coarser grid, one of many is not.
@pytest.mark.parametrize(("size", "channels"), [(3, 4), (3, 20), (5, 3), (5, 9), (7, 2)])
def test_dense_convolution_on_a_full_grid(size, channels, exact):
    extent = 7
    corner = torch.tensor([0, -3, 2, -8])  # odd, even, negative
    cells = torch.cartesian_prod(torch.arange(2), *[torch.arange(extent)] * 3)
    grid = VoxelGrid(cells + corner, 2)
    layer = prepared(SubmanifoldConv3d(channels, 5, size), exact)
    dense = torch.randn(2, channels, extent, extent, extent, dtype=exact[1], requires_grad=True)
    rows = dense[cells[:, 0], :, cells[:, 1], cells[:, 2], cells[:, 3]]
    # [K (z, y, x), Cin, Cout] -> [Cout, Cin, x, y, z]
    weight = layer.kernel.view(size, size, size, channels, 5).permute(4, 3, 2, 1, 0)
    wanted = nn.functional.conv3d(dense, weight, padding=size // 2)
    wanted = wanted[cells[:, 0], :, cells[:, 1], cells[:, 2], cells[:, 3]]
    found = layer(SparseTensor(rows, grid)).features
    assert_close(found, wanted)
    weights = torch.randn_like(wanted)
    for mine, dense_gradient in zip(
        torch.autograd.grad((found * weights).sum(), (dense, layer.kernel)),
        torch.autograd.grad((wanted * weights).sum(), (dense, layer.kernel)),
        strict=True,
    ):
        assert_close(mine, dense_gradient)


def test_dense_strided_convolution_on_a_full_grid(exact):
    cells = torch.cartesian_prod(torch.arange(2), *[torch.arange(6)] * 3)
    grid = VoxelGrid(cells - torch.tensor([0, 2, 4, 6]), 2)
    down, up = prepared(StridedConv3d(4, 5), exact), prepared(TransposedConv3d(5, 4), exact)
    dense = torch.randn(2, 4, 6, 6, 6, dtype=exact[1])
    x = down(SparseTensor(dense[cells[:, 0], :, cells[:, 1], cells[:, 2], cells[:, 3]], grid))
    weight = down.kernel.view(2, 2, 2, 4, 5).permute(4, 3, 2, 1, 0)
    wanted = nn.functional.conv3d(dense, weight, stride=2)
    place = (x.grid.coordinates + torch.tensor([0, 2, 4, 6])).long()
    place[:, 1:] //= 2
    assert_close(x.features, wanted[place[:, 0], :, place[:, 1], place[:, 2], place[:, 3]])
    weight = up.kernel.view(2, 2, 2, 5, 4).permute(3, 4, 2, 1, 0)
    wanted = nn.functional.conv_transpose3d(wanted, weight, stride=2)
    wanted = wanted[cells[:, 0], :, cells[:, 1], cells[:, 2], cells[:, 3]]
    assert_close(up(x).features, wanted)


@pytest.mark.parametrize("parts", [1, 3, 9, 27])
def test_every_way_of_cutting_the_kernel(parts, monkeypatch):
    """Against the slow convolution, with several chunks, the last one not full."""
    monkeypatch.setattr(torch_backend, "_kernel_parts", lambda *_: parts)
    grid = random_grid(count=1500, low=-6, high=7)
    assert len(grid) > 1024
    layer = SubmanifoldConv3d(4, 6, 3).double()
    features = features_on(grid, 4, torch.float64).requires_grad_()
    found = layer(SparseTensor(features, grid)).features
    wanted = slow_convolution(grid.coordinates, features, layer.kernel, kernel_offsets(3), grid.coordinates)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn_like(wanted)
    for mine, slow in zip(
        torch.autograd.grad((found * weights).sum(), (features, layer.kernel), retain_graph=True),
        torch.autograd.grad((wanted * weights).sum(), (features, layer.kernel)),
        strict=True,
    ):
        torch.testing.assert_close(mine, slow)
    # Without a gradient of the features, the kernel's comes from another walk.
    layer.zero_grad()
    (layer(SparseTensor(features.detach(), grid)).features * weights).sum().backward()
    torch.testing.assert_close(layer.kernel.grad, mine)


def test_parts_follow_the_measurements():
    grid = random_grid(count=3000, low=-8, high=8)
    maps = grid.kernel_maps("submanifold", 3).forward
    small = random_grid().kernel_maps("submanifold", 3).forward

    def parts(kernel_map, channels, dtype=torch.float32):
        return torch_backend._kernel_parts(
            torch.zeros(1, dtype=dtype), torch.zeros(27, channels, channels), kernel_map
        )

    assert [parts(maps, 32), parts(maps, 96), parts(maps, 256), parts(small, 256)] == [1, 3, 3, 27]
    assert parts(maps, 96, torch.bfloat16) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_the_voxels_permutes_the_rows(kind, exact):
    coordinates = random_coordinates()
    order = torch.randperm(len(coordinates), generator=torch.Generator().manual_seed(0))
    layer = prepared(layers(4, 6)[kind], exact)
    outputs = []
    for coordinates_ in (coordinates, coordinates[order]):
        grid = VoxelGrid(coordinates_, 2)
        where = input_grid(kind, grid)
        features = where.coordinates[:, :4].double().sin() @ torch.linspace(-1, 1, 16).double().view(4, 4)
        features = features.to(exact[1])
        outputs.append(layer(SparseTensor(features, where)).features)
    # The coarser grid's rows are in the order of its keys, whatever that of the finer ones.
    assert_close(outputs[1], outputs[0] if kind == "strided" else outputs[0][order])


@pytest.mark.parametrize("kind", KINDS)
def test_one_voxel_and_none(kind, backend):
    layer = prepared(layers(4, 6)[kind], (backend, torch.float32))
    for coordinates in ([[1, -7, 3, 8]], []):
        grid = VoxelGrid(torch.tensor(coordinates, dtype=torch.int32).view(-1, 4), 3)
        where = input_grid(kind, grid)
        features = torch.randn(len(where), 4, requires_grad=True)
        out = layer(SparseTensor(features, where))
        assert out.features.shape == (len(coordinates), 6)
        out.features.sum().backward()
        assert features.grad.shape == features.shape
        assert torch.isfinite(layer.kernel.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_shifting_changes_nothing(kind, exact):
    """By a multiple of the coarser stride; along y as far as the range goes."""
    coordinates = random_coordinates()
    layer = prepared(layers(4, 6)[kind], exact)
    grids = [VoxelGrid(coordinates + torch.tensor([0, *shift]), 2) for shift in ([0, 0, 0], [-16, 2**17 - 32, 48])]
    outputs = []
    for grid in grids:
        where = input_grid(kind, grid)
        outputs.append(layer(SparseTensor(features_on(where, 4, exact[1]), where)).features)
    assert torch.equal(*outputs)


def test_samples_do_not_see_each_other(exact):
    """Three samples, of which the middle one is empty, alone and together."""
    coordinates = random_coordinates(samples=2, seed=3)
    coordinates[:, 0] *= 2
    layer = prepared(SubmanifoldConv3d(4, 6, 5), exact)
    grid = VoxelGrid(coordinates, 3)
    features = features_on(grid, 4, exact[1])
    together = layer(SparseTensor(features, grid)).features
    for sample in (0, 2):
        own = coordinates[:, 0] == sample
        alone = VoxelGrid(coordinates[own], 3)
        assert_close(layer(SparseTensor(features[own], alone)).features, together[own])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind, dtype, tolerance, backend):
    grid = random_grid(count=900, low=-6, high=7)
    exact = layers(12, 10)[kind].double()
    where = input_grid(kind, grid)
    with torch.no_grad():
        exact.kernel.copy_(exact.kernel.to(dtype))
    half = prepared(layers(12, 10)[kind], (backend, dtype))
    half.load_state_dict(exact.state_dict())
    features = features_on(where, 12).to(dtype)
    results = []
    for layer, x in ((exact, features.double()), (half, features.clone())):
        x.requires_grad_()
        out = layer(SparseTensor(x, where)).features
        out.sum().backward()
        results.append([out, x.grad, layer.kernel.grad])
        assert all(value.dtype == x.dtype for value in results[-1])
    for wanted, found in zip(*results, strict=True):
        assert (found.double() - wanted).abs().max() < tolerance * wanted.abs().max()


def test_autocast(backend):
    grid = random_grid()
    for layer in layers(4, 6).values():
        set_sparse_backend(layer, backend)
        where = input_grid("transposed" if isinstance(layer, TransposedConv3d) else "", grid)
        features = features_on(where, 4)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(SparseTensor(features, where)).features
        assert out.dtype == torch.bfloat16
        wanted = layer(SparseTensor(features, where)).features
        assert (out - wanted).abs().max() < 2e-2 * wanted.abs().max()
        out.float().sum().backward()
        assert layer.kernel.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_deterministic(kind, backend):
    grid = random_grid(count=1500, low=-6, high=7)
    layer = prepared(layers(4, 6)[kind], (backend, torch.float32))
    where = input_grid(kind, grid)

    def run():
        layer.zero_grad()
        features = features_on(where, 4).requires_grad_()
        out = layer(SparseTensor(features, where)).features
        out.square().sum().backward()
        return out.detach(), features.grad, layer.kernel.grad.clone()

    torch.use_deterministic_algorithms(True)
    try:
        for first, second in zip(run(), run(), strict=True):
            assert torch.equal(first, second)
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_trial_of_the_onednn_operator_leaves_torchs_generator_alone():
    """It runs at the first product, which is not to decide what a seeded run draws."""
    before = torch.get_rng_state()
    products.onednn_products_work.cache_clear()
    products.onednn_products_work()
    check_against_torch(torch_backend.convolve, "cpu", [torch.float32])
    assert torch.equal(torch.get_rng_state(), before)


def test_without_the_onednn_operator(monkeypatch):
    """Its absence, or a wrong result of it, costs time and nothing else."""
    grid = random_grid(count=900, low=-6, high=7)
    layer = prepared(SubmanifoldConv3d(8, 8, 3), ("torch", torch.float32))
    x = SparseTensor(features_on(grid, 8), grid)
    expected = layer(x).features
    called = []
    monkeypatch.setattr(products, "_onednn_product", lambda a, b: called.append(1) or a @ b + 1)
    products.onednn_products_work.cache_clear()
    try:
        assert not products.onednn_products_work()
        assert len(called) == torch.backends.mkldnn.is_available()
        torch.testing.assert_close(layer(x).features, expected)
    finally:
        products.onednn_products_work.cache_clear()
    enabled = torch.backends.mkldnn.set_flags(_enabled=False)[0]
    try:
        torch.testing.assert_close(layer(x).features, expected)
    finally:
        torch.backends.mkldnn.set_flags(_enabled=enabled)


def test_compiled_network(backend):
    """torch.compile leaves the layers out and gives the same."""
    grid = random_grid()
    layer = prepared(SubmanifoldConv3d(4, 4, 3), (backend, torch.float32))

    def network(features, grid):
        x = layer(SparseTensor(features * 2, grid))
        return torch.relu(x.features) + 1

    features = features_on(grid, 4)
    compiled = torch.compile(network, backend="eager")
    torch.testing.assert_close(compiled(features, grid), network(features, grid))


def test_frozen_kernel_and_frozen_features(backend):
    grid = random_grid()
    layer = prepared(SubmanifoldConv3d(4, 4, 3), (backend, torch.float32)).requires_grad_(False)
    features = features_on(grid, 4).requires_grad_()
    layer(SparseTensor(features, grid)).features.sum().backward()
    assert features.grad.abs().sum() > 0 and layer.kernel.grad is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SubmanifoldConv3d(3, 4, 2), "kernel_size is 2"),
        (lambda: SubmanifoldConv3d(3, 4, -1), "kernel_size is -1; expected an odd number"),
        (lambda: SubmanifoldConv3d(3, 4, 3, dilation=0), "dilation is 0"),
        (
            lambda: set_sparse_backend(nn.Identity(), "spconv2"),
            "'spconv2'; expected one of auto, torch, compiled, spconv",
        ),
    ],
)
def test_layers_reject(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_forward_rejects():
    grid = random_grid()
    layer = SubmanifoldConv3d(4, 6, 3)
    with pytest.raises(ValueError, match="features have 5 channels; this layer expects 4"):
        layer(SparseTensor(features_on(grid, 5), grid))
    with pytest.raises(ValueError, match="dtype torch.float64 and the kernel torch.float32"):
        layer(SparseTensor(features_on(grid, 4).double(), grid))
    with pytest.raises(ValueError, match="features are on cpu and the kernel on meta"):
        layer.to("meta")(SparseTensor(features_on(grid, 4), grid))
    with pytest.raises(ValueError, match="knows no finer one"):
        TransposedConv3d(4, 6)(SparseTensor(features_on(grid, 4), grid))


@pytest.mark.parametrize(
    ("layer", "fan"),
    [
        (SubmanifoldConv3d(3, 8, 1), 8),
        (SubmanifoldConv3d(3, 8, 3), 8 * 27),
        (SubmanifoldConv3d(3, 8, 5, dilation=2), 8 * 125),
        (StridedConv3d(3, 8), 8 * 8),
        # Each voxel has one parent.
        (TransposedConv3d(3, 8), 8),
    ],
)
def test_kernels_begin_with_the_variance_of_the_outputs_fan(layer, fan):
    assert layer.initial_std == pytest.approx((2 / fan) ** 0.5)
    torch.manual_seed(0)
    with torch.no_grad():
        layer.kernel.zero_()
    layer.reset_parameters()
    count = layer.kernel.numel()
    assert layer.kernel.std().item() == pytest.approx(layer.initial_std, rel=4 / count**0.5)


def test_whether_a_layer_finishes_is_that_of_the_dtype_that_it_computes_in(monkeypatch):
    asked = []
    monkeypatch.setattr(backends, "choose_backend", lambda *given: asked.append(given) or "compiled")
    layer, features = SubmanifoldConv3d(4, 6, 3), torch.zeros(2, 4, dtype=torch.float64)
    assert layer.can_finish(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.can_finish(features)
    assert asked == [("auto", "cpu", torch.float64), ("auto", "cpu", torch.bfloat16)]
    monkeypatch.setattr(backends, "choose_backend", lambda *_: "torch")
    assert not layer.can_finish(features)


def test_backend_is_set_everywhere():
    network = nn.Sequential(SubmanifoldConv3d(3, 4, 3), nn.ModuleList([StridedConv3d(4, 4)]))
    set_sparse_backend(network, "torch")
    assert network[0].backend == network[1][0].backend == "torch"
    assert "4, 4, kernel_size=2" in repr(network)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_agrees_with_the_cpu(kind, dtype):
    layer = layers(12, 10)[kind]
    coordinates = random_coordinates(count=3000, low=-8, high=8)
    results = []
    for device in ("cpu", "cuda"):
        grid = VoxelGrid(coordinates.to(device), 2)
        where = input_grid(kind, grid)
        kernel = layer.kernel.detach().to(device, dtype).requires_grad_()
        features = features_on(where, 12).to(device, dtype).requires_grad_()
        moved = layers(12, 10)[kind].to(device, dtype)
        set_sparse_backend(moved, "torch")
        out = torch.func.functional_call(moved, {"kernel": kernel}, (SparseTensor(features, where),)).features
        out.sum().backward()
        results.append([value.detach().cpu().float() for value in (out, features.grad, kernel.grad)])
    tolerance = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    for wanted, found in zip(*results, strict=True):
        assert (found - wanted).abs().max() < tolerance * wanted.abs().max()
