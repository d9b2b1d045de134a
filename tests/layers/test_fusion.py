import math

import pytest
import torch

from bifusion_hf.layers.fusion import (
    EnhancedFusionGate,
    Fusion,
    LiteFusionGate,
    SqueezeExcite,
    neighbor_mean,
    surface_shape,
)
from bifusion_hf.sparse import radius_neighbors, voxelize


def cloud(points=400, batch_size=2, seed=0, size=16):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(points, 3, generator=generator)
    sample = torch.arange(points) % batch_size
    grid = voxelize(positions, sample, 0.1, batch_size)

    def unit():
        return torch.nn.functional.normalize(torch.randn(points, size, generator=generator), dim=1)

    return positions, sample, grid, unit(), unit()


HELD, LIVE = torch.tensor(True), torch.tensor(False)


@pytest.mark.parametrize("residual", [False, True])
def test_weights_are_half_while_held_and_zero_out_of_view(residual):
    points, sample, grid, image, geometry = cloud()
    fusion = Fusion(LiteFusionGate(16), 16, 12, residual)
    visible = torch.arange(len(points)) % 3 > 0
    _, held = fusion(torch.randn(400, 12), image, geometry, points, grid, visible, sample, HELD)
    assert (held[visible] == 0.5).all() and (held[~visible] == 0).all()
    _, live = fusion(torch.randn(400, 12), image, geometry, points, grid, visible, sample, LIVE)
    assert live[visible].std() > 0 and (live[~visible] == 0).all()


def test_mixed_features_have_the_learnable_length():
    points, sample, grid, image, geometry = cloud()
    fusion = Fusion(LiteFusionGate(16), 16, 12, residual=False)
    fused, _ = fusion(None, image, geometry, points, grid, torch.ones(400, dtype=torch.bool), sample, LIVE)
    torch.testing.assert_close(fused.norm(dim=1), torch.full((400,), math.sqrt(16)))


def test_a_held_gate_gives_the_mean_of_both_branches_and_the_geometry_alone_out_of_view(monkeypatch):
    """Before the squeeze-excite, which is left out here; then unit length times the scale."""
    monkeypatch.setattr(SqueezeExcite, "forward", lambda self, mixed, *_: mixed)
    points, sample, grid, image, geometry = cloud()
    visible = torch.arange(len(points)) % 3 > 0
    fusion = Fusion(LiteFusionGate(16), 16, 12, residual=False)
    fused, _ = fusion(None, image, geometry, points, grid, visible, sample, HELD)
    mean = torch.where(visible.unsqueeze(1), (image + geometry) / 2, geometry)
    torch.testing.assert_close(fused, 4 * torch.nn.functional.normalize(mean, dim=1))
    residual = Fusion(LiteFusionGate(16), 16, 12, residual=True)
    torch.nn.init.normal_(residual.residual_out.weight)
    raw = torch.randn(400, 12)
    fused, _ = residual(raw, image, geometry, points, grid, visible, sample, HELD)
    added = torch.where(visible.unsqueeze(1), 4 * residual.residual_out(image / 2), 0)
    torch.testing.assert_close(fused, raw + added)


def test_what_is_out_of_view_never_reaches_the_output():
    points, sample, grid, image, geometry = cloud()
    visible = torch.arange(len(points)) % 3 > 0
    for residual in (False, True):
        fusion = Fusion(LiteFusionGate(16), 16, 12, residual)
        if residual:
            torch.nn.init.normal_(fusion.residual_out.weight)
        raw = torch.randn(400, 12)
        other = torch.where(visible.unsqueeze(1), image, torch.randn_like(image))
        outputs = [
            fusion(raw, features, geometry, points, grid, visible, sample, LIVE)[0] for features in (image, other)
        ]
        assert torch.equal(*outputs)
        if residual:
            assert torch.equal(outputs[0][~visible], raw[~visible]), "nothing is added where nothing is seen"


def test_residual_starts_as_the_point_branch():
    points, sample, grid, image, geometry = cloud()
    raw = torch.randn(400, 12)
    fusion = Fusion(LiteFusionGate(16), 16, 12, residual=True)
    fused, _ = fusion(raw, image, geometry, points, grid, torch.ones(400, dtype=torch.bool), sample, LIVE)
    assert torch.equal(fused, raw)


def test_squeeze_excite_starts_as_the_published_layer_with_every_unit_active():
    """Reduction by 16; the squeeze's bias is the size of a component of a unit vector, not the default of a layer."""
    module = SqueezeExcite(64)
    assert module.squeeze.weight.shape == (4, 64) and module.excite.weight.shape == (64, 4)
    assert module.squeeze.bias.tolist() == [1 / 8] * 4
    features = torch.nn.functional.normalize(torch.randn(30, 64), dim=1)
    squeezed = (features.mean(0) @ module.squeeze.weight.T + module.squeeze.bias).clamp(min=0)
    weights = 1 / (1 + (-(squeezed @ module.excite.weight.T + module.excite.bias)).exp())
    found = module(features, torch.zeros(30, dtype=torch.int64), 1)
    torch.testing.assert_close(found, features * weights)


