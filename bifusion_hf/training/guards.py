"""What goes wrong in week-long runs: numbers that are not finite, and memory."""

import contextlib
import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from ..recipe.arguments import TrainingArguments


# Frames among which the largest are looked for.
SIZED_FRAMES = 64


class NonFiniteError(RuntimeError):
    """Too many updates in a row had a loss or gradient that is not finite."""


class OutOfMemoryError(RuntimeError):
    """A batch does not fit memory; the message names it and the settings to change."""


class NonFiniteGuard:
    """Skips updates whose loss or gradient is not finite, or that have no frame, and counts them.

    Args:
        network: Its buffers are put back when an update is skipped: a forward pass with a NaN has written the NaN into
            the running statistics too, which no later update would heal.
        limit: Skipped updates in a row at which the run stops. Those in which fp16 has yet to find its scale do not
            count.
    """

    def __init__(self, network: nn.Module, limit: int):
        self.network = network
        self.limit = limit
        self.skipped = self.in_a_row = 0
        self._reason = self._advice = ""
        self._buffers: list[torch.Tensor] = []

    def remember(self) -> None:
        """Keeps the buffers as they are before the forward pass."""
        self._buffers = [buffer.clone() for buffer in self.network.buffers()]

    def accept(self, values: Mapping[str, float], scaler: torch.amp.GradScaler | None = None) -> bool:
        """Whether an update may be made; if not, the buffers are put back.

        Args:
            values: Loss terms and `grad_norm`, the same in every process.
            scaler: Of fp16. A scale above 1 may be why a gradient is not finite; the scaler then halves it.
        """
        wild = {name: value for name, value in values.items() if not math.isfinite(value)}
        if not wild:
            self.in_a_row = 0
            return True
        with torch.no_grad():
            for buffer, before in zip(self.network.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
        scale = 1.0 if scaler is None else scaler.get_scale()
        if set(wild) == {"grad_norm"} and scale > 1:
            self.skipped += 1
            self._reason = f"the gradients overflow float16 at a scale of {scale:g}, which is halved"
        else:
            numbers = ", ".join(f"{name} {value:g}" for name, value in wild.items())
            advice = "a lower optimizer.learning_rate or a lower optimizer.max_grad_norm, or bf16 in place of fp16"
            self._count(f"{numbers}, not finite", advice)
        return False

    def pass_over(self) -> None:
        """Counts an update without a frame that can be read."""
        self._count("none of its frames can be read", "frames that are whole: so many broken ones are no accident")

    def _count(self, reason: str, advice: str) -> None:
        self.skipped += 1
        self.in_a_row += 1
        self._reason, self._advice = reason, advice

    def report(self, update: int, frames: Sequence[str]) -> str:
        """A line about the update that was skipped.

        Raises:
            NonFiniteError: It was the last one allowed in a row.
        """
        message = f"update {update}: {self._reason}" + (f"; frames {', '.join(frames)}" if frames else "")
        if self.in_a_row >= self.limit:
            raise NonFiniteError(
                f"{message}. That is {self.in_a_row} updates in a row (training.max_nonfinite_updates). Try "
                f"{self._advice}"
            )
        return f"{message}. Update skipped, {self.skipped} so far"


@contextlib.contextmanager
def preserved_buffers(network: nn.Module) -> Iterator[None]:
    """Puts the buffers back after the context: a trial pass leaves no trace in the running statistics."""
    before = [buffer.clone() for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), before, strict=True):
                buffer.copy_(value)


def explain_out_of_memory(error: Exception, batch: Mapping[str, Any], training: TrainingArguments) -> None:
    """Raises an error that helps, if `error` is about memory; otherwise returns.

    Raises:
        OutOfMemoryError: Names the batch and the settings to change.
    """
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not should_reduce_batch_size(error):
        return
    shapes = {
        name: list(value.shape)
        for name, value in batch.items()
        if isinstance(value, torch.Tensor) and name in ("points", "pixel_values")
    }
    superpoints = int(batch["superpoint_ids"].max()) + 1 if "superpoint_ids" in batch else "?"
    raise OutOfMemoryError(
        f"out of memory in a batch of {shapes}, up to {superpoints} superpoints, frames "
        f"{', '.join(batch.get('frame_ids', []))}. What needs less: training.batch_size {training.batch_size} -> "
        f"{max(1, training.batch_size // 2)} with training.accumulation {training.accumulation} -> "
        f"{2 * training.accumulation} (the same update), or training.find_batch_size; "
        "training.gradient_checkpointing; training.mixed_precision bf16; model.processor.num_points; on a GPU "
        "training.empty_cache_every 1"
    ) from error


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
