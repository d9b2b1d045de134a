from dataclasses import replace

import pytest
import torch

from bifusion_hf.configuration_bifusion import BiFusionLossConfig
from bifusion_hf.losses import BiFusionCriterion


# Terms on features, and what each needs.
FEATURE_TERMS = {
    "loss_clip": ("point_visible", "features_3d", "features_2d"),
    "loss_spatial": ("voxel_features", "voxel_samples", "neighbor_pairs"),
    "loss_noview": ("point_visible", "fused_features"),
    "loss_balance": ("point_visible", "fusion_weights"),
    "loss_image_sem": ("point_visible", "image_semantic_logits"),
}
WEIGHTS = {
    "loss_cls": "class_weight",
    "loss_mask": "mask_weight",
    "loss_dice": "dice_weight",
    "loss_sem": "semantic_weight",
    "loss_clip": "consistency_loss_weight",
    "loss_spatial": "spatial_loss_weight",
    "loss_noview": "noview_loss_weight",
    "loss_balance": "balance_loss_weight",
    "loss_image_sem": "image_semantic_weight",
}


def only(term, num_labels=1, **options):
    weights = {**dict.fromkeys(WEIGHTS.values(), 0.0), WEIGHTS[term]: 1.0}
    return BiFusionCriterion(BiFusionLossConfig(**weights, **options), num_labels)


def assert_finite(output, batch):
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(value) for value in output.loss_dict.values())
    output.loss.backward()
    for leaf in batch.leaves():
        assert torch.isfinite(leaf.grad).all()


def test_total_is_each_term_once(make_criterion, random_batch, every_term):
    batch = random_batch(num_labels=3)
    dice = (1.0, 2.0, 3.0, 4.0)
    criterion = make_criterion(num_labels=3, dice_weight=dice, stage_schedule="bifusion", **every_term)
    output = batch.call(criterion, progress=0.1)
    weights = {"loss_cls": 0.5, "loss_mask": 1.0, "loss_sem": 0.5, "loss_clip": 0.1, "loss_spatial": 0.02}
    weights |= {"loss_noview": 0.01, "loss_balance": 0.1, "loss_image_sem": 0.2}
    stages = {"loss_cls": 0.8, "loss_mask": 0.8, "loss_sem": 0.75, "loss_image_sem": 0.75, "loss_clip": 0.5}
    for term, weight in weights.items():
        expected = weight * stages.get(term, 1.0) * output.loss_dict[term].item()
        assert output.weighted_loss_dict[term].item() == pytest.approx(expected, rel=1e-5)
    heads = {term: torch.stack(values) for term, values in batch.head_losses(make_criterion(num_labels=3)).items()}
    expected = 0.8 * (torch.tensor(dice) * heads["loss_dice"]).sum().item()
    assert output.weighted_loss_dict["loss_dice"].item() == pytest.approx(expected, rel=1e-5)
    for term, values in heads.items():
        assert output.loss_dict[term].item() == pytest.approx(values.sum().item(), rel=1e-5)
    assert output.loss.item() == pytest.approx(sum(v.item() for v in output.weighted_loss_dict.values()), rel=1e-5)


@pytest.mark.parametrize("term", WEIGHTS)
def test_each_loss_falls_when_it_alone_is_optimised(random_batch, term):
    batch = random_batch(num_labels=3)
    criterion = only(term, num_labels=3, noview_similarity_threshold=0.0, consistency_gradient_flow_ratio=0.5)
    optimizer = torch.optim.Adam(batch.leaves(), lr=0.02)
    history = []
    for _ in range(30):
        output = batch.call(criterion)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        history.append(output.loss.item())
        assert output.loss == output.loss_dict[term]
        assert all(value == 0 for name, value in output.loss_dict.items() if name != term)
    assert history[-1] < 0.9 * history[0]
    assert history[0] > 1e-3


def test_losses_of_parts_add_up_with_common_counts(make_criterion, random_batch, every_term):
    # Sample 0 has no instance, sample 1 everything, sample 2 nothing out of view, sample 3 one superpoint.
    sizes = ((40, 5, 0), (60, 8, 3), (50, 6, 2), (20, 1, 1))
    criterion = make_criterion(num_labels=3, stage_schedule="none", **every_term)
    batch = random_batch(sizes=sizes, num_labels=3)
    batch.fusion.point_visible[2] = True
    whole = batch.call(criterion)
    counts = criterion.count_samples(batch.targets, batch.query_superpoints, batch.fusion.point_visible)
    assert counts["loss_noview"] == 3
    assert counts["loss_mask"] == counts["loss_dice"] < 4
    totals = dict.fromkeys(whole.loss_dict, 0.0)
    seen = dict.fromkeys(whole.loss_dict, 0)
    for b in range(4):
        part = batch.sample(b)
        own = criterion.count_samples(part.targets, part.query_superpoints, part.fusion.point_visible)
        for term, value in part.call(criterion, loss_counts=counts).loss_dict.items():
            totals[term] += value.item()
            seen[term] += own[term].item()
    assert seen == {term: count.item() for term, count in counts.items()}
    for term, value in whole.loss_dict.items():
        assert totals[term] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), term


