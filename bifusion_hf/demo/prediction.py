"""What the demo page shows of one frame: predicted once, filtered by score and class as often as one likes."""

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage

from ..data.augmentation import resize_image
from ..data.frames import RGBDFrame
from ..labeling import TextLabeler, read_labels
from ..postprocessing import describe_class, describe_instances, instance_map, pixel_masks, unpad_frames
from ..visualization.colors import instance_colors
from ..visualization.overlay import without_specks
from ..visualization.ply import color_by_instance, write_ply
from ..visualization.segments import segments_to_json


if TYPE_CHECKING:
    from ..pipeline_bifusion import RGBDInstanceSegmentationPipeline

# Scores that the page can filter by begin here; below it are mostly the many weak copies of better instances.
LOWEST_SCORE = 0.05
# The viewer in the browser stays smooth up to about this many points; files have all of them.
VIEWER_POINTS = 300_000
# What `describe_instances` takes -> its name in the pipeline's result.
KEYS = {"masks": "point_masks", "labels": "labels", "scores": "scores", "num_parts": "num_parts"}
PICTURE_WIDTH = 640
TINT = 0.5
FILE_NAMES = {"ply": "points.ply", "json": "segments.json", "viewer": "viewer.ply"}


@dataclass(eq=False)
class Selection:
    """The instances of a prediction that pass a filter.

    Args:
        segmentation: int32 [H, W] of the depth image, ids of `segments`, -1 = none.
        segments: Their entries of `segments_info`; ids (and with them colours) are those of the whole prediction.
        threshold: The filter's score.
        names: The filter's names; empty = all.
    """

    segmentation: np.ndarray
    segments: list[dict[str, Any]]
    threshold: float
    names: list[str]


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
        text_features: float32 [K, D], what the page's labeler sees of each, once a visitor has asked.
        own_names: The names before any words of the visitor's.
    """

    frame: RGBDFrame
    checkpoint: str
    segments: list[dict[str, Any]]
    masks: torch.Tensor
    superpoint_ids: torch.Tensor
    pixel_indices: torch.Tensor
    superpoint_map: torch.Tensor
    text_features: np.ndarray | None = None
    own_names: list[str] = field(init=False)

    def __post_init__(self):
        self.own_names = [segment["name"] for segment in self.segments]

    @property
    def colors(self) -> np.ndarray:
        """The colour of each instance, uint8 [K, 3]; a filter never changes it."""
        return instance_colors(len(self.segments))

    @property
    def name_counts(self) -> dict[str, int]:
        """Number of instances of each name, in the order of the alphabet."""
        return dict(sorted(Counter(segment["name"] for segment in self.segments).items()))

    def select(self, threshold: float, names: Collection[str] = ()) -> Selection:
        """The visible instances of a higher score and of given names; the same as predicting with that threshold.

        Args:
            threshold: At least `LOWEST_SCORE`.
            names: Names; none = all.
        """
        rows = [
            row
            for row, segment in enumerate(self.segments)
            if segment["score"] > threshold and (not names or segment["name"] in names)
        ]
        painted = instance_map(self.masks[rows], self.superpoint_ids, self.pixel_indices, self.superpoint_map)
        # The entry behind the last row answers for -1.
        segmentation = np.array([*rows, -1], dtype=np.int32)[painted.numpy()]
        segments = [self.segments[row] for row in np.unique(segmentation[segmentation >= 0])]
        return Selection(segmentation, segments, float(threshold), sorted(names))


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
    outputs = segmenter.forward(batch)
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


def annotated_image(
    prediction: Prediction, selection: Selection
) -> tuple[tuple[np.ndarray, list[tuple[np.ndarray, str]]], dict[str, str]]:
    """The image and its instances in the form of `gradio.AnnotatedImage`.

    Returns:
        (image uint8 [h, w, 3], (opacities float [h, w], text) of each instance that is visible), and the colour of
        each text as "#rrggbb". Texts are name and score, and differ; w is `PICTURE_WIDTH`.
    """
    height, width = selection.segmentation.shape
    size = (round(height * PICTURE_WIDTH / width), PICTURE_WIDTH)
    rows, columns = (np.arange(length) * found // length for length, found in zip(size, (height, width), strict=True))
    segmentation = without_specks(selection.segmentation)[rows[:, None], columns]
    parts, colors = [], {}
    for segment in selection.segments:
        inside = segmentation == segment["id"]
        if not inside.any():
            continue
        text = f"{segment['name']} {segment['score']:.2f}"
        if text in colors:
            text += f" ({segment['id']})"
        outline = inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)
        parts.append((np.where(outline, 1.0, TINT * inside), text))
        colors[text] = "#" + bytes(prediction.colors[segment["id"]].tolist()).hex()
    return (resize_image(prediction.frame.image, size), parts), colors


def write_files(prediction: Prediction, selection: Selection, folder: Path) -> dict[str, Path]:
    """Writes what the page offers for download.

    Args:
        prediction: The prediction.
        selection: The part of it that is shown.
        folder: Where to; files of an earlier selection are overwritten.

    Returns:
        `ply`: all measured points in the frame of the input, one colour an instance; `json`: the segments; `viewer`:
        at most `VIEWER_POINTS` of the points, in metres, x right, y up, z backward as seen from the camera.
    """
    frame = prediction.frame
    paths = {name: folder / file for name, file in FILE_NAMES.items()}
    measured = frame.depth > 0
    instance = selection.segmentation[measured]
    names = {segment["id"]: segment["name"] for segment in selection.segments}
    pixels = resize_image(frame.image, frame.depth.shape)[measured]
    colors = color_by_instance(pixels, instance, prediction.colors)
    points = frame.unproject(np.flatnonzero(measured))
    write_ply(paths["ply"], points, colors, instance=instance, names=names)

    step = -(-len(points) // VIEWER_POINTS)
    write_ply(paths["viewer"], seen_from_camera(frame, points[::step]), colors[::step])

    content = segments_to_json(
        frame.frame_id,
        selection.segmentation,
        [{**segment, "color": prediction.colors[segment["id"]]} for segment in selection.segments],
        checkpoint=prediction.checkpoint,
        threshold=selection.threshold,
        names=selection.names or None,
        coordinates=frame.axes,
    )
    paths["json"].write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return paths


def seen_from_camera(frame: RGBDFrame, points: np.ndarray) -> np.ndarray:
    """Points [N, 3] of `RGBDFrame.unproject`, x right, y up and z backward from the camera: the axes of viewers."""
    if frame.camera_to_world is not None:
        points = points - frame.camera_to_world[:3, 3]
    return (points @ frame.camera_rotation) * (1, -1, -1)


def viewer_distance(frame: RGBDFrame) -> float:
    """Metres from the middle of the points at which a viewer shows all of them, somewhat behind the camera's place."""
    depth = frame.depth[frame.depth > 0]
    return 0.7 * float(depth.min() + depth.max())
