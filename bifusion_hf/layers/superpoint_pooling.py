"""Pooling of point features into superpoints, weighted by where a point lies in its superpoint.

After the geometry-aware pooling of ESAM (Xu et al., "EmbodiedSAM", ICLR 2025).
"""

import torch
from torch import nn

from ..sparse import count_rows, sum_rows, take_rows


class SuperpointPooling(nn.Module):
    """Weighted mean of the points' features plus a shape descriptor of the superpoint.

    Args:
        hidden_size: Width of the point features and of the superpoint features.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.shape_in = nn.Linear(3, hidden_size)
        self.shape_in_norm = nn.LayerNorm(hidden_size)
        self.shape_out = nn.Linear(hidden_size, hidden_size)
        self.shape_out_norm = nn.LayerNorm(hidden_size)
        self.weight_in = nn.Linear(2 * hidden_size, hidden_size)
        self.weight_in_norm = nn.LayerNorm(hidden_size)
        self.weight_out = nn.Linear(hidden_size, 1, bias=False)

    def forward(
        self, points: torch.Tensor, features: torch.Tensor, superpoints: torch.Tensor, num_superpoints: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pools P points into S superpoints.

        Args:
            points: [P, 3] metres.
            features: [P, C].
            superpoints: int64 [P], 0..S-1.
            num_superpoints: S.

        Returns:
            Superpoint features [S, C], of no meaning for a superpoint without points, and the weight of each point
            [P, 1] in (0, 2).
        """
        index = superpoints.unsqueeze(1)
        count = count_rows(superpoints, num_superpoints).clamp(min=1).unsqueeze(1)
        zeros = points.new_zeros(num_superpoints, 3)
        mean = sum_rows(points, superpoints, num_superpoints) / count.to(points.dtype)
        low = zeros.scatter_reduce(0, index.expand_as(points), points, "amin", include_self=False)
        high = zeros.scatter_reduce(0, index.expand_as(points), points, "amax", include_self=False)
        extent = (high - low).amax(dim=1, keepdim=True)  # [S, 1]
        relative = (points - take_rows(mean, superpoints)) / (take_rows(extent, superpoints) + 1e-2)

        shape = torch.relu(self.shape_in_norm(self.shape_in(relative.to(features.dtype))))
        shape = self.shape_out_norm(self.shape_out(shape))  # [P, C]
        superpoint_shape = shape.new_zeros(num_superpoints, shape.shape[1]).scatter_reduce(
            0, index.expand_as(shape), shape, "amax", include_self=False
        )
        weight = torch.cat([shape, take_rows(superpoint_shape, superpoints)], dim=1)
        weight = 2 * torch.sigmoid(self.weight_out(torch.relu(self.weight_in_norm(self.weight_in(weight)))))
        # Half precision cannot sum the thousands of points of a wall.
        weighted = (weight * features).to(torch.promote_types(features.dtype, torch.float32))
        pooled = sum_rows(weighted, superpoints, num_superpoints)
        return (pooled / count.to(pooled.dtype)).to(features.dtype) + superpoint_shape, weight
