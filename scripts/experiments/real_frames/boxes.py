"""How far segments' boxes are off on real frames, and how many segments have stray parts: as it was, and as it is.

Before, masks were left whole (`part_gap` 0) and a box reached from the least to the greatest coordinate of its points.
The true extents are those of an object's labelled points. Labels have stray points at their outlines, too, so they are
taken in three ways: all points, the largest part of them, and without one per cent of them on each side. No rule is
measured by its own truth alone, which would flatter it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bifusion_hf.boxes import OUTERMOST, bounding_box
from bifusion_hf.evaluation.instance_average_precision import mask_overlaps
from bifusion_hf.mask_parts import separate_parts
from bifusion_hf.modeling_bifusion import BiFusionForInstanceSegmentation
from bifusion_hf.processing_bifusion import BiFusionProcessor

from .folder import RealFrame
from .measurement import FOUND, SCORE, predict, protocol_of


# A segment of more points outside its largest part than this share has faces that no box leaves out.
STRAYS = 0.01


# Share of the points beyond each face of a segment's box.
RULES = {
    "all points": 0.0,
    **{f"{100 * share:g} % left out": share for share in (0.001, OUTERMOST, 0.005, 0.01, 0.02)},
}
# Whether it is of the largest part of a label alone, and the share beyond each face.
TRUTHS = {"all points": (False, 0.0), "largest part": (True, 0.0), "1 % left out": (False, 0.01)}


def measure_boxes(
    model: BiFusionForInstanceSegmentation, processor: BiFusionProcessor, frames: Sequence[RealFrame], part_gap: float
) -> dict[str, Any]:
    """The result of a checkpoint, as JSON values.

    Args:
        model: In eval mode.
        processor: Of it; its `part_gap` is set.
        frames: Labelled frames.
        part_gap: Metres, of the masks as they are now, and by which stray parts are told.

    Returns:
        `protocol`; `masks`: "whole" and "apart" -> `segments`, and the shares of them `with_strays` and
        `with_many_strays`; `objects` found with both; `errors`: masks -> rule of the boxes -> rule of the truth ->
        median error of the `largest_side` and of `all_sides`, metres, and of the largest one as a share of it,
        `relative`.
    """
    shares: dict[str, dict[str, Any]] = {}
    extents: dict[str, list[dict[str, np.ndarray] | None]] = {}
    for name, gap in (("whole", 0.0), ("apart", part_gap)):
        processor.part_gap = gap
        strays: list[float] = []
        extents[name] = []
        for frame in frames:
            sample, found = predict(model, processor, frame, threshold=SCORE)
            points = frame.frame.unproject(sample["pixel_indices"])
            masks = found["point_masks"].numpy()
            strays += [1 - largest_part(mask, points, part_gap).sum() / mask.sum() for mask in masks]
            extents[name] += object_extents(
                masks, sample["instance"], points, protocol_of(processor).min_points, part_gap
            )
        shares[name] = {
            "segments": len(strays),
            "with_strays": _share(strays, 0.0),
            "with_many_strays": _share(strays, STRAYS),
        }
    both = [row for row, found in enumerate(zip(*extents.values(), strict=True)) if None not in found]
    return {
        "protocol": {
            "part_gap": part_gap,
            "score": SCORE,
            "found_iou": FOUND,
            "many_strays": STRAYS,
            "truths": list(TRUTHS),
            "today": OUTERMOST,
        },
        "masks": shares,
        "labelled_objects": len(extents["whole"]),
        "objects": len(both),
        "errors": {
            name: {
                rule: {
                    truth: side_errors(
                        *(np.array([found[row][key] for row in both]) for key in (rule, "true " + truth))
                    )
                    for truth in TRUTHS
                }
                for rule in RULES
            }
            for name, found in extents.items()
        },
    }


def largest_part(mask: np.ndarray, points: np.ndarray, gap: float) -> np.ndarray:
    """The largest part of a mask, bool [N].

    Args:
        mask: bool [N], of at least one point.
        points: float [N, 3] metres.
        gap: Metres, as of `separate_parts`.
    """
    one = {"masks": torch.from_numpy(mask[None]), "scores": torch.ones(1)}
    return separate_parts(one, torch.from_numpy(points), gap=gap, max_instances=1)["masks"][0].numpy()


def object_extents(
    masks: np.ndarray, instance: np.ndarray, points: np.ndarray, min_points: int, gap: float
) -> list[dict[str, np.ndarray] | None]:
    """The extents of each labelled object of enough points and of the segment that finds it, by each rule.

    Args:
        masks: bool [K, N].
        instance: int [N], -1 = void, else 0..M-1.
        points: float [N, 3] metres.
        min_points: Objects have at least so many.
        gap: Metres, for the largest part of a label.

    Returns:
        For each object float64 [3] by the name of each of `RULES`, and of the label by "true " and the name of each of
        `TRUTHS`; None where no segment has an IoU above `FOUND`.
    """
    sizes = np.bincount(instance[instance >= 0])
    shared = mask_overlaps(masks, instance, len(sizes))
    iou = shared[:, : len(sizes)] / np.maximum(sizes + shared.sum(axis=1, keepdims=True) - shared[:, : len(sizes)], 1)
    result: list[dict[str, np.ndarray] | None] = []
    for index in np.flatnonzero(sizes >= min_points):
        if iou[:, index].max(initial=0) <= FOUND:
            result.append(None)
            continue
        found, true = masks[iou[:, index].argmax()], instance == index
        largest = largest_part(true, points, gap)
        boxes = {rule: bounding_box(points[found], share) for rule, share in RULES.items()}
        for truth, (is_largest, share) in TRUTHS.items():
            boxes[f"true {truth}"] = bounding_box(points[largest if is_largest else true], share)
        result.append({name: corners[3:] - corners[:3] for name, corners in boxes.items()})
    return result


def _share(strays: Sequence[float], limit: float) -> float:
    return float(np.mean(np.array(strays) > limit)) if strays else float("nan")


def side_errors(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Medians over objects: of the error of the truly largest side, of all sides, and of the former as a share.

    NaN without objects.

    Args:
        found: float [M, 3] metres.
        true: float [M, 3] metres.
    """
    if not len(found):
        return dict.fromkeys(("largest_side", "all_sides", "relative"), float("nan"))
    errors = np.abs(found - true)
    largest = true.argmax(axis=1)[:, None]
    of_largest = np.take_along_axis(errors, largest, 1)
    return {
        "largest_side": float(np.median(of_largest)),
        "all_sides": float(np.median(errors)),
        "relative": float(np.median(of_largest / np.take_along_axis(true, largest, 1))),
    }
