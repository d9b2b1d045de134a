"""Where training starts from: the scale of every tensor, and the settings of every normalisation."""

import math

import pytest
import torch
from torch import nn
from transformers import AutoModel

from bifusion_hf import BiFusionForInstanceSegmentation
from bifusion_hf.sparse import StridedConv3d, SubmanifoldConv3d, TransposedConv3d


TOWER = "model.encoder.image_encoder.vision_model."
# What does not start at random, by the end of its name.
CONSTANTS = {
    "film.modulation.weight": 0,
    "film.modulation.bias": 0,
    "tiny_sa_2d.out.weight": 0,
    "tiny_sa_2d.out.bias": 0,
    "tiny_sa_3d.out.weight": 0,
    "tiny_sa_3d.out.bias": 0,
    "residual_out.weight": 0,
    "squeeze_excite.squeeze.bias": 1 / math.sqrt(16),
    "fusion.scale": math.sqrt(16),
    "running_mean": 0,
    "running_var": 1,
    "num_batches_tracked": 0,
    "training_progress.update": -1,
    "training_progress.total": -1,
}
NORMS = (nn.LayerNorm, nn.BatchNorm1d)


@pytest.fixture(scope="module", params=["constructed", "loaded"])
def networks(small_config, request):
    """Two networks that have every part between them; transformers' loading has initialisers of its own."""
    point_config = {
        "stem_channels": 8,
        "planes": [8, 8, 12, 16, 16, 12, 12, 12],
        "blocks": [1, 2, 1, 1, 1, 1, 1, 1],
        "use_frame_adapters": True,
        "batch_norm_momentum": 0.03,
        "batch_norm_eps": 2e-4,
    }
    shared = {"point_config": point_config, "use_tiny_sa_2d": True, "use_tiny_sa_3d": True}
    configs = [
        small_config("enhanced_gate", use_spatial_attention=True, image_semantic_weight=1.0, **shared),
        small_config("residual", **shared),
    ]
    torch.manual_seed(0)
    if request.param == "constructed":
        return [BiFusionForInstanceSegmentation(config) for config in configs]
    load = BiFusionForInstanceSegmentation.from_pretrained
    return [load(None, config=config, state_dict={}) for config in configs]


def named_tensors(network):
    return [*network.named_parameters(), *network.named_buffers()]


def expected_scale(network, name):
    """(standard deviation, largest value) of a random tensor; the largest of a normal one is not limited."""
    owner, _, leaf = name.rpartition(".")
    module = network.get_submodule(owner)
    if isinstance(module, (SubmanifoldConv3d, StridedConv3d)):
        # He's rule, by the outputs: 2 over the output channels and the kernel's volume.
        volume = module.kernel.shape[0] if module.kernel.ndim == 3 else 1
        return math.sqrt(2 / (volume * module.kernel.shape[-1])), None
    if isinstance(module, TransposedConv3d):
        # Each output has one input voxel.
        return math.sqrt(2 / module.kernel.shape[-1]), None
    if isinstance(module, nn.Linear):
        bound = 1 / math.sqrt(module.in_features)
        return bound / math.sqrt(3), bound
    raise AssertionError(f"{name} of {type(module).__name__} has no rule; say here how it starts")


def test_every_tensor_starts_at_its_scale(networks):
    for network in networks:
        for name, tensor in named_tensors(network):
            values = tensor.detach().double().flatten()
            constant = next((value for end, value in CONSTANTS.items() if name.endswith(end)), None)
            owner = network.get_submodule(name.rpartition(".")[0])
            if isinstance(owner, NORMS) and name.endswith(("weight", "bias")) and not name.startswith(TOWER):
                constant = float(name.endswith("weight") and not name.endswith("norm_mix.weight"))
            if constant is not None:
                assert torch.allclose(values, torch.full_like(values, constant)), name
            elif name.endswith("log_frequencies"):
                # From half a wave over the diagonal of the scene to 64 half-waves, each by the same factor.
                expected = math.pi * 64 ** (torch.arange(8) / 7)
                torch.testing.assert_close(tensor.detach().exp(), expected)
            elif not name.startswith(TOWER):
                std, bound = expected_scale(network, name)
                assert bound is None or values.abs().max() <= bound * (1 + 1e-6), name
                if len(values) >= 30:
                    assert values.std() == pytest.approx(std, rel=5 / math.sqrt(2 * len(values))), name
                    assert abs(values.mean()) < 5 * std / math.sqrt(len(values)), name
                    # A uniform distribution ends at 1.7 standard deviations.
                    assert (values.abs().max() > 2 * std) == (bound is None), name


def test_towers_start_as_transformers_would_have_them(networks):
    network = networks[0]
    ours = network.model.encoder.image_encoder.vision_model
    reference = AutoModel.from_config(network.config.vision_config)
    for name, tensor in ours.named_parameters():
        values, other = tensor.detach().flatten(), reference.get_parameter(name).detach().flatten()
        if other.std() == 0 or len(other) == 1:
            assert torch.equal(values, other), name
        else:
            assert values.std() / other.std() == pytest.approx(1, abs=7 / math.sqrt(2 * len(values))), name


def test_normalisations_have_the_settings_of_their_kind(networks):
    """ESAM's: 0.02 (here another number) outside the residual blocks, torch's 0.1 within them and in the adapters."""
    for network in networks:
        seen = set()
        for name, module in network.model.encoder.point_encoder.named_modules():
            if isinstance(module, nn.BatchNorm1d):
                is_inner = name.rpartition(".")[2] in ("norm1", "norm2", "norm_near", "norm_far", "norm_mix")
                assert module.momentum == (0.1 if is_inner else 0.03), name
                assert module.eps == 2e-4 and module.affine and module.track_running_stats, name
                seen.add(name.rpartition(".")[2] if is_inner else name.split(".")[0])
        outer = {"stem_norm", "down_norms", "up_norms", "down_blocks", "up_blocks"}
        assert seen == {"norm1", "norm2", "norm_near", "norm_far", "norm_mix", *outer}
        for name, module in network.named_modules():
            if isinstance(module, nn.LayerNorm) and not f"{name}.".startswith(TOWER):
                assert module.eps == 1e-5 and module.elementwise_affine, name
