import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hub_client import run_python
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionModel
from bifusion_hf.import_utils import is_available
from bifusion_hf.io import checkpoint_files
from bifusion_hf.weights import clip
from bifusion_hf.weights.clip import _open_clip_settings, load_clip_weights


FIXTURE = Path(__file__).parents[1] / "fixtures" / "clip_tokens.npz"
# The size of the stored tower; see tests/openclip/tiny_open_clip.py, which made the numbers with open_clip 3.3.0.
VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
OPEN_CLIP_VISION = {"layers": 3, "width": 24, "head_width": 12, "mlp_ratio": 2.0, "patch_size": 8, "image_size": 32}


@pytest.fixture(scope="module")
def stored():
    with np.load(FIXTURE) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture
def visual(stored):
    return {name: value.clone() for name, value in stored.items() if name.startswith("visual.")}


@pytest.fixture
def make_model(small_config):
    def make(model_class=BiFusionModel, model_type="clip_vision_model", **vision):
        torch.manual_seed(5)
        vision = {"model_type": model_type, **VISION, **vision}
        return model_class(small_config("residual", vision_config=vision)).eval()

    return make


def tower_of(model):
    return model.base_model.encoder.image_encoder.vision_model


@torch.no_grad()
def tokens_of(model, images):
    return tower_of(model)(images, interpolate_pos_encoding=True).last_hidden_state[:, 1:]


