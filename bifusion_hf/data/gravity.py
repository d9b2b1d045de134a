"""Which way is up in a frame that has no pose: gravity from the surfaces that it shows.

Floors, tables and shelves are horizontal, walls and the sides of most things vertical. So a direction is a good "up"
if many surface normals are parallel or at right angles to it (Gupta, Arbelaez and Malik, "Perceptual Organization and
Recognition of Indoor Scenes from RGB-D Images", CVPR 2013). Their method starts from the camera's up and turns it,
step by step, into the direction that fits the normals best; that end is taken here too. But a camera that looks down
at a table is so far from level that the start leads astray, and which of three directions at right angles is up is no
question of fit. Both are answered as by Coughlan and Yuille ("Manhattan World: Compass Direction from a Single Image
by Bayesian Inference", ICCV 1999): all directions are compared, by how likely the normals are under each and by how
people hold cameras, hardly rolled, level or looking down. The posterior of the best direction is the confidence.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..superpoints.backends import choose_backend
from .frames import RGBDFrame


# Where a sample's z axis comes from.
POSE, ESTIMATED, CAMERA = "pose", "estimated", "camera"
# An estimate of less confidence is not used.
MIN_CONFIDENCE = 0.7
# The camera's own up, in camera axes.
CAMERA_UP = np.array([0.0, -1.0, 0.0])
# Depth is averaged to about so many columns (or rows, of the longer side), normals over so many of these pixels.
_SIDE, _WINDOW = 120, 5
_MIN_NORMALS = 100
# Likelihood of a normal that fits, over that of one which has nothing to do with gravity: parallel to up (a floor),
# against it (a ceiling), at right angles (a wall); and how far from it a normal may lie, as a standard deviation.
_FLOOR, _CEILING, _WALL, _SPREAD = 14.0, 5.0, 10.0, np.radians(8)
# Neighbouring normals say the same: a frame counts as so many independent ones, fewer where less than half is surface.
_INDEPENDENT, _FULL = 12.0, 0.5
# Prior: sideways component of up, a normal distribution with a wide one for the few that are rolled; pitch, flat from
# level to looking down by 50 degrees, and falling off beyond, faster for those that look up. These numbers were chosen
# on real and rendered frames whose up is known.
_ROLL, _WIDE_ROLL, _ROLLED = 0.2, 0.5, 0.05
_STEEPEST, _STEEP_SPREAD, _UPWARD_SPREAD = np.radians((50, 20, 12))
# Directions that are compared: a sphere's worth of this many, less those far below the camera.
_DIRECTIONS, _FARTHEST = 1500, np.radians(100)
# Normals fall into cells of this size; what lies around the best direction counts as the same.
_CELL, _SAME = 1 / 8, np.radians(15)
# The end: tolerances of Gupta et al.'s steps, and what keeps a direction that the normals leave open.
_TOLERANCES, _HOLD = np.radians((15, 15, 8, 8, 8)), 0.003


@dataclass(frozen=True)
class UpEstimate:
    """Where up is.

    Args:
        direction: float64 [3], unit, in camera axes (x right, y down, z forward).
        confidence: Probability in [0, 1] that up lies within 15 degrees of the best direction, under the assumptions
            of the module.
    """

    direction: np.ndarray
    confidence: float


def estimate_up(depth: np.ndarray, intrinsics: np.ndarray) -> UpEstimate:
    """Estimates up from a depth image.

    Args:
        depth: float32 [H, W] metres, 0 = no measurement.
        intrinsics: [3, 3] of it.

    Returns:
        The estimate; the camera's up with confidence 0 where there are too few normals.
    """
    # Of a narrow strip blocks are as wide as it is.
    step = max(1, min(round(max(depth.shape) / _SIDE), *depth.shape))
    depth, intrinsics = _averaged(depth, intrinsics, step)
    stages = choose_backend()
    links = stages.surface_links(depth)
    surfaces = _on_surfaces(*links)
    normals = stages.estimate_normals(depth, intrinsics, links, _WINDOW)[surfaces]
    if len(normals) < _MIN_NORMALS:
        return UpEstimate(CAMERA_UP, 0.0)
    means, shares = _cells(normals)
    directions, prior = _directions()
    cosines = (directions @ means.T + 1) * (len(_likelihood()) // 2) + 0.5
    evidence = _likelihood()[cosines.astype(np.int32)] @ shares
    posterior = _INDEPENDENT * min(1.0, surfaces.mean() / _FULL) * evidence + prior
    posterior = np.exp(posterior - posterior.max())
    best = directions[posterior.argmax()].astype(np.float64)
    confidence = posterior[directions @ best > np.cos(_SAME)].sum() / posterior.sum()
    return UpEstimate(_refined(best, normals.astype(np.float64)), float(confidence))


def up_rotation(up: np.ndarray) -> np.ndarray:
    """Camera axes to point axes for a direction of up: z up, y forward as the camera looks, x right.

    Args:
        up: [3], unit, in camera axes.

    Returns:
        float64 [3, 3], a rotation; `CAMERA_TO_POINTS` for the camera's own up.
    """
    # Where the camera looks straight down, or up, the upper edge of its image is ahead, or behind.
    ahead = np.array([0.0, 0.0, 1.0]) if abs(up[2]) < 0.9 else np.array([0.0, np.sign(up[2]), 0.0])
    forward = ahead - (ahead @ up) * up
    forward /= np.linalg.norm(forward)
    return np.stack([np.cross(forward, up), forward, up])


def upright_axes(frame: RGBDFrame, estimate: bool) -> tuple[np.ndarray, np.ndarray, str]:
    """The axes that a frame's points are given to the network in.

    Args:
        frame: The frame.
        estimate: Whether up is estimated where there is no pose.

    Returns:
        float64 [3, 3], camera axes to these axes; float64 [3, 3], the frame's own point axes to these, exactly the
        identity but for `ESTIMATED`; which convention this is: `POSE`, `ESTIMATED`, or `CAMERA`, the camera's axes
        relabelled.
    """
    own = frame.camera_rotation
    if frame.camera_to_world is not None:
        return own, np.eye(3), POSE
    found = estimate_up(frame.depth, frame.intrinsics) if estimate else UpEstimate(CAMERA_UP, 0.0)
    if found.confidence < MIN_CONFIDENCE:
        return own, np.eye(3), CAMERA
    upright = up_rotation(found.direction)
    return upright, upright @ own.T, ESTIMATED


def _averaged(depth: np.ndarray, intrinsics: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of the inverse depth, which is affine on a plane, over blocks of `step` pixels, and their intrinsics."""
    if step == 1:
        return depth, intrinsics
    height, width = (size // step for size in depth.shape)
    blocks = depth[: height * step, : width * step].reshape(height, step, width, step)
    measured = blocks > 0
    inverse = np.divide(1, blocks, out=np.zeros_like(blocks), where=measured).sum(axis=(1, 3))
    counts = measured.sum(axis=(1, 3), dtype=np.float32)
    intrinsics = np.array(intrinsics, dtype=np.float64)
    intrinsics[:2, 2] += 0.5
    intrinsics[:2] /= step
    intrinsics[:2, 2] -= 0.5
    return np.divide(counts, inverse, out=np.zeros_like(counts), where=counts > 0), intrinsics


def _on_surfaces(right: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Pixels [H, W] with a neighbour along each axis: the normal of a pixel on its own would face the camera."""
    along, across = (np.zeros((right.shape[0], down.shape[1]), dtype=bool) for _ in range(2))
    along[:, 1:], across[1:] = right, down
    along[:, :-1] |= right
    across[:-1] |= down
    return along & across


def _cells(normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit mean [C, 3] of the normals in each cell that has some, and their share [C]."""
    places = np.rint(normals / _CELL).astype(np.int32) + round(1 / _CELL)
    side = round(2 / _CELL) + 1
    keys = np.ravel_multi_index(places.T, (side, side, side))
    counts = np.bincount(keys, minlength=side**3)
    used = np.flatnonzero(counts)
    sums = np.stack([np.bincount(keys, normals[:, axis], minlength=side**3)[used] for axis in range(3)], axis=1)
    means = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return means.astype(np.float32), (counts[used] / len(normals)).astype(np.float32)


@lru_cache(maxsize=1)
def _directions() -> tuple[np.ndarray, np.ndarray]:
    """Unit directions float32 [D, 3] in camera axes on a Fibonacci lattice, and the logarithm of their prior [D]."""
    place = np.arange(_DIRECTIONS) + 0.5
    y = 2 * place / _DIRECTIONS - 1
    turn = np.pi * (1 + np.sqrt(5)) * place
    radius = np.sqrt(1 - y**2)
    directions = np.stack([radius * np.cos(turn), y, radius * np.sin(turn)], axis=1)
    directions = directions[-directions[:, 1] > np.cos(_FARTHEST)]
    x, y, z = directions.T
    pitch = np.arctan2(-z, -y)
    beyond = np.maximum(-pitch, 0) / _UPWARD_SPREAD + np.maximum(pitch - _STEEPEST, 0) / _STEEP_SPREAD
    roll = (1 - _ROLLED) * np.exp(-0.5 * (x / _ROLL) ** 2) + _ROLLED * np.exp(-0.5 * (x / _WIDE_ROLL) ** 2)
    return directions.astype(np.float32), np.log(roll) - 0.5 * beyond**2


@lru_cache(maxsize=1)
def _likelihood() -> np.ndarray:
    """Logarithm of a normal's likelihood by its cosine with up, float32, for cosines from -1 to 1."""
    cosine = np.linspace(-1, 1, 1025)

    def fit(angle: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * (angle / _SPREAD) ** 2)

    floor, ceiling, wall = fit(np.arccos(cosine)), fit(np.arccos(-cosine)), fit(np.arcsin(cosine))
    return np.log(1 + _FLOOR * floor + _CEILING * ceiling + _WALL * wall).astype(np.float32)


def _refined(up: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """The direction near `up` that is most parallel, or at right angles, to the normals [M, 3] that are nearly so."""
    for tolerance in _TOLERANCES:
        cosines = np.abs(normals @ up)
        parallel, across = normals[cosines > np.cos(tolerance)], normals[cosines < np.sin(tolerance)]
        form = (across.T @ across - parallel.T @ parallel) / len(normals) - _HOLD * np.outer(up, up)
        found = np.linalg.eigh(form)[1][:, 0]
        up = found * np.sign(found @ up)
    return up
