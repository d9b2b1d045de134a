from types import SimpleNamespace

import numpy as np
import pytest
from slow_merging import SlowScene

from bifusion_hf.scenes.merging import (
    CoveredObjects,
    FrameInstances,
    GeometricMerging,
    LearnedMerging,
    NoMerging,
    ObjectBank,
    box_iou,
    choose_merging,
)
from bifusion_hf.scenes.voxel_map import NUM_SLOTS, SceneMap


WORLD, WIDTH = 60, 3


def random_sequence(rng):
    """Frames of a one-dimensional world of voxels: each sees a stretch of it, and instances that share no voxel."""
    for _ in range(int(rng.integers(3, 9))):
        start = int(rng.integers(0, WORLD - 20))
        seen = np.arange(start, start + int(rng.integers(10, 40)))
        seen = seen[seen < WORLD]
        count = int(rng.integers(0, 5))
        rows = rng.integers(-1, count, size=len(seen)) if count else np.full(len(seen), -1)
        if count and rng.random() < 0.7:
            # Mostly runs, so that frames agree on objects now and then.
            cuts = np.sort(rng.integers(0, len(seen), size=count))
            rows = np.searchsorted(cuts, np.arange(len(seen)), side="right") - 1
        low = rng.uniform(0, 4, (count, 3))
        yield (
            FrameInstances(
                scores=rng.random(count),
                labels=rng.integers(0, 2, count),
                boxes=np.concatenate([low, low + rng.uniform(0.1, 4, (count, 3))], axis=1),
                class_logits=rng.normal(size=(count, 3)),
                features=rng.normal(size=(count, WIDTH)) + 0.7,
                queries=rng.normal(size=(count, 2)),
                semantics=rng.random((count, 4)),
            ),
            seen.astype(np.int64),
            rows,
        )


def step(strategy, bank, scene, instances, seen, rows):
    known = scene.find(seen)
    owners, _ = scene.owners(known[known >= 0])
    covered = CoveredObjects.count(owners, rows[known >= 0], len(instances))
    ids = bank.merge(instances, strategy.match(bank, instances, covered))
    scene.add(seen, np.zeros((len(seen), 3)), np.zeros((len(seen), 3)), np.append(ids, -1)[rows])
    return ids


