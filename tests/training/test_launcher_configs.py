"""The files of `configs/accelerate`, read by Accelerate itself and by what it tells the loop."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from training_standin import recipe

from bifusion_hf.training.sharding import Sharding, check_launcher, read_sharding


FOLDER = Path(__file__).parents[2] / "configs" / "accelerate"
# Machines, processes of all, and whether weights are in parts.
FILES = {
    "one_gpu": (1, 1, False),
    "eight_gpus": (1, 8, False),
    "two_nodes": (2, 16, False),
    "eight_gpus_fsdp2": (1, 8, True),
    "two_nodes_fsdp2": (2, 16, True),
}


def launched(name, *words):
    """Options of `accelerate launch` with a file, and the environment that it gives to the processes."""
    words = ["--config_file", str(FOLDER / f"{name}.yaml"), "--main_process_port", "0", *words, "train.py"]
    options, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    return options, prepare_multi_gpu_env(options)


def test_every_file_is_tested():
    assert {path.stem for path in FOLDER.iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_accelerate_reads_it_and_the_loop_takes_what_it_says(tmp_path, monkeypatch, name):
    machines, processes, parts = FILES[name]
    # It refuses keys that it does not know, but not within `fsdp_config`.
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert (config.num_machines, config.num_processes) == (machines, processes)
    known = vars(launch_command_parser().parse_args(["train.py"])).keys()
    assert set(config.fsdp_config) <= known and bool(config.fsdp_config) == parts
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    options, environment = launched(name, *(["--main_process_ip", "10.0.0.1"] if machines == 2 else []))
    assert (options.multi_gpu, options.use_fsdp) == (processes > 1 and not parts, parts)
    assert options.nproc_per_node == str(min(processes, 8))
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    check_launcher()
    # The recipe says what precision and accumulation are.
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in environment
    assert read_sharding(recipe(tmp_path), processes) == (Sharding() if parts else None)


def test_blocks_that_the_command_line_names_are_gathered_one_by_one(tmp_path, monkeypatch):
    words = ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--fsdp_reshard_after_forward", "false"]
    words += ["--fsdp_transformer_layer_cls_to_wrap", "CLIPEncoderLayer, QueryDecoderLayer"]
    for variable, value in launched("eight_gpus_fsdp2", *words)[1].items():
        monkeypatch.setenv(variable, value)
    assert read_sharding(recipe(tmp_path), 8) == Sharding(("CLIPEncoderLayer", "QueryDecoderLayer"), False)
