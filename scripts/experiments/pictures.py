"""Pictures of a trained cell: where its gate lets the image in, and the frames in which it fails most."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from bifusion_hf.data.dataset import FrameDataset
from bifusion_hf.data.frames import RGBDFrame, frame_from_row
from bifusion_hf.layers.frame_batch import FORWARD_INPUTS
from bifusion_hf.modeling_bifusion import BiFusionForInstanceSegmentation
from bifusion_hf.processing_bifusion import BiFusionProcessor
from bifusion_hf.visualization.overlay import draw_instances, side_by_side

from .cells import RoomsData
from .failures import (
    NOTHING,
    OTHER_CLASS,
    RIGHT,
    FrameFailures,
    find_failures,
)
from .report import PICTURES_FILE
from .running import load_trained, validation_frames, write_json


_COLORS = {RIGHT: (60, 180, 75), OTHER_CLASS: (245, 150, 20), NOTHING: (225, 40, 40), None: (150, 150, 150)}
# Width of a finished picture.
_WIDTH = 1400
# alpha 0 is blue, 1 is red.
_LOW, _MIDDLE, _HIGH = (np.array(color, dtype=float) for color in ((40, 70, 200), (240, 240, 240), (210, 30, 30)))
_ALPHA_TINT = 0.65


def draw_cell(
    name: str, data: RoomsData, work: Path, results: Path, *, count: int = 3, threshold: float = 0.3,
    limit: int | None = None,
) -> list[dict[str, str]]:  # fmt: skip
    """Draws a cell's pictures and enters them in `pictures.json`, in place of its earlier ones.

    Args:
        name: Of the cell: recipe and seed.
        data: The frames.
        work: Folder of the runs.
        results: Folder of the pictures.
        count: Frames of each kind.
        threshold: Predictions of a lower score are not looked at.
        limit: Look at the first frames only.

    Returns:
        The entries: `cell`, `file`, `caption`.

    Raises:
        ValueError: The cell is not trained.
    """
    if not (work / name / "final").is_dir():
        raise ValueError(f"{work / name} holds no finished training; expected one of `run`")
    model, processor = load_trained(work / name)
    dataset = validation_frames(data, processor, 1, work)
    results.mkdir(parents=True, exist_ok=True)
    found = []
    for index in range(len(dataset) if limit is None else min(limit, len(dataset))):
        failures, alpha = look_at(model, processor, dataset, index, threshold)[1:3]
        found.append((failures.count, index, alpha))
    entries = []
    for rank, (_, index, _) in enumerate(sorted(found, key=lambda entry: (-entry[0], entry[1]))[:count]):
        picture, caption = failure_picture(model, processor, dataset, index, threshold)
        entries.append({"cell": name, "file": f"{name}-failures-{rank}.png", "caption": f"`{name}`, {caption}"})
        _save(picture, results / entries[-1]["file"])
    # The frames in which the gate differs most from point to point say most about it.
    gated = sorted((entry for entry in found if entry[2] is not None), key=lambda entry: -np.std(entry[2]))
    for rank, (_, index, alpha) in enumerate(gated[:count]):
        picture, caption = alpha_picture(frame_from_row(dataset.rows[index]), dataset[index], alpha)
        entries.append({"cell": name, "file": f"{name}-alpha-{rank}.png", "caption": f"`{name}`, {caption}"})
        _save(picture, results / entries[-1]["file"])
    path = results / PICTURES_FILE
    others = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    write_json(path, sorted([entry for entry in others if entry["cell"] != name] + entries, key=lambda e: e["file"]))
    return entries


@torch.no_grad()
def look_at(
    model: BiFusionForInstanceSegmentation,
    processor: BiFusionProcessor,
    dataset: FrameDataset,
    index: int,
    threshold: float,
) -> tuple[dict[str, Any], FrameFailures, np.ndarray | None]:
    """What the network finds in a frame, what is wrong with it, and the gate's weight of each point [N] or None."""
    sample = dataset[index]
    batch = processor.collate([sample])
    outputs = model(**{name: batch[name].to(model.device) for name in FORWARD_INPUTS if name in batch})
    (prediction,) = processor.post_process_instance_segmentation(outputs, batch, threshold=threshold)
    failures = find_failures(
        prediction["point_masks"].numpy(),
        prediction["labels"].tolist(),
        sample["instance"],
        sample["class_labels"],
        processor.min_instance_points,
    )
    weights = outputs.fusion_weights
    return prediction, failures, None if weights is None else weights[0, :, 0].float().cpu().numpy()


