"""How far the estimated up is from the true one, on real frames and on rendered ones whose pose is taken away."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bifusion_hf.data.frames import RGBDFrame
from bifusion_hf.data.gravity import ESTIMATED, MIN_CONFIDENCE, estimate_up, upright_axes

from .folder import RealFrame


WITHIN = 10.0
# Frames with `pose_gravity.txt`, many of which were made from a plane of the frame itself; those with a pose of their
# own device, which were not; rendered ones.
REAL, POSED, RENDERED = "real, pose_gravity.txt", "real, the device's pose", "rendered"


@dataclass(frozen=True)
class UpError:
    """Of one frame.

    Args:
        name: Of the frame.
        degrees: Between what the network is given for up and the truth.
        camera_degrees: The same of the camera's up.
        confidence: Of the estimate.
        estimated: Whether the estimate was sure enough to be used.
        milliseconds: That the estimate took a processor.
    """

    name: str
    degrees: float
    camera_degrees: float
    confidence: float
    estimated: bool
    milliseconds: float


def up_error(frame: RGBDFrame, pose: np.ndarray) -> UpError:
    """Measures one frame; its own pose, if it has one, is not looked at.

    Args:
        frame: The frame.
        pose: float [4, 4], true camera to world, z up.
    """
    bare = replace(frame, camera_to_world=None)
    true = pose[2, :3]
    begin = time.process_time()
    estimate = estimate_up(bare.depth, bare.intrinsics)
    seconds = time.process_time() - begin
    axes, _, source = upright_axes(bare, estimate=True)
    return UpError(
        name=frame.frame_id,
        degrees=_degrees(axes[2], true),
        camera_degrees=_degrees(bare.camera_rotation[2], true),
        confidence=estimate.confidence,
        estimated=source == ESTIMATED,
        milliseconds=1000 * seconds,
    )


def _degrees(first: np.ndarray, second: np.ndarray) -> float:
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def measure_gravity(real: Iterable[RealFrame], rendered: Iterable[RGBDFrame]) -> dict[str, Any]:
    """The result as JSON values.

    Args:
        real: Frames; those with `gravity` or `pose` count.
        rendered: Frames with poses.

    Returns:
        `min_confidence`, `within` and `sets`: name -> what `summarize` gives, and its `frames`.

    Raises:
        ValueError: A rendered frame has no pose.
    """
    errors: dict[str, list[UpError]] = {REAL: [], POSED: [], RENDERED: []}
    for found in real:
        for name, pose in ((REAL, found.gravity), (POSED, found.pose)):
            if pose is not None:
                errors[name].append(up_error(found.frame, pose))
    for frame in rendered:
        if frame.camera_to_world is None:
            raise ValueError(f"{frame.frame_id} has no pose; expected one, to compare with")
        errors[RENDERED].append(up_error(frame, frame.camera_to_world))
    return {
        "min_confidence": MIN_CONFIDENCE,
        "within": WITHIN,
        "sets": {
            name: {
                **summarize(found),
                "frames": {
                    error.name: {
                        "degrees": round(error.degrees, 2),
                        "camera_degrees": round(error.camera_degrees, 2),
                        "confidence": round(error.confidence, 3),
                    }
                    for error in found
                },
            }
            for name, found in errors.items()
            if found
        },
    }


def summarize(errors: Sequence[UpError]) -> dict[str, float | int]:
    """Median and 90th percentile in degrees, the share within `WITHIN`, of estimates that were used, and the time."""
    degrees, camera = (np.array([getattr(error, name) for error in errors]) for name in ("degrees", "camera_degrees"))
    return {
        "count": len(errors),
        "median": float(np.median(degrees)),
        "percentile_90": float(np.percentile(degrees, 90)),
        "share_within": float(np.mean(degrees <= WITHIN)),
        "share_estimated": float(np.mean([error.estimated for error in errors])),
        "median_camera": float(np.median(camera)),
        "share_within_camera": float(np.mean(camera <= WITHIN)),
        "median_milliseconds": float(np.median([error.milliseconds for error in errors])),
    }
