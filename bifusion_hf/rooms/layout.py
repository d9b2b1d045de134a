"""A room as a list of boxes: where things stand, and the rules that keep them apart.

World coordinates: metres, z up, the floor is [0, width] x [0, depth] at z = 0. An object's yaw turns mesh coordinates
about z; with yaw 0 its back (+y) is towards the wall y = depth.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from .meshes import Mesh
from .support import CELL, SupportMap, support_map


_GAP = 0.005
# What hangs on a wall keeps this much free in front of it, or it would be hidden.
_WALL_FREE_DEPTH = 0.3
# Footprints may lie on surfaces as uneven as this: hard ones, and upholstery.
_HARD_TOLERANCE, _SOFT_TOLERANCE = 0.012, 0.06
SOFT_CLASSES = ("bed", "couch", "armchair", "mattress", "ottoman")


@dataclass(eq=False)
class Box:
    """An upright box.

    Args:
        center: float [2] x, y.
        half: float [2] half extents along its own axes.
        yaw: Radians about z.
        z: Lower and upper end.
    """

    center: np.ndarray
    half: np.ndarray
    yaw: float
    z: tuple[float, float]

    def corners(self) -> np.ndarray:
        """float [4, 2]."""
        signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
        return self.center + (signs * self.half) @ rotation(self.yaw)[:2, :2].T

    def overlaps(self, other: "Box", margin: float = 0.0) -> bool:
        """Separating-axis test; `margin` is the distance to be kept."""
        if self.z[0] >= other.z[1] or other.z[0] >= self.z[1]:
            return False
        offset = other.center - self.center
        if offset @ offset > (np.hypot(*self.half) + np.hypot(*other.half) + margin) ** 2:
            return False
        first, second = rotation(self.yaw)[:2, :2], rotation(other.yaw)[:2, :2]
        for axis in (*first.T, *second.T):
            reach = np.abs(axis @ first) @ self.half + np.abs(axis @ second) @ other.half
            if abs(axis @ offset) >= reach + margin:
                return False
        return True


def rotation(yaw: float) -> np.ndarray:
    """Rotation about z, [3, 3]."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


@dataclass(eq=False)
class PlacedObject:
    """A mesh in the room.

    Args:
        mesh: Its mesh, centred (see `centered`).
        class_name: ScanNet200 name.
        position: float [3] of the mesh's origin.
        yaw: Radians about z.
        solid: False for what others may stand on and in (carpets).
        shine: Share of the light that is mirrored when seen straight on, and roughness of the mirror.
    """

    mesh: Mesh
    class_name: str
    position: np.ndarray
    yaw: float
    solid: bool = True
    shine: tuple[float, float] = (0.0, 1.0)
    _support: SupportMap | None = field(default=None, repr=False)

    @property
    def box(self) -> Box:
        size = self.mesh.size.astype(np.float64)
        return Box(self.position[:2], size[:2] / 2, self.yaw, (self.position[2], self.position[2] + size[2]))

    @property
    def support(self) -> SupportMap:
        """Surfaces in mesh coordinates."""
        if self._support is None:
            self._support = support_map(self.mesh)
        return self._support

    def triangles(self) -> np.ndarray:
        """float32 [F, 3, 3] in the world."""
        return (self.mesh.triangles @ rotation(self.yaw).T + self.position).astype(np.float32)


