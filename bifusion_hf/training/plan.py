"""What a run will do, without doing it (`--dry_run`)."""

import itertools
from collections.abc import Callable

import torch

from ..losses.schedule import STAGE_ENDS
from .audit import TABLE_DEPTH
from .optimization import learning_rate_factor, parameter_groups
from .trainer import BiFusionTrainer


SCHEDULE_POINTS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def describe_plan(trainer: BiFusionTrainer) -> str:
    """Steps, schedules, parameter groups and memory of a run, as text.

    Runs one batch forward and backward, to measure what the first keeps for the second.
    """
    return "\n\n".join([_steps(trainer), _schedule(trainer), _groups(trainer), _modules(trainer), _memory(trainer)])


def _steps(trainer: BiFusionTrainer) -> str:
    arguments, total = trainer.arguments, trainer.total_updates
    epochs = "" if trainer.updates_per_epoch is None else f", {trainer.updates_per_epoch} in an epoch"
    data, units = arguments.data, "frames" if arguments.data.window_frames is None else "scenes"
    frames = "streamed" if data.streaming else f"{len(trainer.train_dataset)} {units}"
    accelerator = trainer.accelerator
    lines = [
        f"{total} updates{epochs}; {frames} of {data.train}",
        f"{data.unit} of an update: {trainer.frames_per_update} = {trainer.batch_size} x {trainer.accumulation} "
        f"accumulated x {accelerator.num_processes} processes",
        f"device {accelerator.device}, mixed precision {accelerator.mixed_precision}",
    ]
    for name, cadence in (("evaluation", arguments.evaluation), ("checkpoint", arguments.checkpoints)):
        every = cadence.every_updates or cadence.every_epochs * (trainer.updates_per_epoch or 0)
        lines.append(f"{name}: " + (f"every {every} updates and after the last" if every else "after the last update"))
    return "\n".join(lines)


def _schedule(trainer: BiFusionTrainer) -> str:
    arguments, config, total = trainer.arguments, trainer.network.config, trainer.total_updates
    lines = ["update   learning rate"]
    for fraction in SCHEDULE_POINTS:
        update = int(fraction * total)
        rate = arguments.optimizer.learning_rate * learning_rate_factor(update, total, arguments.optimizer)
        lines.append(f"{update:>6}   {rate:.3e}")
    warmup = getattr(config, "gate_warmup_steps", 0)
    if warmup:
        note = "; LONGER THAN THE RUN: alpha stays 0.5" if warmup >= total else ""
        lines.append(f"gate held at 0.5 for {warmup} updates{note}")
    stages = config.loss_config.stage_schedule if hasattr(config, "loss_config") else "none"
    if stages != "none":
        first, second = STAGE_ENDS
        changes = _first_update(total, lambda progress: progress >= first), _first_update(total, lambda p: p > second)
        lines.append(f"loss stages ({stages}) change at updates {changes[0]}, {changes[1]}")
    for name, start in arguments.training.unfreeze_at.items():
        begin = _first_update(total, lambda progress, start=start: progress >= start)
        lines.append(f"{name} starts to train at update {begin}")
    return "\n".join(lines)


def _first_update(total: int, has_begun: Callable[[float], bool]) -> int:
    """Finished updates from which on `has_begun` of the progress holds, as it does at the end."""
    return next(update for update in range(total + 1) if has_begun(update / total))


def _groups(trainer: BiFusionTrainer) -> str:
    arguments = trainer.arguments
    lines = ["parameter group       tensors   parameters   learning rate   weight decay"]
    for group in parameter_groups(trainer.network, arguments.optimizer, list(arguments.training.unfreeze_at)):
        size = sum(parameter.numel() for parameter in group["params"])
        lines.append(
            f"{group['name']:<20}  {len(group['params']):>7}  {size:>11,}   {group['lr']:>13.1e}   "
            f"{group['weight_decay']:>12g}"
        )
    return "\n".join(lines)


def _modules(trainer: BiFusionTrainer) -> str:
    sizes: dict[str, list[int]] = {}
    for name, parameter in trainer.network.named_parameters():
        row = sizes.setdefault(".".join(name.split(".")[:-1][: TABLE_DEPTH - 1]) or name, [0, 0])
        row[0] += parameter.numel()
        row[1] += parameter.numel() if parameter.requires_grad else 0
    width = max(len(name) for name in sizes)
    lines = [f"{'module':<{width}}   parameters    trainable"]
    lines += [f"{name:<{width}}  {size:>11,}  {trainable:>11,}" for name, (size, trainable) in sizes.items()]
    total, trainable = (sum(row[column] for row in sizes.values()) for column in (0, 1))
    return "\n".join([*lines, f"{'all':<{width}}  {total:>11,}  {trainable:>11,}"])


def _memory(trainer: BiFusionTrainer) -> str:
    parameters = list(trainer.network.parameters())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    trainable = sum(
        parameter.numel() * parameter.element_size() for parameter in parameters if parameter.requires_grad
    )
    # Gradient, and the two moments of AdamW.
    state = 3 * trainable + (weights if trainer.ema is not None else 0)
    activations = saved_bytes(trainer)
    total = weights + state + activations
    return (
        f"memory of one process, estimated: weights {weights / 2**20:.0f} MiB, gradients and optimizer "
        f"{state / 2**20:.0f} MiB, kept for the backward pass {activations / 2**20:.0f} MiB (measured on the first "
        f"batch); together {total / 2**30:.2f} GiB, and the working memory of the largest layer"
    )


def saved_bytes(trainer: BiFusionTrainer) -> int:
    """Bytes that a forward pass of the first batch keeps for its backward pass, without the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in trainer.network.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.trial(_first_samples(trainer))
    return sum(storages.values())


def _first_samples(trainer: BiFusionTrainer) -> list:
    """Samples for a batch: of the first rows that are not broken."""
    dataset = trainer.train_dataset
    rows = iter(dataset) if trainer.arguments.data.streaming else (dataset[0, row] for row in range(len(dataset)))
    samples = list(itertools.islice((sample for sample in rows if sample is not None), trainer.batch_size))
    if not samples:
        raise ValueError("all training frames are broken: there is no batch to measure")
    return samples