def assert_same_tokens(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def write_open_clip(folder, state, quick_gelu=None, file="open_clip_pytorch_model.bin", **vision):
    """A folder as open_clip's repositories are; the configuration is left out without `quick_gelu`."""
    folder.mkdir(parents=True, exist_ok=True)
    if file.endswith(".safetensors"):
        save_file(state, folder / file)
    else:
        torch.save(state, folder / file)
    if quick_gelu is not None:
        config = {"model_cfg": {"embed_dim": 16, "quick_gelu": quick_gelu, "vision_cfg": OPEN_CLIP_VISION | vision}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder / file


def assert_untouched(model, before, hidden_act):
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert model.config.vision_config.hidden_act == tower_of(model).config.hidden_act == hidden_act


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_tokens_after_each_block_are_open_clips(tmp_path, make_model, stored, visual, blocks, activation):
    model = make_model(num_hidden_layers=blocks)
    load_clip_weights(model, write_open_clip(tmp_path, visual), activation=activation)
    assert_same_tokens(tokens_of(model, stored["images"]), stored[f"{activation}_{blocks}"])


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "epoch_3.pt"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_folder_of_open_clip_tells_its_activation(tmp_path, make_model, stored, visual, file, activation):
    write_open_clip(tmp_path, visual, quick_gelu=activation == "quick_gelu", file=file)
    for source in (tmp_path, str(tmp_path / file)):
        model = make_model(BiFusionForInstanceSegmentation, hidden_act="quick_gelu")
        report = load_clip_weights(model, source)
        assert_same_tokens(tokens_of(model, stored["images"]), stored[f"{activation}_2"])
        assert model.config.vision_config.hidden_act == activation
        assert any(f"activation {activation}, says " in note for note in report.notes)
        assert any("quick_gelu was replaced" in note for note in report.notes) == (activation == "gelu")


def test_an_activation_that_was_replaced_is_saved_with_the_model(tmp_path, make_model, stored, visual):
    model = make_model(BiFusionForInstanceSegmentation, hidden_act="quick_gelu")
    load_clip_weights(model, write_open_clip(tmp_path / "clip", visual, quick_gelu=False))
    model.save_pretrained(tmp_path / "saved")
    loaded = BiFusionForInstanceSegmentation.from_pretrained(tmp_path / "saved")
    assert_same_tokens(tokens_of(loaded, stored["images"]), stored["gelu_2"])


def test_the_report_names_what_was_loaded_and_what_not(tmp_path, make_model, visual):
    text = {"positional_embedding": torch.zeros(8, 16), "transformer.resblocks.0.ln_1.weight": torch.ones(16)}
    model = make_model(BiFusionForInstanceSegmentation)
    report = load_clip_weights(model, write_open_clip(tmp_path, visual | text, quick_gelu=True))
    assert report.missing == report.mismatched == []
    last_block = {name for name in visual if ".resblocks.2." in name}
    rest = {"visual.ln_post.weight", "visual.ln_post.bias", "visual.proj"}
    assert set(report.unexpected) == last_block | rest | set(text)
    assert set(report.loaded) == set(visual) - last_block - rest
    prefix = "model.encoder.image_encoder.vision_model."
    assert all(name.startswith(prefix) and loaded == total for name, (loaded, total, _) in report.modules.items())
    assert sum(numbers for *_, numbers in report.modules.values()) == sum(
        p.numel() for p in tower_of(model).parameters()
    )
    assert "the first 2 of 3 blocks are loaded" in str(report)


def test_only_the_tower_changes(tmp_path, make_model, visual):
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    load_clip_weights(model, write_open_clip(tmp_path, visual, quick_gelu=True))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"encoder.image_encoder.vision_model.{name}" for name in tower_of(model).state_dict()}


def test_a_tower_saved_alone_and_in_half_precision_loads(tmp_path, make_model, stored, visual):
    alone = {f"module.{name.removeprefix('visual.')}": value.half() for name, value in visual.items()}
    model = make_model()
    load_clip_weights(model, write_open_clip(tmp_path, {"state_dict": alone}, file="a.pt"), activation="gelu")
    assert tower_of(model).embeddings.class_embedding.dtype == torch.float32
    expected = stored["gelu_2"]
    torch.testing.assert_close(tokens_of(model, stored["images"]), expected, rtol=0, atol=0.02 * expected.abs().max())


def test_position_embeddings_are_resized_as_open_clip_resizes_them(tmp_path, make_model, stored, visual):
    model = make_model(image_size=48)
    report = load_clip_weights(model, write_open_clip(tmp_path, visual, quick_gelu=False))
    torch.testing.assert_close(tower_of(model).embeddings.position_embedding.weight, stored["resized_positions"])
    assert any("4x4 to 6x6" in note for note in report.notes)
    # Half precision is computed in float32: the result is that of the rounded values, not rounded on the way.
    half = {name: value.half() for name, value in visual.items()}
    load_clip_weights(model, write_open_clip(tmp_path / "half", half, quick_gelu=False))
    rounded = {name: value.float() for name, value in half.items()}
    reference = make_model(image_size=48)
    load_clip_weights(reference, write_open_clip(tmp_path / "rounded", rounded, quick_gelu=False))
    assert torch.equal(
        tower_of(model).embeddings.position_embedding.weight, tower_of(reference).embeddings.position_embedding.weight
    )


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_transformers_folders_load(tmp_path, make_model, stored, whole, activation):
    torch.manual_seed(0)
    vision = {**VISION, "num_hidden_layers": 3, "hidden_act": activation}
    if whole:
        text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        theirs = CLIPModel(CLIPConfig(vision_config=vision, text_config={**text, "vocab_size": 64})).eval()
        tower = theirs.vision_model
    else:
        theirs = tower = CLIPVisionModel(CLIPVisionConfig(**vision)).eval()
    theirs.save_pretrained(tmp_path)
    model = make_model(hidden_act="gelu")
    report = load_clip_weights(model, tmp_path)
    assert model.config.vision_config.hidden_act == activation
    assert any("the first 2 of 3 blocks are loaded" in note for note in report.notes)
    with torch.no_grad():
        states = tower(stored["images"], output_hidden_states=True).hidden_states
    assert_same_tokens(tokens_of(model, stored["images"]), states[2][:, 1:])


def test_transformers_checkpoints_of_older_releases_load(tmp_path, make_model):
    """They hold a counter of positions, and only the values that differ from the defaults of the configuration."""
    torch.manual_seed(0)
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION))
    state = {f"vision_model.{name}": value for name, value in tower.state_dict().items()}
    torch.save(state | {"vision_model.embeddings.position_ids": torch.arange(17)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": VISION}))
    model = make_model(hidden_act="gelu")
    report = load_clip_weights(model, tmp_path)
    assert model.config.vision_config.hidden_act == "quick_gelu"
    assert "vision_model.embeddings.position_ids" in report.unexpected


@pytest.fixture
def repositories(tmp_path, monkeypatch):
    """Repositories are folders of `tmp_path / "hub"`; gives what was asked for."""
    asked = []

    def resolve(source, names=(), revision=None):
        asked.append((str(source), revision))
        repository, _, file = str(source).partition(":")
        folder = tmp_path / "hub" / repository
        if file and not (folder / file).is_file():
            raise FileNotFoundError(f"{repository}: has no file {file!r}")
        return checkpoint_files.resolve_file(folder / file if file else folder, names)

    monkeypatch.setattr(clip, "resolve_file", resolve)
    return asked


@pytest.mark.parametrize("prefix", ["", "hf-hub:"])
def test_repositories_of_open_clip_load(tmp_path, repositories, make_model, stored, visual, prefix):
    folder = tmp_path / "hub" / "someone" / "clip"
    write_open_clip(folder, visual, quick_gelu=True)
    # Repositories of timm hold the same tower in timm's layout beside it.
    save_file({"cls_token": torch.zeros(1)}, folder / "model.safetensors")
    model = make_model(hidden_act="gelu")
    report = load_clip_weights(model, f"{prefix}someone/clip", revision="v1")
    assert_same_tokens(tokens_of(model, stored["images"]), stored["quick_gelu_2"])
    assert report.source == f"{prefix}someone/clip"
    assert ("someone/clip", "v1") in repositories


def test_a_configuration_not_beside_the_weights_is_fetched(tmp_path, repositories, make_model, visual, monkeypatch):
    """Each file of a repository is downloaded on its own."""
    folder = tmp_path / "hub" / "someone" / "clip"
    elsewhere = write_open_clip(tmp_path / "cache", visual)
    write_open_clip(folder / "sub", visual, quick_gelu=False).unlink()
    fetch = clip.resolve_file
    monkeypatch.setattr(
        clip, "resolve_file", lambda source, *a, **k: elsewhere if source.endswith(".bin") else fetch(source, *a, **k)
    )
    model = make_model(hidden_act="quick_gelu")
    load_clip_weights(model, "someone/clip:sub/open_clip_pytorch_model.bin", revision="v1")
    assert repositories == [("someone/clip:sub/open_clip_config.json", "v1")]
    assert model.config.vision_config.hidden_act == "gelu"
    with pytest.raises(ValueError, match="give activation='quick_gelu'"):
        load_clip_weights(model, "someone/other:open_clip_pytorch_model.bin")

    def offline(source, *_args, **_kwargs):
        if source.endswith(".bin"):
            return elsewhere
        raise ConnectionError("the Hub cannot be reached")

    monkeypatch.setattr(clip, "resolve_file", offline)
    load_clip_weights(model, "someone/other:open_clip_pytorch_model.bin", activation="gelu")
    with pytest.raises(ConnectionError):
        load_clip_weights(model, "someone/other:open_clip_pytorch_model.bin")


CLIENT = """
import json, sys
from bifusion_hf import BiFusionConfig, BiFusionModel
from bifusion_hf.weights.clip import load_clip_weights

results = []
for source, options in json.loads(sys.argv[2]):
    model = BiFusionModel(BiFusionConfig.from_pretrained(sys.argv[1]))
    report = load_clip_weights(model, source, **options)
    weight = model.encoder.image_encoder.vision_model.pre_layrnorm.bias.sum().item()
    results.append([len(report.loaded), model.config.vision_config.hidden_act, weight])
print(json.dumps(results))
"""


def test_repositories_load_again_when_the_hub_is_down(tmp_path, hub, make_model, visual):
    make_model(hidden_act="gelu").config.save_pretrained(tmp_path / "model")
    weights = write_open_clip(tmp_path / "clip", visual, quick_gelu=True)
    config = weights.with_name("open_clip_config.json")
    first = hub.add("org/clip", {weights.name: weights, config.name: config})
    changed = {name: value + 1 for name, value in visual.items()}
    hub.add("org/clip", {weights.name: write_open_clip(tmp_path / "next", changed)})
    hub.add("org/bare", {weights.name: weights})
    calls = [["hf-hub:org/clip", {"revision": first}], ["org/clip", {}], ["org/bare", {"activation": "gelu"}]]

    def pull():
        result = run_python(CLIENT, hub, tmp_path / "home", str(tmp_path / "model"), json.dumps(calls))
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    online = pull()
    assert [activation for _, activation, _ in online] == ["quick_gelu", "quick_gelu", "gelu"]
    old, new, bare = (weight for *_, weight in online)
    assert old == bare == pytest.approx(visual["visual.ln_pre.bias"].sum().item(), abs=1e-4)
    assert new == pytest.approx(old + 24, abs=1e-4)
    hub.stop()
    assert pull() == online


@pytest.mark.skipif(is_available("open_clip"), reason="open_clip is installed")
@pytest.mark.parametrize(
    "source", ["ViT-B-16/openai", "ViT-B-16:laion2b_s34b_b88k", "coca_ViT-L-14/laion2b_s13b_b90k", "nllb-clip-base/v1"]
)
def test_names_of_open_clip_need_the_extra(make_model, source):
    with pytest.raises(ImportError, match=r"bifusion_hf\[openclip\]"):
        load_clip_weights(make_model(), source)


@pytest.mark.parametrize(
    "source", ["openai/clip-vit-base-patch16", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "org/ViT-B-16"]
)
def test_repositories_are_not_taken_for_names_of_open_clip(repositories, make_model, source):
    with pytest.raises(FileNotFoundError):
        load_clip_weights(make_model(), source)
    assert repositories[0] == (source, None)


def test_the_activation_is_never_guessed(tmp_path, make_model, visual):
    model = make_model(hidden_act="gelu")
    before = copy.deepcopy(model.state_dict())
    bare = write_open_clip(tmp_path / "bare", visual)
    with pytest.raises(ValueError, match="open_clip_pytorch_model.bin.*give activation='quick_gelu'.*'gelu'"):
        load_clip_weights(model, bare)
    with pytest.raises(ValueError, match="activation is 'relu'; expected one of"):
        load_clip_weights(model, bare, activation="relu")
    write_open_clip(tmp_path / "told", visual, quick_gelu=True)
    with pytest.raises(ValueError, match="activation is 'gelu', but .*open_clip_config.json says 'quick_gelu'"):
        load_clip_weights(model, tmp_path / "told", activation="gelu")
    assert_untouched(model, before, "gelu")
    report = load_clip_weights(model, bare, activation="quick_gelu")
    assert any("neither heads nor epsilon" in note for note in report.notes)


def test_towers_that_do_not_fit_are_refused_and_nothing_changes(tmp_path, make_model, visual):
    def refused(match, change=None, model=None, **options):
        state = dict(visual)
        if change is not None:
            change(state)
        model = model or make_model(hidden_act="gelu")
        before = copy.deepcopy(model.state_dict())
        write_open_clip(tmp_path, state, quick_gelu=True, **options)
        with pytest.raises(ValueError, match=match):
            load_clip_weights(model, tmp_path)
        assert_untouched(model, before, "gelu")

    def put(name, value):
        return lambda state: state.update({name: value})

    def drop(part):
        return lambda state: [state.pop(name) for name in list(state) if part in name]

    wider = make_model(hidden_size=32, hidden_act="gelu")
    refused(r"conv1.weight has shape \[24, 3, 8, 8\], embeddings.patch_embedding.weight \[32, 3, 8, 8\]", model=wider)
    patch = make_model(patch_size=16, hidden_act="gelu")
    refused(r"conv1.weight has shape \[24, 3, 8, 8\], .*\[24, 3, 16, 16\]", model=patch)
    refused(r"mlp.fc1.weight \[96, 24\]", model=make_model(intermediate_size=96, hidden_act="gelu"))
    deeper = make_model(num_hidden_layers=4, hidden_act="gelu")
    refused(r"4 blocks.*encoder.layers.3.self_attn.k_proj.weight is missing.* and \d+ more", model=deeper)
    refused("pre_layrnorm.weight is missing", drop("ln_pre"))
    block = "visual.transformer.resblocks.1."
    refused("1.ls_1.gamma has no place in CLIP's tower", put(f"{block}ls_1.gamma", torch.ones(24)))
    refused("conv1.bias has no place", put("visual.conv1.bias", torch.ones(24)))
    refused(
        r"positional_embedding has shape \[16, 24\].*square", put("visual.positional_embedding", torch.ones(16, 24))
    )
    refused(r"in_proj_weight has shape \[70, 24\]", put(f"{block}attn.in_proj_weight", torch.ones(70, 24)))
    refused("num_attention_heads is 1, the model's vision_config has 2", head_width=24)
    refused("layer_norm_eps is 1e-06", norm_kwargs={"eps": 1e-6})
    refused("vision_cfg has {'timm_model_name': 'vit'}", timm_model_name="vit")
    refused("vision_cfg has {'act_kwargs'", act_kwargs={"approximate": "tanh"})
    # Up to five problems are named.
    five = ["ln_pre.weight", "ln_pre.bias", "conv1.weight", f"{block[7:]}ln_1.weight", f"{block[7:]}ln_1.bias"]
    for names, end in ((five, r"\. Nothing"), ([*five, f"{block[7:]}ln_2.bias"], r" and 1 more\. Nothing")):
        refused(
            f"(is missing.*){{5}}{end}", lambda state, names=names: [state.pop(f"visual.{name}") for name in names]
        )
    refused("no tensor of a CLIP image tower was found.*visual.class_embedding", drop("class_embedding"))
    # What the configured blocks do not read may be anything.
    write_open_clip(tmp_path, visual | {"visual.transformer.resblocks.2.ls_1.gamma": torch.ones(24)}, quick_gelu=True)
    load_clip_weights(make_model(), tmp_path)


def test_a_damaged_file_is_named_and_nothing_changes(tmp_path, make_model, visual):
    model = make_model(hidden_act="gelu")
    before = copy.deepcopy(model.state_dict())
    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        path = write_open_clip(tmp_path / name, visual, quick_gelu=True, file=name)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ValueError, match=name):
            load_clip_weights(model, tmp_path / name)
    assert_untouched(model, before, "gelu")


def test_a_transformers_tower_of_another_kind_is_refused(tmp_path, make_model):
    model = make_model()
    SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(tmp_path / "siglip")
    with pytest.raises(ValueError, match="no tensor of a CLIP image tower was found"):
        load_clip_weights(model, tmp_path / "siglip")
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path / "clip")
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    for changes, match in [
        ({"model_type": "altclip_vision_model"}, "model_type is 'altclip_vision_model'; expected one of"),
        ({"hidden_act": "snake"}, "hidden_act 'snake' is unknown"),
        ({"num_attention_heads": 4}, "num_attention_heads is 4"),
    ]:
        (tmp_path / "clip" / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=match):
            load_clip_weights(model, tmp_path / "clip")
    (tmp_path / "clip" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json.*is no JSON"):
        load_clip_weights(model, tmp_path / "clip")


def test_models_without_a_clip_tower_are_refused(make_model, small_config):
    with pytest.raises(ValueError, match="no image branch.*'none'"):
        load_clip_weights(BiFusionModel(small_config("none")), "anything")
    for model_type in ("siglip_vision_model", "dinov2"):
        with pytest.raises(ValueError, match=f"'{model_type}'; load_clip_weights expects 'clip_vision_model'"):
            load_clip_weights(make_model(model_type=model_type), "anything")
    with pytest.raises(ValueError, match="model is a Linear"):
        load_clip_weights(torch.nn.Linear(1, 1), "anything")
    with pytest.raises(FileNotFoundError, match="missing.bin"):
        load_clip_weights(make_model(), "missing.bin", activation="gelu")


def test_what_an_open_clip_configuration_does_not_say_is_as_there():
    """Heads of 64 channels, the exact GELU and 1e-5 are the defaults of its CLIPVisionCfg."""
    settings = _open_clip_settings({"vision_cfg": {"width": 768, "layers": 12, "patch_size": 16}}, "somewhere")
    assert (settings.num_attention_heads, settings.hidden_act, settings.layer_norm_eps) == (12, "gelu", 1e-5)
    # What is written but not used counts as not there.
    vision = {"width": 96, "head_width": 32, "timm_model_name": None, "norm_kwargs": None}
    settings = _open_clip_settings({"quick_gelu": True, "vision_cfg": vision}, "somewhere")
    assert (settings.num_attention_heads, settings.hidden_act, settings.layer_norm_eps) == (3, "quick_gelu", 1e-5)
    with pytest.raises(ValueError, match=r"somewhere: vision_cfg has {'layers': 3}; expected CLIP's own tower"):
        _open_clip_settings({"vision_cfg": {"layers": 3}}, "somewhere")


@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (6, 8), (5, 1, 8)])
def test_positions_of_no_square_grid_are_refused(shape):
    with pytest.raises(ValueError, match=r"a name has shape .*; expected \[1 \+ rows \* rows, width\]"):
        clip.resize_positions(torch.ones(shape), 10, "a name")