@pytest.mark.parametrize(
    ("name", "sizes", "visible"),
    [
        ("no instance anywhere", ((40, 5, 0), (30, 4, 0)), 0.7),
        ("one superpoint", ((40, 1, 1), (30, 1, 0)), 0.7),
        ("one point", ((1, 1, 1),), 1.0),
        ("nothing visible", ((40, 5, 2), (30, 4, 1)), 0.0),
        ("everything visible", ((40, 5, 2), (30, 4, 1)), 1.0),
    ],
)
@pytest.mark.parametrize(
    "options", [{}, {"consistency_negatives_across_batch": True}, {"consistency_loss_mode": "positive"}]
)
def test_degenerate_samples_are_finite(make_criterion, random_batch, every_term, name, sizes, visible, options):
    batch = random_batch(sizes=sizes, visible_fraction=visible)
    output = batch.call(make_criterion(**every_term, **options))
    assert_finite(output, batch)
    if name == "no instance anywhere":
        assert output.loss_dict["loss_mask"] == output.loss_dict["loss_dice"] == 0
        assert output.loss_dict["loss_cls"] > 0
    if name == "nothing visible":
        assert all(output.loss_dict[term] == 0 for term in set(FEATURE_TERMS) - {"loss_spatial"})


def test_all_semantics_ignored_and_tied_queries_are_finite(make_criterion, random_batch, every_term):
    batch = random_batch()
    batch.targets.superpoint_semantic[:] = -100
    with torch.no_grad():
        for leaf in batch.leaves():
            leaf.zero_()
    output = batch.call(make_criterion(**every_term))
    assert output.loss_dict["loss_sem"] == 0
    assert_finite(output, batch)
    # All queries are tied, so each instance takes its first eligible one.
    for b, queries in enumerate(output.matches[0].queries):
        for query, m in zip(queries.tolist(), output.matches[0].instances[b].tolist(), strict=True):
            lies_in = batch.targets.superpoint_masks[b][m][batch.query_superpoints[b].clamp(min=0)]
            assert query == (lies_in & (batch.query_superpoints[b] >= 0)).int().argmax()


def test_every_input_is_in_the_graph_of_an_empty_batch(make_criterion, random_batch, every_term):
    batch = random_batch(sizes=((40, 5, 0), (30, 4, 0)), visible_fraction=0.0)
    batch.targets.superpoint_semantic[:] = -100
    output = batch.call(make_criterion(**every_term))
    # Distributed training waits for every parameter's gradient.
    for leaf, gradient in zip(batch.leaves(), torch.autograd.grad(output.loss, batch.leaves()), strict=True):
        assert gradient.shape == leaf.shape


def test_finite_under_autocast_on_random_batches(make_criterion, random_batch, every_term):
    criterion = make_criterion(num_labels=3, **every_term)
    for seed in range(40):
        dtype = (torch.float16, torch.bfloat16)[seed % 2]
        batch = random_batch(seed, num_labels=3, visible_fraction=(0.0, 0.5, 1.0)[seed % 3])
        for head in batch.heads:
            head.class_logits, head.mask_logits = head.class_logits.to(dtype), (30 * head.mask_logits).to(dtype)
        batch.semantic_logits = batch.semantic_logits.to(dtype)
        with torch.autocast("cpu", dtype=dtype):
            output = batch.call(criterion)
        assert output.loss.dtype == torch.float32
        assert torch.isfinite(output.loss)
        with_autocast_off = batch.call(criterion)
        assert output.loss == with_autocast_off.loss


def test_samples_are_counted_that_a_term_applies_to(make_criterion, random_batch, every_term):
    batch = random_batch(sizes=((40, 5, 2), (30, 4, 1), (20, 3, 0)))
    targets, visible = batch.targets, batch.fusion.point_visible
    # Of the second sample only padding is "visible", of the third one everything.
    visible[0], visible[1], visible[2] = torch.arange(40) % 2 == 0, torch.arange(40) >= 30, True
    targets.superpoint_semantic[:] = -100
    targets.superpoint_semantic[0, 1] = targets.superpoint_semantic[1, 0] = 3
    counts = make_criterion(**every_term).count_samples(targets, batch.query_superpoints, visible)
    counts = {term: int(count) for term, count in counts.items()}
    assert (counts["loss_cls"], counts["loss_spatial"]) == (3, 3)
    assert (counts["loss_balance"], counts["loss_noview"], counts["loss_image_sem"]) == (2, 1, 1)
    labelled = [bool((batch.query_superpoints[b] == s).any()) for b, s in ((0, 1), (1, 0))]
    assert counts["loss_sem"] == sum(labelled) > 0


