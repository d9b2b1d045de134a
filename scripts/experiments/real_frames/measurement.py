"""Measures a checkpoint on real frames: average precision, best IoU of each object, the superpoints' ceiling.

Each frame alone; points without a label are void (`InstanceAveragePrecision`). Intervals are percentiles of bootstrap
draws of a group's frames, which tell how sure a number is of these few frames, not of all frames of the kind.
"""

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bifusion_hf.evaluation.detections import DetectionRecorder, FrameDetections
from bifusion_hf.evaluation.evaluator import EvaluationProtocol, FrameEvaluator, FramePrediction
from bifusion_hf.evaluation.instance_average_precision import LOW_THRESHOLD, SCANNET_THRESHOLDS, mask_overlaps
from bifusion_hf.layers.frame_batch import FORWARD_INPUTS
from bifusion_hf.modeling_bifusion import BiFusionForInstanceSegmentation
from bifusion_hf.processing_bifusion import BiFusionProcessor

from ..bootstrap import interval, resampled_weights
from .folder import RealFrame


# What a frame is given: nothing; nothing, and up is not estimated either; or the pose of `pose_gravity.txt`.
NO_POSE, CAMERA_UP, TRUE_UP = "no pose", "camera's up", "true up"
CONDITIONS = (NO_POSE, CAMERA_UP, TRUE_UP)
# Only instances above it count as the best one of an object.
SCORE = 0.5
# An object is found above it.
FOUND = 0.5
DRAWS, SEED = 2000, 0
METRICS = ("ap", "ap50", "ap25", "mean_iou", "ceiling_iou", "ceiling_found")


@dataclass(frozen=True)
class FrameMeasure:
    """One frame under one condition.

    Args:
        name: `SOURCE/FRAME`.
        group: Of the table.
        up: What the network took for up: that of the "pose", "estimated", or the "camera"'s.
        best_iou: float64 [M], of each object with any instance above `SCORE`, 0 without one.
        ceiling_iou: float64 [M], with the superpoints that are the object's by majority.
        num_superpoints: Of the frame.
    """

    name: str
    group: str
    up: str
    best_iou: np.ndarray
    ceiling_iou: np.ndarray
    num_superpoints: int


def measure(
    model: BiFusionForInstanceSegmentation,
    processor: BiFusionProcessor,
    frames: Sequence[RealFrame],
) -> dict[str, Any]:
    """The result of a checkpoint, as JSON values.

    Args:
        model: In eval mode.
        processor: Of it.
        frames: Labelled frames.

    Returns:
        `protocol`; `groups`: group -> `frames`, `objects`, `up` (condition -> what was taken for up -> frames) and
        condition -> metric -> `value`, `low`, `high` (fractions, 95 % intervals); `frames`: name -> `group`,
        `objects`, `superpoints` and condition -> `ap50`, ...
    """
    conditions: dict[str, tuple[list[FrameMeasure], FrameDetections]] = {}
    for condition in CONDITIONS:
        recorder = DetectionRecorder()
        measured = [measure_frame(model, processor, frame, condition, recorder) for frame in frames]
        conditions[condition] = measured, recorder.detections()["class_agnostic"]
    groups = {}
    for group in dict.fromkeys(frame.group for frame in frames):
        rows = [index for index, frame in enumerate(frames) if frame.group == group]
        groups[group] = {
            "frames": len(rows),
            "objects": sum(len(conditions[NO_POSE][0][row].best_iou) for row in rows),
            "up": {name: Counter(measured[row].up for row in rows) for name, (measured, _) in conditions.items()},
            **{name: _summary(measured, detections, rows) for name, (measured, detections) in conditions.items()},
        }
    return {
        "protocol": {
            "points": processor.num_points,
            "min_points": protocol_of(processor).min_points,
            "score_of_mean_iou": SCORE,
            "interval": 0.95,
            "draws": DRAWS,
            "part_gap": processor.part_gap,
        },
        "groups": groups,
        "frames": {
            frame.name: {
                "group": frame.group,
                "objects": len(conditions[NO_POSE][0][row].best_iou),
                "superpoints": conditions[NO_POSE][0][row].num_superpoints,
                **{
                    name: _frame_summary(measured[row], detections, row)
                    for name, (measured, detections) in conditions.items()
                },
            }
            for row, frame in enumerate(frames)
        },
    }


