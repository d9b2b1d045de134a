"""The transformers pipeline "rgbd-instance-segmentation": an RGB-D frame in, its object instances out."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .assets import SAMPLE_CHECKPOINT
from .data.collator import Sample
from .data.frames import RGBDFrame, frame_from_row
from .data.inputs import frame_from_arrays
from .io.ahead import one_ahead
from .io.sanity import check_fraction
from .labeling import TextLabeler, read_labels
from .layers.bfloat16 import slow_bfloat16_warning
from .layers.frame_batch import FORWARD_INPUTS
from .modeling_bifusion import BiFusionForInstanceSegmentation
from .postprocessing import SCORE_THRESHOLD, unpad_frames
from .results import InstanceSegmentation


TASK = "rgbd-instance-segmentation"
# Keys of a frame given as a dict, with the argument of `frame_from_arrays` that each stands for.
REQUIRED_KEYS = {"image": "image", "depth": "depth", "intrinsics": "intrinsics"}
OPTIONAL_KEYS = {
    "depth_scale": "depth_scale",
    "camera_to_world": "camera_to_world",
    # The name of release 0.1.
    "pose": "camera_to_world",
    "superpoints": "superpoints",
    "frame_id": "frame_id",
}
# What only the rows of a data set have.
ROW_KEYS = {"instance", "semantic", "scene_id", "object_ids", "object_boxes"}


class RGBDInstanceSegmentationPipeline(Pipeline):
    """Object instances of RGB-D frames.

    A frame is an `RGBDFrame`, or a dict with `image` and `depth` (arrays, PIL images or paths), `intrinsics` of the
    depth image ([3, 3], a dict or a path), and where needed `depth_scale` (units per metre of integer depth),
    `camera_to_world` [4, 4] (or `pose`), `superpoints` int [H, W] and `frame_id`. The rows of a data set of frames
    (`load_frames`) are such dicts.

    ```python
    from transformers import pipeline
    import bifusion_hf

    segmenter = pipeline("rgbd-instance-segmentation", model="path/or/id")
    result = segmenter({"image": "color.png", "depth": "depth.png", "depth_scale": 1000, "intrinsics": K})
    ```

    Each frame gives an `InstanceSegmentation`, which can be shown and saved: a dict of numpy arrays, `segmentation`
    int32 [H, W] of the depth image (-1 = none), `segments_info`, `point_masks` bool [K, N], `scores` and `labels` [K],
    as `BiFusionProcessor.post_process_instance_segmentation` describes them, and the points that the masks are over:
    `points` float32 [N, 3] metres in the frame of the input, `pixel_indices` int64 [N], the flat pixel of each.

    A segment's `name` is what to call it: its label; where all have the same one, the class that the network's
    semantic head sees in its points, if that is probable enough; with `candidate_labels` and a `labeler` one of them:

    ```python
    result = segmenter(frame, candidate_labels=["mug", "keyboard"], labeler="google/siglip2-base-patch16-224")
    ```
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _load_video_processor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # In training mode only a random part of the superpoints would be asked for.
        self.model.eval()
        # Of calls alone: who asks for `forward` by itself may post-process with any threshold.
        self._forward_params.setdefault("score_threshold", SCORE_THRESHOLD)
        self._labelers: dict[str, TextLabeler] = {}
        if self.model.dtype == torch.bfloat16 and self.device.type == "cpu":
            slow = slow_bfloat16_warning("dtype bfloat16", 'dtype="float32" is faster')
            if slow:
                warnings.warn(slow, stacklevel=3)

    def _sanitize_parameters(
        self,
        threshold: float | None = None,
        mask_threshold: float | None = None,
        min_points: float | None = None,
        max_instances: int | None = None,
        part_gap: float | None = None,
        name_threshold: float | None = None,
        candidate_labels: str | Path | Sequence[str] | None = None,
        labeler: str | TextLabeler | None = None,
        top_k: int | None = None,
    ):
        if (candidate_labels is None) != (labeler is None):
            given, other = ("candidate_labels", "labeler")[:: 1 if labeler is None else -1]
            raise ValueError(f"{given} is given without {other}; naming by text needs both")
        if top_k is not None and labeler is None:
            raise ValueError("top_k is given without candidate_labels and labeler")
        settings = {
            "threshold": threshold,
            "mask_threshold": mask_threshold,
            "min_points": min_points,
            "max_instances": max_instances,
            "part_gap": part_gap,
            "name_threshold": name_threshold,
            "candidate_labels": None if candidate_labels is None else read_labels(candidate_labels),
            "labeler": labeler,
            "top_k": top_k,
        }
        # Now, and not when the network has run.
        check_fraction("threshold", threshold)
        check_fraction("mask_threshold", mask_threshold)
        check_fraction("name_threshold", name_threshold)
        # What will be dropped need not be made.
        forward_params = {} if threshold is None else {"score_threshold": threshold}
        return {}, forward_params, {name: value for name, value in settings.items() if value is not None}

    def __call__(self, inputs: Any, **kwargs) -> Any:
        """Segments one frame, a list of frames, or lazily a generator, a data set or a `datasets` column of frames.

        Args:
            inputs: See the class.
            kwargs: `threshold` (instances need a higher score, 0.5), `mask_threshold`, `min_points`, `max_instances`,
                `part_gap`, `name_threshold`, by default the processor's; `candidate_labels` (see
                `labeling.read_labels`) and `labeler`, a `TextLabeler` or the model for one that labels crops, and
                `top_k` of the candidates to list (5); `batch_size` and `num_workers` of transformers.

        Returns:
            The `InstanceSegmentation` of a frame, or one for each frame.

        Raises:
            ValueError: A frame is malformed; the message names it and the field.
        """
        single = (Mapping, str, np.ndarray, torch.Tensor)
        if isinstance(inputs, Iterable) and not isinstance(inputs, (*single, list, Dataset)):
            # transformers takes any other iterable, such as a column of `datasets`, for a single input.
            inputs = (frame for frame in inputs)
        return super().__call__(inputs, **kwargs)

    def preprocess(self, frame: Mapping[str, Any] | RGBDFrame) -> Sample:
        """The processor's sample of a frame, and the `frame`."""
        frame = frame if isinstance(frame, RGBDFrame) else frame_from_dict(frame)
        return {**self.processor.prepare_frame(frame), "frame": frame}

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The processor's batch of samples, and their `frames`."""
        return {**self.processor.collate(samples), "frames": [sample["frame"] for sample in samples]}

    def forward(self, batch: dict[str, Any], **forward_params) -> dict[str, Any]:
        """The outputs for a batch, where the network is: masks are chosen there, and only what is found comes back."""
        with self.device_placement(), self.get_inference_context()():
            inputs = {name: batch[name] for name in FORWARD_INPUTS if name in batch}
            inputs = self._ensure_tensor_on_device(inputs, device=self.device)
            return {"outputs": self._forward(inputs, **forward_params), "batch": batch}

    def _forward(self, inputs: dict[str, Any], score_threshold: float | None = None) -> Any:
        return self.model(**inputs, score_threshold=score_threshold)

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        candidate_labels: Sequence[str] | None = None,
        labeler: str | TextLabeler | None = None,
        top_k: int = 5,
        **settings,
    ) -> list[InstanceSegmentation]:
        """The results of the frames of a batch."""
        outputs, batch = model_outputs["outputs"], model_outputs["batch"]
        results = self.processor.post_process_instance_segmentation(
            outputs,
            batch,
            label_names=self.model.config.id2label,
            semantic_names=self.model.config.semantic_id2label,
            **settings,
        )
        if labeler is not None:
            for result, frame in zip(results, batch["frames"], strict=True):
                self.get_labeler(labeler).label_segments(frame.image, result, candidate_labels, top_k)  # type: ignore[arg-type]
        for result, frame in zip(results, unpad_frames(batch), strict=True):
            result["points"], result["pixel_indices"] = frame["points"], frame["pixel_indices"]
        arrays = (
            {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in result.items()}
            for result in results
        )
        return list(map(InstanceSegmentation, arrays, batch["frames"]))

    def get_labeler(self, labeler: str | TextLabeler) -> TextLabeler:
        """The labeler of a model's name, loaded once, on the pipeline's device; a `TextLabeler` as it is."""
        if isinstance(labeler, TextLabeler):
            return labeler
        if labeler not in self._labelers:
            self._labelers[labeler] = TextLabeler(labeler, device=self.device)
        return self._labelers[labeler]

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params) -> InstanceSegmentation:
        """One frame, as a batch of one."""
        batch = self.collate([self.preprocess(inputs, **preprocess_params)])
        return self.postprocess(self.forward(batch, **forward_params), **postprocess_params)[0]

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ) -> Iterator[InstanceSegmentation]:
        """Many frames; the samples of a batch are padded by the processor's own rules.

        Without workers a thread prepares the next batch while the network has this one.
        """
        kind = PipelineDataset if isinstance(inputs, Sized) else PipelineIterator
        loader = DataLoader(
            kind(inputs, self.preprocess, preprocess_params),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=self.collate,
        )
        for batch in loader if num_workers else one_ahead(loader):
            yield from self.postprocess(self.forward(batch, **forward_params), **postprocess_params)


