import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch

from bifusion_hf.evaluation import InstanceAveragePrecision
from bifusion_hf.evaluation.instance_average_precision import curve_area, mask_overlaps
from bifusion_hf.labels import INSTANCE_CLASS_NAMES, SPLIT_OF_CLASS, STUFF_CLASSES


REFERENCE_FRAMES = [f"f{index:02d}" for index in range(12)]
KEYS = ("ap", "ap50%", "ap25%")
TOTALS = ("all_ap", "all_ap_50%", "all_ap_25%")


@pytest.fixture(scope="module")
def stored(reference):
    with np.load(reference / "evaluation.npz") as data:
        return {name: data[name] for name in data.files}


def frame_of(stored, name, reverse=False, scores=True):
    """One stored frame as the arguments of `update`."""
    semantic = stored[f"{name}_gt_semantic"].astype(np.int64)
    instance_ids = stored[f"{name}_gt_instance"].astype(np.int64)
    masks = np.unpackbits(stored[f"{name}_masks_packed"], axis=1)[:, : len(semantic)].astype(bool)
    labels = np.array(
        [semantic[np.argmax(instance_ids == instance)] for instance in range(instance_ids.max() + 1)], dtype=np.int64
    )
    order = slice(None, None, -1) if reverse else slice(None)
    things = len(STUFF_CLASSES)
    predictions = masks[order], stored[f"{name}_scores"][order], stored[f"{name}_labels"][order].astype(int) - things
    return *predictions, instance_ids, labels - things


def evaluate(metric, frames):
    for frame in frames:
        metric.update(*frame)
    return metric.compute()


def values(result, class_names):
    return np.array([[result["classes"][name][key] for key in KEYS] for name in class_names])


def totals(result):
    return np.array([result[key] for key in TOTALS])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mode", ["aware", "agnostic"])
def test_reference_is_reproduced(stored, mode, reverse):
    metric = InstanceAveragePrecision(INSTANCE_CLASS_NAMES if mode == "aware" else None)
    result = evaluate(metric, [frame_of(stored, name, reverse) for name in REFERENCE_FRAMES])
    suffix = "_reversed_prediction_order" if reverse else ""
    np.testing.assert_allclose(totals(result), stored[f"{mode}_overall{suffix}"], rtol=0, atol=1e-9)
    if not reverse:
        expected = stored[f"{mode}_per_class"]
        np.testing.assert_allclose(values(result, metric.class_names), expected, rtol=0, atol=1e-9, equal_nan=True)
    # 87 instances of which 29 have fewer than 100 points, 147 predictions of which 54 do.
    assert (result["num_frames"], result["num_instances"], result["num_predictions"]) == (12, 58, 93)


def test_reference_edge_frame(stored):
    metric = InstanceAveragePrecision(INSTANCE_CLASS_NAMES)
    result = evaluate(metric, [frame_of(stored, "edge")])
    np.testing.assert_allclose(totals(result), stored["edge_aware_overall"], rtol=0, atol=1e-9)
    expected = stored["edge_aware_per_class"]
    np.testing.assert_allclose(values(result, INSTANCE_CLASS_NAMES), expected, rtol=0, atol=1e-9, equal_nan=True)


def test_reference_class_order(stored):
    np.testing.assert_array_equal(stored["class_index"], np.arange(2, 200))


def test_head_common_tail_are_means_over_their_classes(stored):
    result = evaluate(
        InstanceAveragePrecision(INSTANCE_CLASS_NAMES), [frame_of(stored, name) for name in REFERENCE_FRAMES]
    )
    for split in ("head", "common", "tail"):
        names = [name for name in INSTANCE_CLASS_NAMES if SPLIT_OF_CLASS[name] == split]
        np.testing.assert_allclose(
            [result[split][key] for key in KEYS], np.nanmean(values(result, names), axis=0), rtol=0, atol=1e-12
        )
    assert sum(result[split]["num_instances"] for split in ("head", "common", "tail")) == 58
    assert "head" not in InstanceAveragePrecision(["chair", "my own class"]).compute()
    assert "head" not in InstanceAveragePrecision(None).compute()