@torch.no_grad()
def predict(
    model: BiFusionForInstanceSegmentation,
    processor: BiFusionProcessor,
    frame: RealFrame,
    condition: str = NO_POSE,
    *,
    threshold: float = 0.0,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sample of a frame and what the network finds in it.

    Args:
        model: In eval mode.
        processor: Of it.
        frame: The frame.
        condition: One of `CONDITIONS`.
        threshold: Instances have a higher score.
    """
    given = frame.frame
    if condition == CAMERA_UP:
        processor = copy.copy(processor)
        processor.estimate_up = False
    if condition == TRUE_UP and frame.gravity is not None:
        given = replace(given, camera_to_world=frame.gravity)
    sample = processor.prepare_frame(given)
    batch = processor.collate([sample])
    outputs = model(**{name: batch[name].to(model.device) for name in FORWARD_INPUTS if name in batch})
    (found,) = processor.post_process_instance_segmentation(outputs, batch, threshold=threshold)
    return sample, found


def measure_frame(
    model: BiFusionForInstanceSegmentation,
    processor: BiFusionProcessor,
    frame: RealFrame,
    condition: str,
    recorder: DetectionRecorder,
) -> FrameMeasure:
    """Measures one labelled frame; its detections go to the recorder.

    Args:
        model: In eval mode.
        processor: Of it.
        frame: The frame.
        condition: One of `CONDITIONS`.
        recorder: Takes the detections.
    """
    sample, found = predict(model, processor, frame, condition)
    masks, scores = found["point_masks"].numpy(), found["scores"].numpy()
    prediction = FramePrediction(frame.name, sample["pixel_indices"], masks, scores, found["labels"].numpy())
    evaluator = FrameEvaluator(protocol_of(processor))
    evaluator.update(prediction, sample["instance"], sample["class_labels"], None)
    recorder.add(prediction, evaluator)
    instance, count = sample["instance"], len(sample["class_labels"])
    counted = np.bincount(instance[instance >= 0], minlength=count) >= evaluator.protocol.min_points
    return FrameMeasure(
        name=frame.name,
        group=frame.group,
        up=found["up"],
        best_iou=best_ious(masks[scores > SCORE], instance, count)[counted],
        ceiling_iou=ceiling_ious(sample["superpoint_ids"], instance, count)[counted],
        num_superpoints=int(sample["superpoint_ids"].max()) + 1,
    )


def protocol_of(processor: BiFusionProcessor) -> EvaluationProtocol:
    """Class-agnostic, and objects have at least as many points as instances of the processor."""
    return EvaluationProtocol(None, None, min_points=max(1, math.ceil(processor.min_instance_points)))


def best_ious(masks: np.ndarray, instance: np.ndarray, count: int) -> np.ndarray:
    """The largest IoU of each object with any of the masks, float64 [M]; points of a mask that are void count.

    Args:
        masks: bool [K, N].
        instance: int [N], -1 = void, else 0..M-1.
        count: M.
    """
    shared = mask_overlaps(masks, instance, count)
    sizes = np.bincount(instance[instance >= 0], minlength=count)
    union = sizes + shared.sum(axis=1, keepdims=True) - shared[:, :count]
    return (shared[:, :count] / np.maximum(union, 1)).max(axis=0, initial=0.0)


def ceiling_ious(superpoints: np.ndarray, instance: np.ndarray, count: int) -> np.ndarray:
    """IoU that each object reaches with the superpoints of which it has more points than any other, or void, has.

    Args:
        superpoints: int [N], 0..S-1.
        instance: int [N], -1 = void, else 0..M-1.
        count: M.

    Returns:
        float64 [M].
    """
    table = np.zeros((int(superpoints.max()) + 1, count + 1), dtype=np.int64)
    # The last column is void.
    np.add.at(table, (superpoints, np.where(instance < 0, count, instance)), 1)
    owner = table.argmax(axis=1)
    masks = owner[superpoints] == np.arange(count)[:, None]
    shared = (masks & (instance == np.arange(count)[:, None])).sum(axis=1)
    sizes = np.bincount(instance[instance >= 0], minlength=count)
    return shared / np.maximum(sizes + masks.sum(axis=1) - shared, 1)


def _summary(measured: Sequence[FrameMeasure], detections: FrameDetections, rows: Sequence[int]) -> dict[str, Any]:
    """Metric -> value and interval of a group under one condition."""
    names = [measured[row].name for row in rows]
    # The first draw is the group as it is.
    inside = np.zeros((DRAWS + 1, len(measured)), dtype=np.int64)
    inside[:, rows] = np.concatenate([np.ones((1, len(rows)), np.int64), resampled_weights(names, DRAWS, SEED)])
    draws = _average_precisions(detections, inside)
    counts = inside @ np.array([len(frame.best_iou) for frame in measured])
    per_object = {
        "mean_iou": [frame.best_iou.sum() for frame in measured],
        "ceiling_iou": [frame.ceiling_iou.sum() for frame in measured],
        "ceiling_found": [np.count_nonzero(frame.ceiling_iou > FOUND) for frame in measured],
    }
    for name, sums in per_object.items():
        draws[name] = np.divide(inside @ np.array(sums), counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return {
        name: dict(zip(("value", "low", "high"), (float(draws[name][0]), *interval(draws[name][1:])), strict=True))
        for name in METRICS
    }


def _average_precisions(detections: FrameDetections, weights: np.ndarray) -> dict[str, np.ndarray]:
    """AP of each of several multisets [D, F] of the frames: metric -> float64 [D]."""
    at = {threshold: detections.average_precision(weights, threshold)[:, 0] for threshold in SCANNET_THRESHOLDS}
    return {
        "ap": np.mean(list(at.values()), axis=0),
        "ap50": at[SCANNET_THRESHOLDS[0]],
        "ap25": detections.average_precision(weights, LOW_THRESHOLD)[:, 0],
    }


def _frame_summary(frame: FrameMeasure, detections: FrameDetections, row: int) -> dict[str, float | None]:
    weights = np.zeros((1, len(detections.frame_ids)), dtype=np.int64)
    weights[0, row] = 1
    found = {name: float(values[0]) for name, values in _average_precisions(detections, weights).items()}
    if len(frame.best_iou):
        found.update(mean_iou=float(frame.best_iou.mean()), ceiling_iou=float(frame.ceiling_iou.mean()))
    return {name: None if np.isnan(value) else round(value, 4) for name, value in found.items()}
