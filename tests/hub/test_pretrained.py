"""Checkpoints by name, in Python as in the commands."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.assets import SAMPLE_CHECKPOINT
from bifusion_hf.cli import predict
from bifusion_hf.hub.pretrained import load_pretrained
from bifusion_hf.recipe.arguments import ModelArguments
from bifusion_hf.training.run import build_model, build_processor


def test_the_packages_own_checkpoint_by_its_name():
    model = BiFusionForInstanceSegmentation.from_pretrained("sample")
    config, processor = BiFusionConfig.from_pretrained("sample"), BiFusionProcessor.from_pretrained("sample")
    assert config.to_dict() == BiFusionConfig.from_pretrained(SAMPLE_CHECKPOINT).to_dict()
    assert processor.to_dict() == BiFusionProcessor.from_pretrained(SAMPLE_CHECKPOINT).to_dict()
    arguments = ModelArguments(pretrained="sample")
    built = build_model(arguments, 0)
    assert build_processor(arguments, built.config).to_dict() == processor.to_dict()
    expected = model.state_dict()
    assert all(value.equal(expected[name]) for name, value in built.state_dict().items())


def test_weights_that_are_not_complete(tmp_path):
    folder = shutil.copytree(SAMPLE_CHECKPOINT, tmp_path / "incomplete")
    tensors = load_file(folder / "model.safetensors")
    del tensors["decoder.out_norm.weight"], tensors["decoder.key_norm.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="incomplete: 2 tensors .* decoder.key_norm.bias, decoder.out_norm.weight$"):
        load_pretrained(folder)


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"has no config.json, as checkpoints have; it has \['model.safe"):
        load_pretrained(tmp_path)


def test_a_checkpoint_that_is_nowhere_is_told_before_the_hub_is_asked(tmp_path, monkeypatch):
    asked = []

    def ask(name, **_options):
        asked.append(name)
        raise OSError("no such repository")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BiFusionForInstanceSegmentation, "from_pretrained", ask)
    with pytest.raises(SystemExit, match="error: nowhere: no such folder, and no id of the Hub"):
        predict.main(["--data", "sample", "--checkpoint", "nowhere", "--output", "out"])
    assert not asked
    with pytest.raises(OSError, match="^runs/best: there is no such folder, and from the Hub: no such repository"):
        load_pretrained("runs/best")
