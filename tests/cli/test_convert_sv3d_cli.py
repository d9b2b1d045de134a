import hashlib
import json

import pytest
import torch
from original_checkpoint import original_state, save_original

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.cli import convert_sv3d
from bifusion_hf.cli.convert_sv3d import main
from bifusion_hf.hub.model_card import read_front_matter


# What tensors do not show of the small network.
UNSEEN = ["--voxel_size", "0.05", "--num_points", "600", "--decoder_attention_heads", "2"]
OUTPUTS = ("masks_queries_logits", "class_queries_logits", "semantic_queries_logits", "superpoint_features")


@pytest.fixture
def make_model(small_config):
    def make(adapters=False, **overrides):
        torch.manual_seed(7)
        config = small_config("none", **overrides)
        config.point_config.use_frame_adapters = adapters
        model = BiFusionForInstanceSegmentation(config).eval()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if name.endswith(("running_mean", "running_var")):
                    value.add_(torch.rand_like(value))
        return model

    return make


def assert_same_network(model, folder, batch):
    converted, loading = BiFusionForInstanceSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = {name: value for name, value in batch.items() if "labels" not in name}
    with torch.no_grad():
        expected, found = model(**inputs), converted(**inputs)
    for name in OUTPUTS:
        assert torch.equal(found[name], expected[name]), name
    return converted


def test_single_view_checkpoint(make_model, make_batch, tmp_path, capsys):
    model = make_model()
    source = save_original(tmp_path / "sv.pth", original_state(model))
    dest = tmp_path / "new" / "sv3d"
    main([str(source), str(dest), *UNSEEN])
    assert "point_encoder" in capsys.readouterr().out
    names = {"README.md", "config.json", "model.safetensors", "processor_config.json", "sv3d_report.json"}
    assert {path.name for path in dest.iterdir()} == names
    assert [path.name for path in dest.parent.iterdir()] == ["sv3d"]
    converted = assert_same_network(model, dest, make_batch())
    assert (converted.config.num_labels, converted.config.num_semantic_labels) == (1, 200)
    assert not converted.config.point_config.use_frame_adapters
    processor = BiFusionProcessor.from_pretrained(dest)
    assert (processor.num_points, processor.label_names) == (600, ["object"])

    card = (dest / "README.md").read_text()
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    for text in (digest, "`sv.pth`", "local file", "MIT", "CC BY-NC 4.0", "Check both", "model.encoder.point_encoder"):
        assert text in card, text
    assert str(tmp_path) not in card and str(tmp_path) not in (dest / "sv3d_report.json").read_text()
    front = read_front_matter(dest / "README.md")
    assert (front["license"], front["library_name"]) == ("other", "transformers") and "base_model" not in front
    report = json.loads((dest / "sv3d_report.json").read_text())
    assert not report["missing"] and not report["unexpected"] and not report["mismatched"]


def test_online_checkpoint_gets_its_frame_adapters(make_model, make_batch, tmp_path):
    model = make_model(adapters=True, use_box_head=True, use_merge_head="batch")
    source = save_original(tmp_path / "online.pth", original_state(model, "online"))
    main([str(source), str(tmp_path / "dest"), *UNSEEN])
    converted = assert_same_network(model, tmp_path / "dest", make_batch())
    assert converted.config.point_config.use_frame_adapters
    card = (tmp_path / "dest" / "README.md").read_text()
    assert "first frame of a" in card and "is not used" not in card
    assert converted.config.use_box_head and converted.config.use_merge_head == "batch"


def test_widths_and_classes_are_those_of_the_tensors(make_model, make_batch, tmp_path):
    model = make_model(
        num_labels=18,
        num_semantic_labels=20,
        hidden_size=10,
        decoder_size=12,
        decoder_intermediate_size=20,
        point_config={
            "stem_channels": 6,
            "stem_kernel_size": 3,
            "planes": [6, 8, 12, 14, 12, 10, 10, 10],
            "blocks": [1, 2, 1, 1, 1, 1, 2, 1],
        },
    )
    source = save_original(tmp_path / "wide.pth", original_state(model))
    main([str(source), str(tmp_path / "dest"), *UNSEEN])
    converted = assert_same_network(model, tmp_path / "dest", make_batch())
    assert (converted.config.num_labels, converted.config.num_semantic_labels) == (18, 20)
    assert list(converted.config.point_config.blocks) == [1, 2, 1, 1, 1, 1, 2, 1]
    assert BiFusionProcessor.from_pretrained(tmp_path / "dest").class_to_label == [-1, -1, *range(18)]


