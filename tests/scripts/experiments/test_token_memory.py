"""The memory of a frozen tower's tokens against the tower itself."""

import copy
import os

import pytest
import torch
from torch import nn

from bifusion_hf import BiFusionForInstanceSegmentation
from bifusion_hf.training.freezing import TOWER, freeze, unfreeze_due
from scripts.experiments.running import has_frozen_tower
from scripts.experiments.token_memory import remember_tokens, weights_hash


TOWER_CONFIG = {
    "model_type": "dinov2",
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "mlp_ratio": 2,
    "image_size": 70,
    "patch_size": 14,
}


@pytest.fixture
def model(small_config):
    torch.manual_seed(0)
    model = BiFusionForInstanceSegmentation(small_config(vision_config=TOWER_CONFIG)).eval()
    freeze(model, [TOWER])
    return model


def encoder_of(model):
    return model.model.encoder.image_encoder


def test_tokens_are_those_of_the_tower_and_it_runs_once_for_each_image(tmp_path, model, monkeypatch):
    images = torch.randn(3, 3, 28, 42)
    expected = encoder_of(model)(images)[0]
    runs = []
    tower = encoder_of(model).vision_model
    run = tower.forward
    monkeypatch.setattr(tower, "forward", lambda pixels, **options: runs.append(len(pixels)) or run(pixels, **options))
    remember_tokens(model, tmp_path)
    for chosen in ([0, 1], [1, 2], [2, 0, 1]):
        found = encoder_of(model)(images[chosen])[0]
        # Tokens are kept in float16.
        torch.testing.assert_close(found, expected[chosen], rtol=2e-3, atol=2e-3)
    assert runs == [2, 1]
    # The slightest change makes another image; a copy, as the moving average is one, shares the memory.
    encoder_of(copy.deepcopy(model))(images * (1 + 1e-6))
    encoder_of(copy.deepcopy(model))(images)
    assert runs == [2, 1, 3]
    assert len(os.listdir(next(tmp_path.iterdir()))) == 6


def test_the_head_behind_the_memory_learns_as_behind_the_tower(tmp_path, model):
    images = torch.randn(2, 3, 28, 42)
    other = copy.deepcopy(model)
    remember_tokens(other, tmp_path)
    for network in (model, other, other):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            encoder_of(network)(images)[0].square().sum().backward()
    weights = [encoder_of(network).projection.hidden.weight for network in (model, other)]
    torch.testing.assert_close(weights[1].grad, weights[0].grad, rtol=0.05, atol=0.05 * float(weights[0].grad.std()))


def test_another_tower_finds_nothing_and_one_that_trains_is_refused(tmp_path, model):
    tower = encoder_of(model).vision_model
    before = weights_hash(tower)
    with torch.no_grad():
        next(tower.parameters()).add_(1e-3)
    assert weights_hash(tower) != before
    next(tower.parameters()).requires_grad_(True)
    with pytest.raises(ValueError, match="expected a frozen tower"):
        remember_tokens(model, tmp_path)
    with pytest.raises(ValueError, match="missing"):
        remember_tokens(nn.Linear(1, 1), tmp_path)


def test_a_tower_that_starts_to_train_later_is_not_remembered(tmp_path, model):
    assert has_frozen_tower(model, [])
    assert not has_frozen_tower(model, [f"{TOWER}.encoder.layer.1"])
    assert not has_frozen_tower(model, ["model.encoder"]) and has_frozen_tower(model, ["decoder"])
    remember_tokens(model, tmp_path)
    images = torch.randn(1, 3, 28, 42)
    encoder_of(model)(images)
    unfreeze_due(model, {f"{TOWER}.encoder.layer.1": 0.5}, 0.5)
    with pytest.raises(ValueError, match=r"vision_model trains \(training.unfreeze_at\), but its tokens"):
        encoder_of(model)(images)


def test_whoever_asks_for_hidden_states_gets_them(tmp_path, model):
    remember_tokens(model, tmp_path)
    states = encoder_of(model)(torch.randn(1, 3, 28, 42), output_hidden_states=True)[1]
    assert len(states) == 1 + TOWER_CONFIG["num_hidden_layers"]
