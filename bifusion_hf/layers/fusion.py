"""Fusion of the image branch into the point branch: gates, and what is done with their weights.

Points are flat: P real points of all samples, with `sample` int64 [P] telling whose they are. Both branches come in a
common space of `projection_dim`.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from ..sparse import VoxelGrid, count_rows, radius_neighbors, sum_rows, take_rows
from .eigen import smallest_eigenpair
from .reductions import sample_mean


class LiteFusionGate(nn.Module):
    """One weight a point, from the point's own features: how much of the image it takes."""

    def __init__(self, feature_size: int, hidden_size: int = 64):
        super().__init__()
        self.hidden = nn.Linear(2 * feature_size, hidden_size)
        self.out = nn.Linear(hidden_size, 1)

    def forward(
        self, image_features: torch.Tensor, point_features: torch.Tensor, points: torch.Tensor, grid: VoxelGrid
    ) -> torch.Tensor:
        """Weights [P, 1] in (0, 1) from [P, C] of both branches; positions [P, 3] and grid are not used here."""
        both = torch.cat([image_features, point_features], dim=1)
        return torch.sigmoid(self.out(torch.relu(self.hidden(both))))


class EnhancedFusionGate(nn.Module):
    """One weight a point, from its features, its neighbours' features and the shape of the surface there.

    Neighbours are voxels of the grid within a radius, the nearest `max_neighbors` of each. Every term is a small MLP
    whose first layer acts on each branch by itself, before anything is put side by side or averaged over neighbours:
    nothing of the size points x neighbours x channels exists, and nothing as wide as both branches either. The terms
    are added as logits and squashed once: sigmoids in series saturate.

    Args:
        feature_size: Width C of both branches.
        voxel_size: Edge of a voxel in metres.
        radius: In metres.
        max_neighbors: Cap on the neighbours of a voxel.
        use_spatial_attention: Whether the term from the neighbours' features exists.
    """

    hidden_size = 64

    def __init__(
        self, feature_size: int, voxel_size: float, radius: float, max_neighbors: int, use_spatial_attention: bool
    ):
        super().__init__()
        self.radius = max(1, round(radius / voxel_size))
        self.max_neighbors = max_neighbors
        self.terms = ("base", "geometric", "spatial") if use_spatial_attention else ("base", "geometric")
        self.image_hidden = nn.Linear(feature_size, len(self.terms) * self.hidden_size)
        self.point_hidden = nn.Linear(feature_size, len(self.terms) * self.hidden_size, bias=False)
        self.shape_proj = nn.Linear(4, 16)
        self.shape_hidden = nn.Linear(16, self.hidden_size, bias=False)
        self.logits = nn.ModuleDict({term: _logit_head(self.hidden_size) for term in self.terms})
        self.mix = nn.Linear(len(self.terms), 1)

    def forward(
        self, image_features: torch.Tensor, point_features: torch.Tensor, points: torch.Tensor, grid: VoxelGrid
    ) -> torch.Tensor:
        """Weights of the image feature.

        Args:
            image_features: [P, C].
            point_features: [P, C].
            points: [P, 3] metres.
            grid: Voxels of the points.

        Returns:
            [P, 1] in (0, 1).
        """
        # The search first: its working memory is the largest here, and nothing else is held yet.
        row, neighbor = radius_neighbors(grid, self.radius, self.max_neighbors)
        shape = surface_shape(grid.mean(points), row, neighbor).to(image_features.dtype)
        hidden = self.image_hidden(image_features) + self.point_hidden(point_features)
        hidden = dict(zip(self.terms, hidden.split(self.hidden_size, dim=1), strict=True))
        hidden["geometric"] = hidden["geometric"] + grid.to_points(
            self.shape_hidden(torch.relu(self.shape_proj(shape)))
        )
        if "spatial" in hidden:
            voxels = grid.mean(hidden["spatial"])
            hidden["spatial"] = grid.to_points(voxels + neighbor_mean(voxels, row, neighbor))
        logits = [self.logits[term](hidden[term]) for term in self.terms]
        return torch.sigmoid(self.mix(torch.cat(logits, dim=1)))


def _logit_head(in_features: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Linear(in_features, 32), nn.ReLU(), nn.Linear(32, 1))


def neighbor_mean(features: torch.Tensor, row: torch.Tensor, neighbor: torch.Tensor) -> torch.Tensor:
    """Mean of the neighbours' features: [V, C] and pairs (row ascending) to [V, C]; 0 without neighbours."""
    counts = count_rows(row, len(features))
    starts = counts.cumsum(0) - counts
    # embedding_bag sums rows as it reads them; it knows no half precision on every device.
    precision = torch.promote_types(features.dtype, torch.float32)
    means = nn.functional.embedding_bag(neighbor, features.to(precision), starts, mode="mean")
    return means.to(features.dtype)


