"""Things dropped onto what lies there already, by height fields: nothing passes through anything.

Between its samples, a cell apart, a thing may dip into what is sharp or steep, by 3 mm (three quarters of a cell) at
most.

The surface below is a grid of heights; a thing is a set of points on its surface. It sinks straight down until the
first of its points meets the highest cell around it, so it touches, and does not cut into, what is below.
"""

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from .meshes import Mesh
from .support import make_scene


CELL = 0.004
# A thing's points this near to what is below carry it.
_CONTACT = 0.002
_NOTHING = -1e3
_MAX_POINTS = 16_000
_FEW_POINTS = 1200


def surface_points(mesh: Mesh, rng: np.random.Generator, spacing: float = CELL) -> np.ndarray:
    """Corners of a mesh and points [n, 3] all over its triangles, about `spacing` apart or finer."""
    corners = mesh.triangles.reshape(-1, 3).astype(np.float64)
    edges = mesh.triangles[:, 1:] - mesh.triangles[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1).astype(np.float64) / 2
    count = int(np.clip(2 * area.sum() / spacing**2, 500, _MAX_POINTS))
    steps = (np.arange(count) + 0.5) / count * area.sum()
    chosen = np.searchsorted(np.cumsum(area), steps).clip(max=len(area) - 1)
    u = rng.random((count, 2))
    u = np.where(u.sum(axis=1, keepdims=True) > 1, 1 - u, u)
    points = mesh.triangles[chosen, 0] + np.einsum("nk,nkc->nc", u, edges[chosen])
    if len(corners) > _MAX_POINTS:
        corners = corners[rng.choice(len(corners), _MAX_POINTS, replace=False)]
    return np.concatenate([points, corners])


def middle(mesh: Mesh) -> np.ndarray:
    """The centre [3] of a mesh's surface."""
    edges = mesh.triangles[:, 1:] - mesh.triangles[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1).astype(np.float64)
    return area @ mesh.triangles.mean(axis=1) / area.sum()


