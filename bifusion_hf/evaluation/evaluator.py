"""Evaluation of a network over a data set of frames.

Everything is measured over the points that the processor samples from a frame, as in ESAM's single-view evaluation:
nothing is carried to a mesh or to other frames, and superpoints play no part in the metric.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..data.collator import BiFusionCollator
from ..labels import IGNORE
from ..layers.frame_batch import FORWARD_INPUTS
from ..postprocessing import unpad_frames
from .arrays import mean_without_nan, to_array
from .instance_average_precision import InstanceAveragePrecision
from .semantic_mean_iou import SemanticMeanIoU


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..modeling_bifusion import BiFusionForInstanceSegmentation
    from ..processing_bifusion import BiFusionProcessor

logger = logging.getLogger(__name__)


@dataclass
class FramePrediction:
    """What a network says about one frame, over its N sampled points.

    Args:
        frame_id: Name of the frame.
        pixel_indices: int [N], flat pixel of the depth image that each point comes from.
        masks: bool [K, N], in descending order of score.
        scores: float32 [K].
        labels: int [K], 0..C-1.
        semantic: int [N], semantic class of each point, or None.
    """

    frame_id: str
    pixel_indices: np.ndarray
    masks: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    semantic: np.ndarray | None = None


@dataclass(frozen=True)
class EvaluationProtocol:
    """What is measured.

    Args:
        class_names: Names of the instance labels; None = class-agnostic only.
        semantic_class_names: Names of the semantic classes; None = no semantic result.
        min_points: Smallest instance and prediction that takes part.
        include_95: See `InstanceAveragePrecision`.
        groups: Name of a group of classes -> their names, for results on each group apart; needs `class_names`.
    """

    class_names: tuple[str, ...] | None
    semantic_class_names: tuple[str, ...] | None
    min_points: int
    include_95: bool = False
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self):
        unknown = {name for names in self.groups.values() for name in names}.difference(self.class_names or ())
        if unknown:
            raise ValueError(f"groups name {sorted(unknown)}; expected classes of the instance labels")

    @classmethod
    def of_model(
        cls,
        processor: "BiFusionProcessor",
        semantic_names: Mapping[int, str] | None,
        *,
        class_agnostic: bool = False,
        include_95: bool = False,
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> "EvaluationProtocol":
        """The protocol that fits a processor: class-aware where it has several labels.

        Args:
            processor: Gives labels and `min_points`.
            semantic_names: Names of the semantic classes; None numbers them.
            class_agnostic: Leave the labels out even so.
            include_95: See `InstanceAveragePrecision`.
            groups: As in the protocol.
        """
        names = tuple(processor.label_names)
        semantic_names = semantic_names or {}
        return cls(
            class_names=None if class_agnostic or len(names) == 1 else names,
            semantic_class_names=tuple(
                semantic_names.get(index, f"class {index}") for index in range(processor.num_semantic_labels)
            ),
            min_points=max(1, math.ceil(processor.min_instance_points)),
            include_95=include_95,
            groups=groups or {},
        )


class FrameEvaluator:
    """The metrics of a protocol, fed frame by frame.

    Class-agnostic AP is always measured, class-aware AP where the protocol has classes, and mean IoU over the frames
    that have semantic labels and semantic predictions. For a group of classes, class-agnostic AP is that of its
    instances while all others are void, and class-aware AP is the mean over its classes.
    """

    def __init__(self, protocol: EvaluationProtocol):
        self.protocol = protocol
        self.metrics: dict[str, InstanceAveragePrecision | SemanticMeanIoU] = {
            "class_agnostic": InstanceAveragePrecision(None, protocol.min_points, include_95=protocol.include_95)
        }
        if protocol.class_names is not None:
            self.metrics["class_aware"] = InstanceAveragePrecision(
                protocol.class_names, protocol.min_points, include_95=protocol.include_95
            )
        self._members: dict[str, np.ndarray] = {}
        for group, names in protocol.groups.items():
            self.metrics[group_part(group)] = InstanceAveragePrecision(
                None, protocol.min_points, include_95=protocol.include_95
            )
            # The last entry answers for void.
            self._members[group] = np.array([*(name in names for name in protocol.class_names), False])
        if protocol.semantic_class_names is not None:
            self.metrics["semantic"] = SemanticMeanIoU(protocol.semantic_class_names, ignore_index=IGNORE)

    def update(
        self,
        prediction: FramePrediction,
        instance_ids: np.ndarray,
        instance_labels: np.ndarray,
        semantic_labels: np.ndarray | None,
    ) -> None:
        """Adds a frame.

        Args:
            prediction: Of the network.
            instance_ids: int [N], -1 = void, else 0..M-1.
            instance_labels: int [M], 0..C-1.
            semantic_labels: int [N], -100 = ignore, or None.

        Raises:
            ValueError: Prediction and ground truth do not fit; the message names the frame.
        """
        arguments = prediction.masks, prediction.scores, prediction.labels, instance_ids, instance_labels
        try:
            for part in ("class_agnostic", "class_aware"):
                if part in self.metrics:
                    self.metrics[part].update(*arguments)
            for group, is_member in self._members.items():
                inside = np.where(is_member[instance_labels], 0, -1)
                self.metrics[group_part(group)].update(*arguments[:-1], inside)
            if "semantic" in self.metrics and semantic_labels is not None and prediction.semantic is not None:
                self.metrics["semantic"].update(prediction.semantic, semantic_labels)
        except ValueError as error:
            raise ValueError(f"{prediction.frame_id}: {error}") from error

    def merge(self, other: "FrameEvaluator") -> None:
        """Adds the frames of another evaluator of the same protocol."""
        for part, metric in self.metrics.items():
            metric.merge(other.metrics[part])

    def compute(self, extra_protocol: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The result in the form that `evaluation.results` describes.

        Args:
            extra_protocol: Entries added to its `"protocol"`.
        """
        groups = [group_part(group) for group in self._members]
        results = {
            part: metric.compute() for part, metric in self.metrics.items() if metric.num_frames and part not in groups
        }
        if groups:
            results["groups"] = {group: self._group(group, results.get("class_aware", {})) for group in self._members}
        instances = self.metrics["class_agnostic"]
        results.setdefault("class_agnostic", instances.compute())
        results["protocol"] = {
            "num_frames": instances.num_frames,
            "min_points": self.protocol.min_points,
            "iou_thresholds": [round(float(threshold), 2) for threshold in instances.thresholds],
            **(extra_protocol or {}),
        }
        return results

    def _group(self, group: str, class_aware: Mapping[str, Any]) -> dict[str, Any]:
        agnostic = self.metrics[group_part(group)]
        rows = [class_aware.get("classes", {}).get(name, {}) for name in self.protocol.groups[group]]
        return {
            "class_agnostic": agnostic.compute()["classes"][agnostic.class_names[0]],
            "class_aware": {
                key: mean_without_nan(np.array([row[key] for row in rows]))
                if key.startswith("ap")
                else sum(row[key] for row in rows)
                for key in (rows[0] if rows else ())
            },
        }