def failure_picture(
    model: BiFusionForInstanceSegmentation,
    processor: BiFusionProcessor,
    dataset: FrameDataset,
    index: int,
    threshold: float,
) -> tuple[Image.Image, str]:
    """Truth and prediction side by side, coloured by what became of them, and the caption."""
    frame, sample = frame_from_row(dataset.rows[index]), dataset[index]
    prediction, failures, _ = look_at(model, processor, dataset, index, threshold)
    names = processor.label_names
    truth = np.full(frame.depth.shape, -1)
    # The instances of the sampled points, whose ids are 0..M-1, on all pixels of the same objects.
    for number in range(len(sample["class_labels"])):
        pixel = sample["pixel_indices"][np.flatnonzero(sample["instance"] == number)[0]]
        truth[frame.instance == frame.instance.reshape(-1)[pixel]] = number
    truth_info = [{"id": number, "label": names[label]} for number, label in enumerate(sample["class_labels"])]
    shown = {
        "truth": draw_instances(frame.image, truth, truth_info, colors=_colors(failures.truth)),
        "prediction": draw_instances(
            frame.image,
            np.asarray(prediction["segmentation"]),
            prediction["segments_info"],
            # Instances that others cover altogether are not shown; an id is a row of the predictions.
            colors=_colors([failures.predictions[segment["id"]] for segment in prediction["segments_info"]]),
        ),
    }
    return side_by_side(shown), describe(frame.frame_id, failures, names)


def describe(frame_id: str, failures: FrameFailures, names: Sequence[str]) -> str:
    """The caption of a picture of failures."""
    counted = sum(state is not None for state in failures.truth)
    missed = _listed(names[label] for label in failures.missed)
    confused = _listed(f"{names[true]} taken for {names[found]}" for true, found in failures.confusions)
    return (
        f"{frame_id}: of {counted} instances {failures.truth.count(RIGHT)} right (green), {len(failures.confusions)} "
        f"of another class (orange){confused}, {len(failures.missed)} missed (red){missed}; "
        f"{failures.predictions.count(NOTHING)} predictions fit no instance (red)."
    )


def _listed(texts: Any) -> str:
    counts = Counter(texts)
    shown = ", ".join(text if number == 1 else f"{number} x {text}" for text, number in counts.most_common())
    return f": {shown}" if shown else ""


def _colors(states: Sequence[str | None]) -> np.ndarray:
    return np.array([_COLORS[state] for state in states], dtype=np.uint8).reshape(-1, 3)


def alpha_picture(frame: RGBDFrame, sample: dict[str, Any], alpha: np.ndarray) -> tuple[Image.Image, str]:
    """A frame and the gate's weights over it, and the caption.

    Args:
        frame: The frame.
        sample: Of it.
        alpha: [N], weight of the image at each sampled point.
    """
    height, width = sample["depth_size"]
    values = np.full(height * width, np.nan)
    values[sample["pixel_indices"]] = alpha
    values = values.reshape(height, width)
    # Each measured pixel takes the weight of the nearest sampled one.
    nearest = ndimage.distance_transform_edt(np.isnan(values), return_distances=False, return_indices=True)
    filled = values[tuple(nearest)]
    image = np.asarray(Image.fromarray(frame.image).resize((width, height)), dtype=float)
    grey = image.mean(axis=2, keepdims=True)
    tinted = (1 - _ALPHA_TINT) * grey + _ALPHA_TINT * alpha_colors(filled)
    tinted[frame.depth == 0] = grey[frame.depth == 0] / 2
    pictures = {
        "image": Image.fromarray(image.astype(np.uint8)),
        "alpha": Image.fromarray(tinted.round().astype(np.uint8)),
    }
    caption = (
        f"{frame.frame_id}: weight of the image at each point, blue 0, white 0.5, red 1; mean {alpha.mean():.2f}, "
        f"spread {alpha.std():.2f}; dark where there is no depth."
    )
    return side_by_side(pictures), caption


def alpha_colors(values: np.ndarray) -> np.ndarray:
    """Colours [..., 3] in 0..255 of weights [...] in 0..1: blue, white, red."""
    share = np.clip(values, 0, 1)[..., None] * 2
    return np.where(share < 1, (1 - share) * _LOW + share * _MIDDLE, (2 - share) * _MIDDLE + (share - 1) * _HIGH)


def _save(picture: Image.Image, path: Path) -> None:
    """A picture of moderate size and few colours: it goes into a repository."""
    height = round(picture.height * _WIDTH / picture.width)
    small = picture.resize((_WIDTH, height), Image.Resampling.LANCZOS)
    small.quantize(128, method=Image.Quantize.MEDIANCUT).save(path, optimize=True)
