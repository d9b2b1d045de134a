"""Close-ups: things dropped on tables, furniture, floors, into bins and shelves, and cameras that look at them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .camera import Camera, look_at
from .classes import AGAINST_WALL, FREE, ON_TOP, WALL
from .furnish import Furnisher
from .heap import Heap, lower_envelope, middle, resting_turns, surface_points, way_to
from .inventory import Inventory
from .layout import PlacedObject, Room, centered, place_against_wall, place_free
from .meshes import Mesh, merge, planar_uv
from .primitives import table
from .prints import surface
from .render import RoomScene
from .solids import mean_color, moved, tinted, turn_about
from .things import FINISHES, THINGS, compartment, shine, tote


# kind of scene: how often
KINDS = {"room": 0.25, "table": 0.33, "bin": 0.16, "shelf": 0.1, "floor": 0.16}
MAX_THINGS = 25
# Of the things: made from parameters, or else models of the catalogue.
_MADE_SHARE = 0.72


@dataclass(frozen=True)
class Arrangement:
    """How things are put, whatever the stage.

    Args:
        often: Share of the scenes.
        count: Least and most things.
        small: Share of things that are made small.
        near: Share of things that are pushed to others.
        spread: Least and most distance from the middle, metres; None = the stage's own.
        apart: Metres that other things are away at least.
    """

    often: float
    count: tuple[int, int]
    small: float
    near: float
    spread: tuple[float, float] | None = None
    apart: float = 0.0


ARRANGEMENTS = (
    Arrangement(0.25, (1, 3), 0.5, 0.0, (0.1, 0.3), 0.06),
    Arrangement(0.25, (4, MAX_THINGS), 0.75, 0.8, (0.05, 0.15)),
    Arrangement(0.12, (1, 3), 0.15, 0.6),
    Arrangement(0.38, (3, MAX_THINGS), 0.15, 0.6),
)
_OFTEN = [arrangement.often for arrangement in ARRANGEMENTS]
# Few things, well apart, lie on what is empty.
_EMPTY = ("table", "floor")
# Largest extent of a small thing.
_SMALL = (0.04, 0.12)
# Of the things that are pushed to others, some stop this far from them.
_GAP = (0.003, 0.03)
# Things this near are pushed until they touch. A slit is left there and below, or rays could not tell two faces in one
# plane apart.
_CLOSE, _SLIT = 0.015, 2e-4
# Share of the things that have nearly the colour of what they lie on, or beside.
_HIDDEN = 0.15
# Furniture of a furnished room that things may be heaped on.
_STAGES = (
    "table", "desk", "coffee table", "end table", "dining table", "counter", "kitchen cabinet", "cabinet", "dresser",
    "couch", "bed", "nightstand", "bench", "stool", "tv stand", "bookshelf", "shelf", "file cabinet",
)  # fmt: skip
# They lie on no other side.
_UPRIGHT = ("potted plant", "monitor", "laptop", "lamp", "mouse", "keyboard", "clothes")
_MAX_TRIANGLES = 12_000
# Cameras that are tried at least, and at most where too few of them see something.
_CANDIDATES, _MAX_CANDIDATES, _LOW_RESOLUTION = 40, 160, (64, 48)
_SEEN_SHARE = 0.003


@dataclass(eq=False)
class Stage:
    """Where things are dropped.

    Args:
        room: The room around it, things included.
        heap: The surface.
        on: Lowest and highest z of places where a thing's centre may be above.
        limit: No thing reaches higher.
        focus: [2] the middle of the things.
        spread: How far from it they lie, metres.
        jumbled: Things lie as they fell, not as they were put.
        elevation: Range of the camera's elevation, degrees.
        front: Direction the stage faces, radians; None = any.
        tone: [3] sRGB colour of what things lie on; None = not known.
        things: What was dropped.
    """

    room: Room
    heap: Heap
    on: tuple[float, float]
    limit: float
    focus: np.ndarray
    spread: float
    jumbled: bool
    elevation: tuple[float, float]
    front: float | None = None
    tone: np.ndarray | None = None
    things: list[PlacedObject] = field(default_factory=list)


class Tabletops:
    """Makes scenes from an inventory; one per split and process.

    Args:
        inventory: Furniture, and catalogue models that are scaled to things.
    """

    def __init__(self, inventory: Inventory):
        self.inventory = inventory
        self.split = inventory.split
        self.furnisher = Furnisher(inventory)
        self.catalogue = {
            placement: sorted(name for name, where in inventory.models if where == placement)
            for placement in (ON_TOP, FREE, AGAINST_WALL, WALL)
        }
        weights = np.array([weight for weight, *_ in THINGS])
        self.weights = weights / weights.sum()

    def stage(self, rng: np.random.Generator, arrangement: Arrangement | None = None) -> Stage:
        """A scene with its things; the arrangement is drawn where none is given."""
        arrangement = arrangement or ARRANGEMENTS[rng.choice(len(_OFTEN), p=_OFTEN)]
        kinds = [kind for kind in KINDS if not arrangement.apart or kind in _EMPTY]
        often = np.array([KINDS[kind] for kind in kinds])
        kind = rng.choice(kinds, p=often / often.sum())
        makers: dict[str, Callable[[np.random.Generator], Stage | None]] = {
            "room": self._room, "table": self._table, "bin": self._bin, "shelf": self._shelf, "floor": self._floor,
        }  # fmt: skip
        stage = makers[kind](rng) or self._table(rng)
        if arrangement.spread:
            stage.spread = rng.uniform(*arrangement.spread)
        for _ in range(rng.integers(arrangement.count[0], arrangement.count[1] + 1)):
            self._drop(stage, arrangement, rng)
        return stage

    def _thing(self, rng: np.random.Generator) -> tuple[str, Mesh, str] | None:
        """Class, mesh and finish of a thing: made from parameters, from the catalogue, or a model scaled down."""
        choice = rng.random()
        if choice < _MADE_SHARE or not self.catalogue[ON_TOP]:
            _, class_name, make, finish = THINGS[rng.choice(len(THINGS), p=self.weights)]
            return class_name, moved(make(rng, self.split), scale=float(np.exp(rng.normal(0, 0.12)))), finish
        placement = ON_TOP if choice < 0.92 or not self.catalogue[FREE] else FREE
        names = self.catalogue[placement]
        class_name = names[rng.integers(len(names))]
        picked = self.inventory.pick(rng, class_name, placement)
        if picked is None or len(picked[0].triangles) > _MAX_TRIANGLES:
            return None
        mesh, size, finish = picked[0], float(picked[0].size.max()), str(rng.choice(list(FINISHES)))
        if placement == FREE or rng.random() < 0.25 or size > 0.6:
            return "object", moved(mesh, scale=rng.uniform(0.07, 0.3) / size), finish
        return class_name, mesh, finish

    def _drop(self, stage: Stage, arrangement: Arrangement, rng: np.random.Generator) -> None:
        """Drops one thing where it comes to rest, if there is such a place."""
        if (picked := self._thing(rng)) is None:
            return
        class_name, mesh, finish = picked
        if rng.random() < arrangement.small:
            scale = rng.uniform(*_SMALL) / float(mesh.size.max())
            # Half as large as life it is a toy, or something else.
            class_name, mesh = class_name if scale > 0.5 else "object", moved(mesh, scale=scale)
        tones = [
            tone for tone in (stage.tone, *(mean_color(item.mesh) for item in stage.things[-1:])) if tone is not None
        ]
        if rng.random() < _HIDDEN and tones:
            mesh = tinted(mesh, tones[rng.integers(len(tones))] * np.exp(rng.normal(0, 0.1)), rng.uniform(0.6, 0.95))
        center = middle(mesh)
        points = surface_points(mesh, rng) - center
        turn = np.eye(3)
        if class_name not in _UPRIGHT and rng.random() < (0.85 if stage.jumbled else 0.4):
            turns, breadth = resting_turns(points[:: max(len(points) // 3000, 1)])
            turn = turns[rng.choice(len(turns), p=breadth / breadth.sum())]
        for attempt in range(12):
            turned = turn_about(2, rng.uniform(0, 2 * np.pi)) @ turn
            place = stage.focus + rng.normal(0, stage.spread * (1 + 0.15 * attempt), 2)
            if not stage.on[0] < stage.heap.below(place) < stage.on[1]:
                continue
            around = lower_envelope(points @ turned.T)
            if any(_gap(item, place, mesh) < arrangement.apart for item in stage.things if arrangement.apart):
                continue
            start = None
            if stage.things and rng.random() < arrangement.near:
                start, other = place, stage.things[rng.integers(len(stage.things))].position[:2]
                place = stage.heap.slide(around, place, other, 0.3)
            height = stage.heap.drop(around, place[None])[0]
            if stage.jumbled and not stage.heap.carries(around, place, height):
                turned, place, height = stage.heap.settle(points, turned, place, rng, 30)
            elif not stage.heap.carries(around, place, height):
                continue
            elif start is not None and np.linalg.norm(place - start) > 1e-6:
                lying = moved(mesh, turned @ -center + [*place, height], turned)
                place = self._push(stage, points @ turned.T + [*place, height], lying, place, start, rng)
            lying = moved(mesh, turned @ -center, turned)
            low, high = lying.bounds
            if height + high[2] > stage.limit or not stage.on[0] < stage.heap.below(place) < stage.on[1]:
                continue
            offset = np.array([*(low[:2] + high[:2]) / 2, low[2]])
            item = PlacedObject(
                centered(lying), class_name, offset + [*place, height + _SLIT], 0.0, shine=shine(rng, finish)
            )
            stage.room.objects.append(item)
            stage.things.append(item)
            stage.heap.add(item.triangles())
            return

    def _push(
        self, stage: Stage, points: np.ndarray, lying: Mesh, place: np.ndarray, start: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:  # fmt: skip
        """Where a thing that slid from `start` to `place` stops: touching the next thing, or a little before it."""
        direction = np.array([*(place - start), 0.0]) / np.linalg.norm(place - start)
        if rng.random() < 0.4:
            return place - direction[:2] * min(rng.uniform(*_GAP), np.linalg.norm(place - start))
        low, high = lying.bounds + np.array([[-_CLOSE], [_CLOSE]])
        near = [
            item
            for item in stage.things
            if (item.position + item.mesh.bounds[1] > low).all() and (item.position + item.mesh.bounds[0] < high).all()
        ]
        if not near:
            return place
        standing = np.concatenate([item.triangles() for item in near])
        others = np.concatenate([surface_points(item.mesh, rng) + item.position for item in near])
        way = way_to(points, lying.triangles, others, standing, direction, _CLOSE)
        return place + direction[:2] * max(way - _SLIT, 0) if way < _CLOSE else place

    def _background(self, room: Room, rng: np.random.Generator) -> None:
        """Some furniture behind, often none."""
        for _ in range(int(rng.integers(0, 7))):
            placement = (AGAINST_WALL, FREE, WALL)[rng.integers(3)]
            names = self.catalogue[placement] or sorted(
                name for name, where in self.inventory.primitives if where == placement
            )
            class_name = names[rng.integers(len(names))]
            if (picked := self.inventory.pick(rng, class_name, placement)) is None:
                continue
            if placement == FREE:
                place_free(room, rng, picked[0], class_name)
            else:
                place_against_wall(room, rng, picked[0], class_name, picked[1])

    def _own_room(self, rng: np.random.Generator) -> tuple[Room, np.ndarray]:
        """An empty room and a place in it, rather in the middle."""
        room = Room(*rng.uniform([2.4, 2.4, 2.3], [7, 7, 3.2]))
        return room, np.array([room.width, room.depth]) * rng.uniform(0.3, 0.7, 2)

    def _stand(self, rng: np.random.Generator, room: Room, place: np.ndarray, low: bool) -> PlacedObject:
        """A table, or a low platform, with a covered top."""
        sizes = ((0.4, 1.2), (0.4, 1.0), (0.02, 0.6)) if low else ((0.6, 2.0), (0.5, 1.1), (0.5, 0.95))
        mesh = table(*sizes)(rng, self.split)
        if rng.random() < 0.75:
            cover = surface(rng, self.split)
            top = slice(0, 12)
            mesh.uv[top] = planar_uv(mesh.triangles[top], mesh.normals[top]) / np.float32(cover.tile)
            mesh = merge([mesh])
            mesh.material = np.where(np.arange(len(mesh.material)) < 12, len(mesh.colors), mesh.material).astype(
                np.int32
            )
            mesh.colors = np.concatenate([mesh.colors, np.ones((1, 3), np.float32)])
            mesh.texture_index = np.append(mesh.texture_index, len(mesh.textures)).astype(np.int32)
            mesh.textures = [*mesh.textures, cover.image]
        shiny = shine(rng, rng.choice(["matt", "print", "plastic"]))
        item = PlacedObject(centered(mesh), "table", np.array([*place, 0.0]), rng.uniform(-np.pi, np.pi), shine=shiny)
        room.objects.append(item)
        return item

    def _on(self, rng: np.random.Generator, room: Room, base: PlacedObject, elevation=(8, 85)) -> Stage | None:
        """The top of a piece of furniture as a stage."""
        corners = base.box.corners()
        height = base.position[2] + base.mesh.size[2]
        near = [item.triangles() for item in room.objects]
        heap = Heap(np.concatenate(near), corners.min(axis=0), corners.max(axis=0), height + 0.6)
        # The broadest level of the furniture: seats and boards rather than arms and backs.
        own = Heap(base.triangles(), corners.min(axis=0), corners.max(axis=0), height + 0.1).heights
        levels = np.round(own[own > 0.0], 2)
        if not len(levels):
            return None
        values, counts = np.unique(levels, return_counts=True)
        level = float(values[counts.argmax()])
        rows, columns = np.nonzero(np.abs(own - level) < 0.03)
        pick = rng.integers(len(rows))
        focus = heap.low + 0.004 * (np.array([columns[pick], rows[pick]]) + 0.5)
        return Stage(
            room,
            heap,
            (level - 0.03, level + 0.35),
            np.inf,
            focus,
            rng.uniform(0.08, 0.4),
            rng.random() < 0.2,
            elevation,
            tone=mean_color(base.mesh),
        )

    def _room(self, rng: np.random.Generator) -> Stage | None:
        room = self.furnisher.furnish(rng)
        bases = [
            item
            for item in room.objects
            if item.class_name in _STAGES and item.position[2] < 0.1 and item.mesh.size[2] < 1.3
        ]
        return self._on(rng, room, bases[rng.integers(len(bases))]) if bases else None

    def _table(self, rng: np.random.Generator) -> Stage | None:
        room, place = self._own_room(rng)
        base = self._stand(rng, room, place, low=False)
        self._background(room, rng)
        return self._on(rng, room, base)

    def _floor(self, rng: np.random.Generator) -> Stage:
        room, place = self._own_room(rng)
        self._background(room, rng)
        low, high = place - 0.9, place + 0.9
        ground = np.array(
            [
                [[*low - 1, 0], [high[0] + 1, low[1] - 1, 0], [*high + 1, 0]],
                [[*low - 1, 0], [*high + 1, 0], [low[0] - 1, high[1] + 1, 0]],
            ],
            np.float32,
        )
        triangles = np.concatenate([ground, *(item.triangles() for item in room.objects)])
        heap = Heap(triangles, low, high, room.height - 0.01)
        return Stage(room, heap, (-0.01, 0.3), np.inf, place, rng.uniform(0.15, 0.5), rng.random() < 0.3, (15, 88))

    def _bin(self, rng: np.random.Generator) -> Stage:
        room, place = self._own_room(rng)
        base = self._stand(rng, room, place, low=True) if rng.random() < 0.7 else None
        ground = 0.0 if base is None else float(base.mesh.size[2])
        mesh = centered(tote(rng, self.split))
        item = PlacedObject(
            mesh, "container", np.array([*place, ground]), rng.uniform(-np.pi, np.pi), shine=shine(rng, "plastic")
        )
        room.objects.append(item)
        self._background(room, rng)
        corners = item.box.corners()
        heap = Heap(item.triangles(), corners.min(axis=0), corners.max(axis=0), 3.0)
        depth = float(mesh.size[2])
        spread = 0.3 * float(mesh.size[:2].min())
        return Stage(
            room,
            heap,
            (ground - 0.01, ground + 1.1 * depth),
            ground + 1.6 * depth,
            place,
            spread,
            True,
            (45, 89),
            tone=mean_color(mesh),
        )

    def _shelf(self, rng: np.random.Generator) -> Stage:
        room, place = self._own_room(rng)
        mesh = centered(compartment(rng, self.split))
        lift, yaw = rng.uniform(0.3, 1.4), rng.uniform(-np.pi, np.pi)
        item = PlacedObject(mesh, "shelf", np.array([*place, lift]), yaw)
        room.objects.append(item)
        self._background(room, rng)
        corners = item.box.corners()
        # Boards below and above come first in the mesh; the one above is no ground.
        thick, board = (float(mesh.triangles[part, :, 2].max()) for part in (slice(0, 12), slice(24, None)))
        triangles = np.delete(item.triangles(), np.arange(12, 24), axis=0)
        heap = Heap(triangles, corners.min(axis=0), corners.max(axis=0), lift + board + 0.01)
        return Stage(
            room,
            heap,
            (lift, lift + thick + 0.15),
            lift + board - 0.005,
            place,
            rng.uniform(0.1, 0.25),
            rng.random() < 0.2,
            (-15, 40),
            yaw - np.pi / 2,
            mean_color(mesh),
        )


def _gap(item: PlacedObject, place: np.ndarray, mesh: Mesh) -> float:
    """Metres between a thing and a mesh that is put at a place, at least."""
    reach = (np.linalg.norm(item.mesh.size[:2]) + np.linalg.norm(mesh.size)) / 2
    return float(np.linalg.norm(item.position[:2] - place) - reach)


def choose_cameras(
    stage: Stage, scene: RoomScene, rng: np.random.Generator, count: int, width: int, height: int
) -> list[Camera]:
    """Up to `count` cameras that see some of the things, each with a lens of its own."""
    scored = []
    first = 1 + len(stage.room.objects) - len(stage.things)
    for candidate in range(_MAX_CANDIDATES):
        if candidate >= _CANDIDATES and len(scored) >= count:
            break
        pose, focal = _aim(stage, rng)
        if pose is None:
            continue
        small = Camera(_intrinsics(focal, *_LOW_RESOLUTION, np.zeros(2)), pose, *_LOW_RESOLUTION)
        hits = scene.cast(*small.rays())
        instance, _ = scene.labels(hits)
        ids, pixels = np.unique(instance, return_counts=True)
        share = pixels / instance.size
        seen = int(np.count_nonzero(share[ids >= first] > _SEEN_SHARE))
        content = float(share[ids >= first].sum())
        if seen < 1 or content < 0.006 or share.max() > 0.9 or np.mean(hits.depth < 0.2) > 0.02:
            continue
        shift = rng.normal(0, 0.02, 2) * [width, height]
        camera = Camera(_intrinsics(focal, width, height, shift), pose, width, height)
        scored.append((min(seen, 8) + 4 * min(content, 0.3) / 0.3 + rng.uniform(0, 6), camera))
    scored.sort(key=lambda entry: -entry[0])
    return [camera for _, camera in scored[:count]]


def _intrinsics(focal: float, width: int, height: int, shift: np.ndarray) -> np.ndarray:
    """Intrinsics [3, 3], pixel centres at integers; the focal length is in image widths."""
    return np.array([
        [focal * width, 0, (width - 1) / 2 + shift[0]],
        [0, focal * width, (height - 1) / 2 + shift[1]],
        [0, 0, 1],
    ]).round(6)  # fmt: skip


def _aim(stage: Stage, rng: np.random.Generator) -> tuple[np.ndarray | None, float]:
    """A pose [4, 4] that looks at a thing and a focal length in image widths; None where the camera cannot be."""
    view = np.radians(rng.uniform(30, 90))
    focal = 0.5 / np.tan(view / 2)
    if stage.things and rng.random() < 0.8:
        item = stage.things[rng.integers(len(stage.things))]
        target = item.position + [0, 0, item.mesh.size[2] / 2]
    else:
        target = np.array([*stage.focus, stage.on[0] + 0.05])
    target = target + rng.normal(0, 0.06, 3)
    # Distances by what is seen: a hand's breadth to a whole table.
    distance = float(np.clip(focal * np.exp(rng.uniform(np.log(0.35), np.log(2.6))), 0.3, 5))
    elevation = np.radians(rng.uniform(*stage.elevation))
    azimuth = rng.uniform(-np.pi, np.pi) if stage.front is None else stage.front + rng.normal(0, 0.5)
    away = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    position = target + distance * away
    room = stage.room
    if (position < 0.1).any() or (position > np.array([room.width, room.depth, room.height]) - 0.1).any():
        return None, focal
    roll = rng.normal(0, np.radians(4 if rng.random() < 0.8 else 25))
    return look_at(position, target, roll).round(9), focal
