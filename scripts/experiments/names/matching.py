"""Found instances beside the true ones, and how many of their names are right."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bifusion_hf import RGBDFrame
from bifusion_hf.labels import SCANNET200_CLASS_NAMES, SPLIT_NAMES, SPLIT_OF_CLASS, point_instances_from_labels
from bifusion_hf.pipeline_bifusion import RGBDInstanceSegmentationPipeline


# A true instance is found by an instance above it.
FOUND_IOU = 0.5
# Names are shown where this share of them is right.
MOSTLY = 0.75


@dataclass(frozen=True)
class Named:
    """A true instance that was found, and what it was called.

    Args:
        truth: Its class.
        name: What it was called.
        probability: Of the name.
    """

    truth: str
    name: str
    probability: float


def found_instances(frame: RGBDFrame, result: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """The segments of a frame that are a true instance, each beside its class.

    A segment is the true instance with which its IoU is above `FOUND_IOU`, over the measured pixels. As neither
    overlap one another, pairs are one to one.
    """
    truth, labels = point_instances_from_labels(frame.instance, frame.semantic)
    measured = frame.depth > 0
    for segment in result["segments_info"]:
        mask = (result["segmentation"] == segment["id"]) & measured
        counts = np.bincount(truth[mask & (truth >= 0)], minlength=len(labels))
        if not counts.any():
            continue
        best = int(counts.argmax())
        union = np.count_nonzero(mask | ((truth == best) & measured))
        if counts[best] > FOUND_IOU * union:
            # The labels of instances leave wall and floor out.
            yield segment, SCANNET200_CLASS_NAMES[int(labels[best]) + 2]


def frames_named(segmenter: RGBDInstanceSegmentationPipeline, frames: Iterable[RGBDFrame]) -> tuple[list[Named], int]:
    """Names by the semantic head of the found instances of frames; and the number of true instances."""
    named, total = [], 0
    for frame in frames:
        total += len(point_instances_from_labels(frame.instance, frame.semantic)[1])
        for segment, truth in found_instances(frame, segmenter(frame)):
            named.append(Named(truth, segment["semantic_label"], segment["semantic_probability"]))
    return named, total


def shares(named: Sequence[Named]) -> dict[str, Any]:
    """Share of right names, of all and by head, common and tail; None where there is no instance."""

    def share(part: Sequence[Named]) -> dict[str, Any]:
        right = sum(item.name == item.truth for item in part)
        return {"found": len(part), "right": right, "share": right / len(part) if part else None}

    groups = {split: [item for item in named if SPLIT_OF_CLASS[item.truth] == split] for split in SPLIT_NAMES}
    return {"all": share(named), **{split: share(part) for split, part in groups.items()}}


def at_threshold(named: Sequence[Named], threshold: float) -> dict[str, float]:
    """What a threshold shows: the share of found instances with a name, and the share of those names that is right."""
    shown = [item for item in named if item.probability >= threshold]
    right = sum(item.name == item.truth for item in shown)
    return {
        "threshold": threshold,
        "shown": len(shown) / max(len(named), 1),
        "right": right / len(shown) if shown else None,
    }


def choose_threshold(named: Sequence[Named]) -> float:
    """The lowest probability, in steps of 0.05, from which on at least `MOSTLY` of the names are right.

    Raises:
        ValueError: There is none.
    """
    for step in range(21):
        found = at_threshold(named, step / 20)
        if found["right"] is not None and found["right"] >= MOSTLY:
            return step / 20
    raise ValueError(f"no probability has {MOSTLY:.0%} of the {len(named)} names above it right")
