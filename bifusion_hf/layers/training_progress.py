"""How far training is, as part of the network: the gate's warm-up and the stages of the losses follow it."""

import torch
from torch import nn


# Buffer -> its name in release 0.1, where both lay in `BiFusionModel` itself.
OLD_BUFFERS = {"update": "training_update", "total": "training_total"}


class TrainingProgress(nn.Module):
    """Optimizer updates done and planned, in buffers that are saved with the weights; -1: never told.

    A module of its own, because Accelerate finds no device for a buffer of a module that it splits.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("update", torch.tensor(-1))
        self.register_buffer("total", torch.tensor(-1))

    def set(self, update: int, total: int) -> None:
        """Fills the buffers.

        Raises:
            ValueError: `update` is negative or beyond `total`.
        """
        if not 0 <= update <= total:
            raise ValueError(f"update must lie in 0..{total}, got {update}")
        self.update.fill_(update)
        self.total.fill_(total)

    def fraction(self) -> float | None:
        """Fraction of the updates done, or None where nobody said."""
        # One transfer for both.
        update, total = torch.stack([self.update, self.total]).tolist()
        return None if update < 0 else update / max(total, 1)

    def forward(self, warmup_steps: int) -> torch.Tensor:
        """bool []: training is within its first `warmup_steps` updates; False where nobody said."""
        return (self.update >= 0) & (self.update < warmup_steps)


def rename_old_buffers(module: nn.Module, state_dict: dict, prefix: str, *unused) -> None:
    """Pre-hook of `load_state_dict` for the module that has a `training_progress`: reads the names of release 0.1."""
    for name, old in OLD_BUFFERS.items():
        if f"{prefix}{old}" in state_dict:
            state_dict[f"{prefix}training_progress.{name}"] = state_dict.pop(f"{prefix}{old}")
