"""The Accelerator and the network that a recipe makes, with stand-ins for both."""

import logging
import os
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import LoggerType, parse_flag_from_env
from torch import nn
from torch._functorch import config as functorch_config
from training_standin import recipe

from bifusion_hf.training import setup
from bifusion_hf.training.freezing import TOWER


@pytest.fixture
def build(monkeypatch):
    """Factory: the arguments with which the Accelerator of a recipe's training is made."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(setup, "slow_bfloat16_warning", lambda key, remedy: f"{key} is slow; {remedy}")

    def make(training, device="cpu", **options):
        made = []

        def launch(*given, **settings):
            made.append((given, settings, parse_flag_from_env("ACCELERATE_USE_FSDP")))
            return SimpleNamespace(device=torch.device(device))

        monkeypatch.setattr(setup, "launched_accelerator", launch)
        setup.build_accelerator(recipe("run", training=training).training, "run", **options)
        (found,) = made
        return found

    return make


def test_the_loop_accumulates_and_schedules_itself(build, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(setup, "get_available_trackers", lambda: [LoggerType.TENSORBOARD, LoggerType.AIM])
    given, options, is_sharded_by_accelerate = build({"accumulation": 3}, trackers=["tensorboard", "aim"])
    assert given == ("no",) and not is_sharded_by_accelerate
    assert options.pop("gradient_accumulation_plugin").num_steps == 1
    (handler,) = options.pop("kwargs_handlers")
    assert not handler.find_unused_parameters
    trackers = [LoggerType.TENSORBOARD, LoggerType.AIM]
    assert options == {"step_scheduler_with_optimizer": False, "log_with": trackers, "project_dir": "run"}
    assert build({})[1]["log_with"] is None


@pytest.mark.parametrize(
    ("precision", "device", "warned"), [("bf16", "cpu", 1), ("no", "cpu", 0), ("bf16", "meta", 0)]
)
def test_only_bf16_on_a_cpu_is_slow(build, caplog, precision, device, warned):
    caplog.set_level(logging.WARNING)
    build({"mixed_precision": precision}, device)
    expected = "training.mixed_precision bf16 is slow; --training.mixed_precision no trains faster"
    assert caplog.messages == [expected] * warned


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_deterministic_holds_for_all_that_draws_or_chooses(build, monkeypatch, workspace):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    if workspace:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    build({})
    assert torch.backends.cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == workspace
    try:
        build({}, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        # What is set already is left as it is.
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (workspace or ":4096:8")
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_a_launcher_that_says_the_same_is_fine(build, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    assert build({"mixed_precision": "bf16", "accumulation": 3})[0] == ("bf16",)
    # Its own defaults say nothing.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    assert build({"mixed_precision": "bf16", "accumulation": 3})[0] == ("bf16",)


@pytest.mark.parametrize(
    ("asked", "there", "expected"), [(False, True, False), (False, False, True), (True, True, True)]
)
def test_without_a_gpu_the_cpu_takes_all_processes(monkeypatch, asked, there, expected):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: int(there))
    # More processes than GPUs are no matter to those that stay on the CPU.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2" if asked else "1")
    device = torch.device("meta")
    monkeypatch.setattr(
        setup,
        "Accelerator",
        lambda cpu, **_: SimpleNamespace(num_processes=1, mixed_precision="fp16", device=device, cpu=cpu),
    )
    assert setup.launched_accelerator("fp16", cpu=asked).cpu is expected


def test_checkpointed_networks_are_frozen_and_differentiated_without_reentering():
    network, asked = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), []
    network.config = SimpleNamespace()
    network.gradient_checkpointing_enable = asked.append
    accelerator = SimpleNamespace(device=torch.device("meta"))
    training = recipe("run", training={"freeze": ["0"]}).training
    prepared = setup.prepare_network(network, training, accelerator)
    assert prepared is network and not asked and network[1].weight.device.type == "meta"
    assert [parameter.requires_grad for parameter in network.parameters()] == [False, False, True, True]
    training.gradient_checkpointing = True
    setup.prepare_network(network, training, accelerator)
    assert asked == [{"use_reentrant": False}]


def test_a_network_without_dense_parts_is_not_compiled(monkeypatch):
    monkeypatch.setattr(functorch_config, "donated_buffer", True)
    monkeypatch.setattr(nn.Module, "compile", lambda self, dynamic: None)
    with pytest.raises(ValueError, match=f"training.compile: Linear has neither {TOWER} nor decoder.layers"):
        setup.compile_dense_parts(nn.Linear(1, 1))
    assert functorch_config.donated_buffer
    network = nn.ModuleDict({"decoder": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(1, 1)])})})
    assert setup.compile_dense_parts(network) == ["decoder.layers.0"]
    # A graph that is kept for a second pass gives no buffer away.
    assert not functorch_config.donated_buffer