def frame_from_dict(frame: Mapping[str, Any]) -> RGBDFrame:
    """The frame of a dict with the keys of `REQUIRED_KEYS` and perhaps of `OPTIONAL_KEYS`.

    Raises:
        ValueError: A key is missing or unknown, or the frame is malformed.
    """
    if not isinstance(frame, Mapping):
        raise ValueError(f"frame is a {type(frame).__name__}; expected a dict or an RGBDFrame")
    if isinstance(frame.get("image"), Mapping) or set(frame) & ROW_KEYS:
        # Of a row, the labels are for training.
        return frame_from_row({key: value for key, value in frame.items() if key not in ROW_KEYS})
    if "pose" in frame and "camera_to_world" in frame:
        raise ValueError(f"{frame.get('frame_id', 'frame')}: camera_to_world and pose are the same; expected one")
    name = str(frame.get("frame_id", "frame"))
    missing = sorted(set(REQUIRED_KEYS) - set(frame))
    unknown = sorted(set(frame) - set(REQUIRED_KEYS) - set(OPTIONAL_KEYS))
    if missing or unknown:
        raise ValueError(
            f"{name}: keys missing {missing}, unknown {unknown}; expected {sorted(REQUIRED_KEYS)} and perhaps "
            f"{sorted(OPTIONAL_KEYS)}"
        )
    arguments = {{**REQUIRED_KEYS, **OPTIONAL_KEYS}[key]: value for key, value in frame.items()}
    return frame_from_arrays(**arguments)


def register() -> None:
    """Makes the task known to `transformers.pipeline`; once is enough."""
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=RGBDInstanceSegmentationPipeline,
            pt_model=BiFusionForInstanceSegmentation,
            default={"model": (str(SAMPLE_CHECKPOINT), "main")},
            type="multimodal",
        )