def group_part(group: str) -> str:
    """Key, in `FrameEvaluator.metrics`, of the class-agnostic metric of a group of classes."""
    return f"class_agnostic {group}"


def instance_ids_of_masks(masks: Any) -> np.ndarray:
    """int64 [N]: the mask, of disjoint masks bool [M, N], that each point lies in; -1 = none."""
    masks = to_array(masks)
    ids = np.full(masks.shape[1], -1, dtype=np.int64)
    rows, points = np.nonzero(masks)
    ids[points] = rows
    return ids


def predict_batch(
    model: "BiFusionForInstanceSegmentation", processor: "BiFusionProcessor", batch: Mapping[str, Any]
) -> list[FramePrediction]:
    """Runs the network on a batch and post-processes with score threshold 0.

    Args:
        model: In eval mode.
        processor: Of the model.
        batch: From the processor's `collate`, on the CPU; the forward's arguments are moved to the model's device.
    """
    inputs = {name: batch[name].to(model.device) for name in FORWARD_INPUTS if name in batch}
    outputs = model(**inputs)
    # Without the maps post-processing stops at the points, which are what is evaluated.
    points_only = {**batch, "superpoint_maps": [None] * len(batch["frame_ids"])}
    instances = processor.post_process_instance_segmentation(outputs, points_only, threshold=0.0)
    semantic: Sequence[dict[str, Any] | None] = [None] * len(instances)
    if outputs.semantic_queries_logits is not None:
        semantic = processor.post_process_semantic_segmentation(outputs, points_only)
    return [
        FramePrediction(
            frame_id=batch["frame_ids"][index],
            pixel_indices=to_array(batch["pixel_indices"][index, : found["point_masks"].shape[1]]),
            masks=to_array(found["point_masks"]),
            scores=to_array(found["scores"]),
            labels=to_array(found["labels"]),
            semantic=None if classes is None else to_array(classes["point_labels"]),
        )
        for index, (found, classes) in enumerate(zip(instances, semantic, strict=True))
    ]


