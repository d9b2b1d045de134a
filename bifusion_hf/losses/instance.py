"""Instance losses of one decoder head: class, mask binary cross entropy, Dice, box."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers.query_decoder import QueryHeadOutput
from .functional import cross_entropy, full_precision
from .matcher import Matches, SparseMatcher
from .targets import BatchTargets


def match_batch(
    matcher: SparseMatcher,
    head: QueryHeadOutput,
    targets: BatchTargets,
    eligible: list[Tensor],
    places: list[tuple[Tensor, Tensor]],
) -> Matches:
    """Matches of every sample of the batch.

    Args:
        matcher: Of each sample.
        head: Predictions.
        targets: Of the batch.
        eligible: Of `targets.eligible_queries`.
        places: Of `targets.eligible_places`, which are the same for all heads.
    """
    pairs = [
        matcher(
            head.class_logits[sample],
            head.mask_logits[sample],
            targets.class_labels[sample],
            targets.masks(head.level)[sample],
            targets.valid(head.level)[sample],
            eligible[sample],
            places[sample],
        )
        for sample in range(targets.batch_size)
    ]
    return Matches([queries for queries, _ in pairs], [instances for _, instances in pairs])


def classification_loss(
    class_logits: Tensor,
    query_mask: Tensor,
    matches: Matches,
    class_labels: list[Tensor],
    no_object_weight: float = 0.1,
) -> Tensor:
    """Cross entropy over the queries of each sample; queries without a match are "no object".

    Args:
        class_logits: [B, Q, C + 1].
        query_mask: bool [B, Q], False at padding.
        matches: Matched pairs.
        class_labels: For each sample int64 [M_i].
        no_object_weight: Weight of a query without an object; one with an object has 1.

    Returns:
        [B], the weighted mean over each sample's queries.
    """
    no_object = class_logits.shape[-1] - 1
    samples, queries = matches.query_index()
    # Should instances overlap and share a query, the first one decides its class.
    pairs = torch.arange(len(queries), device=queries.device)
    first_pair = torch.full((query_mask.numel(),), len(queries), device=queries.device)
    first_pair.scatter_reduce_(0, samples * query_mask.shape[1] + queries, pairs, "amin")
    pair_labels = F.pad(matches.gather_instances(class_labels), (0, 1), value=no_object)
    labels = pair_labels[first_pair].view_as(query_mask)
    losses = cross_entropy(full_precision(class_logits).transpose(1, 2), labels)
    weights = torch.where(labels == no_object, losses.new_tensor(no_object_weight), 1.0) * query_mask
    return (losses * weights).sum(1) / weights.sum(1).clamp(min=torch.finfo(weights.dtype).tiny)


def mask_losses(mask_logits: Tensor, matches: Matches, masks: list[Tensor], valid: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross entropy and Dice loss of the matched pairs.

    Dice is 1 - (2 s.t + 1) / (sum s + sum t + 1), as in the matching cost (V-Net, arXiv:1606.04797).

    Args:
        mask_logits: [B, Q, L].
        matches: Matched pairs.
        masks: For each sample bool [M_i, L], False where not valid.
        valid: bool [B, L], False at padding.

    Returns:
        [B] and [B]: means over each sample's pairs (binary cross entropy also over its valid elements). A sample
        without a pair has exactly 0, which stays in the graph.
    """
    samples, queries = matches.query_index()
    valid = valid[samples]
    # One gather for the batch: the gradient of each gather is as large as all logits.
    logits = full_precision(mask_logits[samples, queries]).masked_fill(~valid, 0)
    targets = matches.gather_instances(masks).to(logits.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * valid
    cross_entropy = cross_entropy.sum(1) / valid.sum(1)
    probabilities = logits.sigmoid() * valid
    overlaps = (probabilities * targets).sum(1)
    dice = 1 - (2 * overlaps + 1) / (probabilities.sum(1) + targets.sum(1) + 1)
    return matches.mean_by_sample(cross_entropy), matches.mean_by_sample(dice)


def box_loss(boxes: Tensor, matches: Matches, targets: list[Tensor]) -> Tensor:
    """1 - IoU of axis-aligned boxes, over the matched pairs.

    Args:
        boxes: [B, Q, 6], min x, y, z, max x, y, z.
        matches: Matched pairs.
        targets: For each sample [M_i, 6], of the whole objects.

    Returns:
        [B], the mean over each sample's pairs; exactly 0, in the graph, for a sample without one.
    """
    samples, queries = matches.query_index()
    found = full_precision(boxes[samples, queries])
    expected = matches.gather_instances(targets).to(found.dtype)
    return matches.mean_by_sample(1 - box_iou(found, expected))


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU [K] of pairs of axis-aligned boxes [K, 6], min x, y, z, max x, y, z; 0 where both have no volume."""
    sides = torch.minimum(first[:, 3:], second[:, 3:]) - torch.maximum(first[:, :3], second[:, :3])
    shared = sides.clamp(min=0).prod(1)
    volumes = [(box[:, 3:] - box[:, :3]).prod(1) for box in (first, second)]
    return shared / (sum(volumes) - shared).clamp(min=torch.finfo(shared.dtype).tiny)
