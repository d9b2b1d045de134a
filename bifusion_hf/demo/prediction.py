"""What the demo page shows of one frame: predicted once, filtered by score and class as often as one likes."""

import base64
import io
import json
import uuid
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..data.augmentation import resize_image
from ..data.frames import RGBDFrame
from ..labeling import TextLabeler, read_labels
from ..postprocessing import describe_class, describe_instances, instance_map, pixel_masks, unpad_frames
from ..results import InstanceSegmentation
from ..visualization.colors import instance_colors
from ..visualization.overlay import without_specks


if TYPE_CHECKING:
    from ..pipeline_bifusion import RGBDInstanceSegmentationPipeline

# Scores that the page can filter by begin here; below it are mostly the many weak copies of better instances.
LOWEST_SCORE = 0.05
# The view in the browser stays smooth up to about this many points; files have all of them.
VIEWER_POINTS = 300_000
# What `describe_instances` takes -> its name in the pipeline's result.
KEYS = {"masks": "point_masks", "labels": "labels", "scores": "scores", "num_parts": "num_parts"}
PICTURE_WIDTH = 640
FILE_NAMES = {"ply": "points.ply", "json": "segments.json"}


@dataclass(eq=False)
class Selection:
    """The instances of a prediction that pass a filter.

    Args:
        segmentation: int32 [H, W] of the depth image, ids of `segments`, -1 = none.
        segments: Their entries of `segments_info`; ids (and with them colours) are those of the whole prediction.
        threshold: The filter's score.
        names: The filter's names; empty = all.
        name_counts: Number of visible instances of each name above the score, in the order of the alphabet.
    """

    segmentation: np.ndarray
    segments: list[dict[str, Any]]
    threshold: float
    names: list[str]
    name_counts: dict[str, int]


@dataclass(eq=False)
class Prediction:
    """All instances of a frame above `LOWEST_SCORE`, and what it takes to paint any part of them.

    Args:
        frame: The frame.
        checkpoint: Name of the checkpoint, for the JSON file.
        segments: Of all instances, in descending order of score; each with `name`, which the page shows and filters
            by: its label; where the network has one label for all, the semantic class of its points if that is
            probable enough; or what the visitor's own words call it.
        masks: bool [K, N] over the sampled points.
        superpoint_ids: int64 [N] of the sampled points.
        pixel_indices: int64 [N], flat pixel of each.
        superpoint_map: int [H, W] with the same ids, -1 = none.
        up: What the network took for up, for the JSON file.
        text_features: float32 [K, D], what the page's labeler sees of each, once a visitor has asked.
        own_names: The names before any words of the visitor's.
        key: Tells the frame from others in the view.
    """

    frame: RGBDFrame
    checkpoint: str
    segments: list[dict[str, Any]]
    masks: torch.Tensor
    superpoint_ids: torch.Tensor
    pixel_indices: torch.Tensor
    superpoint_map: torch.Tensor
    up: str = "camera"
    text_features: np.ndarray | None = None
    own_names: list[str] = field(init=False)
    key: str = field(init=False, default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self):
        self.own_names = [segment["name"] for segment in self.segments]

    @property
    def colors(self) -> np.ndarray:
        """The colour of each instance, uint8 [K, 3]; a filter never changes it."""
        return instance_colors(len(self.segments))

    def select(self, threshold: float, names: Collection[str] = ()) -> Selection:
        """The visible instances of a higher score: the same as predicting with that threshold; of them, given names.

        Args:
            threshold: At least `LOWEST_SCORE`.
            names: Names; none = all. The others are hidden, and what they cover stays so: an instance is listed under
                a name if and only if it is with all names.
        """
        rows = [row for row, segment in enumerate(self.segments) if segment["score"] > threshold]
        painted = instance_map(self.masks[rows], self.superpoint_ids, self.pixel_indices, self.superpoint_map)
        # The entry behind the last row answers for -1.
        segmentation = np.array([*rows, -1], dtype=np.int32)[painted.numpy()]
        visible = [self.segments[row] for row in np.unique(segmentation[segmentation >= 0])]
        counts = dict(sorted(Counter(segment["name"] for segment in visible).items()))
        segments = [segment for segment in visible if not names or segment["name"] in names]
        if len(segments) < len(visible):
            segmentation = np.where(np.isin(segmentation, [segment["id"] for segment in segments]), segmentation, -1)
        return Selection(segmentation, segments, float(threshold), sorted(names), counts)