def random_frame(rng, num_points=1500, num_classes=3, num_instances=7, num_predictions=25):
    """A frame with many near misses: masks are instances with points flipped, moved or merged; scores are tied."""
    instance_ids = np.repeat(rng.integers(-1, num_instances, 60), num_points // 60)
    gt_labels = rng.integers(-1, num_classes, num_instances)
    masks, labels = [], []
    for _ in range(num_predictions):
        target = rng.integers(num_instances)
        mask = np.isin(instance_ids, [target, rng.integers(-1, num_instances)] if rng.random() < 0.4 else [target])
        masks.append(mask ^ (rng.random(num_points) < rng.choice([0.0, 0.05, 0.2])))
        labels.append(max(gt_labels[target], 0) if rng.random() < 0.7 else rng.integers(num_classes))
    scores = np.round(rng.random(num_predictions), 1)
    return np.array(masks), scores, np.array(labels), instance_ids, gt_labels


def slow_average_precision(frames, num_classes, min_points, thresholds):
    """The protocol written the long way: per threshold and class, dictionaries and comparisons of whole masks."""
    table = np.full((num_classes, len(thresholds)), np.nan)
    for label in range(num_classes):
        for column, threshold in enumerate(thresholds):
            detections, misses, instances = [], 0, 0
            for masks, scores, labels, ids, gt_labels in frames:
                void = (ids < 0) | np.isin(ids, np.flatnonzero(gt_labels < 0))
                truths = [ids == instance for instance in np.flatnonzero(gt_labels == label)]
                guesses = [
                    (index, masks[index], scores[index])
                    for index in range(len(masks))
                    if labels[index] == label and masks[index].sum() >= min_points
                ]
                taken = {}
                for truth in truths:
                    if truth.sum() < min_points:
                        continue
                    instances += 1
                    best = None
                    for index, mask, score in guesses:
                        if taken.get(index) or not (truth & mask).sum() / (truth | mask).sum() > threshold:
                            continue
                        if best is None:
                            best, taken[index] = score, True
                        else:
                            detections.append((min(best, score), 0))
                            best = max(best, score)
                    if best is None:
                        misses += 1
                    else:
                        detections.append((best, 1))
                for _, mask, score in guesses:
                    if any((truth & mask).sum() / (truth | mask).sum() > threshold for truth in truths):
                        continue
                    ignored = (mask & void).sum()
                    ignored += sum((mask & truth).sum() for truth in truths if truth.sum() < min_points)
                    if ignored / mask.sum() <= threshold:
                        detections.append((score, 0))
            if not instances:
                continue
            curve = [(1.0, 0.0)]
            for cut in sorted({score for score, _ in detections}, reverse=True):
                right = sum(hit for score, hit in detections if score >= cut)
                accepted = sum(1 for score, _ in detections if score >= cut)
                curve.append((right / accepted, right / (sum(hit for _, hit in detections) + misses)))
            curve.reverse()
            recalls = [curve[0][1], *(recall for _, recall in curve), 0.0]
            area = sum(point[0] * (recalls[i] - recalls[i + 2]) / 2 for i, point in enumerate(curve))
            table[label, column] = area if detections else 0.0
    return table


@pytest.mark.parametrize("seed", range(4))
def test_equals_slow_implementation(seed):
    rng = np.random.default_rng(seed)
    frames = [random_frame(rng) for _ in range(6)]
    # Instances are of whole runs of 25 points: some are just as large as the smallest that takes part.
    metric = InstanceAveragePrecision(["a", "b", "c"], min_points=75, include_95=True)
    result = evaluate(metric, frames)
    np.testing.assert_allclose(metric.thresholds, [*np.arange(50, 95, 5) / 100, 0.25, 0.95], rtol=1e-12)
    slow = slow_average_precision(frames, 3, 75, metric.thresholds)
    assert np.nanmin(slow) < 0.9 * np.nanmax(slow)
    np.testing.assert_allclose(metric._average_precisions(), slow, rtol=0, atol=1e-12, equal_nan=True)
    coco = [*range(9), 10]
    np.testing.assert_allclose(result["all_ap_50:95"], np.nanmean(slow[:, coco]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(result["all_ap"], np.nanmean(slow[:, :9]), rtol=0, atol=1e-12)


def test_option_with_095_leaves_the_other_numbers_alone(stored):
    frames = [frame_of(stored, name) for name in REFERENCE_FRAMES]
    plain = evaluate(InstanceAveragePrecision(INSTANCE_CLASS_NAMES), frames)
    extended = evaluate(InstanceAveragePrecision(INSTANCE_CLASS_NAMES, include_95=True), frames)
    np.testing.assert_array_equal(totals(plain), totals(extended))
    assert "all_ap_50:95" not in plain
    assert extended["all_ap_50:95"] < extended["all_ap"]


def test_merge_equals_one_metric_and_survives_pickling(stored):
    frames = [frame_of(stored, name) for name in REFERENCE_FRAMES]
    whole = evaluate(InstanceAveragePrecision(INSTANCE_CLASS_NAMES), frames)
    parts = [InstanceAveragePrecision(INSTANCE_CLASS_NAMES) for _ in range(3)]
    for index, frame in enumerate(frames):
        parts[index % 3].update(*frame)
    parts = [pickle.loads(pickle.dumps(part)) for part in reversed(parts)]
    before = copy.deepcopy(parts[1])
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    merged = parts[0].compute()
    np.testing.assert_array_equal(values(merged, INSTANCE_CLASS_NAMES), values(whole, INSTANCE_CLASS_NAMES))
    np.testing.assert_equal(merged, whole)
    assert merged["num_frames"] == 12
    # Plain numbers, which any file takes.
    assert type(merged["all_ap"]) is float and '"num_instances": 58' in json.dumps(merged)
    assert totals(parts[1].compute()).tolist() == totals(before.compute()).tolist()


@pytest.mark.parametrize(
    "other, message",
    [
        (InstanceAveragePrecision(["a", "c"]), "class_names is"),
        (InstanceAveragePrecision(["a", "b"], min_points=50), "min_points is 100 here and 50 there"),
        (InstanceAveragePrecision(["a", "b"], include_95=True), "include_95 is False here"),
        (InstanceAveragePrecision(None), "class_agnostic is False here"),
    ],
)
def test_merge_refuses_another_protocol(other, message):
    with pytest.raises(ValueError, match=message):
        InstanceAveragePrecision(["a", "b"]).merge(other)


def ids_of(*sizes):
    """Instance ids of consecutive runs: -1 for the first, then 0, 1, ..."""
    return np.repeat(np.arange(-1, len(sizes) - 1), sizes)


def test_iou_of_exactly_the_threshold_is_no_match():
    ids = ids_of(0, 200)
    half = np.arange(200) < 100
    more = np.arange(200) < 101
    for mask, expected in ((half, 0.0), (more, 1.0)):
        metric = InstanceAveragePrecision(None)
        metric.update(mask[None], [0.9], None, ids, [0])
        assert metric.compute()["all_ap_50%"] == expected
        assert metric.compute()["all_ap_25%"] == 1.0


def test_matching_follows_the_given_order_not_the_score():
    # At 0.25 prediction 0 fits both instances, prediction 1 the first one alone.
    ids = ids_of(0, 200, 200)
    both, first = np.ones(400, bool), ids == 0
    results = []
    for masks, scores in (([both, first], [0.9, 0.8]), ([first, both], [0.8, 0.9])):
        metric = InstanceAveragePrecision(None)
        metric.update(np.array(masks), scores, None, ids, [0, 0])
        results.append(metric.compute()["all_ap_25%"])
    # Order [both, first]: instance 0 takes `both`, `first` becomes a false positive, instance 1 finds nothing.
    # Order [first, both]: instance 0 takes `first`, and `both` with the higher score lends it to the match and is
    # also left for instance 1.
    assert results[0] == pytest.approx(0.5)
    assert results[1] == pytest.approx(1.0)


def test_void_and_small_instances_excuse_predictions():
    ids = ids_of(1000, 300, 50)
    labels = [0, 0]
    right = ids == 0
    on_void = ids == -1
    on_small = np.concatenate([np.zeros(1240, bool), np.ones(110, bool)])
    metric = InstanceAveragePrecision(None)
    metric.update(np.array([right, on_void]), [0.5, 0.9], None, ids, labels)
    assert metric.compute()["all_ap"] == 1.0
    assert metric.compute()["num_instances"] == 1
    # 60 points on the large instance, 50 on the small one: under half is excused, so it counts at 0.50, not at 0.25.
    metric = InstanceAveragePrecision(None)
    metric.update(np.array([right, on_small]), [0.5, 0.9], None, ids, labels)
    assert metric.compute()["all_ap_50%"] < 1.0
    assert metric.compute()["all_ap_25%"] == 1.0


def test_instance_labelled_void_is_void_in_both_modes():
    ids = ids_of(0, 300, 300)
    for class_names in (None, ["a"]):
        metric = InstanceAveragePrecision(class_names)
        metric.update(np.array([ids == 0, ids == 1]), [0.5, 0.9], [0, 0], ids, [0, -1])
        assert metric.compute()["all_ap"] == 1.0
        assert metric.compute()["num_instances"] == 1


def test_empty_inputs():
    metric = InstanceAveragePrecision(["a", "b"])
    assert math.isnan(metric.compute()["all_ap"])
    none = np.zeros((0, 500), bool)
    metric.update(none, [], [], np.full(500, -1), [])
    assert math.isnan(metric.compute()["all_ap"])
    # A frame without points, an instance without predictions, a prediction without instances.
    metric.update(np.zeros((0, 0), bool), [], [], np.zeros(0, int), [])
    metric.update(none, [], [], ids_of(0, 500), [1])
    result = metric.compute()
    assert result["all_ap"] == 0.0
    assert math.isnan(result["classes"]["a"]["ap"])
    metric.update(np.ones((1, 500), bool), [0.5], [0], np.full(500, -1), [])
    assert metric.compute()["classes"]["b"]["ap"] == 0.0
    assert metric.compute()["num_frames"] == 4


def test_perfect_predictions_score_one_and_absent_ids_do_no_harm():
    rng = np.random.default_rng(0)
    ids = rng.permutation(ids_of(100, 150, 0, 200, 130))
    metric = InstanceAveragePrecision(["a", "b"])
    metric.update(np.array([ids == k for k in (0, 2, 3)]), [0.9, 0.5, 0.7], [0, 1, 1], ids, [0, 1, 1, 1])
    assert totals(metric.compute()).tolist() == [1.0, 1.0, 1.0]
    assert metric.compute()["num_instances"] == 3


def test_tensors_of_any_dtype():
    ids = ids_of(100, 200)
    metric = InstanceAveragePrecision(None)
    metric.update(
        torch.from_numpy((ids == 0)[None]),
        torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True),
        None,
        torch.from_numpy(ids),
        None,
    )
    assert metric.compute()["all_ap"] == 1.0


def test_overlaps_equal_counts_of_pairs():
    rng = np.random.default_rng(0)
    masks, ids = rng.random((37, 500)) < 0.3, rng.integers(-1, 6, 500)
    expected = np.array([[np.count_nonzero(mask & (ids == k)) for k in (0, 1, 2, 3, 4, 5, -1)] for mask in masks])
    found = mask_overlaps(masks, ids, 6)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int64


GOOD = {
    "pred_masks": np.ones((2, 50), bool),
    "pred_scores": np.array([0.1, 0.2]),
    "pred_labels": np.array([0, 1]),
    "gt_instance_ids": np.zeros(50, int),
    "gt_labels": np.array([1]),
}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"pred_masks": np.ones((2, 50))},
            r"pred_masks has shape \(2, 50\) and dtype float64; expected bool \[K, N\]",
        ),
        ({"pred_masks": np.ones(50, bool)}, r"pred_masks has shape \(50,\)"),
        ({"pred_scores": np.array([0.1])}, r"pred_scores has shape \(1,\); expected \[2\]"),
        ({"pred_scores": np.array([0.1, np.nan])}, "pred_scores has 1 values that are not finite"),
        ({"pred_scores": np.array([np.inf, np.nan])}, "pred_scores has 2 values"),
        ({"pred_labels": np.array([0])}, r"pred_labels has shape \(1,\); expected \[2\]"),
        ({"pred_labels": np.array([0.0, 1.0])}, "pred_labels has dtype float64"),
        ({"pred_labels": np.array([0, 2])}, r"pred_labels has values 0..2; expected 0..1"),
        ({"pred_labels": np.array([-1, 0])}, r"pred_labels has values -1..0; expected 0..1"),
        ({"gt_instance_ids": np.zeros(49, int)}, r"gt_instance_ids has shape \(49,\); expected \[50\]"),
        ({"gt_instance_ids": np.zeros(50)}, "gt_instance_ids has dtype float64"),
        ({"gt_instance_ids": np.full(50, -2)}, r"gt_instance_ids has values -2..-2; expected -1..0"),
        ({"gt_instance_ids": np.ones(50, int)}, r"gt_instance_ids has values 1..1; expected -1..0"),
        ({"gt_labels": np.array([2])}, r"gt_labels has values 2..2; expected -1..1"),
        ({"gt_labels": np.array([[1]])}, r"gt_labels has shape \(1, 1\)"),
    ],
)
def test_malformed_input_is_refused_and_adds_nothing(change, message):
    metric = InstanceAveragePrecision(["a", "b"])
    metric.update(**GOOD)
    with pytest.raises(ValueError, match=message):
        metric.update(**{**GOOD, **change})
    assert metric.num_frames == 1


