"""Mean intersection over union of semantic labels over points."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..labels import IGNORE
from .arrays import class_groups, integer_array, mean_without_nan


class SemanticMeanIoU:
    """Mean IoU over classes, from one confusion matrix over all points of all frames.

    IoU = true positives / (true positives + false positives + false negatives), as in ScanNet's evaluation of semantic
    labels. A class that occurs neither in the ground truth nor in the predictions has no value (NaN) and is left
    out of the mean.

    Args:
        class_names: Names of the semantic labels 0..C-1.
        ignore_index: Ground-truth value of points that do not take part.

    Raises:
        ValueError: `class_names` is empty or has duplicates.
    """

    def __init__(self, class_names: Sequence[str], ignore_index: int = IGNORE):
        if not class_names or len(set(class_names)) != len(class_names):
            raise ValueError(f"class_names has {len(class_names)} names, expected at least one and no duplicates")
        self.class_names = tuple(class_names)
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        """Forgets all frames."""
        # Rows: ground truth; columns: prediction, the last one for "no class".
        self._confusion = np.zeros((len(self.class_names), len(self.class_names) + 1), dtype=np.int64)
        self.num_frames = 0

    def update(self, pred_labels: Any, gt_labels: Any) -> None:
        """Adds one frame. Arrays or tensors, on any device.

        Args:
            pred_labels: int [N], 0..C-1, or -1 where no class is predicted.
            gt_labels: int [N], 0..C-1, or `ignore_index`.

        Raises:
            ValueError: A shape, dtype or value is not as above; nothing has been added then.
        """
        gt_labels = integer_array("gt_labels", gt_labels)
        pred_labels = integer_array("pred_labels", pred_labels, len(gt_labels))
        count = len(self.class_names)
        active = gt_labels != self.ignore_index
        gt_labels, pred_labels = gt_labels[active], pred_labels[active]
        for name, values, low in (("gt_labels", gt_labels, 0), ("pred_labels", pred_labels, -1)):
            if values.size and (values.min() < low or values.max() >= count):
                raise ValueError(f"{name} has values {values.min()}..{values.max()}; expected {low}..{count - 1}")
        columns = np.where(pred_labels < 0, count, pred_labels)
        cells = np.bincount(gt_labels * (count + 1) + columns, minlength=self._confusion.size)
        self._confusion += cells.reshape(self._confusion.shape)
        self.num_frames += 1

    def merge(self, other: "SemanticMeanIoU") -> None:
        """Adds the frames of another metric, as of another process.

        Raises:
            ValueError: The other metric has other classes or another `ignore_index`.
        """
        for name in ("class_names", "ignore_index"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"cannot merge: {name} is {mine} here and {theirs} there")
        self._confusion += other._confusion
        self.num_frames += other.num_frames

    def compute(self) -> dict[str, Any]:
        """The result over all frames so far.

        Returns:
            `"mean_iou"`, `"overall_accuracy"` (share of labelled points that are right), `"num_frames"`,
            `"classes"`: name -> `"iou"`, `"num_points"` of the ground truth; where all names are ScanNet200's also
            `"head"`, `"common"`, `"tail"`: `"iou"`, `"num_points"`.
        """
        right = np.diagonal(self._confusion)
        truth, predicted = self._confusion.sum(axis=1), self._confusion[:, :-1].sum(axis=0)
        union = truth + predicted - right
        iou = np.divide(right, union, out=np.full(len(union), np.nan), where=union > 0)
        total = truth.sum()

        def summary(rows: list[int]) -> dict[str, Any]:
            return {"iou": mean_without_nan(iou[rows]), "num_points": int(truth[rows].sum())}

        return {
            "mean_iou": mean_without_nan(iou),
            "overall_accuracy": float(right.sum() / total) if total else float("nan"),
            "num_frames": self.num_frames,
            **{name: summary(rows) for name, rows in class_groups(self.class_names).items()},
            "classes": {name: summary([row]) for row, name in enumerate(self.class_names)},
        }
