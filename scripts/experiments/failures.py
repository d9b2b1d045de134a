"""Which instances of a frame a network missed or called something else, and what it saw where nothing is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bifusion_hf.evaluation.instance_average_precision import mask_overlaps


RIGHT, OTHER_CLASS, NOTHING = "right", "other class", "nothing there"
_IOU = 0.5


@dataclass(frozen=True)
class FrameFailures:
    """What became of the instances and predictions of a frame.

    Args:
        truth: For each instance `RIGHT`, `OTHER_CLASS` (found under another class), `NOTHING` (missed), or None where
            it is too small to count.
        predictions: For each prediction `RIGHT`, `OTHER_CLASS`, or `NOTHING` (a false positive).
        confusions: Class of an instance and the class it was taken for.
        missed: Classes of the missed instances.
    """

    truth: tuple[str | None, ...]
    predictions: tuple[str, ...]
    confusions: tuple[tuple[int, int], ...]
    missed: tuple[int, ...]

    @property
    def count(self) -> int:
        """All failures."""
        return len(self.missed) + len(self.confusions) + self.predictions.count(NOTHING)


def find_failures(
    masks: np.ndarray,
    labels: Sequence[int],
    instance_ids: np.ndarray,
    instance_labels: Sequence[int],
    min_points: float,
) -> FrameFailures:
    """Compares predictions with the truth at an IoU above 0.5, over points.

    Args:
        masks: bool [K, N], in descending order of score.
        labels: [K].
        instance_ids: int [N], -1 = none, else 0..M-1.
        instance_labels: [M].
        min_points: Smallest instance that counts.
    """
    labels, instance_labels = np.asarray(labels, dtype=int), np.asarray(instance_labels, dtype=int)
    sizes = np.bincount(instance_ids[instance_ids >= 0], minlength=len(instance_labels))
    overlaps = mask_overlaps(masks, instance_ids, len(instance_labels))
    pred_sizes = overlaps.sum(axis=1, keepdims=True)
    overlaps = overlaps[:, : len(instance_labels)]
    covers = overlaps / np.maximum(sizes + pred_sizes - overlaps, 1) > _IOU
    same = labels[:, None] == instance_labels
    truth, confusions, missed = [], [], []
    for index, label in enumerate(instance_labels):
        if sizes[index] < min_points:
            truth.append(None)
        elif (covers & same)[:, index].any():
            truth.append(RIGHT)
        elif covers[:, index].any():
            truth.append(OTHER_CLASS)
            confusions.append((int(label), int(labels[covers[:, index]][0])))
        else:
            truth.append(NOTHING)
            missed.append(int(label))
    predictions = [
        RIGHT if (covers & same)[row].any() else OTHER_CLASS if covers[row].any() else NOTHING
        for row in range(len(labels))
    ]
    return FrameFailures(tuple(truth), tuple(predictions), tuple(confusions), tuple(missed))
