"""Multi-head attention, through transformers' attention back ends."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention; `attention_mask` is boolean, True = may attend, None = all. Softmax in float32 at least."""
    scores = (query @ key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    precision = torch.promote_types(scores.dtype, torch.float32)
    weights = nn.functional.softmax(scores, dim=-1, dtype=precision).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MultiHeadAttention(nn.Module):
    """Multi-head attention from queries to keys under a boolean mask.

    Args:
        size: Width of queries and keys.
        num_heads: Number of heads.
        config: Says which attention back end runs.
    """

    def __init__(self, size: int, num_heads: int, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.head_size = size // num_heads
        self.scaling = self.head_size**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, Q, D] attends to [B, K, D] where `attention_mask` [B, Q or 1, K] is True; None = everywhere.

        Each row needs one True.
        """

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(2, (-1, self.head_size)).transpose(1, 2)  # [B, heads, L, head_size]

        if attention_mask is not None:
            attention_mask = attention_mask.unsqueeze(1).expand(-1, -1, queries.shape[1], -1)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attention(
            self,
            heads(self.q_proj(queries)),
            heads(self.k_proj(keys)),
            heads(self.v_proj(keys)),
            attention_mask,
            scaling=self.scaling,
        )
        return self.out_proj(attended.flatten(2)), weights
