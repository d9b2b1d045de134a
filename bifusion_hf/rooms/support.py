"""Where on a piece of furniture small things can stand: tops, seats and open boards, found by casting rays."""

from dataclasses import dataclass

import numpy as np

from ..import_utils import require_package
from .meshes import Mesh


CELL = 0.03
_MAX_LAYERS = 8
# Boards closer together than this hold nothing.
_MIN_CLEARANCE = 0.1
_TINY = 1e-3


@dataclass(eq=False)
class SupportMap:
    """Surfaces of a mesh seen from above, on a grid over its footprint.

    Args:
        heights: float32 [L, ny, nx] metres, descending; NaN = nothing there.
        clearance: float32 [L, ny, nx] free height above, inf on top; 0 where nothing can stand.
        origin: float [2]: x, y of the middle of cell (0, 0).
    """

    heights: np.ndarray
    clearance: np.ndarray
    origin: np.ndarray

    def cells(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and whether they are inside, of positions [N, 2] in mesh coordinates."""
        column, row = np.rint((xy - self.origin) / CELL).astype(np.int64).T
        ny, nx = self.heights.shape[1:]
        inside = (row >= 0) & (row < ny) & (column >= 0) & (column < nx)
        return np.clip(row, 0, ny - 1), np.clip(column, 0, nx - 1), inside


def make_scene(triangles: np.ndarray):
    """An embree scene of triangles [F, 3, 3]."""
    scenes = require_package("embreex.rtcore_scene")
    scene = scenes.EmbreeScene()
    require_package("embreex.mesh_construction").TriangleMesh(scene, np.ascontiguousarray(triangles, dtype=np.float32))
    return scene


def support_map(mesh: Mesh) -> SupportMap:
    """Casts rays down through a mesh and keeps the surfaces that can be reached from above or from the front."""
    scene = make_scene(mesh.triangles)
    low, high = mesh.bounds
    origin = low[:2] + CELL / 2
    nx, ny = (np.maximum((high[:2] - low[:2]) / CELL, 1)).astype(int)
    x, y = np.meshgrid(origin[0] + CELL * np.arange(nx), origin[1] + CELL * np.arange(ny))
    count = nx * ny
    start = np.stack([x.ravel(), y.ravel(), np.full(count, high[2] + 0.1)], -1).astype(np.float32)
    down = np.tile(np.array([[0, 0, -1]], np.float32), (count, 1))
    toward_front = np.tile(np.array([[0, -1, 0]], np.float32), (count, 1))
    heights, clearances = [], []
    above = np.full(count, np.inf, np.float32)
    for layer in range(_MAX_LAYERS):
        hit = scene.run(start, down, output=True)
        found = hit["primID"] >= 0
        if not found.any():
            break
        height = np.where(found, start[:, 2] - hit["tfar"], np.nan).astype(np.float32)
        clearance = np.where(found, above - height, 0).astype(np.float32)
        if layer:
            eye = np.stack([start[:, 0], start[:, 1], np.nan_to_num(height) + 0.5 * _MIN_CLEARANCE], -1)
            hidden = scene.run(eye.astype(np.float32), toward_front, query="OCCLUDED") == 0
            clearance[hidden | (clearance < _MIN_CLEARANCE)] = 0
        heights.append(height)
        clearances.append(clearance)
        above = np.where(found, height, above)
        start = start.copy()
        start[:, 2] = np.where(found, height - _TINY, -1)
    shape = (len(heights), ny, nx)
    return SupportMap(np.reshape(heights, shape), np.reshape(clearances, shape), origin)
