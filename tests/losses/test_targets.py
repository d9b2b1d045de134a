import numpy as np
import pytest
import torch

from bifusion_hf.labels import IGNORE, point_instances_from_labels
from bifusion_hf.losses.targets import (
    batch_targets,
    eligible_places,
    eligible_queries,
    query_semantic_labels,
    visible_semantic_labels,
)


@pytest.mark.parametrize("case", range(3))
def test_labels_of_the_original_without_its_lost_instance(reference, case):
    data = np.load(reference / "sp_gt.npz")
    instance, semantic, superpoints = (
        data[f"c{case}_in_{name}"].astype(np.int64) for name in ("instance", "semantic", "superpoints")
    )
    # There 0 is "no instance" and 200 "no class".
    semantic = np.where(semantic == 200, -1, semantic)
    point_instance, labels = point_instances_from_labels(instance - 1, semantic)
    assert np.array_equal(point_instance, data[f"c{case}_correct_point_instance"])
    assert np.array_equal(labels, data[f"c{case}_correct_labels"])

    num_superpoints = superpoints.max() + 1
    targets = batch_targets(
        mask_labels=[torch.as_tensor(point_instance == np.arange(len(labels))[:, None])],
        class_labels=[torch.as_tensor(labels)],
        semantic_labels=torch.as_tensor(np.where(semantic < 0, IGNORE, semantic))[None],
        superpoint_ids=torch.as_tensor(superpoints)[None],
        point_mask=torch.ones(1, len(superpoints), dtype=torch.bool),
        num_superpoints=int(num_superpoints),
        num_labels=198,
    )
    assert np.array_equal(targets.superpoint_masks[0].numpy(), data[f"c{case}_correct_sp_inst_masks"])
    rows = np.unpackbits(data[f"c{case}_correct_sp_sem_masks_packed"], axis=1)[:, :num_superpoints]
    classes = np.where(targets.superpoint_semantic[0] == IGNORE, 200, targets.superpoint_semantic[0])
    assert np.array_equal(classes, rows.argmax(0))


@pytest.mark.parametrize("seed", range(3))
def test_against_counting_point_by_point(random_batch, seed):
    batch = random_batch(seed, sizes=((60, 8, 3), (45, 6, 2), (30, 1, 0)), num_labels=5)
    targets, labels = batch.targets, batch.labels
    for b in range(3):
        for s in range(8):
            points = [n for n in range(60) if labels["superpoint_ids"][b, n] == s]
            assert targets.superpoint_mask[b, s] == bool(points)
            for m, mask in enumerate(labels["mask_labels"][b]):
                assert targets.superpoint_masks[b][m, s] == (2 * sum(mask[points].tolist()) > len(points))
            semantic = labels["semantic_labels"][b, points].tolist()
            majority = [c for c in set(semantic) - {IGNORE} if 2 * semantic.count(c) > len(points)]
            assert targets.superpoint_semantic[b, s] == (majority[0] if majority else IGNORE)
        expected = [[s in row.nonzero() for s in batch.query_superpoints[b]] for row in targets.superpoint_masks[b]]
        found = eligible_queries(targets, batch.query_superpoints)[b]
        assert found.tolist() == (expected if expected else [])
    semantic = query_semantic_labels(targets, batch.query_superpoints)
    assert (semantic[~(batch.query_superpoints >= 0)] == IGNORE).all()
    for b, q in (batch.query_superpoints >= 0).nonzero().tolist():
        assert semantic[b, q] == targets.superpoint_semantic[b, batch.query_superpoints[b, q]]


def test_places_of_instances_and_queries_come_in_their_order():
    generator = torch.Generator().manual_seed(0)
    eligible = [torch.rand(size, generator=generator) < 0.002 for size in ((40, 700), (0, 700), (3, 5))]
    found = eligible_places(eligible)
    for masks, (instances, queries) in zip(eligible, found, strict=True):
        assert instances.tolist() == masks.any(1).nonzero().flatten().tolist()
        assert queries.tolist() == masks.any(0).nonzero().flatten().tolist()
    assert 0 < len(found[0][0]) < 40 and 0 < len(found[0][1]) < 700


def test_classes_of_superpoints_that_the_image_shows(random_batch):
    batch = random_batch(sizes=((60, 8, 3), (45, 6, 2)), visible_fraction=0.1)
    targets, visible = batch.targets, batch.fusion.point_visible
    labels = visible_semantic_labels(targets, visible)
    for b in range(2):
        for s in range(8):
            seen = any(visible[b, n] for n in range(60) if batch.labels["superpoint_ids"][b, n] == s)
            assert labels[b, s] == (targets.superpoint_semantic[b, s] if seen else IGNORE)
    assert 0 < (labels != IGNORE).sum() < (targets.superpoint_semantic != IGNORE).sum()


