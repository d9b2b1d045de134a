"""Contrastive loss of the merge embeddings: an object looks like itself in the next frame, and like no other there."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .functional import full_precision
from .targets import BatchTargets, eligible_places, eligible_queries


def merge_loss(
    embeddings: Tensor, targets: BatchTargets, query_superpoints: Tensor, window_frames: int, temperature: float
) -> Tensor:
    """Cross entropy between the objects of adjacent frames, both ways (ESAM, Xu et al., ICLR 2025).

    An object's feature in a frame is the mean embedding of the queries whose superpoint lies in it. The logits of two
    frames are the products of these means over the temperature; the right answer for an object is itself. Objects that
    are not in both frames take no part.

    Args:
        embeddings: [F * W, Q, D] of F frames of W windows, the frames of one time together.
        targets: Of these frames, with `instance_ids`.
        query_superpoints: int64 [F * W, Q], superpoint of each query, -1 at padding.
        window_frames: F.
        temperature: Divides the logits.

    Returns:
        [W], the sum over pairs of adjacent frames and both directions of the mean over their objects; exactly 0, in
        the graph, for a window without two objects in two adjacent frames.
    """
    # An empty part keeps windows without any pair in the graph.
    nothing = full_precision(embeddings[..., :0]).sum()
    eligible = eligible_queries(targets, query_superpoints)
    means = [
        masks.to(nothing.dtype) @ full_precision(rows) / masks.sum(1, keepdim=True).clamp(min=1)
        for masks, rows in zip(eligible, embeddings, strict=True)
    ]
    losses = []
    for window in common_objects(targets, eligible, window_frames):
        total = nothing
        for (first, rows), (second, columns) in window:
            logits = means[first][rows] @ means[second][columns].T / temperature
            places = torch.arange(len(rows), device=logits.device)
            total = total + F.cross_entropy(logits, places) + F.cross_entropy(logits.T, places)
        losses.append(total)
    return torch.stack(losses)


def merge_windows(targets: BatchTargets, query_superpoints: Tensor, window_frames: int) -> Tensor:
    """Which windows have two objects in two adjacent frames, bool [W]; arguments as of `merge_loss`."""
    windows = common_objects(targets, eligible_queries(targets, query_superpoints), window_frames)
    return query_superpoints.new_tensor([len(window) > 0 for window in windows], dtype=torch.bool)


def common_objects(
    targets: BatchTargets, eligible: list[Tensor], window_frames: int
) -> list[list[tuple[tuple[int, Tensor], tuple[int, Tensor]]]]:
    """The objects that adjacent frames share, at least two of them.

    Args:
        targets: See `merge_loss`.
        eligible: Of `eligible_queries`.
        window_frames: See `merge_loss`.

    Returns:
        For each window its pairs of adjacent frames: for both frames of a pair the row in the batch and int64 [K], the
        places of the K objects, in one order.
    """
    present = [instances for instances, _ in eligible_places(eligible)]
    seen = [(ids[places], places) for ids, places in zip(targets.instance_ids, present, strict=True)]
    num_windows = len(seen) // window_frames
    windows = []
    for window in range(num_windows):
        pairs = []
        for step in range(window_frames - 1):
            first, second = (window + place * num_windows for place in (step, step + 1))
            (ids, places), (other_ids, other_places) = seen[first], seen[second]
            rows, columns = (ids[:, None] == other_ids).nonzero(as_tuple=True)
            if len(rows) > 1:
                pairs.append(((first, places[rows]), (second, other_places[columns])))
        windows.append(pairs)
    return windows
