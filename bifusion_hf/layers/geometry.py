"""Geometry in the network: sampling the image at the points, the geometric encoding, FiLM.

Points are flat here: P real points of all samples, with `sample` int64 [P] telling whose they are.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from ..sparse import take_rows


def sample_tokens(
    tokens: torch.Tensor, point_pixels: torch.Tensor, shift: tuple[float, float] = (0.0, 0.0)
) -> torch.Tensor:
    """Features of a token map at the pixels of points, bilinear between token centres.

    `point_pixels` are fractions of the image, so the rule does not depend on the map's resolution:
    `grid = 2 * point_pixels - 1` with `align_corners=False`. Half a token at the border is extrapolated as constant.

    Args:
        tokens: [B, C, h, w] map over the whole image.
        point_pixels: [B, N, 2] (x, y), fractions of width and height in [0, 1].
        shift: (rows, columns), in tokens, by which each token lies before the middle of its block of pixels.

    Returns:
        [B, N, C].
    """
    # Half precision cannot tell neighbouring pixels apart.
    precision = torch.promote_types(tokens.dtype, torch.float32)
    height, width = tokens.shape[-2:]
    x, y = point_pixels.to(precision).unbind(2)
    places = torch.stack([2 * (x + shift[1] / width) - 1, 2 * (y + shift[0] / height) - 1], dim=2)
    if tokens.device.type != "cpu" and torch.are_deterministic_algorithms_enabled():
        # grid_sample has no gradient there that is the same every time.
        return _sample_by_rows(tokens.to(precision), places).to(tokens.dtype)
    sampled = nn.functional.grid_sample(
        tokens.to(precision), places.unsqueeze(2), mode="bilinear", padding_mode="border", align_corners=False
    )
    # In one pass: a cast alone would leave the channels of a point far apart.
    return sampled.squeeze(3).transpose(1, 2).to(tokens.dtype, memory_format=torch.contiguous_format)


def _sample_by_rows(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """What `grid_sample` does for `sample_tokens`, as four weighted tokens a point.

    Args:
        tokens: [B, C, h, w].
        places: [B, N, 2] (x, y), -1 and 1 at the map's borders.

    Returns:
        [B, N, C].
    """
    batch_size, _, height, width = tokens.shape
    rows = tokens.permute(0, 2, 3, 1).flatten(0, 2)  # [B h w, C]
    samples = torch.arange(batch_size, device=tokens.device).unsqueeze(1)
    corners = []
    for place, size in zip(places.unbind(2), (width, height), strict=True):
        at = (((place + 1) * size - 1) / 2).clamp(0, size - 1)
        low = at.detach().floor()
        corners.append(((low.long(), 1 - (at - low)), ((low.long() + 1).clamp(max=size - 1), at - low)))
    return sum(
        take_rows(rows, ((samples * height + row) * width + column).flatten()).unflatten(0, places.shape[:2])
        * (row_weight * column_weight).unsqueeze(2)
        for row, row_weight in corners[1]
        for column, column_weight in corners[0]
    )


class GeometricEncoding(nn.Module):
    """Where a point is, as a vector: position, size of the scene, camera rotation, height, sines and cosines.

    All lengths are divided by the diagonal of the sample's bounding box. The frequencies are learnt as logarithms and
    squashed below the voxels' Nyquist frequency: a wave shorter than two voxels would only be aliasing.

    Args:
        voxel_size: Edge of a voxel in metres.
        num_frequencies: Number of frequencies for each axis.
    """

    def __init__(self, voxel_size: float, num_frequencies: int = 8):
        super().__init__()
        self.voxel_size = voxel_size
        self.num_frequencies = num_frequencies
        self.log_frequencies = nn.Parameter(torch.empty(num_frequencies))
        self.reset_parameters()

    @property
    def size(self) -> int:
        """Length of an encoding: 3 + 3 + 9 + 1 + 6 for each frequency (64 with 8)."""
        return 16 + 6 * self.num_frequencies

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Half a wave to 64 half-waves over the diagonal."""
        init.copy_(
            self.log_frequencies, torch.linspace(math.log(math.pi), math.log(64 * math.pi), self.num_frequencies)
        )

    def forward(self, points: torch.Tensor, sample: torch.Tensor, camera_rotations: torch.Tensor) -> torch.Tensor:
        """The encoding of each point.

        Args:
            points: [P, 3] metres, z up.
            sample: int64 [P], sample of each point.
            camera_rotations: [B, 3, 3], camera axes to point axes.

        Returns:
            [P, size], in the dtype of the points.
        """
        batch_size = camera_rotations.shape[0]
        index = sample.unsqueeze(1).expand_as(points)
        extremes = points.new_zeros(batch_size, 3)
        low = extremes.scatter_reduce(0, index, points, "amin", include_self=False)
        high = extremes.scatter_reduce(0, index, points, "amax", include_self=False)
        diagonal = (high - low).norm(dim=1, keepdim=True).clamp(min=2 * self.voxel_size)  # [B, 1]
        box = (high - low) / diagonal

        per_point = diagonal[sample]
        position = points / per_point
        height = (points[:, 2:] - low[sample, 2:]) / per_point
        nyquist = math.pi * diagonal / self.voxel_size
        frequencies = nyquist * torch.tanh(self.log_frequencies.to(points.dtype).exp() / nyquist)  # [B, F]
        waves = (position.unsqueeze(2) * take_rows(frequencies, sample).unsqueeze(1)).flatten(1)  # [P, 3 F]
        rotation = camera_rotations.to(points.dtype).flatten(1)[sample]
        return torch.cat([position, box[sample], rotation, height, waves.sin(), waves.cos()], dim=1)


class FiLM(nn.Module):
    """Feature-wise linear modulation (Perez et al., AAAI 2018): (1 + gamma) f + beta, the identity at the start."""

    def __init__(self, condition_size: int, feature_size: int, hidden_size: int = 128):
        super().__init__()
        self.hidden = nn.Linear(condition_size, hidden_size)
        self.modulation = nn.Linear(hidden_size, 2 * feature_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """No modulation at the start."""
        init.zeros_(self.modulation.weight)
        init.zeros_(self.modulation.bias)

    def forward(self, condition: torch.Tensor, *features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Modulates each of `features` ([P, C]) by the same condition [P, condition_size]."""
        gamma, beta = self.modulation(nn.functional.silu(self.hidden(condition))).chunk(2, dim=1)
        gamma = 1 + gamma
        return tuple(torch.addcmul(beta, gamma, feature) for feature in features)
