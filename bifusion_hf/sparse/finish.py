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

    def repeated(self, times: int) -> "Finish":
        """The same for so many groups of C channels side by side; without a shortcut."""
        return replace(self, scale=self.scale.repeat(times), shift=self.shift.repeat(times))


class VoxelBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over voxels.

    A level that holds a single voxel has no variance: in training it is normalised with the running statistics, and
    leaves them as they are, instead of ending the run.
    """

    def forward(self, features: torch.Tensor | None) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Normalised features [V, C]; None asks for the float32 scale and shift, [C] each, that stand for evaluation.

        The kernel that finishes a convolution needs those, and takes them by a call, not from the weights: what keeps
        weights elsewhere, as Accelerate's offloading does, brings them when a module is called.
        """
        if features is None:
            scale = self.weight.float() * torch.rsqrt(self.running_var.float() + self.eps)
            return scale, self.bias.float() - self.running_mean.float() * scale
        if self.training and features.shape[0] < 2:
            return nn.functional.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(features)


def can_finish(norm: nn.Module) -> bool:
    """Whether a `Finish` stands for this normalisation at this moment: nothing is learnt, nothing is traced."""
    return (
        isinstance(norm, VoxelBatchNorm)
        and norm.affine
        and norm.running_mean is not None
        and not (norm.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
    )
