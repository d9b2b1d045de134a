"""Mapping of baseline checkpoints: names, shapes, what is refused. Small networks with the original's names."""

import json
import re

import pytest
import torch
from rule_weights import rule_state_dict, rule_tensor
from safetensors.torch import save_file

from bifusion_hf import (
    BiFusionConfig,
    BiFusionForInstanceSegmentation,
    BiFusionModel,
    load_sv3d_weights,
)
from bifusion_hf.io.files import DataFileError
from bifusion_hf.weights.sv3d import HEADS, translate


# What in the original's shapes stands for which width of the small network.
WIDTHS = {32: 4, 64: 6, 128: 8, 256: 10, 96: 12}
SMALL = {"stem_channels": 4, "planes": [4, 6, 8, 10, 10, 8, 12, 12], "blocks": [2, 3, 4, 6, 2, 2, 2, 2]}


@pytest.fixture(scope="module")
def keys(reference):
    return json.loads((reference / "keys.json").read_text())


@pytest.fixture(scope="module")
def small_state(keys):
    """Factory of state dicts with the original's names and small widths."""

    def make(network="single_view"):
        state = {}
        for key, (shape, _) in keys[network].items():
            if key.startswith("backbone."):
                small = [WIDTHS.get(size, size) for size in shape]
                # Decoder blocks take the upsampled features and the skip connection.
                if re.match(r"backbone\.block[5678]\.0\.(conv1|downsample\.0)\.kernel", key):
                    level = int(key[len("backbone.block")])
                    small[-2] = {5: 18, 6: 14, 7: 16, 8: 16}[level]
            elif key.startswith("memory."):
                level = int(key.split(".")[2])
                width = SMALL["planes"][level]
                small = [27, width, width] if len(shape) == 3 else [3 * width, width] if len(shape) == 2 else shape
                small = [width] if len(shape) == 1 else small
            elif key.startswith("pool."):
                small = [{96: 12, 192: 24}.get(size, size) for size in shape]
            else:
                sizes = {96: 12, 99: 15, 256: 20, 512: 40, 768: 60, 1024: 80}
                small = [sizes.get(size, size) for size in shape]
            state[key] = rule_tensor(key, small)
        return state

    return make


