"""Every option of the commands that publish and convert reaches what it is for; see `command_options.py`."""

import importlib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from command_options import (
    Command,
    Processor,
    all_options,
    check_no_option_is_left_out,
    check_option_reaches_its_consumer,
    check_the_same_words_give_the_same,
)


def replace_in_push_to_hub(calls):
    calls.replace("evaluation.results.load_results", {"protocol": {"data": "sample"}})
    calls.replace("recipe.reading.load_arguments", SimpleNamespace(data=SimpleNamespace(train="sample")))
    calls.replace("cli.push_to_hub.find_recipe", Path("recipe.yaml"))
    calls.replace("hub.model_card.describe_data")
    for name in ("write_model_release", "write_dataset_release"):
        calls.replace(f"hub.release.{name}", lambda folder, *args, **options: None)
    calls.replace("hub.release.publish", SimpleNamespace(tag="", url="", commit=""))
    # The folder of a run is another one each time.
    calls.patch.setattr(importlib.import_module("tempfile"), "TemporaryDirectory", lambda: nullcontext("folder"))


def replace_in_convert_sv3d(calls):
    report = SimpleNamespace(missing=["a"], mismatched=[], save=lambda path: None)
    calls.replace("io.checkpoint_files.resolve_file", Path("file.pth"))
    calls.replace("io.checkpoint_files.read_state_dict", {})
    calls.replace("weights.sv3d.find_backbone_prefix", "backbone.")
    calls.replace("weights.sv3d.load_sv3d_weights", report)
    calls.replace("cli.convert_sv3d.read_architecture")
    calls.replace("cli.convert_sv3d.find_provenance", SimpleNamespace(source="source"))
    calls.replace("cli.convert_sv3d.write_card", "card")
    calls.replace("modeling_bifusion.BiFusionForInstanceSegmentation", mock.MagicMock())
    preset = calls.function("from_preset", lambda *args, **options: Processor())
    calls.patch.setattr(
        importlib.import_module("bifusion_hf.processing_bifusion").BiFusionProcessor, "from_preset", preset
    )
    calls.replace("hub.release.publish", SimpleNamespace(url="", commit=""))
    calls.replace("hub.release.check_repo_id")


MODEL = ["--metrics", "metrics.json"]
COMMANDS = {
    "push_to_hub": Command(
        replace_in_push_to_hub,
        ["checkpoint", "me/repo"],
        {
            "checkpoint": (["other"], MODEL),
            "repo": (["me/other"], MODEL),
            "--type": (["--type", "dataset"], MODEL),
            "--dry_run": (["--dry_run", "folder"], MODEL),
            "--tag": (["--tag", "v1"], MODEL),
            "--public": (["--public"], MODEL),
            "--message": (["--message", "why"], MODEL),
            "--license": (["--license", "mit"], MODEL),
            "--template": (["--template", "card.md"], MODEL),
            "--metrics": (["--metrics", "other.json"], MODEL),
            "--recipe": (["--recipe", "other.yaml"], MODEL),
            "--picture": (["--picture", "picture.png"], MODEL),
            "--base_model": (["--base_model", "org/base"], MODEL),
            "--training_data": (["--training_data", "Rooms"], MODEL),
            "--training_data_license": (["--training_data_license", "mit"], MODEL),
            "--training_data_id": (["--training_data_id", "org/rooms"], MODEL),
            "--evaluation_data": (["--evaluation_data", "Rooms"], MODEL),
            "--evaluation_data_license": (["--evaluation_data_license", "mit"], MODEL),
            "--evaluation_data_id": (["--evaluation_data_id", "org/rooms"], MODEL),
            "--name": (["--name", "Rooms"], ["--type", "dataset"]),
            "--origin": (["--origin", "rendered"], ["--type", "dataset"]),
        },
        {
            "checkpoint": ["other", "me/repo", "--metrics", "metrics.json"],
            "repo": ["checkpoint", "me/other", "--metrics", "metrics.json"],
            "--type": ["checkpoint", "me/repo", "--type", "dataset"],
        },
    ),
    "convert_sv3d": Command(
        replace_in_convert_sv3d,
        ["source.pth", "dest", "--allow_partial"],
        {
            "source": (["other.pth"], None),
            "dest": (["elsewhere"], None),
            "--revision": (["--revision", "abc"], []),
            "--allow_partial": (["source.pth", "dest"], None),
            "--voxel_size": (["--voxel_size", "0.1"], []),
            "--num_points": (["--num_points", "7"], []),
            "--decoder_attention_heads": (["--decoder_attention_heads", "2"], []),
            "--output": (["source.pth", "--output", "elsewhere", "--allow_partial"], None),
            "--push_to_hub": (["--push_to_hub", "me/repo"], []),
            "--public": (["--public"], ["--push_to_hub", "me/repo"]),
            "--license": (["--license", "mit"], []),
        },
        {"source": ["other.pth", "dest", "--allow_partial"], "dest": ["source.pth", "elsewhere", "--allow_partial"]},
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_looked_at(command):
    check_no_option_is_left_out(command, COMMANDS[command])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_words_give_the_same(tmp_path, monkeypatch, command):
    check_the_same_words_give_the_same(command, COMMANDS[command], tmp_path, monkeypatch)


@pytest.mark.parametrize(("command", "option"), all_options(COMMANDS))
def test_option_reaches_its_consumer(tmp_path, monkeypatch, command, option):
    check_option_reaches_its_consumer(command, COMMANDS[command], option, tmp_path, monkeypatch)
