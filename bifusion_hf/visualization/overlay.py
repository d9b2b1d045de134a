"""Pictures: instances over their image, superpoints, panels side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from ..superpoints.colour import rgb_to_lab
from .colors import instance_colors


# Pictures are enlarged by a whole factor to about this width, so that labels on a 320x240 image can be read.
PICTURE_WIDTH = 1120
TINT = 0.45
# Connected parts below this share of the picture are drawn as what surrounds them: sensors leave pinholes, and single
# sampled points differ from their superpoint.
SPECK = 2e-4


def draw_instances(
    image: np.ndarray,
    segmentation: np.ndarray,
    segments_info: Sequence[Mapping[str, Any]],
    id2label: Mapping[int, str] | None = None,
    *,
    colors: np.ndarray | None = None,
) -> Image.Image:
    """The image with its instances tinted, outlined and labelled.

    Args:
        image: uint8 [Hc, Wc, 3] RGB.
        segmentation: int [H, W], ids of `segments_info`, -1 = none; of the same aspect as the image.
        segments_info: As `BiFusionProcessor.post_process_instance_segmentation` gives them; `id` is needed, `score`
            and `name`, or where there is none `label` (or `label_id` with `id2label`), are written.
        id2label: Names of label ids; they go before the segments' own `name` and `label`.
        colors: uint8 [K, 3], the colour of the k-th segment; by default that of its id in `instance_colors`.

    Returns:
        RGB picture, enlarged to about `PICTURE_WIDTH`.

    Raises:
        ValueError: An argument is malformed, or the segmentation has an id that `segments_info` lacks.
    """
    segmentation = _check_map("segmentation", segmentation)
    ids = np.array([int(segment["id"]) for segment in segments_info], dtype=np.int64)
    unknown = np.setdiff1d(segmentation[segmentation >= 0], ids)
    if len(unknown):
        raise ValueError(
            f"segmentation has ids {unknown[:5].tolist()} that segments_info lacks; it has {ids.tolist()}"
        )
    if colors is None:
        colors = instance_colors(ids.max(initial=-1) + 1)[ids]
    # Rows of segments_info instead of ids.
    rows = np.full(max(ids.max(initial=-1), segmentation.max(initial=-1)) + 2, -1)
    rows[ids] = np.arange(len(ids))
    canvas, rows = _enlarge(np.asarray(image), without_specks(rows[segmentation]))

    present = rows >= 0
    canvas[present] = (1 - TINT) * canvas[present] + TINT * colors[rows[present]]
    line = max(1, canvas.shape[1] // 500)
    for row, box in enumerate(ndimage.find_objects(rows + 1, max_label=len(ids))):
        if box is not None:
            region = _padded(rows, box, line) == row
            outline = ndimage.binary_dilation(region, iterations=line) & ~region
            _padded(canvas, box, line)[outline] = colors[row]
    picture = Image.fromarray(canvas.round().astype(np.uint8))
    texts = [_segment_text(segment, id2label) for segment in segments_info]
    _draw_labels(picture, rows, texts, colors)
    return picture


def _check_map(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} has shape {values.shape} and dtype {values.dtype}; expected integers [H, W]")
    return values


def _enlarge(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image, float32 [h, w, 3], and the label map [h, w], both at the size of the picture."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image has shape {image.shape} and dtype {image.dtype}; expected uint8 [H, W, 3] RGB")
    scale = max(1, round(PICTURE_WIDTH / labels.shape[1]))
    labels = labels.repeat(scale, axis=0).repeat(scale, axis=1)
    picture = Image.fromarray(image).resize(labels.shape[::-1], Image.Resampling.BICUBIC)
    return np.array(picture, dtype=np.float32), labels


def without_specks(labels: np.ndarray) -> np.ndarray:
    """The label map with every connected part below `SPECK` given to the nearest larger part."""
    from skimage.measure import label

    parts = label(labels, connectivity=1, background=labels.min() - 1)
    small = np.bincount(parts.ravel()) < SPECK * labels.size
    if small[parts].all():
        return labels
    nearest = ndimage.distance_transform_edt(small[parts], return_distances=False, return_indices=True)
    return labels[tuple(nearest)]


def _padded(array: np.ndarray, box: tuple[slice, slice], margin: int) -> np.ndarray:
    """View of a box with a margin, as far as the array goes."""
    return array[tuple(slice(max(0, part.start - margin), part.stop + margin) for part in box)]


def segment_name(segment: Mapping[str, Any]) -> str | None:
    """What a segment is called: its `name`, else its `label`."""
    return segment.get("name", segment.get("label"))


def _segment_text(segment: Mapping[str, Any], id2label: Mapping[int, str] | None) -> str:
    label = segment_name(segment)
    if id2label is not None and segment.get("label_id") in id2label:
        label = id2label[segment["label_id"]]
    score = segment.get("score")
    return " ".join(([str(label)] if label is not None else []) + ([f"{score:.2f}"] if score is not None else []))


def _draw_labels(picture: Image.Image, rows: np.ndarray, texts: Sequence[str], colors: np.ndarray) -> None:
    """Writes each text where its region is widest, or above a small one; largest first, clear of those before."""
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(12, picture.width // 60))
    taken: list[tuple[float, float, float, float]] = []
    boxes = ndimage.find_objects(rows + 1, max_label=len(texts))
    areas = np.bincount(rows[rows >= 0], minlength=len(texts))
    for row in np.argsort(-areas, kind="stable"):
        if boxes[row] is None or not texts[row]:
            continue
        left, top, right, bottom = draw.textbbox((0, 0), texts[row], font=font)
        size = (right - left + 8, bottom - top + 6)
        rows_of, columns_of = boxes[row]
        inner = ndimage.distance_transform_edt(np.pad(rows[boxes[row]] == row, 1))
        y, x = np.unravel_index(np.argmax(inner), inner.shape)
        centre = (columns_of.start + x - 1, rows_of.start + y - 1)
        if inner.max() < size[1]:
            # Too small to write on: above it.
            centre = ((columns_of.start + columns_of.stop) / 2, rows_of.start - size[1] / 2 - 3)
        place = _free_place(centre, size, picture.size, taken)
        taken.append(place)
        color = colors[row]
        bright = rgb_to_lab(color)[0] > 60
        draw.rectangle(place, fill=tuple(color.tolist()), outline=(0, 0, 0) if bright else (255, 255, 255))
        draw.text(
            (place[0] + 4 - left, place[1] + 3 - top), texts[row], font=font, fill="black" if bright else "white"
        )


def _free_place(centre, size, limits, taken) -> tuple[float, float, float, float]:
    """The box of `size` nearest to `centre`, moved up or down by its own height, that overlaps those taken least."""
    best, least = None, np.inf
    for step in (0, -1, 1, -2, 2, -3, 3):
        left = min(max(0, centre[0] - size[0] / 2), limits[0] - size[0] - 1)
        top = min(max(0, centre[1] - size[1] / 2 + step * (size[1] + 2)), limits[1] - size[1] - 1)
        box = (left, top, left + size[0], top + size[1])
        overlap = sum(
            max(0, min(box[2], other[2]) - max(box[0], other[0]))
            * max(0, min(box[3], other[3]) - max(box[1], other[1]))
            for other in taken
        )
        if overlap < least:
            best, least = box, overlap
        if overlap == 0:
            break
    return best


def side_by_side(panels: Mapping[str, Image.Image]) -> Image.Image:
    """Pictures in a row, each under its title; all are brought to the height of the first."""
    height = next(iter(panels.values())).height
    pictures = [
        panel if panel.height == height else panel.resize((round(panel.width * height / panel.height), height))
        for panel in panels.values()
    ]
    gap, bar = 8, max(20, height // 24)
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    result = Image.new("RGB", (width, height + bar), "white")
    draw = ImageDraw.Draw(result)
    font = ImageFont.load_default(size=0.7 * bar)
    x = 0
    for title, picture in zip(panels, pictures, strict=True):
        draw.text((x + 4, bar / 2), title, font=font, fill="black", anchor="lm")
        result.paste(picture, (x, bar))
        x += picture.width + gap
    return result


def draw_comparison(
    image: np.ndarray,
    prediction: tuple[np.ndarray, Sequence[Mapping[str, Any]]],
    truth: tuple[np.ndarray, Sequence[Mapping[str, Any]]],
    id2label: Mapping[int, str] | None = None,
) -> Image.Image:
    """Ground truth and prediction side by side; a prediction wears the colour of the instance that it overlaps most.

    Args:
        image: uint8 [Hc, Wc, 3] RGB.
        prediction: `segmentation` and `segments_info` as of `draw_instances`.
        truth: The same of the ground truth.
        id2label: As of `draw_instances`.
    """
    (found, found_info), (true, true_info) = prediction, truth
    ids = [segment["id"] for segment in found_info], [segment["id"] for segment in true_info]
    found_colors, true_colors = _matched_colors(np.asarray(found), ids[0], np.asarray(true), ids[1])
    return side_by_side(
        {
            "ground truth": draw_instances(image, true, true_info, id2label, colors=true_colors),
            "prediction": draw_instances(image, found, found_info, id2label, colors=found_colors),
        }
    )


def _matched_colors(
    found: np.ndarray, found_ids: Sequence[int], true: np.ndarray, true_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Colours of both sides' segments, [K, 3] and [M, 3].

    Pairs are formed by falling IoU above 0.25; the other segments have colours of their own.
    """
    colors = instance_colors(len(true_ids) + len(found_ids))
    index = len(true_ids) + np.arange(len(found_ids))
    iou = np.zeros((len(found_ids), len(true_ids)))
    for row, a in enumerate(found_ids):
        for column, b in enumerate(true_ids):
            either = np.count_nonzero((found == a) | (true == b))
            iou[row, column] = np.count_nonzero((found == a) & (true == b)) / max(either, 1)
    while iou.size and iou.max() > 0.25:
        row, column = np.unravel_index(np.argmax(iou), iou.shape)
        index[row] = column
        iou[row] = 0
        iou[:, column] = 0
    return colors[index], colors[: len(true_ids)]