def test_a_backbone_alone_needs_to_be_allowed(make_model, tmp_path):
    model = make_model()
    state = {f"model.{key}": value for key, value in original_state(model).items() if key.startswith("backbone.")}
    source = save_original(tmp_path / "mask3d.ckpt", state)
    with pytest.raises(SystemExit, match="only part of the network") as error:
        main([str(source), str(tmp_path / "a"), *UNSEEN])
    assert "--allow_partial" in str(error.value) and "decoder" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mask3d.ckpt"]
    weights = []
    for name in ("a", "b"):
        main([str(source), str(tmp_path / name), "--allow_partial", *UNSEEN])
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    card = (tmp_path / "a" / "README.md").read_text()
    assert "Not a whole network" in card and "Mask3D" in card and "ESAM repository" not in card
    converted = BiFusionForInstanceSegmentation.from_pretrained(tmp_path / "a").state_dict()
    for name, value in model.state_dict().items():
        if "point_encoder" in name:
            assert torch.equal(converted[name], value), name


def test_an_incomplete_backbone_is_never_converted(make_model, tmp_path):
    state = original_state(make_model())
    del state["backbone.bn0.bn.running_var"]
    source = save_original(tmp_path / "sv.pth", state)
    with pytest.raises(SystemExit, match=r"stem_norm\.running_var is missing"):
        main([str(source), str(tmp_path / "dest"), "--allow_partial", *UNSEEN])
    del state["backbone.block3.0.conv1.kernel"]
    with pytest.raises(SystemExit, match=r"no kernel of 3 dimensions for .*down_blocks\.2\.0\.conv1"):
        main([str(save_original(source, state)), str(tmp_path / "dest"), *UNSEEN])
    assert not (tmp_path / "dest").exists()


def test_nothing_is_overwritten_and_nothing_half_is_left(make_model, tmp_path, monkeypatch):
    source = save_original(tmp_path / "sv.pth", original_state(make_model()))
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="dest exists; nothing is overwritten"):
        main([str(source), str(dest), *UNSEEN])
    assert [path.name for path in dest.iterdir()] == ["notes.txt"]

    def disk_full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(convert_sv3d, "write_card", disk_full)
    with pytest.raises(SystemExit, match="No space left on device"):
        main([str(source), str(tmp_path / "other"), *UNSEEN])

    def too_late(*_):
        (tmp_path / "other").mkdir()
        return "card"

    monkeypatch.setattr(convert_sv3d, "write_card", too_late)
    with pytest.raises(SystemExit, match="other exists; nothing is overwritten"):
        main([str(source), str(tmp_path / "other"), *UNSEEN])
    assert {path.name for path in tmp_path.iterdir()} == {"sv.pth", "dest", "other"}
    assert not any((tmp_path / "other").iterdir())


def test_sources_that_are_none(make_model, tmp_path):
    def fails(source, message, *options):
        with pytest.raises(SystemExit, match=message):
            main([str(source), str(tmp_path / "dest"), *UNSEEN, *options])
        assert not (tmp_path / "dest").exists()

    fails(tmp_path / "none.pth", r"none\.pth: no such file")
    make_model().save_pretrained(tmp_path / "own")
    fails(tmp_path / "own", "a checkpoint of this package already")
    fails(save_original(tmp_path / "x.pth", {"layer1.weight": torch.zeros(2)}), r"begin with \['layer1'\]")
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 no more")
    fails(tmp_path / "broken.pth", r"broken\.pth")
    good = save_original(tmp_path / "sv.pth", original_state(make_model()))
    fails(good, "repository 'a/b/c'", "--push_to_hub", "a/b/c")


def test_help(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    for word in ("--allow_partial", "--push_to_hub", "SOURCE", "examples:"):
        assert word in text
