"""Checkpoints that survive a kill, a full disk and a change of the number of processes.

They hold whole tensors, whatever the processes share.

A checkpoint is written into a hidden folder and renamed when it is complete, so that a folder named `checkpoint-N` is
always whole; one that is deleted is renamed away first. It holds what Accelerate saves (model, optimizer, schedule,
scaler, random state of every process) plus `trainer_state.json`, and it loads with `from_pretrained`.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ..io.atomic import (
    WriteError,
    delete_folder,
    disk_space,
    new_folder,
    partial_path,
    publish_folder,
    remove_unfinished,
)
from .sharding import has_parts, load_whole_state, whole, whole_state


WEIGHTS_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read."""


def checkpoint_folder(root: Path, update: int) -> Path:
    """Where the checkpoint of an update is kept."""
    return root / f"checkpoint-{update:07d}"


def list_checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints below `root`, the oldest first."""
    return sorted((path for path in root.glob("checkpoint-*") if _NAME.fullmatch(path.name)), key=update_of)


def update_of(checkpoint: Path) -> int:
    """The update after which a checkpoint was written, by its name; 0 for a folder of another name."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match.group(1)) if match else 0


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`trainer_state.json` of a checkpoint.

    Raises:
        CheckpointError: The folder is no checkpoint.
    """
    path = checkpoint / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"{checkpoint} is no checkpoint: it has no {STATE_FILE}")
    return json.loads(path.read_text(encoding="utf-8"))


def check_same_run(checkpoint: Path, state: dict[str, Any], total_updates: int, frames_per_update: int) -> None:
    """Makes sure that a run is as long, and takes as many frames an update, as the one that wrote a checkpoint.

    Raises:
        ValueError: It is not.
    """
    for name, here in (("total_updates", total_updates), ("frames_per_update", frames_per_update)):
        if state[name] != here:
            raise ValueError(
                f"{checkpoint} has {name} {state[name]}, this run {here}; keep it (with another number of processes "
                "by training.batch_size or training.accumulation)"
            )


def checkpoints_folder(output_dir: str | Path) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(output_dir) / "checkpoints"


def register_weights(accelerator: Accelerator, network: nn.Module, average: nn.Module | None, processor: Any) -> None:
    """Makes Accelerate's checkpoints hold the network as `save_pretrained` would, loadable with `from_pretrained`.

    Accelerate's own file has "module." in front of the names under DistributedDataParallel, and no configuration.

    Args:
        accelerator: Of the run.
        network: The network, unwrapped.
        average: Its moving average, or None.
        processor: Saved beside it, or None.
    """
    modules = {WEIGHTS_FILE: network} if average is None else {WEIGHTS_FILE: network, EMA_FILE: average}

    def write(states: dict[str, dict[str, torch.Tensor]], folder: Path) -> None:
        for name, state in states.items():
            tensors = {key: value.contiguous() for key, value in state.items()}
            save_file(tensors, folder / name, metadata={"format": "pt"})
        network.config.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)

    def save(models: list, weights: list, folder: str) -> None:
        weights.clear()
        states = {name: whole_state(module) for name, module in modules.items()}
        if any(map(has_parts, network.parameters())):
            # Where it fails, the others must not go on to gather the optimizer's state.
            in_main_process(accelerator, lambda: write(states, Path(folder)))
        elif accelerator.is_main_process:
            write(states, Path(folder))

    def load(models: list, folder: str) -> None:
        models.clear()
        for name, module in modules.items():
            load_whole_state(module, load_file(Path(folder) / name, backend="pread"))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


@torch.no_grad()
def network_to_keep(
    network: nn.Module, average: AveragedModel | None, accelerator: Accelerator, copy: nn.Module | None = None
) -> nn.Module:
    """The (averaged) network that is evaluated and saved, the same in every process; all of them call this together.

    Args:
        network: The network, unwrapped; its buffers become those of the first process.
        average: Its moving average, which gets the network's buffers, or None.
        accelerator: Of the run.
        copy: Of a network in parts: a whole one, which takes the weights, and which each process can call alone.
    """
    if accelerator.num_processes > 1:
        # Without SyncBatchNorm each process has running statistics of its own; the first one's are saved.
        for buffer in network.buffers():
            buffer.copy_(broadcast(buffer))
    trained = network if average is None else average.module
    kept = trained if copy is None else copy
    if copy is not None:
        for parameter, value in zip(copy.parameters(), trained.parameters(), strict=True):
            parameter.copy_(whole(value))
    # Weights are averaged, buffers are not: progress and statistics are those of now. The average's own are from
    # before the last update, and each process's own.
    for module in (trained, kept):
        for own, buffer in zip(module.buffers(), network.buffers(), strict=True):
            own.copy_(buffer)
    return kept


def save_checkpoint(
    accelerator: Accelerator,
    root: Path,
    update: int,
    write: Callable[[Path], None],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Writes a checkpoint, all processes together, and deletes the oldest ones above `keep`.

    Args:
        accelerator: Of the run.
        root: Folder of the run's checkpoints.
        update: Finished optimizer updates.
        write: Writes everything but `trainer_state.json` into the folder that it is given; called in every process.
        state: Content of `trainer_state.json`.
        keep: How many checkpoints remain.

    Raises:
        CheckpointError: Writing failed in a process (a full disk, ...); the earlier checkpoints are intact.
    """
    final = checkpoint_folder(root, update)
    partial = partial_path(final, shared=True)

    def write_part() -> None:
        write(partial)
        if accelerator.is_main_process:
            (partial / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")

    def put_in_place() -> None:
        publish_folder(partial, final, replace=True, durable=True)
        for old in list_checkpoints(root)[:-keep]:
            delete_folder(old)

    def clear() -> None:
        if accelerator.is_local_main_process:
            remove_unfinished(root)

    errors = failures(accelerator, clear)
    # A second node may not have the folder yet.
    errors = errors or failures(accelerator, lambda: partial.mkdir(parents=True, exist_ok=True))
    errors = errors or failures(accelerator, write_part)
    errors = errors or failures(accelerator, put_in_place, main_only=True)
    if errors:
        message = _failure(root, update, "; ".join(errors), partial)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(message)
    return final


def failures(accelerator: Accelerator, action: Callable[[], None], *, main_only: bool = False) -> list[str]:
    """Does something in all processes, and tells each of them what went wrong in any.

    An error that one process alone knows of would let the others wait for it for ever.

    Args:
        accelerator: Of the run.
        action: What is done.
        main_only: The others only wait for the main process.

    Returns:
        A line for each process in which it failed.
    """
    error = None
    if accelerator.is_main_process or not main_only:
        try:
            action()
        except Exception as exception:
            error = f"process {accelerator.process_index}: {type(exception).__name__}: {exception}"
    return [message for message in gather_object([error]) if message]


def in_main_process(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Does something in the main process alone; where it fails there, all processes stop.

    Raises:
        CheckpointError: It failed.
    """
    errors = failures(accelerator, action, main_only=True)
    if errors:
        raise CheckpointError("; ".join(errors))


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder's new content beside it and then swaps both, so that a kill leaves one of them whole.

    Raises:
        CheckpointError: Writing failed; the old content is intact.
    """
    try:
        with new_folder(folder, replace=True, durable=True) as partial:
            write(partial)
    except WriteError as error:
        raise CheckpointError(str(error)) from error
    except Exception as error:
        message = f"could not write {folder}: {disk_space(folder)} ({type(error).__name__}: {error})"
        raise CheckpointError(message) from error


def _failure(root: Path, update: int, errors: str, partial: Path) -> str:
    checkpoints = list_checkpoints(root)
    last = f"the last complete one is {checkpoints[-1]}" if checkpoints else "there is no earlier one"
    return (
        f"could not write the checkpoint of update {update} to {root}: {disk_space(partial)}; {last}. Make room and "
        f"resume with --resume_from_checkpoint latest. ({errors})"
    )
