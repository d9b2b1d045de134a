"""What goes wrong in week-long runs: numbers that are not finite, and memory."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from ..recipe.arguments import TrainingArguments
from ..stopping import SIGNALS


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


def signal_of_any(number: int, accelerator: Accelerator) -> int | None:
    """The signal that a process has got; all processes call this together.

    Args:
        number: What this one has, 0 for none.
        accelerator: Of the run.
    """
    noted = torch.tensor([number == known for known in SIGNALS], device=accelerator.device)
    found = accelerator.reduce(noted.long(), "sum").tolist()
    return next((known for known, count in zip(SIGNALS, found, strict=True) if count), None)


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