@torch.no_grad()
def evaluate_model(
    model: "BiFusionForInstanceSegmentation",
    processor: "BiFusionProcessor",
    dataset: Dataset,
    *,
    batch_size: int = 4,
    num_workers: int = 0,
    limit: int | None = None,
    class_agnostic: bool = False,
    include_95: bool = False,
    accelerator: "Accelerator | None" = None,
    progress: bool = False,
    groups: Mapping[str, Sequence[str]] | None = None,
    on_prediction: Callable[[FramePrediction], None] | None = None,
    on_frame: Callable[[FramePrediction, FrameEvaluator], None] | None = None,
    name_instances: Callable[[FramePrediction, Mapping[str, Any]], FramePrediction] | None = None,
    truth_processor: "BiFusionProcessor | None" = None,
    extra_protocol: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measures a network on labelled frames.

    With several processes each one takes its own frames, none of them twice, and the metrics, not the predictions,
    are exchanged. Every process returns the result over all frames.

    Args:
        model: In eval mode, on its device; a wrapper of Accelerate is taken off.
        processor: Of the model. Its sampling seed makes the points the same in every run.
        dataset: `data.dataset.FrameDataset` without augmentation. Broken frames that it skips are left out, and their
            number is told under `"protocol"`.
        batch_size: Frames of one forward.
        num_workers: Worker processes of the loader.
        limit: Evaluate the first frames only.
        class_agnostic: Leave the labels of a class-aware network out.
        include_95: See `InstanceAveragePrecision`.
        accelerator: Of the run: processes and mixed precision; None = this process alone in the model's own precision.
        progress: Show a bar on the main process.
        groups: See `EvaluationProtocol`; adds `"groups"` to the result.
        on_prediction: Called with the prediction of every frame of this process.
        on_frame: Called with the prediction and the metrics of every frame of this process alone.
        name_instances: Gives the prediction of a frame other labels; it is called with the prediction and the frame's
            part of `unpad_frames` (see `OpenVocabulary`).
        truth_processor: The processor of `dataset`, where the ground truth has other labels than the network.
        extra_protocol: Further entries of the result's `"protocol"`.

    Returns:
        The result in the form that `evaluation.results` describes; `evaluation.headline` picks the few main numbers.

    Raises:
        ValueError: The model is in training mode, a frame has no instance labels, or all frames are broken.
    """
    if accelerator is not None:
        model = accelerator.unwrap_model(model)
    if model.training:
        raise ValueError("model is in training mode; expected eval mode (call model.eval())")
    protocol = EvaluationProtocol.of_model(
        processor if truth_processor is None else truth_processor,
        model.config.semantic_id2label,
        class_agnostic=class_agnostic,
        include_95=include_95,
        groups=groups,
    )
    evaluator = FrameEvaluator(protocol)
    count = len(dataset) if limit is None else min(limit, len(dataset))
    rank, processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    loader = DataLoader(
        Subset(dataset, range(rank, count, processes)),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=BiFusionCollator(processor),
    )
    show = progress and rank == 0
    with contextlib.nullcontext() if accelerator is None else accelerator.autocast():
        for batch in tqdm(loader, disable=not show, unit="batch"):
            if batch is None:
                continue
            if "mask_labels" not in batch:
                raise ValueError(f"{', '.join(batch['frame_ids'])}: no instance labels; expected them for evaluation")
            unpadded = [] if name_instances is None else unpad_frames(batch)
            for index, prediction in enumerate(predict_batch(model, processor, batch)):
                if name_instances is not None:
                    prediction = name_instances(prediction, unpadded[index])
                points = len(prediction.pixel_indices)
                frame = FrameEvaluator(protocol)
                frame.update(
                    prediction,
                    instance_ids_of_masks(batch["mask_labels"][index][:, :points]),
                    to_array(batch["class_labels"][index]),
                    to_array(batch["semantic_labels"][index, :points]) if "semantic_labels" in batch else None,
                )
                evaluator.merge(frame)
                if on_prediction is not None:
                    on_prediction(prediction)
                if on_frame is not None:
                    on_frame(prediction, frame)
    if processes > 1:
        evaluator = _merged(evaluator)
    skipped = _skipped(evaluator, count, tell=rank == 0)
    return evaluator.compute({**processor_protocol(processor), **(extra_protocol or {}), **skipped})


def processor_protocol(processor: "BiFusionProcessor") -> dict[str, Any]:
    """The processor's values that a result depends on."""
    return {
        "points_per_frame": processor.num_points,
        "sampling_seed": processor.sampling_seed,
        "score_threshold": 0.0,
        "mask_threshold": processor.mask_threshold,
        "max_instances": processor.max_instances,
        "part_gap": processor.part_gap,
    }


def _skipped(evaluator: FrameEvaluator, count: int, tell: bool) -> dict[str, int]:
    """The entry of the protocol about frames, of `count`, that the data set skipped; empty where there is none."""
    skipped = count - evaluator.metrics["class_agnostic"].num_frames
    if count and skipped == count:
        raise ValueError(f"all {count} frames are broken; expected at least one that can be evaluated")
    if skipped and tell:
        logger.warning("%d of %d frames are broken and left out of the evaluation", skipped, count)
    return {"skipped_frames": skipped} if skipped else {}


def _merged(evaluator: FrameEvaluator) -> FrameEvaluator:
    from accelerate.utils import gather_object

    first, *others = gather_object([evaluator])
    for other in others:
        first.merge(other)
    return first
