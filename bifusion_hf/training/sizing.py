"""The batch size that fits memory (`training.find_batch_size`)."""

import heapq
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size

from .guards import OutOfMemoryError


# Frames among which the largest are looked for.
SIZED_FRAMES = 64


def fitting_batch_size(
    accelerator: Accelerator,
    trial: Callable[[list[Any]], None],
    dataset: Any,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    frames_per_process: int,
) -> int:
    """The largest batch size that fits beside all that optimizer and processes will hold.

    Args:
        accelerator: Of the run.
        trial: Forward and backward pass of samples, in this process alone: passes of shared batch statistics would
            wait for a process that is out of memory.
        dataset: Map-style, indexed by (epoch, row).
        optimizer: AdamW over all that trains.
        batch_size: Largest size to try.
        frames_per_process: See `largest_batch_size`.

    Raises:
        OutOfMemoryError: Not even one frame fits.
    """
    samples = largest_samples(dataset, batch_size)
    # The two moments of AdamW, and where the gradients are added up over processes.
    copies = 2 + (accelerator.num_processes > 1)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    reserved = [torch.zeros_like(parameter) for parameter in trained for _ in range(copies)]
    size = largest_batch_size(accelerator, lambda size: trial(samples[:size]), batch_size, frames_per_process)
    del reserved
    return size


def largest_samples(dataset: Any, count: int) -> list[Any]:
    """Samples that need more memory than most: the largest among some that are spread over a data set.

    The largest tensors of a pass are masks of superpoints over points.

    Args:
        dataset: Map-style, indexed by (epoch, row); None stands for a broken row.
        count: How many; where the data set has fewer, some of them again.

    Raises:
        ValueError: All rows that were looked at are broken.
    """
    rows = torch.linspace(0, len(dataset) - 1, max(count, SIZED_FRAMES)).long().unique().tolist()
    samples = (sample for sample in (dataset[0, row] for row in rows) if sample is not None)
    found = heapq.nlargest(count, samples, key=_mask_size)
    if not found:
        raise ValueError(f"training.find_batch_size: all {len(rows)} frames that were looked at are broken")
    return [found[index % len(found)] for index in range(count)]


def _mask_size(sample: Mapping[str, Any]) -> int:
    if "frames" in sample:
        return sum(map(_mask_size, sample["frames"]))
    superpoints = int(sample["superpoint_ids"].max()) + 1 if "superpoint_ids" in sample else 1
    return superpoints * len(sample["points"])


def largest_batch_size(
    accelerator: Accelerator, trial: Callable[[int], None], batch_size: int, frames_per_process: int
) -> int:
    """The largest batch size that runs in every process and divides the frames of an update.

    Args:
        accelerator: Of the run.
        trial: One forward and backward pass with a batch size; raises an out-of-memory error where it does not fit.
        batch_size: Largest size to try.
        frames_per_process: Frames of an update in one process; sizes that do not divide it would change the update.

    Returns:
        The size; accumulation is then `frames_per_process // size`.

    Raises:
        OutOfMemoryError: Not even one frame fits.
    """
    sizes = [size for size in range(batch_size, 0, -1) if frames_per_process % size == 0]
    position = 0

    def smaller() -> int:
        nonlocal position
        position += 1
        return sizes[position] if position < len(sizes) else 0

    @find_executable_batch_size(starting_batch_size=sizes[0], reduce_batch_size_fn=smaller)
    def run(size: int) -> int:
        trial(size)
        return size

    try:
        found = run()
    except RuntimeError as error:
        if "No executable batch size found" not in str(error):
            raise
        found = 0
    sizes_found = accelerator.gather(torch.tensor([found], device=accelerator.device))
    if int(sizes_found.min()) == 0:
        raise OutOfMemoryError(
            "not even one frame fits memory; lower model.processor.num_points, or use "
            "training.gradient_checkpointing or training.mixed_precision bf16"
        )
    return int(sizes_found.min())
