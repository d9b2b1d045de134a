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
    for seed in range(200):
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
    assert merged > 200


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
    np.testing.assert_array_equal(box_iou(others[3:], others[3:]), [[0]])
