"""Matching of queries to instances: each instance takes the cheapest query whose superpoint lies in it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .functional import full_precision, no_autocast
from .targets import eligible_places


# Identical queries may differ in the last bits of a matrix product, which sums some rows in another order than others.
TIE_TOLERANCE = 1e-6


class MatchingCosts(NamedTuple):
    """Unweighted cost of every query for every instance, each [Q, M]."""

    classification: Tensor
    mask: Tensor
    dice: Tensor


@torch.no_grad()
def matching_costs(
    class_logits: Tensor, mask_logits: Tensor, class_labels: Tensor, masks: Tensor, valid: Tensor
) -> MatchingCosts:
    """Costs of one sample, as matrix products: nothing of size Q x M x L is made.

    Binary cross entropy is softplus(x) - x t, so its mean over the elements needs one product and one row sum.

    Args:
        class_logits: [Q, C + 1].
        mask_logits: [Q, L].
        class_labels: int64 [M].
        masks: bool [M, L], False where not valid.
        valid: bool [L], False at padding.
    """
    with no_autocast(mask_logits):
        scores = full_precision(class_logits).softmax(-1)
        logits = full_precision(mask_logits).masked_fill(~valid, 0)
        weights = valid.to(logits.dtype)
        targets = masks.to(logits.dtype).T
        probabilities = logits.sigmoid()
        sizes = (probabilities @ weights)[:, None] + targets.sum(0)
        return MatchingCosts(
            classification=-scores[:, class_labels],
            mask=((F.softplus(logits) @ weights)[:, None] - logits @ targets) / weights.sum(),
            dice=1 - (2 * (probabilities @ targets) + 1) / (sizes + 1),
        )


@dataclass
class Matches:
    """Matched pairs of a batch.

    Attributes:
        queries: For each sample int64 [K_i].
        instances: For each sample int64 [K_i], ascending.
    """

    queries: list[Tensor]
    instances: list[Tensor]

    @property
    def batch_size(self) -> int:
        return len(self.queries)

    def query_index(self) -> tuple[Tensor, Tensor]:
        """Sample and query of every pair, int64 [K] each, ordered by sample: an index into [B, Q, ...]."""
        samples = [torch.full_like(queries, sample) for sample, queries in enumerate(self.queries)]
        return torch.cat(samples), torch.cat(self.queries)

    def gather_instances(self, values: list[Tensor]) -> Tensor:
        """For every pair the instance's row of the per-sample `values` [M_i, ...]: [K, ...]."""
        return torch.cat([rows[instances] for rows, instances in zip(values, self.instances, strict=True)])

    def mean_by_sample(self, values: Tensor) -> Tensor:
        """Mean of `values` [K] over each sample's pairs, [B]; exactly 0, still in the graph, without a pair."""
        parts = values.split([len(queries) for queries in self.queries])
        return torch.stack([part.sum() / max(len(part), 1) for part in parts])


class SparseMatcher:
    """Top-1 matching restricted to eligible queries (ESAM, OneFormer3D).

    The cost is a weighted sum of the negative class probability, the mean binary cross entropy and the Dice loss.
    Every instance with an eligible query gets exactly one; of tied queries the one with the lowest index.

    Args:
        class_cost: Weight of the class probability.
        mask_cost: Weight of the binary cross entropy.
        dice_cost: Weight of the Dice loss.
    """

    def __init__(self, class_cost: float = 0.5, mask_cost: float = 1.0, dice_cost: float = 1.0):
        self.class_cost = class_cost
        self.mask_cost = mask_cost
        self.dice_cost = dice_cost

    @torch.no_grad()
    def __call__(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        class_labels: Tensor,
        masks: Tensor,
        valid: Tensor,
        eligible: Tensor,
        places: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Matches one sample.

        Args:
            class_logits: [Q, C + 1].
            mask_logits: [Q, L].
            class_labels: int64 [M].
            masks: bool [M, L].
            valid: bool [L].
            eligible: bool [M, Q].
            places: Of `targets.eligible_places`, where known.

        Returns:
            int64 [K] queries and int64 [K] instances, by ascending instance; an instance without an eligible query
            is left out.
        """
        instances, queries = eligible_places([eligible])[0] if places is None else places
        if not len(instances):
            return instances, instances
        costs = matching_costs(class_logits[queries], mask_logits[queries], class_labels, masks, valid)
        total = self.class_cost * costs.classification + self.mask_cost * costs.mask + self.dice_cost * costs.dice
        total = total.T[instances].masked_fill(~eligible[instances][:, queries], torch.inf)
        best = total.amin(1, keepdim=True)
        first = (total <= best + TIE_TOLERANCE * (1 + best.abs())).int().argmax(1)
        return queries[first], instances