def test_instances_need_no_labels_where_there_is_one_class():
    """There are as many as the ids say."""
    metric = InstanceAveragePrecision(None)
    metric.update(np.zeros((0, 0), bool), [], None, np.zeros(0, int), None)
    metric.update(np.zeros((0, 500), bool), [], None, np.full(500, -1), None)
    assert math.isnan(metric.compute()["all_ap"])
    ids = ids_of(50, 100, 200, 0, 300)
    metric.update(np.array([ids == 0, ids == 3]), [0.9, 0.8], None, ids, None)
    assert metric.compute()["num_instances"] == 3
    for last in (-1, 0, 4):
        with pytest.raises(ValueError, match=f"gt_instance_ids has values -2..{last}; expected -1..{last}"):
            metric.update(np.zeros((0, 2), bool), [], None, np.array([-2, last]), None)
    assert metric.num_frames == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"class_names": []}, "class_names has 0 names"),
        ({"class_names": ["a", "a"]}, "no duplicates"),
        ({"class_names": None, "min_points": 0}, "min_points is 0"),
    ],
)
def test_malformed_protocol_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        InstanceAveragePrecision(**arguments)


def test_the_smallest_instance_that_can_be_asked_for_is_a_point():
    metric = InstanceAveragePrecision(None, min_points=1)
    metric.update(np.array([[True, False]]), [0.5], None, np.array([0, -1]), None)
    assert metric.compute()["all_ap"] == 1.0


