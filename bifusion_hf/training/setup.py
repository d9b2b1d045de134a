"""Accelerator and network as a recipe wants them."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    LoggerType,
    parse_flag_from_env,
    patch_environment,
)
from torch import nn
from torch._functorch import config as functorch_config

from ..layers.bfloat16 import slow_bfloat16_warning
from ..recipe.arguments import TrainingArguments
from .freezing import TOWER, freeze_for_training
from .sharding import check_launcher


logger = logging.getLogger(__name__)


def build_accelerator(
    training: TrainingArguments, output_dir: str | Path, trackers: Sequence[str] = (), deterministic: bool = False
) -> Accelerator:
    """The Accelerator of a run.

    Args:
        training: Section of the recipe.
        output_dir: Folder of the run; trackers write there.
        trackers: Of `logging.trackers`.
        deterministic: Of the recipe; holds for the process.

    Raises:
        ValueError: fp16 on a CPU, more processes than GPUs, a setting of `accelerate launch` that contradicts the
            recipe or that the loop cannot follow, or an unknown tracker.
        ImportError: A tracker that is not installed.
    """
    _check_launcher("ACCELERATE_MIXED_PRECISION", "training.mixed_precision", training.mixed_precision, "no")
    _check_launcher("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "training.accumulation", training.accumulation, "1")
    check_launcher()
    # `fsdp_config` is for `sharding` to read; Accelerate would follow it in its own way.
    with patch_environment(ACCELERATE_USE_FSDP="false"):
        accelerator = launched_accelerator(
            training.mixed_precision,
            # The loop accumulates itself: the counts of a whole window must be known before its first backward.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            # Schedules count updates, not frames: they do not depend on the number of processes.
            step_scheduler_with_optimizer=False,
            log_with=_trackers(trackers) or None,
            project_dir=str(output_dir),
            # Every branch of the network always takes part, so there are no unused parameters to look for.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=False)],
        )
    if training.mixed_precision == "bf16" and accelerator.device.type == "cpu":
        warning = slow_training_warning()
        if warning:
            logger.warning(warning)
    if deterministic:
        # cuBLAS reads it when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return accelerator


def launched_accelerator(mixed_precision: str | None, *, cpu: bool = False, **options: Any) -> Accelerator:
    """An Accelerator of all processes that were launched, on a machine without GPU too.

    Args:
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`; None = Accelerate's setting.
        cpu: Stay on the CPU.
        options: For `Accelerator`.

    Raises:
        ValueError: fp16 on a CPU, or more processes than GPUs.
    """
    if not cpu:
        _check_devices()
    # Without it Accelerate ignores torchrun on a machine without GPU: N processes that each do everything alone.
    cpu = cpu or not torch.accelerator.is_available()
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=cpu, **options)
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise ValueError(f"{launched} processes were launched, but Accelerate runs {accelerator.num_processes}")
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            "mixed_precision fp16 needs a GPU: on a CPU Accelerate would silently compute in float32; use bf16"
        )
    return accelerator


def slow_training_warning() -> str:
    """What to tell a run with bf16 on this CPU; see `slow_bfloat16_warning`."""
    return slow_bfloat16_warning("training.mixed_precision bf16", "--training.mixed_precision no trains faster")


def _check_launcher(variable: str, key: str, value: object, neutral: str) -> None:
    launched = os.environ.get(variable, neutral)
    if launched not in (neutral, str(value)):
        raise ValueError(
            f"accelerate launch sets {variable}={launched}, the recipe has {key} {value}; say it in one place"
        )


def _check_devices() -> None:
    processes, devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.accelerator.device_count()
    if 0 < devices < processes and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise ValueError(
            f"{processes} processes were launched on a machine with {devices} GPUs: launch one for each GPU, or stay "
            "on the CPU with ACCELERATE_USE_CPU=true"
        )


def _trackers(names: Sequence[str]) -> list[LoggerType]:
    known = [kind.value for kind in LoggerType if kind.value != "all"]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"logging.trackers has no {', '.join(unknown)}; Accelerate knows {known}")
    available = {kind.value for kind in get_available_trackers()}
    missing = [name for name in names if name not in available]
    if missing:
        raise ImportError(f"logging.trackers: {', '.join(missing)} not installed; pip install {' '.join(missing)}")
    return [LoggerType(name) for name in names]


def prepare_network(model: nn.Module, training: TrainingArguments, accelerator: Accelerator) -> nn.Module:
    """Freezes what configuration and recipe freeze, and applies gradient checkpointing.

    Returns:
        The network, on its device, not yet wrapped for several processes.
    """
    freeze_for_training(model, training)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.to(accelerator.device)


def shares_batch_statistics(training: TrainingArguments, accelerator: Accelerator) -> bool:
    """Whether batch normalisation sees the frames of all processes: on several GPUs; PyTorch has it for no CPU."""
    several_gpus = accelerator.num_processes > 1 and accelerator.device.type == "cuda"
    return training.sync_batch_norm and several_gpus


def compile_dense_parts(model: nn.Module) -> list[str]:
    """`torch.compile`s the image tower and the decoder layers, in place.

    The rest is ragged: its shapes, and decisions on the host, change with every batch, so that it would be compiled
    anew all the time.

    Returns:
        Names of the compiled modules.

    Raises:
        ValueError: The model has none of them.
    """
    names = [name for name, _ in model.named_modules() if name == TOWER or re.fullmatch(r"decoder\.layers\.\d+", name)]
    if not names:
        raise ValueError(f"training.compile: {type(model).__name__} has neither {TOWER} nor decoder.layers")
    # The audit measures the gradients of single loss terms, for which the graph has to be kept.
    functorch_config.donated_buffer = False
    for name in names:
        # Images have one size; superpoints and queries differ in number.
        model.get_submodule(name).compile(dynamic=name != TOWER)
    return names