def test_instances_of_superpoints(random_batch):
    targets = random_batch(sizes=((60, 8, 3), (45, 6, 0))).targets
    instances = targets.superpoint_instances()
    for s, instance in enumerate(instances[0].tolist()):
        members = targets.superpoint_masks[0][:, s].nonzero().flatten().tolist()
        assert instance == (members[0] if members else -1)
    assert (instances[1] == -1).all()


def test_one_label_is_class_agnostic(random_batch):
    labels = random_batch(num_labels=7).labels
    assert [row.tolist() for row in batch_targets(**labels).class_labels] == [
        row.tolist() for row in labels["class_labels"]
    ]
    agnostic = batch_targets(**{**labels, "num_labels": 1})
    assert not any(row.any() for row in agnostic.class_labels)


def test_masks_of_ones_are_those_of_truth(random_batch):
    batch = random_batch()
    found = batch_targets(**{**batch.labels, "mask_labels": [m.to(torch.uint8) for m in batch.labels["mask_labels"]]})
    for name in ("point_masks", "superpoint_masks"):
        for ones, masks in zip(getattr(found, name), getattr(batch.targets, name), strict=True):
            assert ones.dtype == torch.bool and torch.equal(ones, masks)


def test_without_semantic_labels_all_are_ignored(random_batch):
    labels = {**random_batch().labels, "semantic_labels": None}
    assert (batch_targets(**labels).superpoint_semantic == IGNORE).all()


def test_the_largest_class_is_allowed_and_so_is_a_single_one(random_batch):
    labels = random_batch().labels
    semantic = torch.full_like(labels["semantic_labels"], 199)
    of_superpoints = batch_targets(**{**labels, "semantic_labels": semantic})
    assert (of_superpoints.superpoint_semantic[of_superpoints.superpoint_mask] == 199).all()
    labels["semantic_labels"] = torch.where(labels["semantic_labels"] == IGNORE, IGNORE, 0)
    alone = batch_targets(**labels, num_semantic_labels=1).superpoint_semantic
    assert torch.equal(alone, batch_targets(**labels).superpoint_semantic)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.update(mask_labels=x["mask_labels"][:1]), "1 and 2 entries; expected one for each of 2"),
        (lambda x: x.update(mask_labels=[m[:, :-1] for m in x["mask_labels"]]), r"shape \(3, 59\).*\[M, 60\]"),
        (lambda x: x.update(class_labels=[c[:1] for c in x["class_labels"]]), r"class_labels\[0\] \(1,\)"),
        (lambda x: x.update(semantic_labels=x["semantic_labels"][:, :5]), r"semantic_labels has shape \(2, 5\)"),
        (lambda x: x.update(num_superpoints=4), r"superpoint_ids has values 0\.\.7; expected 0\.\.3"),
        (lambda x: x.update(semantic_labels=x["semantic_labels"] + 300), "semantic_labels has values"),
        (lambda x: x["semantic_labels"][0].fill_(200), r"semantic_labels has values 0\.\.200; expected 0\.\.199"),
        (lambda x: x["semantic_labels"][0].fill_(-1), r"semantic_labels has values -1\.\..*; expected 0\.\.199"),
        (lambda x: x.update(class_labels=[c + 7 for c in x["class_labels"]]), "class_labels has values"),
        (lambda x: x["class_labels"][0].fill_(7), r"class_labels has values .\.\.7; expected 0\.\.6"),
        (lambda x: x.update(class_labels=x["class_labels"][:1]), "2 and 1 entries; expected one for each of 2"),
        (lambda x: x.update(mask_labels=[m[0] for m in x["mask_labels"]]), r"mask_labels\[0\] has shape \(60,\)"),
        (lambda x: x.update(superpoint_ids=x["superpoint_ids"][:1]), r"superpoint_ids has shape \(1, 60\)"),
        (
            lambda x: x.update(instance_ids=[c[:1] for c in x["class_labels"]]),
            r"instance_ids has shapes \[\(1,\), \(1,\)\]; expected \[\(3,\), \(2,\)\]",
        ),
    ],
)
def test_bad_labels(random_batch, change, message):
    labels = random_batch(num_labels=7).labels
    change(labels)
    with pytest.raises(ValueError, match=message):
        batch_targets(**labels)
