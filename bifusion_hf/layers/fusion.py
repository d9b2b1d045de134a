"""Fusion of the image branch into the point branch: gates, and what is done with their weights.

Points are flat: P real points of all samples, with `sample` int64 [P] telling whose they are. Both branches come in
unit length in a common space of `projection_dim`.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from .point_encoder import sample_mean


class LiteFusionGate(nn.Module):
    """One weight a point: how much of the image feature it takes."""

    def __init__(self, feature_size: int, hidden_size: int = 64):
        super().__init__()
        self.hidden = nn.Linear(2 * feature_size, hidden_size)
        self.out = nn.Linear(hidden_size, 1)

    def forward(self, image_features: torch.Tensor, point_features: torch.Tensor) -> torch.Tensor:
        """[P, C] of both branches to weights [P, 1] in (0, 1)."""
        both = torch.cat([image_features, point_features], dim=1)
        return torch.sigmoid(self.out(torch.relu(self.hidden(both))))


class SqueezeExcite(nn.Module):
    """Channel weights from the mean over the sample's own points (Hu et al., CVPR 2018)."""

    def __init__(self, feature_size: int, reduction: int = 16):
        super().__init__()
        self.squeeze = nn.Linear(feature_size, feature_size // reduction)
        self.excite = nn.Linear(feature_size // reduction, feature_size)

    def forward(self, features: torch.Tensor, sample: torch.Tensor, batch_size: int) -> torch.Tensor:
        """[P, C] to [P, C]."""
        mean = sample_mean(features, sample, batch_size)
        weights = torch.sigmoid(self.excite(torch.relu(self.squeeze(mean))))
        return features * weights[sample]


class Fusion(nn.Module):
    """Gate, squeeze-excite and output of a fused network.

    `residual=False` mixes: f = alpha f2d + (1 - alpha) f3d, brought to unit length times a learnable scale that starts
    at sqrt(width): pooling adds features of order 1, which unit vectors alone would drown in.
    `residual=True` adds the gated image feature to the point branch's own features through a matrix that starts at
    zero, so that the network starts as the 3D baseline exactly.

    Args:
        gate: Module that gives the weight of each point.
        feature_size: Width of both branches.
        point_size: Width of the point branch's own features.
        residual: Which of the two forms.
    """

    def __init__(self, gate: nn.Module, feature_size: int, point_size: int, residual: bool):
        super().__init__()
        self.gate = gate
        self.squeeze_excite = SqueezeExcite(feature_size)
        self.feature_size = feature_size
        self.scale = nn.Parameter(torch.empty(()))
        self.residual_out = nn.Linear(feature_size, point_size, bias=False) if residual else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The scale at sqrt(width), the residual matrix at zero."""
        init.constant_(self.scale, math.sqrt(self.feature_size))
        if self.residual_out is not None:
            init.zeros_(self.residual_out.weight)

    def forward(
        self,
        raw_point_features: torch.Tensor,
        image_features: torch.Tensor,
        point_features: torch.Tensor,
        visible: torch.Tensor,
        sample: torch.Tensor,
        batch_size: int,
        hold_gate: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fuses the branches.

        Args:
            raw_point_features: [P, point_size] of the point branch, before its projection.
            image_features: [P, feature_size].
            point_features: [P, feature_size].
            visible: bool [P], the point is seen in the image.
            sample: int64 [P].
            batch_size: B.
            hold_gate: bool [], hold the weights at 0.5 (warm-up).

        Returns:
            Fused features [P, feature_size], or [P, point_size] if residual, and the weights [P, 1]: 0 where the
            point is not visible.
        """
        weights = self.gate(image_features, point_features)
        weights = torch.where(hold_gate, torch.full_like(weights, 0.5), weights) * visible.unsqueeze(1)
        if self.residual_out is not None:
            gated = self.squeeze_excite(weights * image_features, sample, batch_size) * self.scale
            return raw_point_features + self.residual_out(gated), weights
        mixed = weights * image_features + (1 - weights) * point_features
        mixed = self.squeeze_excite(mixed, sample, batch_size)
        return nn.functional.normalize(mixed.float(), dim=1).to(mixed.dtype) * self.scale, weights