def test_positions_of_the_right_grid_stay_the_same_tensor():
    weight = torch.rand(10, 8)
    found, notes = clip.resize_positions(weight, 10, "a name")
    assert found is weight and notes == []
    found, notes = clip.resize_positions(torch.rand(2, 8), 10, "a name")
    assert found.shape == (10, 8) and notes == ["position embeddings interpolated from a grid of 1x1 to 3x3"]


def test_a_tower_of_as_many_blocks_has_no_note_of_more(tmp_path, make_model, visual):
    state = {name: value for name, value in visual.items() if "resblocks.1." not in name and "blocks.2." not in name}
    report = load_clip_weights(make_model(num_hidden_layers=1), write_open_clip(tmp_path, state, quick_gelu=True))
    assert "visual.ln_post.weight" in report.unexpected
    assert len(report.notes) == 1 and report.notes[0].startswith("activation quick_gelu, says ")


def test_a_checkpoint_without_a_tower_tells_the_first_ten_of_its_parts():
    state = {f"net.part{index:02d}.weight": torch.zeros(1) for index in range(12)}
    with pytest.raises(ValueError, match=r"the checkpoint has \['net.part00', .*'net.part09'\]$"):
        clip.find_layout(state, "somewhere")


def test_where_open_clip_keeps_a_release(monkeypatch):
    """By a stand-in for the package: what a release says goes before what its architecture says."""
    releases = {
        "file": {"hf_hub": "org/clip/weights.bin", "quick_gelu": True},
        "folder": {"hf_hub": "org/clip/"},
        "elsewhere": {"url": "https://example.com/a.pt", "hf_hub": ""},
    }
    vision = {"width": 128, "norm_kwargs": {"eps": 1e-6}}
    package = SimpleNamespace(
        __version__="9.9",
        get_pretrained_cfg=lambda architecture, tag: releases.get(tag, {}) if architecture != "none" else {},
        get_model_config=lambda name: {"quick_gelu": True, "vision_cfg": vision} if name == "ViT" else None,
        list_pretrained_tags_by_model=lambda name: list(releases) if name == "ViT" else [],
    )
    monkeypatch.setattr(clip, "require_package", lambda name: {"open_clip": package}[name])
    place, settings = clip.open_clip_release("ViT", "file")
    assert place == "org/clip:weights.bin" and settings.origin == "open_clip's release ViT/file"
    assert (settings.hidden_act, settings.num_attention_heads, settings.layer_norm_eps) == ("quick_gelu", 2, 1e-6)
    place, settings = clip.open_clip_release("ViT", "folder")
    assert place == "org/clip" and settings.hidden_act == "gelu"
    for names, message in (
        (("ViT", "elsewhere"), "9.9 has ViT/elsewhere only at 'https://example.com/a.pt'"),
        (("ViT", "v2"), r"9.9 has no release ViT/v2: its tags are \['file', 'folder', 'elsewhere'\]"),
        (("none", "file"), "9.9 has no release none/file: there is no such architecture"),
        # A release whose architecture has no configuration.
        (("other", "file"), "9.9 has no release other/file: there is no such architecture"),
    ):
        with pytest.raises(ValueError, match=message):
            clip.open_clip_release(*names)