def predict(segmenter: "RGBDInstanceSegmentationPipeline", frame: RGBDFrame, checkpoint: str) -> Prediction:
    """Runs the network on a frame.

    Args:
        segmenter: The pipeline.
        frame: The frame.
        checkpoint: Name that the JSON file gives.

    Raises:
        ValueError: Whatever the processor refuses.
    """
    batch = segmenter.collate([segmenter.preprocess(frame)])
    outputs = segmenter.forward(batch, score_threshold=LOWEST_SCORE)
    result = segmenter.postprocess(outputs, threshold=LOWEST_SCORE)[0]
    points = unpad_frames(batch)[0]
    # Also what better instances cover: a filter may take those away.
    found = {name: torch.from_numpy(result[key]) for name, key in KEYS.items()}
    segments = describe_instances(found, points["points"], segmenter.model.config.id2label)
    classes = segmenter.processor.post_process_mask_classes(outputs["outputs"], batch, [found["masks"]])[0]
    config, threshold = segmenter.model.config, segmenter.processor.name_threshold
    for segment, row in zip(segments, classes, strict=True):
        if config.semantic_id2label is None:
            segment["name"] = segment["label"]
            continue
        tells = config.num_labels > 1
        entries = describe_class(row, config.semantic_id2label, segment["label"], threshold, label_tells=tells)
        segment.update(entries)
    return Prediction(
        frame,
        checkpoint,
        segments,
        found["masks"],
        points["superpoint_ids"],
        points["pixel_indices"],
        points["superpoint_map"],
        points["up"],
    )


def name_by_text(prediction: Prediction, labels: str, labeler: TextLabeler) -> None:
    """Calls the instances of a prediction by the best of a visitor's labels, or again by the network's without any.

    Args:
        prediction: It is changed.
        labels: With commas between them.
        labeler: Of the page.

    Raises:
        ValueError: The labels are malformed.
    """
    if not labels.strip():
        for segment, name in zip(prediction.segments, prediction.own_names, strict=True):
            segment["name"] = name
            for key in ("text_label", "text_score", "text_labels"):
                segment.pop(key, None)
        return
    # A file of the server is none of the visitor's business.
    candidates = read_labels([label.strip() for label in labels.split(",")])
    if prediction.text_features is None:
        places = prediction.superpoint_ids, prediction.pixel_indices, prediction.superpoint_map
        masks = pixel_masks(prediction.masks, *places).numpy()
        prediction.text_features = labeler.instance_features(prediction.frame.image, masks)
    for segment, found in zip(prediction.segments, labeler.label(prediction.text_features, candidates), strict=True):
        segment.update({f"text_{key}": value for key, value in found.items()}, name=found["label"])


def cloud_values(prediction: Prediction) -> dict[str, Any]:
    """What the view needs of a frame once, whatever the filter.

    Returns:
        `key`; `image`, a JPEG `PICTURE_WIDTH` wide; `depth`, a PNG of the depth image or of every n-th row and column
        of it, at most `VIEWER_POINTS`, in steps of `unit` metres, 0 = none (see `_png`); its `camera`, fx, fy, cx, cy.
    """
    frame, step = prediction.frame, _step(prediction)
    depth = frame.depth[::step, ::step]
    unit = float(depth.max()) / (2**16 - 1)
    height, width = frame.depth.shape
    picture = io.BytesIO()
    size = (round(height * PICTURE_WIDTH / width), PICTURE_WIDTH)
    Image.fromarray(resize_image(frame.image, size)).save(picture, format="JPEG", quality=90)
    camera = frame.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]] / step
    return {
        "key": prediction.key,
        "image": f"data:image/jpeg;base64,{base64.b64encode(picture.getvalue()).decode()}",
        "depth": _png(np.where(depth > 0, np.rint(depth / unit).clip(1), 0)),
        "unit": unit,
        "camera": camera.tolist(),
    }


