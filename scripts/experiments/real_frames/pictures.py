"""Overlays of all real frames, group by group, so that the numbers can be looked at."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bifusion_hf.modeling_bifusion import BiFusionForInstanceSegmentation
from bifusion_hf.processing_bifusion import BiFusionProcessor
from bifusion_hf.visualization.overlay import draw_comparison, draw_instances

from .folder import RealFrame
from .measurement import SCORE, predict


# Of a frame in a mosaic, in pixels: one panel for a frame without labels, two for one with them.
PANEL_WIDTH, CAPTION_HEIGHT = 400, 18
COLUMNS = 4
UNLABELLED = "unlabelled"
_JPEG_QUALITY = 80


def draw_mosaics(
    model: BiFusionForInstanceSegmentation,
    processor: BiFusionProcessor,
    frames: Iterable[RealFrame],
    folder: str | Path,
    name: str,
) -> list[Path]:
    """Draws each frame without a pose, instances above `SCORE`; labelled frames beside their truth.

    Args:
        model: In eval mode.
        processor: Of it.
        frames: With or without labels.
        folder: Of the pictures.
        name: First part of their names.

    Returns:
        `NAME-GROUP.jpg` of each group, and of the frames without labels.
    """
    tiles: dict[str, list[tuple[str, Image.Image]]] = {}
    for frame in frames:
        group = UNLABELLED if frame.frame.instance is None else frame.group
        tiles.setdefault(group, []).append((frame.name, draw_frame(model, processor, frame)))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for group, found in tiles.items():
        paths.append(folder / f"{name}-{group.replace(' ', '_')}.jpg")
        mosaic(found).save(paths[-1], quality=_JPEG_QUALITY, optimize=True)
    return paths


def draw_frame(model: BiFusionForInstanceSegmentation, processor: BiFusionProcessor, frame: RealFrame) -> Image.Image:
    """The instances of a frame over its image, after the truth where there is one."""
    _, found = predict(model, processor, frame, threshold=SCORE)
    # The labels are all "object"; the score is what there is to say.
    segments = [{"id": segment["id"], "score": segment["score"]} for segment in found["segments_info"]]
    prediction = np.asarray(found["segmentation"]), segments
    if frame.frame.instance is None:
        return draw_instances(frame.frame.image, *prediction)
    ids = np.unique(frame.frame.instance[frame.frame.instance >= 0]).tolist()
    names = dict(enumerate(frame.names))
    truth = frame.frame.instance, [{"id": index, "label": names.get(index, "")} for index in ids]
    return draw_comparison(frame.frame.image, prediction, truth)


def mosaic(tiles: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures in rows, each above its name; all are brought to one width."""
    panels = 2 if any(picture.width > 2 * picture.height for _, picture in tiles) else 1
    width, columns = PANEL_WIDTH * panels, COLUMNS // panels
    small = [
        picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
        for _, picture in tiles
    ]
    height = max(picture.height for picture in small) + CAPTION_HEIGHT
    rows = -(-len(tiles) // columns)
    result = Image.new("RGB", (width * min(columns, len(tiles)), height * rows), "white")
    draw, font = ImageDraw.Draw(result), ImageFont.load_default(size=0.7 * CAPTION_HEIGHT)
    for index, ((name, _), picture) in enumerate(zip(tiles, small, strict=True)):
        left, top = index % columns * width, index // columns * height
        result.paste(picture, (left, top))
        draw.text((left + 4, top + picture.height + CAPTION_HEIGHT / 2), name, font=font, fill="black", anchor="lm")
    return result
