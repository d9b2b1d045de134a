"""TinySA: small self-attention blocks on image tokens (2D) and on point features (3D).

Both end in a projection that starts at zero, so that a network with them starts as the network without.
The original takes random centres with a ball query each; here the 3D form attends within windows of a coarse grid, in
two layouts shifted by half a window (as Liu et al., "Swin Transformer", ICCV 2021, do on images): no random choice, no
distance matrix, and no feature is copied once for every neighbour.
"""

import torch
from torch import nn
from transformers import initialization as init

from ..configuration_bifusion import BiFusionConfig
from ..sparse import VoxelGrid, count_rows, take_rows
from .attention import MultiHeadAttention
from .reductions import sample_mean


class SelfAttentionBlock(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, size: int, num_heads: int, config: BiFusionConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(size)
        self.attention = MultiHeadAttention(size, num_heads, config)
        self.ffn_norm = nn.LayerNorm(size)
        self.ffn_in = nn.Linear(size, 4 * size)
        self.ffn_out = nn.Linear(4 * size, size)

    def forward(self, tokens: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
        """[W, L, C] to [W, L, C]; `token_mask` bool [W, 1, L], False = padding."""
        normed = self.attention_norm(tokens)
        tokens = tokens + self.attention(normed, normed, token_mask)[0]
        return tokens + self.ffn_out(nn.functional.gelu(self.ffn_in(self.ffn_norm(tokens))))


class _TinySA(nn.Module):
    """Blocks and the projection that starts at zero."""

    num_layers: int

    def __init__(self, size: int, num_heads: int, config: BiFusionConfig):
        super().__init__()
        if size % num_heads:
            raise ValueError(f"TinySA: width {size} is not a multiple of its {num_heads} heads")
        self.layers = nn.ModuleList(SelfAttentionBlock(size, num_heads, config) for _ in range(self.num_layers))
        self.out = nn.Linear(size, size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """No change at the start."""
        init.zeros_(self.out.weight)
        init.zeros_(self.out.bias)


class TinySA2D(_TinySA):
    """Self-attention over all tokens of an image."""

    num_layers = 1

    def __init__(self, size: int, config: BiFusionConfig):
        super().__init__(size, 4, config)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] to [B, C, h, w]."""
        flat = tokens.flatten(2).transpose(1, 2)
        hidden, everything = flat, flat.new_ones(flat.shape[0], 1, flat.shape[1], dtype=torch.bool)
        for layer in self.layers:
            hidden = layer(hidden, everything)
        return (flat + self.out(hidden)).transpose(1, 2).unflatten(2, tokens.shape[2:])


class TinySA3D(_TinySA):
    """Self-attention of voxels with those nearby.

    Args:
        size: Width of the voxels' features.
        config: Gives `voxel_size` and `tiny_sa_radius`, half the edge of a window in metres.
    """

    num_layers = 2
    # Tokens are the voxels of the grid two levels up: a window of 40 cm at 2 cm voxels holds at most 125 of them.
    levels_up = 2

    def __init__(self, size: int, config: BiFusionConfig):
        super().__init__(size, 4, config)
        token_edge = 2**self.levels_up * config.voxel_size
        self.window = max(2, round(2 * config.tiny_sa_radius / token_edge))
        self.position = nn.Linear(3, size)

    def forward(self, features: torch.Tensor, grid: VoxelGrid) -> torch.Tensor:
        """[V, C] on the voxels of `grid` to [V, C]."""
        token_grid, token_of_voxel = grid, torch.arange(len(grid), device=grid.device)
        for _ in range(self.levels_up):
            token_of_voxel = token_grid.parents[token_of_voxel]
            token_grid = token_grid.coarser()
        tokens = sample_mean(features, token_of_voxel, len(token_grid))
        cells = token_grid.coordinates.long()
        cells = torch.cat([cells[:, :1], cells[:, 1:].div(token_grid.stride, rounding_mode="floor")], dim=1)
        for index, layer in enumerate(self.layers):
            tokens = self._attend(layer, tokens, cells, shift=index * (self.window // 2))
        return features + take_rows(self.out(tokens), token_of_voxel)

    def _attend(self, layer: nn.Module, tokens: torch.Tensor, cells: torch.Tensor, shift: int) -> torch.Tensor:
        shifted = cells[:, 1:] + shift
        corner = shifted.div(self.window, rounding_mode="floor")
        inside = (shifted - corner * self.window).to(tokens.dtype) / self.window - 0.5
        corners, windows = torch.unique(torch.cat([cells[:, :1], corner], dim=1), dim=0, return_inverse=True)
        order = torch.argsort(windows, stable=True)
        sizes = count_rows(windows, len(corners))
        place = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[windows[order]]
        real = torch.arange(int(sizes.max()), device=order.device) < sizes.unsqueeze(1)
        padded = tokens.new_zeros(*real.shape, tokens.shape[1])
        padded[windows[order], place] = (tokens + self.position(inside))[order]
        attended = layer(padded, real.unsqueeze(1))[windows[order], place]
        return torch.zeros_like(attended).index_copy(0, order, attended)
