"""Models whose weights lie on several devices, or on none until they are needed (Accelerate's hooks)."""

import copy
import inspect

import pytest
import torch
from transformers.integrations.accelerate import infer_auto_device_map

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionModel
from bifusion_hf.presets import PRESETS


SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
NETWORKS = {
    "points alone": ("none", {"point_config": {"stem_channels": 8, "planes": [8] * 8, "use_frame_adapters": True},
                              "hidden_size": 8}),
    "lite gate, SigLIP": ("lite_gate", {"vision_config": SIGLIP, "use_tiny_sa_3d": True}),
    "enhanced gate": ("enhanced_gate", {"use_spatial_attention": True, "use_tiny_sa_2d": True}),
    "residual, ResNet": ("residual", {"vision_config": RESNET}),
}  # fmt: skip


def network(small_config, name):
    torch.manual_seed(0)
    fusion_type, options = NETWORKS[name]
    return BiFusionForInstanceSegmentation(small_config(fusion_type, **options)).eval()


def inputs(make_batch, model):
    names = inspect.signature(model.forward).parameters
    return {name: value for name, value in make_batch((300, 200)).items() if name in names and "labels" not in name}


@torch.no_grad()
def masks(model, batch):
    return model(**batch).masks_queries_logits


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_on_disk_give_what_weights_in_memory_give(name, small_config, make_batch, tmp_path):
    model = network(small_config, name)
    batch = inputs(make_batch, model)
    model.save_pretrained(tmp_path / "model")
    offloaded = BiFusionForInstanceSegmentation.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "weights"
    )
    assert {parameter.device.type for parameter in offloaded.parameters()} == {"meta"}
    # The last bits of matrix products depend on where memory lies.
    torch.testing.assert_close(masks(offloaded, batch), masks(model, batch))


def test_an_automatic_map_of_too_little_memory(small_config, make_batch, tmp_path):
    model = network(small_config, "enhanced gate")
    batch = inputs(make_batch, model)
    model.save_pretrained(tmp_path / "model")
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    split = BiFusionForInstanceSegmentation.from_pretrained(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": int(0.8 * size)},
        offload_folder=tmp_path / "weights",
    )
    assert any(parameter.device.type == "meta" for parameter in split.parameters())
    torch.testing.assert_close(masks(split, batch), masks(model, batch))


@pytest.mark.parametrize("kind", [BiFusionForInstanceSegmentation, BiFusionModel])
@pytest.mark.parametrize("preset", PRESETS)
def test_an_automatic_map_gives_every_tensor_a_device(preset, kind):
    with torch.device("meta"):
        model = kind(BiFusionConfig.from_preset(preset))
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    found = infer_auto_device_map(
        model, max_memory={0: int(0.6 * size), 1: size}, no_split_module_classes=model._no_split_modules
    )
    placed = [name for name in model.state_dict() if any(name == key or name.startswith(f"{key}.") for key in found)]
    assert placed == list(model.state_dict()) and len(set(found.values())) > 1


@pytest.mark.parametrize("name", NETWORKS)
def test_every_module_with_weights_is_called(name, small_config, make_batch):
    """What is read past its module escapes hooks: those that bring weights, and those of users."""
    model = network(small_config, name)
    batch, called = inputs(make_batch, model), set()
    for part, module in model.named_modules():
        module.register_forward_hook(lambda *_, part=part: called.add(part))
    masks(model, batch)
    owners = {
        part
        for part, module in model.named_modules()
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    }
    assert "model" in called and owners - called == set()


def test_a_copy_of_the_tower_reads_its_own_positions(small_config):
    """A tower's interpolation is replaced on the module itself; a copy, as averaged weights are, must not share it."""
    tower = network(small_config, "enhanced gate").model.encoder.image_encoder
    other = copy.deepcopy(tower)
    image = torch.rand(1, 3, 24, 32)
    with torch.no_grad():
        before = tower(image)[0]
        other.vision_model.embeddings.position_embedding.weight.add_(1)
        assert torch.equal(tower(image)[0], before) and not torch.equal(other(image)[0], before)
