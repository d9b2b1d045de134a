"""A convolution followed by normalisation, a shortcut and a rectifier, in one pass where nothing needs a gradient."""

from dataclasses import dataclass, replace

import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class Finish:
    """What a convolution's outputs still go through: outputs * scale + shift + shortcut, rectified or not.

    Args:
        scale: float32 [C].
        shift: float32 [C].
        shortcut: [V, C] in the outputs' dtype, or None.
        is_rectified: Whether negative results become 0.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    shortcut: torch.Tensor | None
    is_rectified: bool

    @classmethod
    def of(cls, norm: nn.BatchNorm1d, shortcut: torch.Tensor | None, is_rectified: bool) -> "Finish":
        """A batch normalisation in evaluation mode, with its running statistics."""
        scale = norm.weight.float() * torch.rsqrt(norm.running_var.float() + norm.eps)
        return cls(scale, norm.bias.float() - norm.running_mean.float() * scale, shortcut, is_rectified)

    def repeated(self, times: int) -> "Finish":
        """The same for so many groups of C channels side by side; without a shortcut."""
        return replace(self, scale=self.scale.repeat(times), shift=self.shift.repeat(times))


def can_finish(norm: nn.Module) -> bool:
    """Whether a `Finish` stands for this normalisation at this moment: nothing is learnt, nothing is traced."""
    return (
        isinstance(norm, nn.BatchNorm1d)
        and norm.affine
        and norm.running_mean is not None
        and not (norm.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
    )
