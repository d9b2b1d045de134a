"""The query decoder: superpoints become queries, each of which predicts a class, a semantic class and a mask.

A masked-attention transformer (Cheng et al., "Masked-attention Mask Transformer", CVPR 2022) in the arrangement of
ESAM: post-norm layers of cross-attention, self-attention and feed-forward; every head masks the cross-attention of the
next layer.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration_bifusion import BiFusionConfig
from ..sparse import count_rows, sum_where_negative
from .attention import MultiHeadAttention
from .frame_batch import FrameBatch
from .reductions import sample_mean


@dataclass
class QueryHeadOutput:
    """What one head predicts.

    Args:
        class_logits: [B, Q, C + 1], the last column is "no object".
        mask_logits: [B, Q, S] over superpoints or [B, Q, N] over points.
        level: `"superpoint"` or `"point"`.
        boxes: [B, Q, 6] min x, y, z, max x, y, z in the coordinates of the points, where there is a box head.
    """

    class_logits: torch.Tensor
    mask_logits: torch.Tensor
    level: str
    boxes: torch.Tensor | None = None


class QueryCrossAttention(MultiHeadAttention):
    """Attention from queries to superpoints, within each query's own mask."""


class QueryDecoderLayer(GradientCheckpointingLayer):
    """Cross-attention to the superpoints, self-attention among the queries, feed-forward; all post-norm."""

    def __init__(self, config: BiFusionConfig):
        super().__init__()
        size = config.decoder_size
        self.cross_attention = QueryCrossAttention(size, config.decoder_attention_heads, config)
        self.cross_attention_norm = nn.LayerNorm(size)
        self.self_attention = MultiHeadAttention(size, config.decoder_attention_heads, config)
        self.self_attention_norm = nn.LayerNorm(size)
        self.ffn_in = nn.Linear(size, config.decoder_intermediate_size)
        self.ffn_out = nn.Linear(config.decoder_intermediate_size, size)
        self.ffn_norm = nn.LayerNorm(size)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, cross_mask: torch.Tensor, self_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """[B, Q, D] to [B, Q, D]; masks are True where attention is allowed, None where it is everywhere."""
        queries = self.cross_attention_norm(queries + self.cross_attention(queries, keys, cross_mask)[0])
        queries = self.self_attention_norm(queries + self.self_attention(queries, queries, self_mask)[0])
        feed_forward = self.ffn_out(nn.functional.gelu(self.ffn_in(queries)))
        return self.ffn_norm(queries + feed_forward)


