"""Average precision of instance masks by the protocol of the ScanNet benchmark.

The protocol, which differs from COCO's in every step:

- IoU thresholds 0.50, 0.55, ..., 0.90 (nine; the benchmark stops before 0.95) and, apart, 0.25; an instance counts as
  found above a threshold, not at it.
- Instances and predictions of fewer than `min_points` points do not take part. Void are points without an instance
  (wall, floor, unlabelled).
- Per frame, class and threshold, instances are visited in the order of their ids, and predictions in the order they
  were given, not by score. The first unused prediction above the threshold is the match; each further one takes part
  with the lower of the two scores as a false positive, while the higher score stays with the match.
- A prediction that overlaps no instance of its class above the threshold is a false positive, unless the share of its
  points that are void, or lie on instances of its class under `min_points`, is above the threshold.
- Precision and recall are taken at every distinct score over all frames, and the curve is integrated with central
  differences. A class without instances has no value (NaN) and is left out of means; one with instances and without
  predictions has 0.

Source: the benchmark's evaluation script (ScanNet, BenchmarkScripts/3d_evaluation) and its form in mmdetection3d that
ESAM uses; both agree with this module on the stored reference to rounding.
"""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from .arrays import class_groups, integer_array, mean_without_nan, to_array


# np.arange, not literals: 0.6000000000000001 is the threshold that the original compares with.
SCANNET_THRESHOLDS = np.arange(0.5, 0.95, 0.05)
LOW_THRESHOLD = 0.25
# The tenth threshold of COCO.
HIGH_THRESHOLD = 0.95
AGNOSTIC_CLASS_NAME = "object"


def mask_overlaps(masks: np.ndarray, instance_ids: np.ndarray, num_instances: int) -> np.ndarray:
    """Points that each mask shares with each instance.

    Instances do not overlap, so one pass over the points inside a mask counts them for all instances at once.

    Args:
        masks: bool [K, N].
        instance_ids: int64 [N], -1 (none) to num_instances - 1.
        num_instances: M.

    Returns:
        int64 [K, M + 1]; the last column counts the points without an instance.
    """
    columns = np.where(instance_ids < 0, num_instances, instance_ids)
    overlaps = np.empty((len(masks), num_instances + 1), dtype=np.int64)
    for row, mask in enumerate(masks):
        overlaps[row] = np.bincount(columns[mask], minlength=num_instances + 1)
    return overlaps