@torch.no_grad()
def surface_shape(positions: torch.Tensor, row: torch.Tensor, neighbor: torch.Tensor) -> torch.Tensor:
    """Normal and surface variation at each voxel, from the covariance of its neighbourhood.

    Args:
        positions: [V, 3] metres.
        row: int64 [E], ascending.
        neighbor: int64 [E].

    Returns:
        [V, 4]: unit normal, in the upper half space as its sign is arbitrary, and smallest eigenvalue over the sum of
        all (0 = plane, 1/3 = ball). Voxels with fewer than 3 neighbours: upright, 1/3.
    """
    difference = positions[neighbor] - positions[row]
    products = (difference.unsqueeze(2) * difference.unsqueeze(1)).flatten(1)
    count = count_rows(row, len(positions))
    moments = sum_rows(products, row, len(positions))
    mean = sum_rows(difference, row, len(positions))
    divisor = (count + 1).unsqueeze(1).to(positions.dtype)  # the voxel itself counts too, with difference 0
    mean = mean / divisor
    covariance = (moments / divisor).unflatten(1, (3, 3)) - mean.unsqueeze(2) * mean.unsqueeze(1)
    value, normal = smallest_eigenpair(covariance)
    normal = torch.where(normal[:, 2:] < 0, -normal, normal)
    total = covariance.diagonal(dim1=1, dim2=2).sum(dim=1)
    variation = value.clamp(min=0) / total.clamp(min=1e-12)
    has_shape = count >= 3
    upright = torch.nn.functional.pad(has_shape.new_ones(len(normal), 1), (2, 0)).to(normal.dtype)
    normal = torch.where(has_shape.unsqueeze(1), normal, upright)
    variation = torch.where(has_shape, variation, 1 / 3)
    return torch.cat([normal, variation.unsqueeze(1)], dim=1).to(positions.dtype)


class SqueezeExcite(nn.Module):
    """Channel weights from the mean over the sample's own points (Hu et al., CVPR 2018)."""

    def __init__(self, feature_size: int, reduction: int = 16):
        super().__init__()
        self.squeeze = nn.Linear(feature_size, feature_size // reduction)
        self.excite = nn.Linear(feature_size // reduction, feature_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Every unit of the squeeze starts active.

        Its input, a mean of unit vectors, hardly differs between samples: a unit that starts below zero would stay so.
        """
        init.constant_(self.squeeze.bias, 1 / math.sqrt(self.squeeze.in_features))

    def forward(self, features: torch.Tensor, sample: torch.Tensor, batch_size: int) -> torch.Tensor:
        """[P, C] to [P, C]."""
        mean = sample_mean(features, sample, batch_size)
        weights = torch.sigmoid(self.excite(torch.relu(self.squeeze(mean))))
        return features * take_rows(weights, sample)


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
        points: torch.Tensor,
        grid: VoxelGrid,
        visible: torch.Tensor,
        sample: torch.Tensor,
        hold_gate: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Fuses the branches.

        Args:
            raw_point_features: [P, point_size] of the point branch, before its projection.
            image_features: [P, feature_size].
            point_features: [P, feature_size].
            points: [P, 3] metres.
            grid: Voxels of the points.
            visible: bool [P], the point is seen in the image.
            sample: int64 [P].
            hold_gate: bool [], hold the weights at 0.5 (warm-up).

        Returns:
            Fused features [P, feature_size], or [P, point_size] if residual, and the weights [P, 1]: 0 where the
            point is not visible.
        """
        weights = self.gate(image_features, point_features, points, grid)
        weights = torch.where(hold_gate, torch.full_like(weights, 0.5), weights) * visible.unsqueeze(1)
        if self.residual_out is not None:
            gated = self.squeeze_excite(weights * image_features, sample, grid.batch_size) * self.scale
            return raw_point_features + self.residual_out(gated), weights
        mixed = weights * image_features + (1 - weights) * point_features
        mixed = self.squeeze_excite(mixed, sample, grid.batch_size)
        return unit_length(mixed) * self.scale, weights


def unit_length(features: torch.Tensor) -> torch.Tensor:
    """Features [..., C] of length 1; the norm is taken in float32 at least."""
    precision = torch.promote_types(features.dtype, torch.float32)
    return nn.functional.normalize(features.to(precision), dim=-1).to(features.dtype)
