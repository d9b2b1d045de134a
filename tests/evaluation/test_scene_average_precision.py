import json

import numpy as np
import pytest

from bifusion_hf.evaluation.scene_average_precision import (
    IdentitySteadiness,
    SceneAveragePrecision,
    masks_at_vertices,
    vote_segments,
)


def test_identity_of_a_hand_made_sequence():
    metric = IdentitySteadiness()
    nothing = metric.compute()
    assert np.isnan([nothing.pop(name) for name in ("id_share", "coverage", "id_switches_per_object")]).all()
    assert nothing == {"id_switches": 0, "num_objects": 0, "num_frames": 0}
    # Object 0 is id 7, then 8, then 7 for two of its three points; object 1 is never found.
    metric.update([7, 7, -1, -1], [0, 0, 1, -1])
    metric.update([8, -1, -1, 3], [0, 0, 1, -1])
    metric.update([7, 7, 8, -1], [0, 0, 0, 1])
    metric.end_scene()
    # The next scene may use the same ids for other objects: no switch.
    metric.update([1, 1], [0, 0])
    metric.end_scene()
    result = metric.compute()
    assert result["id_switches"] == 2 and result["num_objects"] == 3 and result["num_frames"] == 4
    assert result["id_share"] == pytest.approx((4 / 6 + 1) / 2)
    assert result["coverage"] == pytest.approx((6 / 7 + 0 + 1) / 3)
    assert json.loads(json.dumps(result)) == result, "plain numbers"
    other = IdentitySteadiness()
    other.update([5], [0])
    other.end_scene()
    metric.merge(other)
    assert metric.compute()["num_objects"] == 4 and metric.compute()["id_share"] == pytest.approx((4 / 6 + 2) / 3)
    with pytest.raises(ValueError, match="pred_ids"):
        metric.update([1], [0, 0])


@pytest.mark.parametrize(
    ("frames", "switches"),
    [
        # Of equal numbers the lowest id leads, whichever led before.
        ([[7, 7, 7, 7], [8, 8, 7, 7], [7, 7, 9, 9]], 0),
        ([[8, 8, 8, 8], [8, 8, 7, 7], [8, 8, 8, 8]], 2),
        ([[8, 8, 8, 8], [8, 8, 8, 7], [9, 9, 8, 8]], 0),
        # A frame without it is no frame of another.
        ([[0, 0, 0, 0], [-1, -1, -1, -1], [0, 1, -1, -1]], 0),
        ([[0, 0, 0, 0], [-1, -1, -1, -1], [-1, -1, -1, 1]], 1),
    ],
)
def test_an_object_is_led_by_its_most_frequent_id(frames, switches):
    metric = IdentitySteadiness()
    for pred_ids in frames:
        metric.update(pred_ids, [3, 3, 3, 3])
    metric.end_scene()
    assert metric.compute()["id_switches"] == metric.compute()["id_switches_per_object"] == switches


def test_scenes_of_several_processes_are_merged():
    rng = np.random.default_rng(0)
    whole, parts = SceneAveragePrecision(min_points=5), [SceneAveragePrecision(min_points=5) for _ in range(2)]
    for index in range(4):
        truth = rng.integers(-1, 4, 200)
        masks = np.array([(truth == instance) & (rng.random(200) < 0.9) for instance in range(4)])
        for metric in (whole, parts[index % 2]):
            metric.update(masks, rng.random(4) * 0 + 0.5 + 0.1 * index, None, truth, None)
            metric.identity.update(truth, truth)
            metric.identity.end_scene()
    parts[0].merge(parts[1])
    assert parts[0].compute() == whole.compute()


def test_the_smallest_object_has_a_hundred_points_unless_another_number_is_asked_for():
    ids, mask = np.zeros(100, dtype=int), np.ones((1, 100), dtype=bool)
    for options, classes in (({}, None), ({"include_95": True}, ["a"])):
        metric = SceneAveragePrecision(classes, **options)
        metric.update(mask, [0.5], [0], ids, [0])
        results = metric.compute()
        assert set(results) == ({"class_agnostic"} if classes is None else {"class_agnostic", "class_aware"})
        for part in results.values():
            assert part["all_ap"] == 1.0 and ("all_ap_50:95" in part) == bool(options)
        smaller = SceneAveragePrecision(classes, **options)
        smaller.update(mask[:, :99], [0.5], [0], ids[:99], [0])
        assert smaller.compute()["class_agnostic"]["num_instances"] == 0


def test_masks_go_to_the_mesh_by_the_nearest_point_and_to_segments_by_majority():
    points = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    masks = np.array([[True, False, False], [False, True, True]])
    vertices = np.array([[-9.0, 0, 0], [0.4, 0, 0], [0.6, 0, 0], [1.4, 0, 0], [50, 0, 0]])
    on_mesh = masks_at_vertices(points, masks, vertices)
    assert on_mesh.tolist() == [[True, True, False, False, False], [False, False, True, True, True]]
    # Half of a segment is not more than half.
    voted = vote_segments(on_mesh, np.array([3, 3, 8, 8, 8]))
    assert voted.tolist() == [[True, True, False, False, False], [False, False, True, True, True]]
    voted = vote_segments(on_mesh, np.array([3, 8, 8, 3, 3]))
    assert voted.tolist() == [[False] * 5, [True, False, False, True, True]]
    assert vote_segments(np.zeros((0, 5), bool), np.arange(5)).shape == (0, 5)
    with pytest.raises(ValueError, match="expected"):
        masks_at_vertices(points, masks[:, :2], vertices)
    with pytest.raises(ValueError, match=r"masks has shape \(2, 0\) and points \(0, 3\)"):
        masks_at_vertices(points[:0], masks[:, :0], vertices)
    assert masks_at_vertices(points[:1], masks[:, :1], vertices).tolist() == [[True] * 5, [False] * 5]
    with pytest.raises(ValueError, match="segments"):
        vote_segments(on_mesh, np.array([1, 2]))