class Room:
    """An empty box-shaped room with an optional wall block in one corner, to be filled.

    Args:
        width: Extent along x in metres.
        depth: Extent along y.
        height: Of the ceiling.
        blocks: Floor-to-ceiling boxes that belong to the walls.
    """

    def __init__(self, width: float, depth: float, height: float, blocks: list[Box] | None = None):
        self.width, self.depth, self.height = width, depth, height
        self.blocks = blocks or []
        self.objects: list[PlacedObject] = []
        # Kept free though nothing stands there: in front of doors.
        self.reserved: list[Box] = []

    def is_free(self, box: Box, margin: float = _GAP, ignore: tuple[PlacedObject, ...] = ()) -> bool:
        """Whether a box lies in the room and touches nothing."""
        corners = box.corners()
        if (corners < 0).any() or (corners > (self.width, self.depth)).any() or box.z[1] > self.height:
            return False
        others = [item.box for item in self.objects if item.solid and item not in ignore]
        return not any(box.overlaps(other, margin) for other in (*others, *self.blocks, *self.reserved))

    def add(self, item: PlacedObject, margin: float = _GAP, ignore: tuple[PlacedObject, ...] = ()) -> bool:
        """Adds an object where it is free; says whether it was."""
        if not self.is_free(item.box, margin, ignore):
            return False
        self.objects.append(item)
        return True

    def wall_pose(self, wall: int, along: float, distance: float) -> tuple[np.ndarray, float]:
        """Position [2] and yaw of something with its back to a wall.

        Args:
            wall: 0: y = depth, 1: x = width, 2: y = 0, 3: x = 0.
            along: Place along the wall.
            distance: Of the object's middle from the wall.
        """
        if wall == 0:
            return np.array([along, self.depth - distance]), 0.0
        if wall == 1:
            return np.array([self.width - distance, along]), -np.pi / 2
        if wall == 2:
            return np.array([along, distance]), np.pi
        return np.array([distance, along]), np.pi / 2

    def wall_length(self, wall: int) -> float:
        return self.width if wall % 2 == 0 else self.depth


def centered(mesh: Mesh) -> Mesh:
    """The mesh with the middle of its footprint at the origin, standing on z = 0."""
    low, high = mesh.bounds
    origin = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]], np.float32)
    return replace(mesh, triangles=mesh.triangles - origin)


def place_against_wall(
    room: Room, rng: np.random.Generator, mesh: Mesh, class_name: str, elevation: float = 0.0, gap: float = 0.0,
    beside: PlacedObject | None = None, tries: int = 25,
) -> PlacedObject | None:  # fmt: skip
    """Puts a mesh with its back to a wall.

    Args:
        room: The room; the object is added to it.
        rng: Generator.
        mesh: Centred mesh.
        class_name: ScanNet200 name.
        elevation: Of its lower edge above the floor.
        gap: Between its back and the wall.
        beside: Tried first next to this object at the same wall.
        tries: Random places tried.

    Returns:
        The object, or None where no free place was found.
    """
    width, depth, height = mesh.size.astype(np.float64)
    for attempt in range(tries):
        wall = int(rng.integers(4))
        length = room.wall_length(wall)
        if width > length:
            continue
        along = rng.uniform(width / 2, length - width / 2)
        if rng.random() < 0.25:
            along = rng.choice([width / 2 + 0.01, length - width / 2 - 0.01])
        position, yaw = room.wall_pose(wall, along, depth / 2 + gap)
        if beside is not None and attempt < 4:
            side = rotation(beside.yaw)[:2, 0] * rng.choice([-1, 1])
            back = rotation(beside.yaw)[:2, 1] * (beside.mesh.size[1] - depth) / 2
            distance = (beside.mesh.size[0] + width) / 2 + 2 * _GAP
            position, yaw = beside.position[:2] + side * distance + back, beside.yaw
        item = PlacedObject(mesh, class_name, np.array([*position, elevation]), yaw)
        needed = item.box
        if elevation > 0 and depth < _WALL_FREE_DEPTH:
            grow = (_WALL_FREE_DEPTH - depth) / 2
            needed = Box(
                needed.center - rotation(yaw)[:2, 1] * grow,
                needed.half + [0, grow],
                yaw,
                (elevation, elevation + height),
            )
        if room.is_free(needed):
            room.objects.append(item)
            return item
    return None


def place_free(
    room: Room, rng: np.random.Generator, mesh: Mesh, class_name: str, solid: bool = True, tries: int = 20
) -> PlacedObject | None:
    """Puts a mesh anywhere on the floor, mostly parallel to the walls."""
    radius = float(np.min(mesh.size[:2])) / 2
    for _ in range(tries):
        xy = rng.uniform(radius, [room.width - radius, room.depth - radius])
        yaw = rng.uniform(-np.pi, np.pi) if rng.random() < 0.4 else rng.integers(4) * np.pi / 2 + rng.normal(0, 0.06)
        item = PlacedObject(mesh, class_name, np.array([*xy, 0.0]), float(yaw), solid)
        if room.add(item, margin=0.03):
            return item
    return None


