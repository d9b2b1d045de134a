"""What the metrics kept of each frame apart, so that AP over any multiset of frames can be taken exactly, later.

Nothing is matched here: the metrics of a frame hold the scores, which detections are right, at which thresholds they
count, and how many instances were missed; see `InstanceAveragePrecision.detections`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..io.atomic import new_file
from .evaluator import FrameEvaluator, FramePrediction
from .instance_average_precision import InstanceAveragePrecision, curve_area


@dataclass(frozen=True)
class FrameDetections:
    """Detections of F frames in one metric of C classes and T thresholds.

    Args:
        frame_ids: str [F].
        class_names: str [C].
        thresholds: float64 [T].
        frames: int32 [E], frame of each detection.
        classes: int32 [E].
        scores: float64 [E].
        correct: int8 [E], 1 = right.
        bits: uint16 [E], the thresholds that a detection counts at.
        missed: int64 [F, C, T], instances that nothing found.
        num_instances: int64 [F, C].
    """

    frame_ids: np.ndarray
    class_names: np.ndarray
    thresholds: np.ndarray
    frames: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    correct: np.ndarray
    bits: np.ndarray
    missed: np.ndarray
    num_instances: np.ndarray

    def average_precision(self, weights: np.ndarray, threshold: float) -> np.ndarray:
        """Average precision of each class over multisets of the frames.

        Args:
            weights: int [D, F], how often each of D multisets holds each frame.
            threshold: IoU threshold, one of `thresholds`.

        Returns:
            float64 [D, C]; NaN where a multiset has no instance of the class, as in `InstanceAveragePrecision`.

        Raises:
            ValueError: `thresholds` has no such threshold.
        """
        column = np.flatnonzero(np.isclose(self.thresholds, threshold))
        if len(column) != 1:
            raise ValueError(f"threshold is {threshold}; expected one of {self.thresholds.round(2).tolist()}")
        active = (self.bits >> column[0]) & 1 == 1
        values = np.full((len(weights), len(self.class_names)), np.nan)
        missed = weights @ self.missed[:, :, column[0]]
        present = weights @ self.num_instances > 0
        for row in np.flatnonzero(present.any(axis=0)):
            entries = np.flatnonzero(active & (self.classes == row))
            areas = curve_area(
                self.scores[entries], self.correct[entries], missed[:, row], self.frames[entries], weights
            )
            values[:, row] = np.where(present[:, row], areas, np.nan)
        return values


class DetectionRecorder:
    """Collects the detections of an evaluation; give its `add` to `evaluate_model` as `on_frame`."""

    def __init__(self):
        self.frame_ids: list[str] = []
        self._metrics: dict[str, list[InstanceAveragePrecision]] = {}

    def add(self, prediction: FramePrediction, evaluator: FrameEvaluator) -> None:
        """Adds the metrics of one frame."""
        self.frame_ids.append(prediction.frame_id)
        for part, metric in evaluator.metrics.items():
            if isinstance(metric, InstanceAveragePrecision):
                self._metrics.setdefault(part, []).append(metric)

    def detections(self) -> dict[str, FrameDetections]:
        """The detections of each part of the metrics: `"class_agnostic"`, `"class_aware"`, ..."""
        return {part: self._of_part(metrics) for part, metrics in self._metrics.items()}

    def _of_part(self, metrics: list[InstanceAveragePrecision]) -> FrameDetections:
        found = [metric.detections() for metric in metrics]
        counts = [len(frame["classes"]) for frame in found]
        flat = {
            name: np.concatenate([frame[name] for frame in found]) for name in ("classes", "scores", "correct", "bits")
        }
        stacked = {name: np.stack([frame[name] for frame in found]) for name in ("missed", "num_instances")}
        return FrameDetections(
            frame_ids=np.array(self.frame_ids),
            class_names=np.array(metrics[0].class_names),
            thresholds=metrics[0].thresholds,
            frames=np.repeat(np.arange(len(found), dtype=np.int32), counts),
            **flat,
            **stacked,
        )


def save_detections(path: str | Path, parts: Mapping[str, FrameDetections]) -> None:
    """Writes detections, part by part, as a compressed npz file; scores are kept in float32, as networks give them."""
    arrays = {}
    for part, detections in parts.items():
        for name, value in vars(detections).items():
            small = {"scores": np.float32, "missed": np.uint16, "num_instances": np.uint16, "classes": np.int16}
            arrays[f"{part}/{name}"] = value.astype(small.get(name, value.dtype))
    write_arrays(path, arrays)


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a compressed npz file, so that a reader finds all of it or nothing."""
    with new_file(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


def load_detections(path: str | Path) -> dict[str, FrameDetections]:
    """Reads what `save_detections` wrote.

    Raises:
        ValueError: The file is missing, or no such file.
    """
    wide = {"scores": np.float64, "missed": np.int64, "num_instances": np.int64, "classes": np.int32}
    parts: dict[str, dict[str, np.ndarray]] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                part, _, name = key.rpartition("/")
                value = arrays[key]
                parts.setdefault(part, {})[name] = value.astype(wide.get(name, value.dtype))
        return {part: FrameDetections(**fields) for part, fields in parts.items()}
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a file of detections ({error})") from error