def paint_values(prediction: Prediction, selection: Selection) -> dict[str, Any]:
    """What the view paints for a filter.

    Returns:
        `ids`, a PNG of the depth image's size in `cloud_values`: 0, or the place of an instance in `segments` and one;
        `segments`: `text` (name and score), `size` (of the oriented box), `color`, and `corners` of that box [8][3] in
        the axes of `seen_from_camera`.
    """
    step = _step(prediction)
    smooth = without_specks(selection.segmentation)
    for segment in selection.segments:
        # What is listed is seen.
        if not (smooth == segment["id"]).any():
            smooth = np.where(selection.segmentation == segment["id"], segment["id"], smooth)
    places = np.zeros(len(prediction.segments) + 1, dtype=np.int64)
    places[[segment["id"] for segment in selection.segments]] = np.arange(len(selection.segments)) + 1
    segments = [
        {
            "text": f"{segment['name']} {segment['score']:.2f}",
            "size": " x ".join(f"{side:.2f}" for side in segment["oriented_box_3d"]["size"]) + " m",
            "color": prediction.colors[segment["id"]].tolist(),
            "corners": seen_from_camera(prediction.frame, box_corners(segment["oriented_box_3d"])).tolist(),
        }
        for segment in selection.segments
    ]
    return {"ids": _png(places[smooth[::step, ::step]]), "segments": segments}


def box_corners(box: Mapping[str, Any]) -> np.ndarray:
    """Corners of an oriented box, float64 [8, 3]; corners whose numbers differ in one bit share an edge."""
    signs = np.stack(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5], indexing="ij"), axis=-1).reshape(8, 3)
    return np.array(box["center"]) + signs * np.array(box["size"]) @ np.array(box["rotation"]).T


def _step(prediction: Prediction) -> int:
    """Of the rows and columns that the view shows."""
    return int(np.ceil(np.sqrt(prediction.frame.depth.size / VIEWER_POINTS)))


def _png(values: np.ndarray) -> str:
    """Numbers below 2**16 [H, W] as the address of a PNG, low byte in red, high one in green: browsers read 8 bits."""
    low, high = (values.astype(np.uint16) % 256, values.astype(np.uint16) // 256)
    content = io.BytesIO()
    Image.fromarray(np.stack([low, high, 0 * low], axis=-1).astype(np.uint8)).save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def write_files(prediction: Prediction, selection: Selection, folder: Path) -> dict[str, Path]:
    """Writes what the page offers for download, as `InstanceSegmentation` has it.

    Args:
        prediction: The prediction.
        selection: The part of it that is shown.
        folder: Where to; files of an earlier selection are overwritten.

    Returns:
        `ply`: all measured points in the frame of the input, one colour an instance; `json`: the segments.
    """
    paths = {name: folder / file for name, file in FILE_NAMES.items()}
    values = {"segmentation": selection.segmentation, "segments_info": selection.segments, "up": prediction.up}
    result = InstanceSegmentation(values, prediction.frame)
    result.to_ply(paths["ply"])
    content = result.to_json(
        checkpoint=prediction.checkpoint, threshold=selection.threshold, names=selection.names or None
    )
    paths["json"].write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return paths


def seen_from_camera(frame: RGBDFrame, points: np.ndarray) -> np.ndarray:
    """Points [N, 3] of `RGBDFrame.unproject`, x right, y up and z backward from the camera: the axes of viewers."""
    if frame.camera_to_world is not None:
        points = points - frame.camera_to_world[:3, 3]
    return (points @ frame.camera_rotation) * (1, -1, -1)
