"""The criterion against the original code's numbers (tests/fixtures/reference/losses_*.npz)."""

import numpy as np
import pytest
import torch

from bifusion_hf.configuration_bifusion import BiFusionLossConfig
from bifusion_hf.losses import BiFusionCriterion
from bifusion_hf.losses.matcher import matching_costs
from bifusion_hf.losses.semantic import semantic_loss
from bifusion_hf.losses.targets import query_semantic_labels


NAMES = (
    "normal",
    "one_gt_without_query",
    "sample_without_any_match",
    "sample_without_instances",
    "tied_queries",
    "semantic_all_ignored",
)
# The original's Dice weight: 4 on the last head, 4 / B with B = 2 on the others.
ORIGINAL_DICE = (2.0, 2.0, 2.0, 4.0)


def run(batch, **kwargs):
    return criterion_of_the_original(**kwargs)(
        batch.heads, batch.semantic_logits, batch.targets, batch.query_superpoints
    )


def criterion_of_the_original(dice_weight=ORIGINAL_DICE):
    others = dict.fromkeys(("consistency_loss_weight", "spatial_loss_weight", "noview_loss_weight"), 0.0)
    return BiFusionCriterion(BiFusionLossConfig(stage_schedule="none", dice_weight=dice_weight, **others))


@pytest.mark.parametrize("name", NAMES)
def test_superpoint_targets(reference_batch, name):
    batch = reference_batch(name)
    for b in range(2):
        expected = batch.data[f"s{b}_sp_inst_masks"]
        found = batch.targets.superpoint_masks[b].numpy()
        assert np.array_equal(found[:, : expected.shape[1]], expected)
        assert not found[:, expected.shape[1] :].any()
        row = batch.data[f"s{b}_sp_sem_row"]
        semantic = batch.targets.superpoint_semantic[b].numpy()
        assert np.array_equal(np.where(semantic == -100, 200, semantic)[: len(row)], row)
        assert batch.targets.superpoint_mask[b].sum() == len(row)


@pytest.mark.parametrize("name", NAMES)
def test_costs_and_matches(reference_batch, name):
    batch = reference_batch(name, padding=50.0)
    output = run(batch)
    for h, head in enumerate(batch.heads):
        for b in range(2):
            if f"s{b}_cost_bce_h{h}" in batch.data:
                n = int((batch.query_superpoints[b] >= 0).sum())
                costs = matching_costs(
                    head.class_logits[b, :n],
                    head.mask_logits[b, :n],
                    batch.targets.class_labels[b],
                    batch.targets.masks(head.level)[b],
                    batch.targets.valid(head.level)[b],
                )
                for cost, stored, weight in zip(costs, ("cls", "bce", "dice"), (0.5, 1.0, 1.0), strict=True):
                    np.testing.assert_allclose(weight * cost, batch.data[f"s{b}_cost_{stored}_h{h}"], atol=2e-6)
            found = torch.stack([output.matches[h].queries[b], output.matches[h].instances[b]], 1).tolist()
            expected = batch.data.get(f"s{b}_pairs_h{h}", np.zeros((0, 2))).tolist()
            if name == "tied_queries" and b == 0:
                continue  # see test_of_tied_queries_the_first_wins
            assert sorted(found) == sorted(expected)


# The original leaves the tied instance out, so its values are of fewer pairs.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "tied_queries"])
def test_values(reference_batch, name):
    batch = reference_batch(name, padding=50.0)
    output = run(batch)
    heads = batch.head_losses(criterion_of_the_original(dice_weight=1.0))
    for term, stored in (("loss_cls", "cls_loss"), ("loss_mask", "bce"), ("loss_dice", "dice")):
        # Samples without a match, NaN in the original, are left out of the mean.
        expected = [np.nanmean(batch.data[f"{stored}_h{h}"]) for h in range(4)]
        np.testing.assert_allclose(heads[term], expected, rtol=1e-5)
        np.testing.assert_allclose(output.loss_dict[term].detach(), np.sum(expected), rtol=1e-5)
    parts = {term: value.item() for term, value in output.weighted_loss_dict.items()}
    instance = parts["loss_cls"] + parts["loss_mask"] + parts["loss_dice"]
    if np.isfinite(batch.data["inst_loss"]):
        assert instance == pytest.approx(batch.data["inst_loss"], rel=1e-5)
    if np.isfinite(batch.data["seg_loss"]):
        assert parts["loss_sem"] == pytest.approx(batch.data["seg_loss"], rel=1e-5)
    if np.isfinite(batch.data["total"]):
        assert output.loss.item() == pytest.approx(batch.data["total"], rel=1e-5)
        published = run(batch, dice_weight=(0.25, 0.25, 0.25, 4.0)).loss.item()
        assert published == pytest.approx(batch.data["total_aux_dice_0.25"], rel=1e-5)
    assert torch.isfinite(output.loss)


def test_gradients(reference_batch):
    batch = reference_batch("normal")
    run(batch).loss.backward()
    compared = [(batch.semantic_logits, "sem")]
    for h, head in enumerate(batch.heads):
        compared += [(head.class_logits, f"cls_h{h}"), (head.mask_logits, f"masks_h{h}")]
    for logits, name in compared:
        for b in range(2):
            expected = batch.data[f"s{b}_grad_{name}"]
            rows, columns = expected.shape
            np.testing.assert_allclose(logits.grad[b, :rows, :columns], expected, atol=1e-7)
            assert not logits.grad[b, rows:].any()
            assert not logits.grad[b, :, columns:].any()


def test_of_tied_queries_the_first_wins(reference_batch):
    batch = reference_batch("tied_queries")
    output = run(batch)
    for h, matches in enumerate(output.matches):
        pairs = set(zip(matches.queries[0].tolist(), matches.instances[0].tolist(), strict=True))
        stored = {tuple(pair) for pair in batch.data[f"s0_pairs_h{h}"].tolist()}
        assert stored < pairs
        ((query, instance),) = pairs - stored
        costs = sum(batch.data[f"s0_cost_{term}_h{h}"][:, instance] for term in ("cls", "bce", "dice"))
        in_instance = batch.data["s0_sp_inst_masks"][instance][batch.data["s0_query_ids"]]
        costs = np.where(in_instance, costs, np.inf)
        tied = np.flatnonzero(costs <= costs.min() + 1e-6)
        assert len(tied) == 2
        assert query == tied[0]


def test_sample_without_supervised_query_is_left_out(reference_batch):
    batch = reference_batch("semantic_all_ignored")
    labels = query_semantic_labels(batch.targets, batch.query_superpoints)
    per_sample = semantic_loss(batch.semantic_logits, labels)
    assert per_sample[1] == 0
    output = run(batch)
    assert output.loss_dict["loss_sem"] == per_sample[0]
    output.loss.backward()
    assert not batch.semantic_logits.grad[1].any()