class InstanceAveragePrecision:
    """Average precision of 3D instance masks, ScanNet protocol (see the module's description).

    Frames are matched when they come in; what is kept of a frame is a few bytes per prediction, no mask. The result
    does not depend on the order of the frames, so that metrics of several processes can be merged in any order.

    Args:
        class_names: Names of the instance labels 0..C-1; None = class-agnostic: labels are ignored and all instances
            are one class "object".
        min_points: Smallest instance and prediction that takes part, in points (100 at 20,000 points a frame).
        include_95: Also report the mean over 0.50..0.95 as `"all_ap_50:95"` (`"ap50:95"` per class). It is COCO's set
            of thresholds, lower than `"all_ap"` and not comparable with published ScanNet numbers. `"all_ap"` itself
            never contains 0.95.

    Raises:
        ValueError: `class_names` is empty or has duplicates, or `min_points` is under 1.
    """

    def __init__(self, class_names: Sequence[str] | None = None, min_points: int = 100, *, include_95: bool = False):
        if class_names is not None and (not class_names or len(set(class_names)) != len(class_names)):
            raise ValueError(f"class_names has {len(class_names)} names, expected at least one and no duplicates")
        if min_points < 1:
            raise ValueError(f"min_points is {min_points}; expected at least 1")
        self.class_agnostic = class_names is None
        self.class_names = (AGNOSTIC_CLASS_NAME,) if class_names is None else tuple(class_names)
        self.min_points = min_points
        self.include_95 = include_95
        high = [HIGH_THRESHOLD] if include_95 else []
        self.thresholds = np.array([*SCANNET_THRESHOLDS, LOW_THRESHOLD, *high])
        self.reset()

    def reset(self) -> None:
        """Forgets all frames."""
        # One entry a detection: its class, score, whether it is right, and the thresholds it counts at, as bits.
        self._classes, self._scores, self._correct, self._bits = array("i"), array("d"), array("b"), array("H")
        self._missed = np.zeros((len(self.class_names), len(self.thresholds)), dtype=np.int64)
        self._num_instances = np.zeros(len(self.class_names), dtype=np.int64)
        self._num_predictions = np.zeros(len(self.class_names), dtype=np.int64)
        self.num_frames = 0

    def update(
        self,
        pred_masks: Any,
        pred_scores: Any,
        pred_labels: Any,
        gt_instance_ids: Any,
        gt_labels: Any,
    ) -> None:
        """Adds one frame. Arrays or tensors, on any device.

        Args:
            pred_masks: bool [K, N], predictions over the frame's points, in the order in which they are to be matched.
            pred_scores: float [K], finite.
            pred_labels: int [K], 0..C-1. Ignored, and may be None, in the class-agnostic metric.
            gt_instance_ids: int [N], -1 (void) to M-1.
            gt_labels: int [M], label of each instance id; -1 makes the whole instance void. In the class-agnostic
                metric other values are ignored, and it may be None.

        Raises:
            ValueError: A shape, dtype or value is not as above; nothing has been added then.
        """
        masks, scores, labels = self._check_predictions(pred_masks, pred_scores, pred_labels)
        instance_ids, instance_labels = self._check_ground_truth(gt_instance_ids, gt_labels, masks.shape[1])
        num_instances = len(instance_labels)
        sizes = np.bincount(instance_ids[instance_ids >= 0], minlength=num_instances)
        overlaps = self._overlaps(masks, instance_ids, num_instances)
        pred_sizes = overlaps.sum(axis=1)
        keep = pred_sizes >= self.min_points
        overlaps, pred_sizes, scores, labels = overlaps[keep], pred_sizes[keep], scores[keep], labels[keep]
        overlaps, without_instance = overlaps[:, :num_instances], overlaps[:, num_instances]

        void, small = instance_labels < 0, sizes < self.min_points
        ignored = without_instance + overlaps[:, void].sum(axis=1)
        overlaps = np.where(labels[:, None] == instance_labels, overlaps, 0)
        ignored += overlaps[:, small].sum(axis=1)
        iou = overlaps / (sizes + pred_sizes[:, None] - overlaps)

        self.num_frames += 1
        self._num_predictions += np.bincount(labels, minlength=len(self.class_names))
        self._add_unmatched(labels, scores, iou.max(axis=1, initial=0), ignored / pred_sizes)
        self._num_instances += np.bincount(instance_labels[~void & ~small], minlength=len(self.class_names))
        used: list[set[Any]] = [set() for _ in self.thresholds]
        for instance in np.flatnonzero(~void & ~small):
            rows = np.flatnonzero(iou[:, instance] > self.thresholds.min())
            candidates = list(zip(rows.tolist(), iou[rows, instance].tolist(), scores[rows].tolist(), strict=True))
            self._match(int(instance_labels[instance]), candidates, used)

    # The benchmark script replaces this step to time it against the plain form.
    _overlaps = staticmethod(mask_overlaps)

    def _check_predictions(self, masks: Any, scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        masks = to_array(masks)
        if masks.ndim != 2 or masks.dtype != np.bool_:
            raise ValueError(f"pred_masks has shape {masks.shape} and dtype {masks.dtype}; expected bool [K, N]")
        scores = to_array(scores)
        if scores.shape != (len(masks),):
            raise ValueError(f"pred_scores has shape {scores.shape}; expected [{len(masks)}] as pred_masks has rows")
        if not np.isfinite(scores).all():
            raise ValueError(f"pred_scores has {np.count_nonzero(~np.isfinite(scores))} values that are not finite")
        if self.class_agnostic:
            return masks, scores, np.zeros(len(masks), dtype=np.int64)
        labels = integer_array("pred_labels", labels, len(masks))
        self._check_range("pred_labels", labels, 0, len(self.class_names) - 1)
        return masks, scores, labels

    def _check_ground_truth(self, instance_ids: Any, labels: Any, num_points: int) -> tuple[np.ndarray, np.ndarray]:
        instance_ids = integer_array("gt_instance_ids", instance_ids, num_points)
        if self.class_agnostic and labels is None:
            labels = np.zeros(instance_ids.max(initial=-1) + 1, dtype=np.int64)
        labels = integer_array("gt_labels", labels)
        self._check_range("gt_instance_ids", instance_ids, -1, len(labels) - 1)
        if self.class_agnostic:
            labels = np.where(labels < 0, -1, 0)
        self._check_range("gt_labels", labels, -1, len(self.class_names) - 1)
        return instance_ids, labels

    @staticmethod
    def _check_range(name: str, values: np.ndarray, low: int, high: int) -> None:
        if values.size and (values.min() < low or values.max() > high):
            raise ValueError(f"{name} has values {values.min()}..{values.max()}; expected {low}..{high}")

    def _add_unmatched(
        self, labels: np.ndarray, scores: np.ndarray, best_iou: np.ndarray, ignored_share: np.ndarray
    ) -> None:
        """Enters the predictions that fit no instance as false positives, at the thresholds where they count."""
        counts = (best_iou[:, None] <= self.thresholds) & (ignored_share[:, None] <= self.thresholds)
        bits = counts @ (1 << np.arange(len(self.thresholds)))
        rows = np.flatnonzero(bits)
        self._classes.extend(labels[rows].tolist())
        self._scores.extend(scores[rows].tolist())
        self._correct.extend([0] * len(rows))
        self._bits.extend(bits[rows].tolist())

    def _match(self, label: int, candidates: list[tuple[int, float, float]], used: list[set[int]]) -> None:
        """Matches one instance at every threshold.

        Args:
            label: Its label.
            candidates: Row, IoU and score of the predictions above the lowest threshold, in the order given.
            used: Per threshold, the predictions already taken.
        """
        for index, threshold in enumerate(self.thresholds.tolist()):
            best = None
            for row, overlap, score in candidates:
                if overlap <= threshold or row in used[index]:
                    continue
                if best is None:
                    best = score
                    used[index].add(row)
                else:
                    # The row stays free for a later instance, as in the original.
                    worse, best = sorted((best, score))
                    self._add(label, worse, False, index)
            if best is None:
                self._missed[label, index] += 1
            else:
                self._add(label, best, True, index)

    def _add(self, label: int, score: float, correct: bool, threshold_index: int) -> None:
        self._classes.append(label)
        self._scores.append(score)
        self._correct.append(correct)
        self._bits.append(1 << threshold_index)

    def merge(self, other: "InstanceAveragePrecision") -> None:
        """Adds the frames of another metric, as of another process.

        Raises:
            ValueError: The other metric has other classes, another `min_points` or other thresholds.
        """
        for name in ("class_agnostic", "class_names", "min_points", "include_95"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"cannot merge: {name} is {mine} here and {theirs} there")
        for name in ("_classes", "_scores", "_correct", "_bits"):
            getattr(self, name).extend(getattr(other, name))
        self._missed += other._missed
        self._num_instances += other._num_instances
        self._num_predictions += other._num_predictions
        self.num_frames += other.num_frames

    def detections(self) -> dict[str, np.ndarray]:
        """What is kept of all frames so far, for E detections, C classes and T thresholds.

        Returns:
            `classes` int32 [E]; `scores` float64 [E]; `correct` int8 [E], 1 = right; `bits` uint16 [E], the thresholds
            that a detection counts at, bit t for the t-th; `missed` int64 [C, T], instances that nothing found;
            `num_instances` int64 [C].
        """
        return {
            "classes": np.array(self._classes),
            "scores": np.array(self._scores),
            "correct": np.array(self._correct),
            "bits": np.array(self._bits),
            "missed": self._missed.copy(),
            "num_instances": self._num_instances.copy(),
        }

    def compute(self) -> dict[str, Any]:
        """The result over all frames so far; frames can be added afterwards.

        Returns:
            `"all_ap"` (mean over classes and 0.50..0.90), `"all_ap_50%"`, `"all_ap_25%"`, with `include_95` also
            `"all_ap_50:95"`; `"classes"`: name -> `"ap"`, `"ap50%"`, `"ap25%"`, `"num_instances"`,
            `"num_predictions"`; where all names are ScanNet200's also `"head"`, `"common"`, `"tail"` with the same
            keys; `"num_frames"`, `"num_instances"`, `"num_predictions"` (instances and predictions of `min_points`
            and more). Values are NaN where there is no instance.
        """
        values = self._average_precisions()
        columns = {"ap": slice(0, 9), "ap50%": slice(0, 1), "ap25%": slice(9, 10)}
        averages = {name: values[:, columns[name]].mean(axis=1) for name in columns}
        if self.include_95:
            averages["ap50:95"] = values[:, [*range(9), 10]].mean(axis=1)

        def summary(rows: Sequence[int]) -> dict[str, Any]:
            return {
                **{name: mean_without_nan(average[rows]) for name, average in averages.items()},
                "num_instances": int(self._num_instances[rows].sum()),
                "num_predictions": int(self._num_predictions[rows].sum()),
            }

        total = summary(range(len(self.class_names)))
        # The one class of the class-agnostic metric shares its name with a class of ScanNet200.
        groups = {} if self.class_agnostic else class_groups(self.class_names)
        return {
            "all_ap": total["ap"],
            "all_ap_50%": total["ap50%"],
            "all_ap_25%": total["ap25%"],
            **({"all_ap_50:95": total["ap50:95"]} if self.include_95 else {}),
            "num_frames": self.num_frames,
            "num_instances": total["num_instances"],
            "num_predictions": total["num_predictions"],
            **{name: summary(rows) for name, rows in groups.items()},
            "classes": {name: summary([row]) for row, name in enumerate(self.class_names)},
        }

    def _average_precisions(self) -> np.ndarray:
        """float64 [C, T]: average precision per class and threshold."""
        classes = np.array(self._classes)
        order = np.argsort(classes)
        scores, correct, bits = (np.array(values)[order] for values in (self._scores, self._correct, self._bits))
        ends = np.cumsum(np.bincount(classes, minlength=len(self.class_names)))
        values = np.full(self._missed.shape, np.nan)
        for row in np.flatnonzero(self._num_instances):
            entries = slice(ends[row - 1] if row else 0, ends[row])
            for column in range(len(self.thresholds)):
                active = (bits[entries] >> column) & 1 == 1
                values[row, column] = curve_area(
                    scores[entries][active], correct[entries][active], self._missed[row, column]
                )
        return values


def curve_area(
    scores: np.ndarray,
    correct: np.ndarray,
    missed: np.ndarray | int,
    frames: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> np.ndarray | float:
    """Area under the precision-recall curve of detections, or of those of several multisets of frames at once.

    Recall changes at scores of right detections alone; there, the central differences of the protocol weigh each step
    with the mean precision of its ends. A detection that a multiset leaves out makes no step.

    Args:
        scores: [E].
        correct: [E], 1 = right, 0 = wrong.
        missed: Instances that nothing found; an integer, or one for each multiset [D].
        frames: int [E], frame of each detection; with `weights`.
        weights: How often each multiset holds each frame, [D, F]; None = the detections as they are.

    Returns:
        A number, or float64 [D].
    """
    held = np.ones((1, 1)) if weights is None else weights
    frames = np.zeros(len(scores), dtype=np.int64) if frames is None else frames
    # One point of the curve per distinct score, in ascending order: everything from there on is accepted. One more,
    # at which nothing is, ends the curve.
    _, point = np.unique(scores, return_inverse=True)
    steps = np.unique(point[correct == 1])
    ends = np.stack([steps, steps + 1])
    size = (held.shape[1], point.max(initial=-1) + 2)

    def accepted_at_ends(counted: np.ndarray) -> np.ndarray:
        cells = np.bincount(frames * size[1] + point, counted, minlength=size[0] * size[1]).reshape(size)
        return held @ cells[:, ::-1].cumsum(axis=1)[:, ::-1][:, ends].transpose(1, 0, 2)

    all_positives, true_positives = accepted_at_ends(np.ones(len(scores))), accepted_at_ends(correct)
    # Where nothing is accepted, precision is 1.
    precision = np.divide(true_positives, all_positives, out=np.ones(all_positives.shape), where=all_positives > 0)
    found = true_positives[0] - true_positives[1]
    instances = found.sum(axis=1) + missed
    areas = (found * precision.mean(axis=0)).sum(axis=1) / np.maximum(instances, 1)
    return float(areas[0]) if weights is None else areas
