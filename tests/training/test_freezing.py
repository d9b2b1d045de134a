from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation
from bifusion_hf.training.freezing import (
    TOWER,
    eval_mode,
    freeze,
    frozen_prefixes,
    is_frozen,
    train_mode,
    unfreeze_due,
)


@pytest.fixture(scope="module")
def model():
    return BiFusionForInstanceSegmentation(
        BiFusionConfig.from_preset("tiny", freeze_tower_early_layers=True, freeze_tower_embeddings=True)
    )


def test_configuration_names_what_is_frozen(model):
    prefixes = frozen_prefixes(model)
    assert sum(f"{TOWER}.encoder.layers." in prefix or f"{TOWER}.layers." in prefix for prefix in prefixes) == 3
    freeze(model, prefixes)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert all(name.startswith(TOWER) for name in frozen)
    for part in ("patch_embedding", "position_embedding", "class_embedding", "pre_layrnorm"):
        assert any(part in name for name in frozen), part
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    # The last block and the projection head always train.
    assert any(".layers.3." in name for name in trainable)
    assert any("image_encoder.projection" in name for name in trainable)
    assert not any("embeddings" in name for name in trainable)


WIDTHS = {"hidden_sizes": [8, 8, 8], "depths": [1, 1, 2]}
STAGED = {
    "resnet": {"model_type": "resnet", "embedding_size": 8, "layer_type": "basic", **WIDTHS},
    "convnextv2": {"model_type": "convnextv2", "num_stages": 3, **WIDTHS},
}
# The blocks of a ResNet have a list of their own, and ConvNeXt halves before the first block of a stage.
EARLY = {
    "resnet": ["0.layers.0", "1.layers.0", "2.layers.0"],
    "convnextv2": ["0.layers.0", "1.downsampling_layer", "1.layers.0", "2.downsampling_layer", "2.layers.0"],
}


@pytest.mark.parametrize("name", STAGED)
def test_with_stages_the_first_blocks_are_counted_through_them(name):
    """In the order of the modules; a set of their names has another one in every process."""
    config = BiFusionConfig.from_preset(
        "tiny", vision_config=STAGED[name], freeze_tower_early_layers=True, freeze_tower_embeddings=False
    )
    network = BiFusionForInstanceSegmentation(config)
    early = [f"{TOWER}.encoder.stages.{part}" for part in EARLY[name]]
    assert frozen_prefixes(network) == early
    config.freeze_tower_embeddings = True
    embedding = f"{TOWER}.{'embedder' if name == 'resnet' else 'embeddings'}"
    assert frozen_prefixes(network) == [embedding, *early]
    freeze(network, frozen_prefixes(network))
    frozen = {n for n, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {n for n, _ in network.named_parameters() if n.startswith((f"{embedding}.", *early))}


def test_presets_without_tower_freeze_nothing():
    class Plain(nn.Module):
        config = BiFusionConfig.from_preset("sv3d")

    assert frozen_prefixes(Plain()) == []


def test_frozen_statistics_do_not_drift():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 3), nn.BatchNorm1d(3))
    freeze(net, ["1"])
    net.eval()
    train_mode(net)
    assert not net[1].training and net[4].training and net[2].training
    before = net[1].running_mean.clone(), net[4].running_mean.clone()
    net(torch.randn(8, 2))
    assert torch.equal(net[1].running_mean, before[0]) and not torch.equal(net[4].running_mean, before[1])
    with eval_mode(net):
        assert not any(module.training for module in net.modules())
    assert net[4].training and not net[1].training


def test_a_frozen_parent_keeps_its_dropout_in_eval_mode():
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2))
    freeze(net, ["0"])
    train_mode(net)
    assert is_frozen(net[0]) and not net[0][1].training
    # Without parameters there is nothing to freeze.
    assert is_frozen(nn.Dropout()) is False and is_frozen(net) is False


def test_staged_unfreezing_and_wrong_names():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    assert freeze(net, ["0"]) == 6
    assert unfreeze_due(net, {"0": 0.5}, 0.49) == []
    assert unfreeze_due(net, {"0": 0.5}, 0.5) == ["0.weight", "0.bias"]
    assert unfreeze_due(net, {"0": 0.5}, 0.6) == []
    with pytest.raises(ValueError, match=r"no parameter below 'missing'; the model's top modules: \['0', '1'\]"):
        freeze(net, ["missing"])
    deep = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.ModuleDict({"c": nn.ModuleDict({"d": net})})})})
    with pytest.raises(ValueError, match=r"top modules: \['a', 'a\.b', 'a\.b\.c'\]"):
        freeze(deep, ["a.b.c.d.00"])


def blocks(count, **beside):
    return nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(1, 1) for _ in range(count)), **beside})


@pytest.mark.parametrize(
    ("tower", "early"),
    [
        # What stands beside the blocks is no block, nor is a list that lies deeper.
        (
            {
                "adapter": nn.ModuleDict({"own": blocks(5)}),
                "encoder": blocks(4, norm=nn.LayerNorm(1)),
            },
            ["encoder.layers.0", "encoder.layers.1", "encoder.layers.2"],
        ),
        ({"encoder": blocks(2)}, ["encoder.layers.0", "encoder.layers.1"]),
        # Of stages what comes before their blocks too, as far as the three blocks go.
        (
            {"stages": nn.ModuleList(blocks(n, down=nn.Linear(1, 1), act=nn.ReLU()) for n in (1, 1, 1, 2))},
            [f"stages.{stage}.{part}" for stage in range(3) for part in ("down", "layers.0")],
        ),
        (
            {"stages": nn.ModuleList(blocks(2, down=nn.Linear(1, 1)) for _ in range(2))},
            ["stages.0.down", "stages.0.layers.0", "stages.0.layers.1", "stages.1.down", "stages.1.layers.0"],
        ),
    ],
)
def test_the_first_three_blocks_of_any_tower(tower, early):
    model = nn.Module()
    model.get_submodule = {TOWER: nn.ModuleDict(tower)}.__getitem__
    model.config = SimpleNamespace(vision_config="some", freeze_tower_early_layers=True, freeze_tower_embeddings=False)
    assert frozen_prefixes(model) == [f"{TOWER}.{name}" for name in early]
    model.config.freeze_tower_embeddings = True
    with pytest.raises(ValueError, match="freeze_tower_embeddings: ModuleDict has none of"):
        frozen_prefixes(model)
    model.config.freeze_tower_embeddings = False
    model.get_submodule = {TOWER: nn.Linear(1, 1)}.__getitem__
    with pytest.raises(ValueError, match="freeze_tower_early_layers: Linear has no list of blocks"):
        frozen_prefixes(model)