def test_the_image_branch_learns_from_the_points_by_the_ratio_alone(random_batch):
    batch = random_batch()
    batch.call(only("loss_clip", consistency_gradient_flow_ratio=0.0)).loss.backward()
    assert batch.fusion.features_3d.grad.any() and not batch.fusion.features_2d.grad.any()


def test_terms_that_are_off_have_the_precision_of_the_others(make_criterion, random_batch):
    batch = random_batch()
    for head in batch.heads:
        head.class_logits, head.mask_logits = head.class_logits.bfloat16(), head.mask_logits.bfloat16()
    batch.semantic_logits = batch.semantic_logits.bfloat16()
    output = batch.call(make_criterion())
    for values in (output.loss_dict, output.weighted_loss_dict):
        assert {value.dtype for value in values.values()} == {torch.float32}


def test_switched_off_terms_need_nothing(make_criterion, random_batch):
    batch = random_batch()
    batch.fusion = None
    criterion = make_criterion()
    output = batch.call(criterion)
    assert set(output.loss_dict) == set(criterion.terms) == set(WEIGHTS) - {"loss_balance", "loss_image_sem"}
    assert output.loss_dict["loss_clip"] == 0
    assert set(criterion.active_terms) == {"loss_cls", "loss_mask", "loss_dice", "loss_sem"}
    counts = criterion.count_samples(batch.targets, batch.query_superpoints)
    assert counts["loss_clip"] == 0
    assert counts["loss_cls"] == 2


@pytest.mark.parametrize("term", FEATURE_TERMS)
def test_missing_inputs_are_named(random_batch, term):
    batch = random_batch()
    counts = {name: torch.tensor(2) for name in only(term).terms}
    for name in FEATURE_TERMS[term]:
        part = replace(batch, fusion=replace(batch.fusion, **{name: None}))
        for loss_counts in (None, counts):
            with pytest.raises(ValueError, match=f"{term} has a weight, so {name} of the fusion output is needed"):
                part.call(only(term), loss_counts=loss_counts)
    batch.fusion = None
    with pytest.raises(ValueError, match=f"{term} has a weight, so {', '.join(FEATURE_TERMS[term])} of the fusion"):
        batch.call(only(term))


def test_missing_counts_columns_and_weights_are_named(make_criterion, random_batch):
    batch = random_batch()
    with pytest.raises(ValueError, match="loss_counts has no loss_mask"):
        batch.call(make_criterion(), loss_counts={"loss_cls": torch.tensor(2)})
    with pytest.raises(ValueError, match="expected 199 columns"):
        batch.call(make_criterion(num_labels=198))
    with pytest.raises(ValueError, match="dice_weight has 2 entries"):
        batch.call(make_criterion(dice_weight=(1.0, 2.0)))
    for term in ("loss_clip", "loss_noview", "loss_balance", "loss_image_sem"):
        with pytest.raises(ValueError, match=f"{term} has a weight, so point_visible is needed; it is None"):
            only(term).count_samples(batch.targets, batch.query_superpoints)
    for head in batch.heads[:-1]:
        head.boxes = torch.zeros(*head.class_logits.shape[:2], 6)
    batch.targets.boxes = [torch.zeros(len(labels), 6) for labels in batch.targets.class_labels]
    with pytest.raises(ValueError, match="loss_box has a weight, so boxes is needed; it is None"):
        batch.call(make_criterion(box_weight=1.0))
    with pytest.raises(ValueError, match="loss_merge has a weight, so instance_ids is needed; it is None"):
        make_criterion(merge_weight=1.0).count_samples(batch.targets, batch.query_superpoints)
    batch.targets.instance_ids = [torch.arange(len(labels)) for labels in batch.targets.class_labels]
    with pytest.raises(ValueError, match="loss_merge has a weight, so merge_embeddings is needed; it is None"):
        batch.call(make_criterion(merge_weight=1.0))


def test_has_no_parameters_and_no_state(make_criterion):
    criterion = make_criterion()
    assert not list(criterion.parameters())
    assert not criterion.state_dict()


@pytest.mark.gpu
def test_same_on_gpu(make_criterion, random_batch, every_term):
    criterion = make_criterion(**every_term)
    expected = random_batch().call(criterion).loss_dict
    for term, value in random_batch().cuda().call(criterion).loss_dict.items():
        assert value.item() == pytest.approx(expected[term].item(), rel=1e-4, abs=1e-6)