class MLP(nn.Module):
    """Linear-ReLU-Linear."""

    def __init__(self, in_features: int, hidden_size: int, out_features: int):
        super().__init__()
        self.hidden = nn.Linear(in_features, hidden_size)
        self.out = nn.Linear(hidden_size, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        return self.out(torch.relu(self.hidden(x)))


class QueryDecoder(nn.Module):
    """Queries, keys and mask features from superpoints and points; heads before the first and after every layer.

    The class head, the norm before it and the mask features are shared by all heads; the semantic head acts once, at
    the end. There is no position encoding: positions enter through the point mask features.
    """

    def __init__(self, config: BiFusionConfig):
        super().__init__()
        size, width = config.decoder_size, config.hidden_size
        self.mask_levels = tuple(config.decoder_mask_levels)
        self.key_proj = nn.Linear(width, size)
        self.key_norm = nn.LayerNorm(size)
        self.query_proj = MLP(width, size, size)
        # Features that no head of this configuration reads are not created.
        self.superpoint_mask_proj = MLP(width, size, size) if "superpoint" in self.mask_levels else None
        self.point_mask_proj = MLP(3 + width, size, size)
        self.layers = nn.ModuleList(QueryDecoderLayer(config) for _ in range(config.decoder_layers))
        self.out_norm = nn.LayerNorm(size)
        self.class_head = MLP(size, size, config.num_labels + 1)
        self.semantic_head = nn.Linear(size, config.num_semantic_labels + 1)
        self.box_head = MLP(size, size, 6) if config.use_box_head else None

    def forward(
        self,
        frames: FrameBatch,
        superpoint_features: torch.Tensor,
        point_features: torch.Tensor,
        point_weights: torch.Tensor,
        query_superpoints: torch.Tensor,
        score_threshold: float | None = None,
    ) -> tuple[list[QueryHeadOutput], torch.Tensor, torch.Tensor]:
        """Predictions of all heads.

        Args:
            frames: The batch.
            superpoint_features: [B, S, D].
            point_features: [B, N, D].
            point_weights: [B, N, 1], weights of the superpoint pooling.
            query_superpoints: int64 [B, Q], the superpoint of each query, -1 = padding.
            score_threshold: The last head's masks are made for queries alone that have a label more probable than
                this, and are -inf for the others; None = for all.

        Returns:
            The outputs of all heads, the semantic logits [B, Q, num_semantic_labels + 1] and the normed queries of the
            last head [B, Q, decoder_size].
        """
        # The queries of one sample alone have no padding, and what takes no mask is faster.
        self_mask = None if len(query_superpoints) == 1 else (query_superpoints >= 0).unsqueeze(1)
        size = superpoint_features.shape[-1]
        start = superpoint_features.gather(1, query_superpoints.clamp(min=0).unsqueeze(2).expand(-1, -1, size))
        queries = self.query_proj(start)
        keys = torch.relu(self.key_norm(self.key_proj(superpoint_features)))
        positioned = torch.cat([frames.points.to(point_features.dtype), point_features], dim=2)
        mask_features = {"point": self.point_mask_proj(positioned)}
        if self.superpoint_mask_proj is not None:
            mask_features["superpoint"] = self.superpoint_mask_proj(superpoint_features)

        centres = None if self.box_head is None else query_centres(frames, query_superpoints)
        heads = []
        for index, level in enumerate(self.mask_levels):
            if index > 0:
                cross_mask = self._attention_mask(heads[-1], frames, point_weights)
                queries = self.layers[index - 1](queries, keys, cross_mask, self_mask)
            normed = self.out_norm(queries)
            class_logits = self.class_head(normed)
            if score_threshold is None:
                mask_logits = products(normed, mask_features[level])
            elif index + 1 == len(self.mask_levels):
                mask_logits = probable_masks(normed, mask_features[level], class_logits, score_threshold)
            else:
                # Nothing is asked of these but sums over the features.
                mask_logits = products(normed, mask_features[level], by_feature=True)
            boxes = None if self.box_head is None else place_boxes(self.box_head(normed), centres)
            heads.append(QueryHeadOutput(class_logits, mask_logits, level, boxes))
        return heads, self.semantic_head(normed), normed

    @torch.no_grad()
    def _attention_mask(self, head: QueryHeadOutput, frames: FrameBatch, point_weights: torch.Tensor) -> torch.Tensor:
        """Which superpoints a query may attend to: those in its mask; bool [B, Q, S], True = allowed."""
        real = frames.superpoint_mask.unsqueeze(1)
        if head.level == "superpoint":
            allowed = (head.mask_logits >= 0) & real
            nothing = ~allowed.any(dim=2, keepdim=True)
            return allowed | (nothing & real)
        blocked = blocked_share(head.mask_logits, point_weights, frames)
        # Each query keeps the superpoints that are blocked least, so that no row is left without any.
        least = blocked.masked_fill(~real, float("inf")).amin(dim=2, keepdim=True)
        return ((blocked <= 0.5) | (blocked == least)) & real


def products(queries: torch.Tensor, features: torch.Tensor, *, by_feature: bool = False) -> torch.Tensor:
    """Of each query with each feature: [B, Q, D] and [B, X, D] to [B, Q, X], `[B, X, Q]` in memory if `by_feature`."""
    if by_feature:
        return products(features, queries).transpose(1, 2)
    if len(queries) == 1:
        # One matrix product is faster than a batch of one.
        return (queries[0] @ features[0].T).unsqueeze(0)
    return queries @ features.transpose(1, 2)


def probable_masks(
    queries: torch.Tensor, features: torch.Tensor, class_logits: torch.Tensor, threshold: float
) -> torch.Tensor:
    """`products` of the queries that have a label more probable than the threshold, -inf for the others.

    Args:
        queries: [B, Q, D].
        features: [B, X, D].
        class_logits: [B, Q, C + 1], the last column is "no object".
        threshold: On the probability of a label.

    Returns:
        [B, Q, X].
    """
    probable = (class_logits.float().softmax(dim=-1)[..., :-1] > threshold).any(dim=-1)
    masks = queries.new_full((*queries.shape[:2], features.shape[1]), float("-inf"))
    for sample, rows in enumerate(probable):
        rows = rows.nonzero().squeeze(1)
        masks[sample].index_copy_(0, rows, queries[sample, rows] @ features[sample].T)
    return masks


class MergeHead(nn.Module):
    """Embeddings by which instances of different frames are told to be one object, of unit length.

    Args:
        size: Width of the queries and of the embeddings.
        norm: `"layer"` or `"batch"`; both occur among the original's checkpoints.
    """

    def __init__(self, size: int, norm: str):
        super().__init__()
        kind = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}[norm]
        self.hidden = nn.Linear(size, 2 * size)
        self.hidden_norm = kind(2 * size)
        self.out = nn.Linear(2 * size, size)
        self.out_norm = kind(size)

    def forward(self, queries: torch.Tensor, query_mask: torch.Tensor) -> torch.Tensor:
        """[B, Q, D] to [B, Q, D], 0 where the mask [B, Q] is False: batch statistics must not see padding."""
        real = torch.relu(self.hidden_norm(self.hidden(queries[query_mask])))
        real = nn.functional.normalize(self.out_norm(self.out(real)), dim=1)
        return real.new_zeros(queries.shape).masked_scatter(query_mask.unsqueeze(2), real)