def test_predictions_at_exactly_a_threshold_are_wrong_there():
    """Neither found nor excused: both need more than the threshold."""
    ids = ids_of(200, 200, 200)
    first, half_of_second = ids == 0, (ids == 1) & (np.arange(600) % 2 == 0)
    half_on_void = np.roll(ids == 0, -100)
    # Half of the second instance: IoU 0.5. Of the wrong one, half lies on void, and its IoU with the first is 1 / 3.
    for wrong in (half_of_second, half_on_void):
        metric = InstanceAveragePrecision(None)
        metric.update(np.array([first, wrong]), [0.5, 0.9], None, ids, None)
        # From 0.9 on precision is 0, from 0.5 on 1 / 2; one of two instances is found.
        assert metric.compute()["all_ap_50%"] == (0 + 1 / 2) / 2 / 2


def test_what_was_kept_of_some_frames_stays_as_it_is():
    metric, ids = InstanceAveragePrecision(None), ids_of(0, 150)
    metric.update(np.zeros((0, 150), bool), [], None, ids, None)
    kept = metric.detections()
    metric.update(np.zeros((0, 150), bool), [], None, ids, None)
    assert kept["num_instances"].tolist() == [1] and (kept["missed"] == 1).all()
    assert metric.detections()["num_instances"].tolist() == [2]


def test_the_curve_of_no_detection_has_no_area():
    nothing = np.zeros(0), np.zeros(0, dtype=np.int8)
    with np.errstate(all="raise"):
        assert curve_area(*nothing, 0) == curve_area(*nothing, 3) == 0.0
    assert type(curve_area(*nothing, 0)) is float
