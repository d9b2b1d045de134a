import pytest
import torch

from bifusion_hf.layers.local_attention import TinySA2D, TinySA3D
from bifusion_hf.sparse import voxelize


def live(module):
    """A block past its zero initialisation."""
    torch.manual_seed(0)
    torch.nn.init.normal_(module.out.weight, std=0.3)
    return module.double().eval()


def grid_of(batch_size=2, points=3000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(points, 3, generator=generator) * torch.tensor([2.0, 2.0, 0.3])
    return voxelize(positions, torch.arange(points) % batch_size, 0.05, batch_size)


def test_blocks_start_as_the_identity(small_config):
    config = small_config("none")
    grid = grid_of()
    features = torch.randn(len(grid), 12)
    assert torch.equal(TinySA3D(12, config)(features, grid), features)
    tokens = torch.randn(2, 16, 3, 4)
    assert torch.equal(TinySA2D(16, config)(tokens), tokens)


def test_3d_is_local_and_keeps_samples_apart(small_config):
    module = live(TinySA3D(12, small_config("none", tiny_sa_radius=0.4)))
    grid = grid_of()
    features = torch.randn(len(grid), 12, dtype=torch.float64)
    base = module(features, grid)
    assert torch.equal(base, module(features, grid)), "no random centres"
    changed = features.clone()
    changed[0] += 10
    touched = (module(changed, grid) != base).any(1)
    coordinates = grid.coordinates.double()
    assert touched[0] and not touched[coordinates[:, 0] != coordinates[0, 0]].any()
    reach = (coordinates[touched, 1:] - coordinates[0, 1:]).abs().amax() * 0.05
    # Two layers of windows of 0.8 m, of which each reaches to the end of its window.
    assert 0.2 < reach <= 1.6 and not touched.all()


def test_3d_window_equals_full_attention_inside(small_config):
    """With one window around everything the first layer is plain attention over the tokens."""
    module = live(TinySA3D(12, small_config("none")))
    module.window = 64
    grid = grid_of(batch_size=1, points=300)
    tokens = torch.randn(20, 12, dtype=torch.float64)
    cells = torch.cat([torch.zeros(20, 1), torch.randint(0, 64, (20, 3))], dim=1).long()
    out = module._attend(module.layers[0], tokens, cells, shift=0)
    placed = tokens + module.position(cells[:, 1:].double() / 64 - 0.5)
    expected = module.layers[0](placed[None], torch.ones(1, 1, 20, dtype=torch.bool))[0]
    torch.testing.assert_close(out, expected)
    assert len(grid) > 0


def test_windows_of_later_layers_are_shifted_by_half_of_one(small_config, monkeypatch):
    module = live(TinySA3D(12, small_config("none", tiny_sa_radius=0.4)))
    assert module.window == 4
    shifts = []
    attend = module._attend
    monkeypatch.setattr(module, "_attend", lambda *args, shift: shifts.append(shift) or attend(*args, shift=shift))
    grid = grid_of()
    module(torch.randn(len(grid), 12, dtype=torch.float64), grid)
    assert shifts == [0, 2]


def test_every_parameter_trains(small_config):
    config = small_config("none")
    grid = grid_of()
    for module, inputs in (
        (live(TinySA3D(12, config)), (torch.randn(len(grid), 12).double(), grid)),
        (live(TinySA2D(16, config)), (torch.randn(2, 16, 3, 4).double(),)),
    ):
        module(*inputs).pow(3).sum().backward()
        for name, parameter in module.named_parameters():
            if not name.endswith("k_proj.bias"):  # softmax does not see a constant added to all keys
                assert parameter.grad.abs().max() > 1e-9, name


@pytest.mark.parametrize(("radius", "window"), [(0.01, 2), (0.24, 2), (0.26, 3), (0.5, 5)])
def test_a_window_is_a_whole_number_of_tokens_and_at_least_two(small_config, radius, window):
    """Of 20 cm each: four voxels of 5 cm."""
    found = TinySA3D(12, small_config("none", tiny_sa_radius=radius)).window
    assert found == window and type(found) is int


def test_a_width_that_heads_do_not_divide_is_refused(small_config):
    for kind in (TinySA2D, TinySA3D):
        with pytest.raises(ValueError, match="TinySA: width 14 is not a multiple of its 4 heads"):
            kind(14, small_config("none"))