def test_squeeze_excite_sees_its_own_sample_only():
    points, sample, _, features, _ = cloud()
    module = SqueezeExcite(16)
    together = module(features, sample, 2)
    for index in range(2):
        own = features[sample == index]
        alone = module(own, torch.zeros(len(own), dtype=torch.int64), 1)
        torch.testing.assert_close(together[sample == index], alone)


def test_neighbour_means_equal_the_slow_form():
    points, _, grid, _, _ = cloud()
    row, neighbor = radius_neighbors(grid, 2, 8)
    features = torch.randn(len(grid), 5, requires_grad=True)
    means = neighbor_mean(features, row, neighbor)
    for voxel in range(len(grid)):
        own = neighbor[row == voxel]
        expected = features[own].mean(0) if len(own) else torch.zeros(5)
        torch.testing.assert_close(means[voxel], expected)
    means.square().sum().backward()
    assert features.grad.abs().sum() > 0


def test_surface_shape_of_planes_and_balls():
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(3000, 3, generator=generator)
    normal = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8]), dim=0)
    plane = flat - (flat @ normal).unsqueeze(1) * normal
    grid = voxelize(plane, torch.zeros(3000, dtype=torch.int64), 0.05, 1)
    row, neighbor = radius_neighbors(grid, 2, 16)
    shape = surface_shape(grid.mean(plane), row, neighbor)
    enough = torch.bincount(row, minlength=len(grid)) >= 8
    assert enough.sum() > 100
    assert ((shape[enough, :3] @ normal).abs() > 0.999).all() and (shape[enough, 3] < 1e-3).all()
    # Rounding makes no variation negative.
    assert (shape[:, 2] >= 0).all() and (shape[:, 3] >= 0).all()
    lonely = torch.tensor([[0.0, 0, 0], [5, 5, 5]])
    empty = torch.zeros(0, dtype=torch.int64)
    assert surface_shape(lonely, empty, empty).tolist() == [[0, 0, 1, pytest.approx(1 / 3)]] * 2


@pytest.mark.parametrize("spatial", [False, True])
def test_enhanced_gate_uses_every_term(spatial):
    points, _, grid, image, geometry = cloud(size=8)
    gate = EnhancedFusionGate(8, 0.1, radius=0.2, max_neighbors=6, use_spatial_attention=spatial)
    weights = gate(image, geometry, points, grid)
    assert weights.shape == (400, 1) and ((weights > 0) & (weights < 1)).all() and weights.std() > 0
    weights.sum().backward()
    for name, parameter in gate.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    moved = gate(image, geometry, points * torch.tensor([1.0, 1.0, 0.2]), grid)
    assert not torch.equal(moved, weights), "the shape of the surface matters"
    if spatial:
        other = image.clone()
        other[0] += 1
        same_voxel = grid.inverse == grid.inverse[0]
        changed = (gate(other, geometry, points, grid) != weights).squeeze(1)
        assert (changed & ~same_voxel).any(), "a neighbour's features matter"


@pytest.mark.parametrize(("number", "has_shape"), [(2, False), (3, True), (4, True)])
def test_three_neighbours_make_a_surface(number, has_shape):
    """Around the first voxel the others lie in the plane of x and z, whose normal is y."""
    positions = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 1], [-1, 0, 0], [0, 0, -1]])
    found = surface_shape(positions, torch.zeros(number, dtype=torch.int64), torch.arange(1, number + 1))
    expected = torch.tensor([0.0, 1, 0, 0] if has_shape else [0, 0, 1, 1 / 3])
    torch.testing.assert_close(found[0].abs(), expected)
    # All in one place: no direction is any better, and none is infinite.
    same = surface_shape(torch.ones(5, 3), torch.zeros(number, dtype=torch.int64), torch.arange(1, number + 1))
    assert same[0, 3] == (0 if has_shape else pytest.approx(1 / 3)) and same[0, :3].norm() == 1


def test_a_radius_is_a_whole_number_of_voxels_and_at_least_one():
    radii = {
        radius: EnhancedFusionGate(8, 0.1, radius, 6, use_spatial_attention=False).radius
        for radius in (0.01, 0.1, 0.24, 0.26, 0.4)
    }
    assert radii == {0.01: 1, 0.1: 1, 0.24: 2, 0.26: 3, 0.4: 4}
    assert all(type(radius) is int for radius in radii.values())


def test_gates_have_the_sizes_of_checkpoints():
    sizes = {name: tuple(value.shape) for name, value in LiteFusionGate(16).state_dict().items()}
    assert sizes == {"hidden.weight": (64, 32), "hidden.bias": (64,), "out.weight": (1, 64), "out.bias": (1,)}
    gate = EnhancedFusionGate(16, 0.1, 0.2, 6, use_spatial_attention=True)
    sizes = {name: tuple(value.shape) for name, value in gate.state_dict().items() if not name.startswith("logits")}
    assert sizes == {
        "image_hidden.weight": (192, 16),
        "image_hidden.bias": (192,),
        "point_hidden.weight": (192, 16),
        "shape_proj.weight": (16, 4),
        "shape_proj.bias": (16,),
        "shape_hidden.weight": (64, 16),
        "mix.weight": (1, 3),
        "mix.bias": (1,),
    }
    assert not any(name.startswith("residual_out.b") for name in Fusion(gate, 16, 12, residual=True).state_dict())
