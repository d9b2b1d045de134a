"""Voxels as a depth camera sees them, for benchmarks."""

import numpy as np
import torch


NUM_BOXES = 14
FOCAL_LENGTH = 577.87  # of ScanNet's depth camera, pixels
# Standard deviation of depth at 1 m, growing with the square of the distance; with it, about as many of a voxel's 26
# neighbours are occupied as in recorded frames.
DEPTH_NOISE = 0.001


def depth_camera_view(rng: np.random.Generator, height: int = 480, width: int = 640) -> np.ndarray:
    """Points that a depth camera sees in a random room with boxes in it, float64 [height * width, 3] metres, z up."""
    room = np.array([rng.uniform(3.5, 6), rng.uniform(3, 5), 2.6])
    eye = room * [rng.uniform(0.1, 0.4), rng.uniform(0.1, 0.4), 0.55]
    forward = room * [0.7, 0.7, 0.3] + rng.uniform(-0.6, 0.6, 3) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    u, v = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    rays = forward + (u.reshape(-1, 1) * right + v.reshape(-1, 1) * down) / FOCAL_LENGTH * 640 / width
    distance = np.where(rays > 0, (room - eye) / rays, -eye / rays).min(axis=1)
    for _ in range(NUM_BOXES):
        half = rng.uniform([0.15, 0.15, 0.2], [0.6, 0.6, 0.7])
        centre = rng.uniform([0, 0, 0], room)
        centre[2] = half[2]
        ends = np.stack([(centre - half - eye) / rays, (centre + half - eye) / rays])
        enter, leave = ends.min(axis=0).max(axis=1), ends.max(axis=0).min(axis=1)
        distance = np.where((enter < leave) & (enter > 0.3), np.minimum(distance, enter), distance)
    distance *= 1 + DEPTH_NOISE * distance * rng.standard_normal(distance.shape)
    return eye + rays * distance[:, None]


def depth_camera_voxels(count: int, voxel_size: float = 0.02, seed: int = 0) -> tuple[torch.Tensor, int]:
    """Exactly `count` voxels of as many views as that takes, one sample each; the last view is cut off.

    Returns:
        Coordinates int32 [count, 4] (sample, x, y, z), sorted as `voxelize` sorts them, and the number of samples.
    """
    rng = np.random.default_rng(seed)
    samples, missing = [], count
    while missing:
        cells = np.unique(np.floor(depth_camera_view(rng) / voxel_size).astype(np.int32), axis=0)
        cells = cells[np.lexsort(cells.T)][:missing]  # the last key of lexsort, z, is the first digit
        samples.append(np.concatenate([np.full((len(cells), 1), len(samples), np.int32), cells], axis=1))
        missing -= len(cells)
    return torch.from_numpy(np.concatenate(samples)), len(samples)
