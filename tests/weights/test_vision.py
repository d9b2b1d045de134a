import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel, SiglipVisionConfig, SiglipVisionModel

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionModel, load_vision_weights
from bifusion_hf.weights import clip


DINOV2 = {
    "model_type": "dinov2",
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "mlp_ratio": 2,
    "image_size": 24,
    "patch_size": 6,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 12,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 24,
    "patch_size": 6,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 12],
    "depths": [1, 2],
    "layer_type": "basic",
}


@pytest.fixture
def make_model(small_config):
    def make(model_class=BiFusionModel, base=DINOV2, **vision):
        torch.manual_seed(5)
        return model_class(small_config("residual", vision_config={**base, **vision})).eval()

    return make


def write_dinov2(folder, **changes):
    """A checkpoint of random weights; as published ones it has a mask token, and deeper blocks than the model."""
    torch.manual_seed(6)
    model = Dinov2Model(Dinov2Config(**{**DINOV2, "num_hidden_layers": 3, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def tower_of(model):
    return model.base_model.encoder.image_encoder.vision_model


@pytest.mark.parametrize("model_class", [BiFusionModel, BiFusionForInstanceSegmentation])
def test_the_first_blocks_of_a_deeper_tower_are_loaded_and_reported(tmp_path, make_model, model_class):
    published, model = write_dinov2(tmp_path), make_model(model_class)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_vision_weights(model, tmp_path)
    images = torch.randn(2, 3, 18, 30)
    with torch.no_grad():
        expected = published.layernorm(published(images, output_hidden_states=True).hidden_states[2])
        assert torch.allclose(tower_of(model)(images).last_hidden_state, expected, atol=1e-5)
    place = "encoder.image_encoder.vision_model." if model_class is BiFusionModel else "model.encoder.image_encoder."
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == ("vision_model." not in name), name
    assert sorted(report.loaded) == sorted(tower_of(model).state_dict())
    assert {name.split(".")[2] for name in report.unexpected if "layer." in name} == {"2"}
    assert "embeddings.mask_token" in report.unexpected and not report.missing
    assert report.notes == ["the first 2 of 3 blocks are loaded, as configured"]
    assert all(name.startswith(place) and loaded == total for name, (loaded, total, _) in report.modules.items())


def test_a_tower_without_the_head_of_its_checkpoint(tmp_path, make_model):
    published = SiglipVisionModel(SiglipVisionConfig(**SIGLIP)).eval()
    published.save_pretrained(tmp_path)
    model = make_model(base=SIGLIP)
    report = load_vision_weights(model, tmp_path)
    images = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        found, expected = tower_of(model)(images), published(images)
    assert torch.allclose(found.last_hidden_state, expected.last_hidden_state, atol=1e-6)
    assert report.unexpected and all("head." in name for name in report.unexpected)
    assert report.notes == [], "all blocks are there"
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["loaded"] == list(tower_of(model).state_dict())


def write_resnet(folder, **changes):
    """As published ones it has one stage more than the model."""
    torch.manual_seed(6)
    config = ResNetConfig(**{**RESNET, "hidden_sizes": [8, 12, 16], "depths": [1, 2, 1], **changes})
    ResNetModel(config).save_pretrained(folder)


def test_the_first_stages_of_a_convolutional_tower(tmp_path, make_model):
    write_resnet(tmp_path)
    model = make_model(base=RESNET)
    report = load_vision_weights(model, tmp_path)
    published = ResNetModel.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        expected = published(images, output_hidden_states=True).hidden_states[2]
        found = tower_of(model)(images).last_hidden_state
    assert found.shape == (2, 12, 3, 5) and torch.allclose(found, expected, atol=1e-6)
    assert sorted(report.loaded) == sorted(tower_of(model).state_dict())
    assert report.unexpected and all(name.startswith("encoder.stages.2.") for name in report.unexpected)
    assert report.notes == ["the first 2 of 3 blocks are loaded, as configured"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [1, 3, 1]}, r"2 blocks, width 12.*depths is \[1, 3, 1\], the model's vision_config has \[1, 2\]"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu, the model's vision_config has relu"),
        (
            {"downsample_in_first_stage": True},
            "downsample_in_first_stage is True, the model's vision_config has False",
        ),
    ],
)
def test_convolutional_towers_that_do_not_fit(tmp_path, make_model, changes, message):
    write_resnet(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_vision_weights(make_model(base=RESNET), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 1}, r"encoder.layer.1.norm1.weight is missing.* and 13 more"),
        ({"hidden_size": 24}, r"embeddings.cls_token has shape \[1, 1, 24\], the tower's \[1, 1, 12\]"),
        ({"image_size": 36}, r"position_embeddings has shape \[1, 37, 12\], the tower's \[1, 17, 12\]"),
        ({"num_attention_heads": 2}, "num_attention_heads is 2, the model's vision_config has 3"),
        ({"hidden_act": "relu"}, "hidden_act is relu, the model's vision_config has gelu"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05, the model's vision_config has 1e-06"),
    ],
)
def test_towers_that_do_not_fit_are_refused_and_nothing_changes(tmp_path, make_model, changes, message):
    write_dinov2(tmp_path, **changes)
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_vision_weights(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_tensor_that_the_file_lacks_is_not_left_to_chance(tmp_path, make_model):
    """transformers gives it a random start and a warning."""
    write_dinov2(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layer.0.mlp.fc1.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="encoder.layer.0.mlp.fc1.weight is missing"):
        load_vision_weights(make_model(), tmp_path)
    # Five are named.
    for layer_norm in [name for name in state if name.endswith(("norm1.weight", "norm1.bias", "norm2.weight"))][:4]:
        del state[layer_norm]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"is missing\. Nothing was loaded") as error:
        load_vision_weights(make_model(), tmp_path)
    assert str(error.value).count("is missing") == 5
    del state["layernorm.bias"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"is missing and 1 more\. Nothing was loaded"):
        load_vision_weights(make_model(), tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        load_vision_weights(make_model(), str(tmp_path / "nowhere"))


def test_the_revision_is_asked_for_and_what_came_is_verified(tmp_path, make_model, monkeypatch):
    write_dinov2(tmp_path)
    model, asked, verified = make_model(), [], []
    kind = type(tower_of(model))
    load = kind.from_pretrained

    def from_pretrained(source, revision=None, **options):
        asked.append(revision)
        return load(source, revision=revision, **options)

    monkeypatch.setattr(kind, "from_pretrained", from_pretrained)
    monkeypatch.setattr("bifusion_hf.weights.vision.verify_pulled_weights", lambda *what: verified.append(what))
    load_vision_weights(model, tmp_path, revision="v2")
    # What came damaged may be why it cannot be read.
    with pytest.raises(OSError, match="nowhere"):
        load_vision_weights(model, str(tmp_path / "nowhere"))
    assert asked == ["v2", None] and verified == [(tmp_path, "v2"), (str(tmp_path / "nowhere"), None)]


def test_each_loader_names_the_other(tmp_path, make_model, small_config):
    write_dinov2(tmp_path)
    with pytest.raises(ValueError, match=r"load_clip_weights \(init.clip in a recipe\)"):
        load_vision_weights(BiFusionModel(small_config("residual")), tmp_path)
    with pytest.raises(ValueError, match="load_vision_weights takes others"):
        clip.load_clip_weights(make_model(), tmp_path)
    with pytest.raises(ValueError, match="no image branch"):
        load_vision_weights(BiFusionModel(small_config("none")), tmp_path)
