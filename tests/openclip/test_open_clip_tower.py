"""The image tower against open_clip's own forward, and open_clip's names of releases."""

import importlib.metadata
import subprocess
import sys

import open_clip
import pytest
import tiny_open_clip
import torch
from open_clip.transformer import VisionTransformer

from bifusion_hf import BiFusionConfig, BiFusionModel
from bifusion_hf.weights import clip
from bifusion_hf.weights.clip import load_clip_weights, open_clip_release


def our_model(small_config, blocks, image_size=32, **vision):
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": blocks,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": 8,
        **vision,
    }
    torch.manual_seed(5)
    return BiFusionModel(small_config("residual", vision_config=vision)).eval()


@torch.no_grad()
def our_tokens(model, images):
    return model.encoder.image_encoder.vision_model(images, interpolate_pos_encoding=True).last_hidden_state[:, 1:]


def assert_same_tokens(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_tokens_after_each_block_are_those_of_open_clip(tmp_path, small_config, blocks, activation):
    theirs = tiny_open_clip.make_model(tmp_path, activation == "quick_gelu")
    model = our_model(small_config, blocks)
    load_clip_weights(model, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert_same_tokens(our_tokens(model, images), tiny_open_clip.patch_tokens(theirs.visual, images)[blocks - 1])


def test_tokens_on_another_grid_are_those_of_open_clip(tmp_path, small_config):
    tiny_open_clip.make_model(tmp_path, False)
    for size in (24, 48):
        theirs = open_clip.create_model(f"local-dir:{tmp_path}", force_image_size=size).eval()
        model = our_model(small_config, 2, image_size=size)
        load_clip_weights(model, tmp_path)
        images = torch.randn(1, 3, size, size)
        assert_same_tokens(our_tokens(model, images), tiny_open_clip.patch_tokens(theirs.visual, images)[1])


@pytest.mark.parametrize(("activation", "layer"), [("quick_gelu", open_clip.model.QuickGELU), ("gelu", torch.nn.GELU)])
def test_a_tower_of_real_size_gives_the_tokens_of_open_clip(tmp_path, activation, layer):
    config = BiFusionConfig.from_preset("simple")
    blocks = config.tower_num_layers
    theirs = VisionTransformer(224, 16, 768, blocks + 1, 12, 4.0, act_layer=layer)
    tiny_open_clip.randomize(theirs)
    torch.save({f"visual.{name}": value for name, value in theirs.state_dict().items()}, tmp_path / "weights.bin")
    model = BiFusionModel(config).eval()
    load_clip_weights(model, tmp_path / "weights.bin", activation=activation)
    images = torch.randn(1, 3, 224, 224)
    assert_same_tokens(our_tokens(model, images), tiny_open_clip.patch_tokens(theirs, images)[blocks - 1])


def test_openai_and_laion_releases_say_their_activation():
    place, settings = open_clip_release("ViT-B-16", "openai")
    assert (place, settings.hidden_act) == ("timm/vit_base_patch16_clip_224.openai", "quick_gelu")
    assert (settings.num_attention_heads, settings.layer_norm_eps) == (12, 1e-5)
    place, settings = open_clip_release("ViT-B-16", "laion2b_s34b_b88k")
    assert (place, settings.hidden_act) == ("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "gelu")
    # The architecture's own default does not decide: these were trained with the other activation.
    assert open_clip_release("ViT-B-32", "laion400m_e32")[1].hidden_act == "quick_gelu"
    assert open_clip_release("ViT-H-14", "laion2b_s32b_b79k")[1].num_attention_heads == 16


def test_every_release_of_a_plain_clip_tower_is_understood():
    checked = 0
    for architecture, tag in open_clip.list_pretrained():
        vision = (open_clip.get_model_config(architecture) or {}).get("vision_cfg", {})
        if isinstance(vision.get("layers"), int) and "timm_model_name" not in vision:
            assert clip.OPEN_CLIP_NAME.fullmatch(f"{architecture}/{tag}").groups() == (architecture, tag)
            assert clip.OPEN_CLIP_NAME.fullmatch(f"{architecture}:{tag}").groups() == (architecture, tag)
            place, settings = open_clip_release(architecture, tag)
            assert place.count("/") == 1
            config = open_clip.CLIPVisionCfg(**vision)
            assert settings.num_attention_heads == config.width // config.head_width
            checked += 1
    assert checked > 50


def test_unknown_releases_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match="ViT-B-16/laion.*its tags are.*'openai'"):
        open_clip_release("ViT-B-16", "laion")
    with pytest.raises(ValueError, match="no such architecture"):
        open_clip_release("ViT-Q-16", "openai")
    with pytest.raises(ValueError, match="timm_model_name.*vit_base_patch16_siglip_224.*CLIP's own tower"):
        open_clip_release("ViT-B-16-SigLIP", "webli")
    with pytest.raises(ValueError, match="only at 'https"):
        release = {"url": "https://example.org/weights.pt"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(open_clip, "get_pretrained_cfg", lambda *_: release)
            open_clip_release("ViT-B-16", "openai")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_an_architecture_and_tag_load(tmp_path, monkeypatch, small_config, activation):
    theirs = tiny_open_clip.make_model(tmp_path / "weights", activation == "quick_gelu")
    # The release decides, not a configuration that happens to lie beside its weights.
    (tmp_path / "weights" / "open_clip_config.json").unlink()
    release = {"hf_hub": "someone/tiny-clip/", "quick_gelu": activation == "quick_gelu"}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *name: release if name == ("ViT-T-8", "rooms") else {})
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: tiny_open_clip.model_config(False))
    asked = []

    def resolve(source, names=(), revision=None):
        asked.append((source, revision))
        return tmp_path / "weights" / "open_clip_pytorch_model.bin"

    monkeypatch.setattr(clip, "resolve_file", resolve)
    model = our_model(small_config, 2)
    report = load_clip_weights(model, "ViT-T-8/rooms", revision="abc")
    assert asked == [("someone/tiny-clip", "abc")]
    assert any(f"activation {activation}, says open_clip's release ViT-T-8/rooms" in note for note in report.notes)
    images = torch.randn(1, 3, 32, 32)
    assert_same_tokens(our_tokens(model, images), tiny_open_clip.patch_tokens(theirs.visual, images)[1])
    other = {"quick_gelu": "gelu", "gelu": "quick_gelu"}[activation]
    with pytest.raises(ValueError, match=f"activation is '{other}', but open_clip's release"):
        load_clip_weights(model, "ViT-T-8/rooms", activation=other)


def test_a_misfitting_torchvision_is_named_with_both_versions(torchvision_fits):
    if torchvision_fits:
        pytest.skip("the installed torchvision fits the installed torch")
    result = subprocess.run([sys.executable, "-c", "import bifusion_hf"], capture_output=True, text=True)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: torchvision")
    for package in ("torch", "torchvision"):
        assert f"{package} {importlib.metadata.version(package)} " in last
    assert "pip uninstall torchvision" in last