def resting_turns(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations [k, 3, 3] in which a thing whose centre is the origin rests on flat ground, and their breadth [k].

    These are the faces of its convex hull above which its centre lies; breadth is the area of the face.
    """
    try:
        hull = ConvexHull(points)
    except QhullError:
        return np.eye(3)[None], np.ones(1)
    planes = np.round(hull.equations * [1, 1, 1, 50], 2)
    _, face = np.unique(planes, axis=0, return_inverse=True)
    face = face.ravel()
    corners = points[hull.simplices]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    breadth = np.bincount(face, weights=area)
    turns, kept = [], []
    for index in np.flatnonzero(breadth > 0.03 * breadth.max()):
        turn = _downward(hull.equations[np.flatnonzero(face == index)[0], :3])
        if _carries((corners[face == index].reshape(-1, 3) @ turn.T)[:, :2]):
            turns.append(turn)
            kept.append(breadth[index])
    return (np.array(turns), np.array(kept)) if turns else (np.eye(3)[None], np.ones(1))


def _downward(normal: np.ndarray) -> np.ndarray:
    """A rotation [3, 3] that brings a unit vector to -z."""
    helper = np.eye(3)[np.abs(normal).argmin()]
    first = np.cross(helper, -normal)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(-normal, first), -normal])


def _carries(contacts: np.ndarray) -> bool:
    """Whether points [n, 2] lie all around the origin."""
    if len(contacts) < 3:
        return False
    angle = np.sort(np.arctan2(contacts[:, 1], contacts[:, 0]))
    return bool(np.diff(angle, append=angle[0] + 2 * np.pi).max() < np.pi)


def lower_envelope(points: np.ndarray) -> np.ndarray:
    """Of points [n, 3] the lowest in each column of half a cell."""
    column = np.floor(points[:, :2] / (CELL / 2)).astype(np.int64)
    key = column[:, 0] * 100_003 + column[:, 1]
    order = np.lexsort((points[:, 2], key))
    key = key[order]
    return points[order[np.concatenate([[True], key[1:] != key[:-1]])]]


def way_to(
    points: np.ndarray, triangles: np.ndarray, others: np.ndarray, standing: np.ndarray, direction: np.ndarray,
    reach: float,
) -> float:  # fmt: skip
    """How far a thing can go in a direction until it meets what stands there; `reach` if it does not before.

    Args:
        points: [n, 3] all over the thing.
        triangles: float32 [F, 3, 3] of the thing.
        others: [m, 3] all over what stands there.
        standing: float32 [G, 3, 3] of what stands there.
        direction: [3] unit vector.
        reach: Metres.
    """
    way = reach
    for starts, surface, heading in ((points, standing, direction), (others, triangles, -direction)):
        rays = np.broadcast_to(heading.astype(np.float32), starts.shape)
        hit = make_scene(surface).run(
            np.ascontiguousarray(starts, np.float32), np.ascontiguousarray(rays), output=True
        )
        way = min(way, hit["tfar"][hit["primID"] >= 0].min(initial=np.inf).item())
    return way


class Heap:
    """The upper surface of what lies in a rectangle, on a grid.

    Args:
        triangles: float32 [F, 3, 3] in world coordinates, of everything that may lie there.
        low: [2] x, y of the rectangle's lower corner.
        high: [2] of its upper corner.
        top: What is above this height is not looked at.
    """

    def __init__(self, triangles: np.ndarray, low: np.ndarray, high: np.ndarray, top: float):
        self.low, self.top = np.asarray(low, np.float64), top
        nx, ny = np.maximum(np.ceil((np.asarray(high) - self.low) / CELL), 1).astype(int)
        self.heights = np.full((ny, nx), _NOTHING)
        self.add(triangles)

    def add(self, triangles: np.ndarray) -> None:
        """Takes the upper surface of triangles [F, 3, 3] into the field."""
        ny, nx = self.heights.shape
        flat = triangles.reshape(-1, 3)[:, :2]
        first = np.clip(np.floor((flat.min(axis=0) - self.low) / CELL).astype(int), 0, [nx, ny])
        last = np.clip(np.ceil((flat.max(axis=0) - self.low) / CELL).astype(int), 0, [nx, ny])
        if (last > first).all():
            low, high = self.low + CELL * first, self.low + CELL * last
            near = (triangles[..., :2].min(axis=1) <= high) & (triangles[..., :2].max(axis=1) >= low)
            triangles = triangles[near.all(axis=1)]
            x, y = (self.low[axis] + CELL * (np.arange(first[axis], last[axis]) + 0.5) for axis in (0, 1))
            start = np.stack(np.broadcast_arrays(x[None], y[:, None], self.top), -1).reshape(-1, 3)
            down = np.broadcast_to(np.array([0, 0, -1], np.float32), start.shape)
            hit = make_scene(triangles).run(
                np.ascontiguousarray(start, np.float32), np.ascontiguousarray(down), output=True
            )
            found = np.where(hit["primID"] >= 0, self.top - hit["tfar"].astype(np.float64), _NOTHING)
            part = self.heights[first[1] : last[1], first[0] : last[0]]
            np.maximum(part, found.reshape(part.shape), out=part)
        # A point stands on the highest of the nine cells around it: between samples a surface may rise.
        self.raised = ndimage.maximum_filter(self.heights, 3)

    def below(self, points: np.ndarray) -> np.ndarray:
        """Heights [...] of what is below points [..., 2 or more]; far down outside of the rectangle."""
        ny, nx = self.heights.shape
        column = np.floor((points[..., 0] - self.low[0]) / CELL).astype(np.int64)
        row = np.floor((points[..., 1] - self.low[1]) / CELL).astype(np.int64)
        inside = (column >= 0) & (column < nx) & (row >= 0) & (row < ny)
        return np.where(inside, self.raised[np.clip(row, 0, ny - 1), np.clip(column, 0, nx - 1)], _NOTHING)

    def drop(self, points: np.ndarray, places: np.ndarray) -> np.ndarray:
        """How high [k] the origin of a thing of points [n, 3] comes to lie when dropped at places [k, 2]."""
        return (self.below(points[None, :, :2] + places[:, None]) - points[:, 2]).max(axis=1)

    def carries(self, points: np.ndarray, place: np.ndarray, height: float, tolerance: float = _CONTACT) -> bool:
        """Whether a thing at rest has what it stands on all around its centre."""
        gap = points[:, 2] + height - self.below(points[:, :2] + place)
        return _carries(points[gap < tolerance, :2])

    def slide(self, points: np.ndarray, place: np.ndarray, toward: np.ndarray, reach: float) -> np.ndarray:
        """The last place on the way to another where a thing still lies no higher than at the first."""
        direction = toward - place
        distance = min(np.linalg.norm(direction), reach)
        steps = np.arange(0, max(distance, CELL), CELL)[:, None]
        heights = self.drop(points, place + steps * direction / max(np.linalg.norm(direction), 1e-9))
        rises = np.flatnonzero(np.abs(heights - heights[0]) > 5e-4)
        last = len(steps) - 1 if not len(rises) else rises[0] - 1
        return place + steps[last] * direction / max(np.linalg.norm(direction), 1e-9)

    def settle(
        self, points: np.ndarray, turn: np.ndarray, place: np.ndarray, rng: np.random.Generator, steps: int
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Lets a thing tilt and roll to where its centre lies lower.

        Args:
            points: [n, 3] around its centre.
            turn: First rotation [3, 3].
            place: First place [2].
            rng: Generator.
            steps: Tilts tried.

        Returns:
            Rotation, place, height of its centre.
        """
        few = points if len(points) <= _FEW_POINTS else points[rng.choice(len(points), _FEW_POINTS, replace=False)]
        lowest = self.drop(few @ turn.T, place[None])[0]
        for step in range(steps):
            size = 0.5 * (1 - step / steps) + 0.05
            tilted = _small_turn(rng.normal(0, size, 3) * [1, 1, 0.5]) @ turn
            moved = place + rng.normal(0, 0.04 * size, 2)
            height = self.drop(few @ tilted.T, moved[None])[0]
            if _NOTHING / 2 < height < lowest:
                lowest, turn, place = height, tilted, moved
        return turn, place, float(self.drop(lower_envelope(points @ turn.T), place[None])[0])


def _small_turn(vector: np.ndarray) -> np.ndarray:
    """The rotation [3, 3] about a vector by its length (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / max(angle, 1e-12)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