STRATEGIES = {
    "geometric": GeometricMerging(min_overlap=0.2, min_known=5),
    "geometric, all": GeometricMerging(min_overlap=0.0, min_known=1),
    "learned": LearnedMerging(),
    "learned, no gate": LearnedMerging(label_gate=False),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_as_the_slow_implementation_exactly(name):
    merged = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        strategy = STRATEGIES[name]
        bank, scene = ObjectBank(), SceneMap(1.0)
        settings = {
            key: getattr(strategy, key) for key in ("min_overlap", "min_known", "label_gate") if hasattr(strategy, key)
        }
        slow = SlowScene(strategy.name, **settings)
        for instances, seen, rows in random_sequence(rng):
            ids = step(strategy, bank, scene, instances, seen, rows)
            plain = [
                {
                    "scores": float(instances.scores[k]),
                    "labels": int(instances.labels[k]),
                    **{n: getattr(instances, n)[k].tolist() for n in ("boxes", "class_logits", "features", "queries")},
                    "voxels": set(seen[rows == k].tolist()),
                }
                for k in range(len(instances))
            ]
            assert ids.tolist() == slow.update(plain, set(seen.tolist())), (seed, name)
        if not slow.objects:
            continue
        assert bank["ids"].tolist() == [item["id"] for item in slow.objects]
        assert bank["views"].tolist() == [item["views"] for item in slow.objects]
        for column in ("labels", "scores", "boxes", "class_logits", "features", "queries"):
            assert bank[column].tolist() == [item[column] for item in slow.objects], (seed, name, column)
        merged += int((bank["views"] > 1).sum())
        keys = scene.index.keys.tolist()
        assert sorted(keys) == sorted(slow.voxels)
        owners, shares = scene.owners()
        assert owners.tolist() == [-1 if slow.owner(key) is None else slow.owner(key) for key in keys]
        assert scene.seen.tolist() == [slow.voxels[key]["seen"] for key in keys]
        votes = [dict(slow.voxels[key]["slots"]).get(slow.owner(key), 0) for key in keys]
        np.testing.assert_array_equal(shares, (np.array(votes) / scene.seen).astype(np.float32))
    assert merged > 100


def test_a_voxel_keeps_the_objects_that_come_back():
    scene, rng = SceneMap(1.0), np.random.default_rng(0)
    key = np.array([5], dtype=np.int64)
    for _ in range(200):
        # One object in every second frame, and noise that is never the same twice.
        for index in (7, int(rng.integers(100, 10**6))):
            scene.add(key, np.zeros((1, 3)), np.zeros((1, 3)), np.array([index]))
    assert scene.owners()[0].tolist() == [7]
    assert scene._ids.shape[1] == NUM_SLOTS and scene.seen.tolist() == [400]


def test_nothing_is_merged_without_merging():
    bank, scene = ObjectBank(), SceneMap(1.0)
    total = 0
    for instances, seen, rows in random_sequence(np.random.default_rng(3)):
        ids = step(NoMerging(), bank, scene, instances, seen, rows)
        assert ids.tolist() == list(range(total, total + len(instances)))
        total += len(instances)
    assert (bank["views"] == 1).all()


def test_box_iou_of_boxes_that_do_not_meet_or_have_no_volume():
    unit = np.array([[0.0, 0, 0, 1, 1, 1]])
    others = np.array([[0.5, 0, 0, 1.5, 1, 1], [1, 0, 0, 2, 1, 1], [3, 3, 3, 4, 4, 4], [0, 0, 0, 0, 1, 1]])
    np.testing.assert_allclose(box_iou(unit, others), [[1 / 3, 0, 0, 0]])
    # A flat box has no volume, and one whose ends are exchanged meets none.
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(box_iou(others[3:], others[3:]), [[0]])
        np.testing.assert_array_equal(box_iou(np.array([[0.75, 0, 0, 0.25, 1, 1]]), unit), [[0]])
    # The volumes are below one.
    np.testing.assert_allclose(box_iou(unit / 2, others / 2), [[1 / 3, 0, 0, 0]])


def instances_of(*features, labels=None, boxes=None):
    count = len(features)
    boxes = np.tile([0.0, 0, 0, 1, 1, 1], (count, 1)) if boxes is None else np.array(boxes)
    labels = np.zeros(count, dtype=np.int64) if labels is None else np.array(labels)
    none = np.zeros((count, 0))
    return FrameInstances(np.ones(count), labels, boxes, np.zeros((count, 2)), np.array(features), none, none)


def test_pairs_need_more_than_the_smallest_overlap_and_enough_known_voxels():
    assert GeometricMerging() == GeometricMerging(min_overlap=0.2, min_known=5)
    bank, thing = ObjectBank(), instances_of([1.0, 0.0])
    bank.merge(thing, np.array([-1]))
    # Four voxels are the object's, four of the instance, and three of both: 3 of 5.
    owners, rows = np.array([0, 0, 0, 0, -1]), np.array([0, 0, 0, -1, 0])
    covered = CoveredObjects.count(owners, rows, 1)
    for settings, expected in (
        ((0.59, 5), 0),
        ((0.6, 5), -1),
        ((0.59, 6), -1),
    ):
        assert GeometricMerging(*settings).match(bank, thing, covered).tolist() == [expected]
    # Features that point elsewhere, or nowhere.
    for other in ([0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]):
        with np.errstate(all="raise"):
            found = GeometricMerging(0.0, 1).match(bank, instances_of(other), covered)
        assert found.tolist() == [-1]
    assert GeometricMerging(0.0, 1).match(bank, instances_of([9.0, 0.0]), covered).tolist() == [0]


def test_labels_must_agree_where_they_are_asked_for():
    assert LearnedMerging() == LearnedMerging(label_gate=True)
    bank = ObjectBank()
    bank.merge(instances_of([1.0], labels=[1]), np.array([-1]))
    other = instances_of([1.0], labels=[0])
    assert LearnedMerging().match(bank, other, None).tolist() == [-1]
    assert LearnedMerging(label_gate=False).match(bank, other, None).tolist() == [0]


def test_a_network_merges_by_its_heads_where_it_has_both():
    both = SimpleNamespace(use_box_head=True, use_merge_head="layer")
    assert choose_merging(None, both) == choose_merging("learned", both) == LearnedMerging()
    assert choose_merging("geometric", both) == GeometricMerging() and choose_merging("none", both).name == "none"
    chosen = GeometricMerging(0.5)
    for config in (
        SimpleNamespace(),
        SimpleNamespace(use_box_head=True, use_merge_head=None),
        SimpleNamespace(use_box_head=False, use_merge_head="layer"),
    ):
        assert choose_merging(None, config) == GeometricMerging() and choose_merging(chosen, config) is chosen
        for learned in ("learned", LearnedMerging(False)):
            with pytest.raises(ValueError, match="needs a network with a box head and a merge head"):
                choose_merging(learned, config)


def test_a_bank_goes_on_from_its_state_and_keeps_what_is_chosen():
    bank = ObjectBank()
    assert bank.merge(instances_of([1.0], [2.0], [3.0]), np.array([-1, -1, -1])).tolist() == [0, 1, 2]
    state = bank.state()
    again = ObjectBank.from_state(bank.next_id, state)
    for some in (bank, again):
        some.keep(np.array([0, 2]))
        assert len(some) == 2 and some.rows(np.array([2, 0])).tolist() == [1, 0]
        assert some.merge(instances_of([6.0], [7.0]), np.array([2, -1])).tolist() == [2, 3]
        assert some["ids"].tolist() == [0, 2, 3] and some["views"].tolist() == [1, 2, 1]
        assert some["features"].ravel().tolist() == [1.0, 4.5, 7.0] and some.next_id == 4
        for name, values in some.state().items():
            assert len(values) == 3 and values.dtype == bank[name].dtype
    assert bank["ids"].dtype == bank["views"].dtype == np.int64
    # What was taken down stays.
    assert state["features"].ravel().tolist() == [1.0, 2.0, 3.0] and state["views"].tolist() == [1, 1, 1]
    assert len(ObjectBank.from_state(0, {})) == 0
