import math
import pickle

import numpy as np
import pytest
import torch

from bifusion_hf.evaluation import SemanticMeanIoU
from bifusion_hf.labels import SCANNET200_CLASS_NAMES, SPLIT_OF_CLASS


def test_equals_direct_count():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, (3, 400)), rng.integers(-1, 5, (3, 400))
    truth[rng.random(truth.shape) < 0.2] = -100
    metric = SemanticMeanIoU("abcdef")
    for frame in range(3):
        metric.update(predicted[frame], torch.from_numpy(truth[frame]))
    active = truth != -100
    expected = [
        np.sum(active & (truth == k) & (predicted == k)) / np.sum(active & ((truth == k) | (predicted == k)))
        for k in range(5)
    ]
    with np.errstate(all="raise"):
        result = metric.compute()
    np.testing.assert_allclose([result["classes"][name]["iou"] for name in "abcde"], expected, rtol=0, atol=1e-12)
    assert math.isnan(result["classes"]["f"]["iou"])
    assert result["mean_iou"] == pytest.approx(np.mean(expected))
    assert result["overall_accuracy"] == pytest.approx(np.mean((truth == predicted)[active]))
    counts = [np.count_nonzero(truth == k) for k in range(6)]
    assert [result["classes"][name]["num_points"] for name in "abcdef"] == counts
    assert type(result["overall_accuracy"]) is float and result["num_frames"] == 3


def test_groups_of_scannet200():
    labels = np.arange(200)
    metric = SemanticMeanIoU(SCANNET200_CLASS_NAMES)
    tail = np.array([SPLIT_OF_CLASS[name] == "tail" for name in SCANNET200_CLASS_NAMES])
    metric.update(np.where(tail, -1, labels), labels)
    result = metric.compute()
    assert (result["head"]["iou"], result["common"]["iou"], result["tail"]["iou"]) == (1.0, 1.0, 0.0)
    assert result["mean_iou"] == pytest.approx(134 / 200)


def test_merge_and_empty():
    rng = np.random.default_rng(0)
    whole, parts = SemanticMeanIoU("abc"), [SemanticMeanIoU("abc") for _ in range(2)]
    nothing = whole.compute()
    assert math.isnan(nothing["mean_iou"]) and math.isnan(nothing["overall_accuracy"])
    assert nothing["classes"]["a"]["num_points"] == 0
    for index in range(4):
        frame = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
        whole.update(*frame)
        parts[index % 2].update(*frame)
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    assert parts[0].compute() == whole.compute()
    SemanticMeanIoU(("a", "b")).merge(SemanticMeanIoU(["a", "b"]))
    with pytest.raises(ValueError, match="cannot merge: class_names"):
        whole.merge(SemanticMeanIoU("abd"))
    with pytest.raises(ValueError, match="cannot merge: ignore_index is -100 here and 255 there"):
        whole.merge(SemanticMeanIoU("abc", ignore_index=255))


@pytest.mark.parametrize(
    "predicted, truth, message",
    [
        ([0, 1], [0], r"pred_labels has shape \(2,\); expected \[1\]"),
        ([0.0], [0], "pred_labels has dtype float64"),
        ([2], [0], r"pred_labels has values 2..2; expected -1..1"),
        ([-2, 0], [0, 0], r"pred_labels has values -2..0; expected -1..1"),
        ([0, 0], [0, 2], r"gt_labels has values 0..2; expected 0..1"),
        ([0], [-1], r"gt_labels has values -1..-1; expected 0..1"),
        ([[0]], [[0]], r"gt_labels has shape \(1, 1\)"),
    ],
)
def test_malformed_input_is_refused(predicted, truth, message):
    metric = SemanticMeanIoU("ab")
    with pytest.raises(ValueError, match=message):
        metric.update(predicted, truth)
    assert metric.num_frames == 0


@pytest.mark.parametrize("names", ["", "aba"])
def test_names_that_name_no_classes_are_refused(names):
    with pytest.raises(ValueError, match=f"class_names has {len(names)} names, expected at least one and no dup"):
        SemanticMeanIoU(names)
