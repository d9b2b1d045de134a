"""Semantic loss of queries, or of superpoints."""

from torch import Tensor

from ..labels import IGNORE
from .functional import cross_entropy, full_precision, masked_mean


def semantic_loss(semantic_logits: Tensor, labels: Tensor, num_semantic_labels: int = 200) -> Tensor:
    """Cross entropy of semantic logits of queries, or of superpoints.

    Args:
        semantic_logits: [B, Q, K] with K >= num_semantic_labels; further columns take no part (ESAM's 201st).
        labels: int64 [B, Q], `IGNORE` = ignore, as `targets.query_semantic_labels` and
            `targets.visible_semantic_labels` give them.
        num_semantic_labels: Number of classes.

    Returns:
        [B], mean over each sample's supervised entries; exactly 0, still in the graph, without any.
    """
    logits = full_precision(semantic_logits[..., :num_semantic_labels]).transpose(1, 2)
    return masked_mean(cross_entropy(logits, labels), labels != IGNORE)