def query_centres(frames: FrameBatch, query_superpoints: torch.Tensor) -> torch.Tensor:
    """Mean place of the points of each query's superpoint, [B, Q, 3] of the points' precision; 0 at padding."""
    means = sample_mean(frames.real(frames.points), frames.point_superpoints, frames.superpoint_mask.numel())
    means = means.unflatten(0, frames.superpoint_mask.shape)
    rows = query_superpoints.clamp(min=0).unsqueeze(2).expand(-1, -1, 3)
    return means.gather(1, rows) * (query_superpoints >= 0).unsqueeze(2)


def place_boxes(regression: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Corners [B, Q, 6] of boxes: the centre is off by the first three of [B, Q, 6], exp of the others is the size."""
    middle = centres + regression[..., :3].to(centres.dtype)
    half = regression[..., 3:].to(centres.dtype).exp() / 2
    return torch.cat([middle - half, middle + half], dim=-1)


def select_queries(
    superpoint_mask: torch.Tensor, min_fraction: float | None, seeds: torch.Tensor | None = None
) -> torch.Tensor:
    """Which superpoints become queries.

    Args:
        superpoint_mask: bool [B, S].
        min_fraction: None takes all, in order; otherwise a random part of each sample's, from this fraction to all.
        seeds: int64 [B], makes the choice of each sample reproducible; None draws from torch's default generator.

    Returns:
        int64 [B, Q], ascending, -1 = padding.
    """
    if min_fraction is None:
        # Real superpoints come first, and take the width of the largest sample.
        places = torch.arange(superpoint_mask.shape[1], device=superpoint_mask.device)
        return torch.where(superpoint_mask, places, -1)
    counts = superpoint_mask.sum(dim=1).tolist()
    seeds = [None] * len(counts) if seeds is None else seeds.tolist()
    chosen = []
    for index, count in enumerate(counts):
        generator = None if seeds[index] is None else torch.Generator().manual_seed(seeds[index])
        fraction = min_fraction + (1 - min_fraction) * torch.rand((), generator=generator).item()
        kept = torch.randperm(count, generator=generator)[: math.ceil(fraction * count)]
        chosen.append(kept.sort().values)
    return nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=-1).to(superpoint_mask.device)


def blocked_share(mask_logits: torch.Tensor, point_weights: torch.Tensor, frames: FrameBatch) -> torch.Tensor:
    """How much of each superpoint lies outside each query's point mask.

    Args:
        mask_logits: [B, Q, N], negative = outside the mask.
        point_weights: [B, N, 1].
        frames: The batch.

    Returns:
        [B, Q, S]: sum of the blocked points' weights over the number of points (weights reach 2, so may this).
    """
    batch_size, num_superpoints = frames.superpoint_mask.shape
    ids = torch.where(frames.point_mask, frames.superpoint_ids, -1)
    total = sum_where_negative(mask_logits, point_weights.squeeze(2), ids, num_superpoints)
    count = count_rows(frames.point_superpoints, batch_size * num_superpoints).clamp(min=1)
    return total / count.view(batch_size, 1, num_superpoints).to(total.dtype)