def place_beside(
    room: Room, rng: np.random.Generator, mesh: Mesh, class_name: str, other: PlacedObject, side: int,
    gap: tuple[float, float], turn: float, spread: float = 0.3,
) -> PlacedObject | None:  # fmt: skip
    """Puts a mesh on the floor next to another object.

    Args:
        room: The room; the object is added to it.
        rng: Generator.
        mesh: Centred mesh.
        class_name: ScanNet200 name.
        other: The object it belongs to.
        side: 0 behind (+y of the other), 1 right, 2 in front, 3 left.
        gap: Range of the distance between them.
        turn: Its yaw against the other's.
        spread: Share of the other's side over which its middle may be shifted.
    """
    angle = -side * np.pi / 2
    away = rotation(other.yaw + angle)[:2, 1]
    along = rotation(other.yaw + angle)[:2, 0]
    sides = other.mesh.size[:2] if side % 2 == 0 else other.mesh.size[1::-1]
    for _ in range(6):
        yaw = other.yaw + turn + rng.normal(0, 0.12)
        reach = np.abs(rotation(yaw)[:2, :2].T @ away) @ mesh.size[:2] / 2
        shift = along * rng.uniform(-0.5, 0.5) * spread * sides[0]
        xy = other.position[:2] + away * (sides[1] / 2 + reach + rng.uniform(*gap)) + shift
        item = PlacedObject(mesh, class_name, np.array([*xy, 0.0]), float(yaw))
        if room.add(item):
            return item
    return None


def place_on_ceiling(room: Room, rng: np.random.Generator, mesh: Mesh, class_name: str) -> PlacedObject | None:
    """Hangs a mesh from the ceiling, rather in the middle of the room."""
    for _ in range(10):
        xy = np.array([room.width, room.depth]) * rng.uniform(0.25, 0.75, 2)
        # A hair below the ceiling, so that the two are no coplanar surfaces.
        item = PlacedObject(
            mesh, class_name, np.array([*xy, room.height - mesh.size[2] - 1e-3]), rng.uniform(0, 2 * np.pi)
        )
        if room.add(item):
            return item
    return None


def place_on_top(
    room: Room, rng: np.random.Generator, mesh: Mesh, class_name: str, base: PlacedObject,
    region: Callable[[np.ndarray], np.ndarray] | None = None, aligned: bool = False, tries: int = 20,
) -> PlacedObject | None:  # fmt: skip
    """Puts a mesh on a surface of another object: its top, its seat or one of its boards.

    Args:
        room: The room; the object is added to it.
        rng: Generator.
        mesh: Centred mesh.
        class_name: ScanNet200 name.
        base: The object below.
        region: Which places [N, 2], as a share -1..1 of the base's half extents, are wanted.
        aligned: Faces the base's front; otherwise any way.
        tries: Random places tried.
    """
    support = base.support
    size = mesh.size.astype(np.float64)
    layer, row, column = np.nonzero(support.clearance > size[2] + 0.01)
    xy = support.origin + CELL * np.stack([column, row], -1)
    if region is not None:
        wanted = region(xy / (base.mesh.size[:2] / 2))
        layer, xy = layer[wanted], xy[wanted]
    if not len(xy):
        return None
    tolerance = _SOFT_TOLERANCE if base.class_name in SOFT_CLASSES else _HARD_TOLERANCE
    # Points over the footprint, never further apart than the cells of the map.
    steps = [np.linspace(-half, half, int(np.ceil(2 * half / CELL)) + 1) for half in size[:2] / 2]
    footprint = np.stack(np.meshgrid(*steps), -1).reshape(-1, 2)
    for _ in range(tries):
        index = int(rng.integers(len(xy)))
        yaw = rng.normal(0, 0.08) if aligned else rng.uniform(-np.pi, np.pi)
        place = xy[index] + rng.uniform(-CELL / 2, CELL / 2, 2)
        rows, columns, inside = support.cells(place + footprint @ rotation(yaw)[:2, :2].T)
        heights = support.heights[layer[index], rows, columns]
        free = support.clearance[layer[index], rows, columns] > size[2]
        if not (inside & free).all() or np.ptp(heights) > tolerance:
            continue
        height = float(np.percentile(heights, 70) if tolerance == _SOFT_TOLERANCE else heights.max())
        world = rotation(base.yaw)[:2, :2] @ place + base.position[:2]
        item = PlacedObject(mesh, class_name, np.array([*world, base.position[2] + height]), base.yaw + yaw)
        if room.add(item, margin=0.003, ignore=(base,)):
            return item
    return None