def small_model(fusion_type="none", adapters=False, **changes):
    config = BiFusionConfig(
        fusion_type=fusion_type,
        use_film=fusion_type != "none",
        hidden_size=12 if fusion_type in ("none", "residual") else 16,
        projection_dim=16,
        projection_hidden_size=16,
        decoder_size=20,
        decoder_attention_heads=2,
        decoder_intermediate_size=80,
        point_config={**SMALL, "use_frame_adapters": adapters},
        vision_config=None
        if fusion_type == "none"
        else {
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        loss_config={"consistency_loss_weight": 0.0, "spatial_loss_weight": 0.0, "noview_loss_weight": 0.0},
        **changes,
    )
    torch.manual_seed(1)
    return BiFusionForInstanceSegmentation(config)


def save(path, state, form="mmengine"):
    if form == "safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    elif form == "plain":
        torch.save(state, path)
    else:
        torch.save({"meta": {"epoch": 128, "dataset_meta": {"classes": ("object",)}}, "state_dict": state}, path)
    return path


@pytest.mark.parametrize(
    ("form", "name"), [("mmengine", "sv3d.pth"), ("plain", "sv3d.pth"), ("safetensors", "sv3d.safetensors")]
)
def test_every_tensor_of_the_single_view_network_loads(form, name, small_state, tmp_path):
    state, model = small_state(), small_model()
    report = load_sv3d_weights(model, save(tmp_path / name, state, form))
    assert len(report.loaded) == len(state) == 463
    assert not report.missing and not report.unexpected and not report.mismatched
    target = model.state_dict()
    for key in state:
        for translated, part in translate(key, state[key], "backbone.").items():
            found = target[translated if translated.startswith("decoder.") else f"model.{translated}"]
            assert torch.equal(found, part), key
    assert "463 tensors" in str(report) and "point_encoder" in report.table()
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["loaded"] == report.loaded


def test_the_full_size_names_all_have_a_place(keys):
    with torch.device("meta"):
        model = BiFusionForInstanceSegmentation(BiFusionConfig.from_preset("sv3d"))
    targets = {name: list(value.shape) for name, value in model.state_dict().items()}
    reached = set()
    for key, (shape, _) in keys["single_view"].items():
        for name, part in translate(key, torch.empty(shape, device="meta"), "backbone.").items():
            name = name if name.startswith("decoder.") else f"model.{name}"
            assert targets[name] == list(part.shape), key
            assert name not in reached
            reached.add(name)
    assert set(targets) - reached == {"model.training_progress.update", "model.training_progress.total"}


def test_residual_equals_the_baseline_at_update_0(small_state, make_batch, tmp_path):
    path = save(tmp_path / "sv3d.pth", small_state())
    baseline, fused = small_model().eval(), small_model("residual").eval()
    load_sv3d_weights(baseline, path)
    report = load_sv3d_weights(fused, path)
    assert len(report.loaded) == 463 and not report.mismatched
    batch = make_batch()
    with torch.no_grad():
        expected, output = baseline(**batch), fused(**batch)
    for name in ("masks_queries_logits", "class_queries_logits", "semantic_queries_logits", "superpoint_features"):
        # The image adds exact zeros; the last bits of matrix products depend on where memory lies.
        assert (output[name] - expected[name]).abs().max() <= 1e-6 * expected[name].abs().max(), name


def test_a_fused_model_takes_what_fits(small_state, tmp_path):
    model = small_model("lite_gate", num_labels=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_sv3d_weights(model, save(tmp_path / "sv3d.pth", small_state()))
    mismatched = {key for key, *_ in report.mismatched}
    assert {"decoder.input_proj.0.weight", "decoder.out_cls.2.weight", "pool.pts_proj2.0.weight"} <= mismatched
    assert not any(key.startswith("backbone.") for key in mismatched)
    assert "decoder.self_attn_layers.1.attn.in_proj_weight" in report.loaded
    untouched = {*report.missing, "model.training_progress.update", "model.training_progress.total"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name in untouched) or "num_batches" in name, name
    assert any("image_encoder" in name for name in report.missing)


@pytest.mark.parametrize("prefix", ["bi_encoder.backbone3d.", "model.backbone."])
def test_backbones_of_other_projects(prefix, small_state, tmp_path):
    state = {
        key.replace("backbone.", prefix, 1): value
        for key, value in small_state().items()
        if key.startswith("backbone.")
    }
    expected = dict(state)
    # A second U-Net, which the original BiFusion carries along without using it, and a final layer.
    state |= {"backbone.conv0p1s1.kernel": torch.zeros(125, 3, 4), f"{prefix}final.kernel": torch.zeros(12, 5)}
    model = small_model()
    report = load_sv3d_weights(model, save(tmp_path / "other.pth", state))
    assert set(report.loaded) == set(expected)
    stem = model.model.encoder.point_encoder.stem.kernel
    assert torch.equal(stem, expected[f"{prefix}conv0p1s1.kernel"])
    assert f"{prefix}final.kernel" in report.unexpected and "backbone.conv0p1s1.kernel" in report.unexpected


def test_online_checkpoints_bring_frame_adapters(small_state, tmp_path):
    path = save(tmp_path / "online.pth", small_state("online"))
    model = small_model(adapters=True)
    report = load_sv3d_weights(model, path)
    assert not report.missing and not report.mismatched
    assert len(report.loaded) == 463 + 72
    assert all(key.startswith(("merge_head.", "decoder.out_reg.")) for key in report.unexpected)
    assert len(report.notes) == 2
    plain = small_model()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    with pytest.raises(ValueError, match="frame adapters"):
        load_sv3d_weights(plain, path)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    report = load_sv3d_weights(plain, path, strict_backbone=False)
    assert any("features would differ" in note for note in report.notes)
    with pytest.raises(ValueError, match=r"frame_adapters.* is missing.* and 67 more\. Nothing was loaded"):
        load_sv3d_weights(model, save(tmp_path / "single.pth", small_state()))
    report = load_sv3d_weights(model, tmp_path / "single.pth", strict_backbone=False)
    assert len(report.missing) == 72
    # The first five are told.
    assert len(report.notes) == 5 and all("frame_adapters" in note for note in report.notes)


def test_own_checkpoints_load_without_their_progress(tmp_path):
    trained, model = small_model(), small_model("residual")
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1)
    trained.set_training_progress(5, 10)
    trained.save_pretrained(tmp_path)
    report = load_sv3d_weights(model, tmp_path)
    assert set(report.unexpected) == {"model.training_update", "model.training_total"}
    assert model.model.training_progress.update.item() == -1
    assert torch.equal(model.decoder.key_proj.weight, trained.decoder.key_proj.weight)
    small_model(adapters=True).save_pretrained(tmp_path / "online")
    unchanged_after(model, ValueError, "is of an online network with frame adapters", tmp_path / "online")


def test_the_base_model_takes_its_part(small_state, tmp_path):
    model = BiFusionModel(small_model().config)
    report = load_sv3d_weights(model, save(tmp_path / "sv3d.pth", small_state()))
    assert not report.missing and all(key.startswith("decoder.") for key in report.unexpected)


def unchanged_after(model, error, match, *arguments, **options):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=match):
        load_sv3d_weights(model, *arguments, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_is_loaded_where_the_backbone_does_not_fit(small_state, tmp_path):
    model, state = small_model(), small_state()
    renamed = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    unchanged_after(
        model,
        ValueError,
        "no tensor of the U-Net.* the checkpoint has .*'block1', 'block2'",
        save(tmp_path / "prefix.pth", renamed),
    )
    # The first ten names are told.
    strange = {f"net{index:02d}.weight": torch.zeros(1) for index in range(12)}
    unchanged_after(model, ValueError, r"'net08', 'net09'\]$", save(tmp_path / "strange.pth", strange))
    wrong = {**state, "backbone.block2.0.conv1.kernel": torch.zeros(27, 4, 5)}
    unchanged_after(
        model, ValueError, r"block2.0.conv1.kernel has shape \[27, 4, 5\]", save(tmp_path / "w.pth", wrong)
    )
    fewer = {key: value for key, value in state.items() if key != "backbone.bn0.bn.running_var"}
    unchanged_after(
        model,
        ValueError,
        r"stem_norm.running_var is missing in the checkpoint\. Nothing",
        save(tmp_path / "f.pth", fewer),
    )
    # Up to five problems are named.
    names = [key for key in state if key.startswith("backbone.block1.0.")]
    for count, end in ((5, r"\. Nothing"), (6, r" and 1 more\. Nothing")):
        fewer = {key: value for key, value in state.items() if key not in names[:count]}
        path = save(tmp_path / "several.pth", fewer)
        unchanged_after(model, ValueError, f"(is missing in the checkpoint.*){{5}}{end}", path)
    report = load_sv3d_weights(model, tmp_path / "f.pth", strict_backbone=False)
    assert "model.encoder.point_encoder.stem_norm.running_var" in report.missing


class Runs:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('it_ran').touch()",)


def test_files_that_are_refused(small_state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small_model()
    torch.save({"state_dict": small_state(), "hook": Runs()}, "evil.pth")
    unchanged_after(model, DataFileError, "evil.pth", "evil.pth")
    assert not (tmp_path / "it_ran").exists()
    whole = save(tmp_path / "whole.pth", small_state()).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    unchanged_after(model, DataFileError, "cut.pth", tmp_path / "cut.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    unchanged_after(model, DataFileError, "cut.safetensors", tmp_path / "cut.safetensors")
    torch.save([1, 2], "list.pth")
    unchanged_after(model, DataFileError, "list.pth.*no state dict", "list.pth")
    unchanged_after(model, FileNotFoundError, "nowhere.pth", "nowhere.pth")
    torch.save({"backbone.a": torch.zeros(1)}, "a.bin")
    unchanged_after(model, ValueError, "several weight files", tmp_path)


def test_rule_weights_are_those_of_the_reference(reference):
    check = json.loads((reference / "weights_check.json").read_text())
    state = rule_state_dict(reference / "keys.json", "single_view")
    compared = {key: entry for key, entry in check["keys"].items() if key in state}
    assert len(compared) >= 5
    for key, entry in compared.items():
        assert state[key].flatten()[:4].tolist() == entry["first4"]
        assert state[key].double().sum().item() == pytest.approx(entry["sum"], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_every_tensor_of_an_online_checkpoint_has_its_place(norm, reference):
    """Both variants of the merge head, at full size: names and shapes on both sides are the same set."""
    listed = json.loads((reference / "keys.json").read_text())
    absent = listed["online_layer_variant_absent"] if norm == "layer" else []
    state = {
        key: torch.empty(shape, device="meta") for key, (shape, _) in listed["online"].items() if key not in absent
    }
    assert len(state) == {"batch": 553, "layer": 547}[norm]
    with torch.device("meta"):
        config = BiFusionConfig.from_preset(
            "sv3d", point_config={"use_frame_adapters": True}, use_box_head=True, use_merge_head=norm
        )
        model = BiFusionForInstanceSegmentation(config)
    places = {}
    for key, value in state.items():
        own = translate(key, value, "backbone.")
        assert own, key
        places.update({name if name.startswith(HEADS) else f"model.{name}": part.shape for name, part in own.items()})
    targets = {name: value.shape for name, value in model.state_dict().items() if "training_progress" not in name}
    assert places == targets
