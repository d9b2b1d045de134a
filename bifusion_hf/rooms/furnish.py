"""How rooms are furnished: large things first, then what belongs to them, then what lies on them."""

import numpy as np

from .classes import (
    AGAINST_WALL,
    CEILING,
    FREE,
    ON_TOP,
    WALL,
)
from .inventory import Inventory
from .layout import (
    Box,
    PlacedObject,
    Room,
    place_against_wall,
    place_beside,
    place_free,
    place_on_ceiling,
    place_on_top,
    rotation,
)
from .programmes import (
    ALIGNED,
    FLOOR_CLUTTER,
    ON_TOP_OF,
    PROGRAMMES,
    SIDE_BY_SIDE,
    Programme,
)


class Furnisher:
    """Furnishes rooms from an inventory."""

    def __init__(self, inventory: Inventory):
        self.inventory = inventory

    def furnish(self, rng: np.random.Generator) -> Room:
        """A new room, furnished by one of the programmes."""
        names = list(PROGRAMMES)
        weights = np.array([programme.weight for programme in PROGRAMMES.values()])
        name = names[rng.choice(len(names), p=weights / weights.sum())]
        programme = PROGRAMMES[name]
        small = 0.75 if name == "bathroom" else 1.0
        width, depth = small * rng.uniform([3.0, 3.0], [5.2, 6.0])
        room = Room(width, depth, rng.uniform(2.35, 2.9))
        if rng.random() < 0.3:
            half = rng.uniform(0.2, 0.6, 2)
            corner = np.array([width, depth]) * rng.integers(0, 2, 2)
            center = corner + np.where(corner > 0, -half, half)
            room.blocks.append(Box(center, half, 0.0, (0.0, room.height)))
        self._add_door(room, rng)
        self._printed(room, rng, (WALL,))
        self._walls(room, rng, programme)
        self._printed(room, rng, (FREE,))
        self._hang(room, rng, programme)
        for class_name, count in _draw(rng, programme.middle):
            for _ in range(count):
                self._add_middle(room, rng, class_name)
        for class_name, count in _draw(rng, programme.floor):
            for _ in range(count):
                if picked := self.inventory.pick(rng, class_name, FREE):
                    place_free(room, rng, picked[0], class_name, solid=class_name != "mat")
        self._ceiling(room, rng)
        self._printed(room, rng, (ON_TOP,))
        self._clutter(room, rng)
        return room

    def _printed(self, room: Room, rng: np.random.Generator, placements: tuple[str, ...]) -> None:
        """The photometric families of these placements, where the inventory has them."""
        for name, family in self.inventory.families.items():
            if family.placement not in placements:
                continue
            bases = [item for item in room.objects if item.class_name in ON_TOP_OF and item.position[2] < 0.3]
            for _ in range(int(rng.integers(family.count[0], family.count[1] + 1))):
                class_name, mesh, elevation = self.inventory.pick_printed(rng, name)
                if family.placement == WALL:
                    place_against_wall(room, rng, mesh, class_name, elevation)
                elif family.placement == FREE:
                    place_free(room, rng, mesh, class_name)
                elif bases:
                    place_on_top(room, rng, mesh, class_name, bases[rng.integers(len(bases))])

    def _add_door(self, room: Room, rng: np.random.Generator) -> None:
        if rng.random() < 0.75 and (picked := self.inventory.pick(rng, "door", AGAINST_WALL)):
            door = place_against_wall(room, rng, picked[0], "door")
            if door is not None:
                front = door.position[:2] - rotation(door.yaw)[:2, 1] * 0.5
                room.reserved.append(Box(front, np.array([door.mesh.size[0] / 2, 0.42]), door.yaw, (0.0, 2.0)))

    def _walls(self, room: Room, rng: np.random.Generator, programme: Programme) -> None:
        beside = None
        for class_name, count in _draw(rng, programme.walls):
            for _ in range(count):
                picked = self.inventory.pick(rng, class_name, AGAINST_WALL)
                if picked is None:
                    continue
                mesh, elevation = picked
                together = class_name in SIDE_BY_SIDE
                item = place_against_wall(
                    room,
                    rng,
                    mesh,
                    class_name,
                    elevation,
                    gap=rng.uniform(0.0, 0.05),
                    beside=beside if together else None,
                )
                if item is not None:
                    beside = item if together else beside
                    self._companions(room, rng, item)

    def _companions(self, room: Room, rng: np.random.Generator, item: PlacedObject) -> None:
        """What belongs to a piece of furniture: chairs to tables, nightstands to beds, ..."""
        if item.class_name == "desk":
            self._beside(room, rng, item, ("office chair", "chair"), FREE, side=2, gap=(0.0, 0.3), turn=np.pi)
        elif item.class_name in ("table", "dining table") and item.mesh.size[2] > 0.6:
            for side in rng.permutation(4)[: rng.integers(1, 5)]:
                # A chair's front (-y) looks back at the table.
                turn = (0.0, -np.pi / 2, np.pi, np.pi / 2)[side]
                self._beside(room, rng, item, ("chair",), FREE, side=int(side), gap=(0.0, 0.25), turn=turn)
        elif item.class_name == "couch":
            if rng.random() < 0.7:
                self._beside(room, rng, item, ("coffee table",), FREE, side=2, gap=(0.25, 0.5), turn=0.0)
            if rng.random() < 0.4:
                self._beside(room, rng, item, ("end table",), FREE, side=1, gap=(0.03, 0.15), turn=0.0)
        elif item.class_name == "bed":
            for side in (1, 3):
                if rng.random() < 0.5:
                    self._nightstand(room, rng, item, side)
        elif item.class_name == "tv stand" and (picked := self.inventory.pick(rng, "tv", ON_TOP)):
            place_on_top(room, rng, picked[0], "tv", item, aligned=True)

    def _nightstand(self, room: Room, rng: np.random.Generator, bed: PlacedObject, side: int) -> None:
        if picked := self.inventory.pick(rng, "nightstand", AGAINST_WALL):
            mesh = picked[0]
            sign = 1 if side == 1 else -1
            local = np.array([
                sign * ((bed.mesh.size[0] + mesh.size[0]) / 2 + rng.uniform(0.03, 0.15)),
                (bed.mesh.size[1] - mesh.size[1]) / 2,
            ])  # fmt: skip
            xy = bed.position[:2] + rotation(bed.yaw)[:2, :2] @ local
            room.add(PlacedObject(mesh, "nightstand", np.array([*xy, 0.0]), bed.yaw))

    def _beside(
        self, room: Room, rng: np.random.Generator, other: PlacedObject, classes: tuple[str, ...], placement: str,
        side: int, gap: tuple[float, float], turn: float,
    ) -> None:  # fmt: skip
        present = [class_name for class_name in classes if self.inventory.has(class_name, placement)]
        if not present:
            return
        class_name = present[rng.integers(len(present))]
        if picked := self.inventory.pick(rng, class_name, placement):
            place_beside(room, rng, picked[0], class_name, other, side, gap, turn)

    def _add_middle(self, room: Room, rng: np.random.Generator, class_name: str) -> None:
        if picked := self.inventory.pick(rng, class_name, FREE):
            item = place_free(room, rng, picked[0], class_name)
            if item is not None:
                self._companions(room, rng, item)

    def _hang(self, room: Room, rng: np.random.Generator, programme: Programme) -> None:
        for class_name, count in _draw(rng, programme.hung):
            for _ in range(count):
                if picked := self.inventory.pick(rng, class_name, WALL):
                    place_against_wall(room, rng, picked[0], class_name, picked[1], tries=12)

    def _ceiling(self, room: Room, rng: np.random.Generator) -> None:
        for class_name in ("lamp", "fan", "ceiling light"):
            if rng.random() < 0.35 and (picked := self.inventory.pick(rng, class_name, CEILING)):
                place_on_ceiling(room, rng, picked[0], class_name)

    def _clutter(self, room: Room, rng: np.random.Generator) -> None:
        for base in list(room.objects):
            if base.class_name not in ON_TOP_OF or base.position[2] > 0.3:
                continue
            most, classes = ON_TOP_OF[base.class_name]
            if base.class_name == "desk":
                self._computer(room, rng, base)
            if base.class_name == "bed":
                for _ in range(int(rng.integers(0, 3))):
                    self._top(room, rng, base, "pillow", region=lambda place: place[:, 1] > 0.45, aligned=True)
            for _ in range(int(rng.integers(most // 3, most + 1))):
                self._top(room, rng, base, classes[rng.integers(len(classes))])
        for _ in range(int(rng.integers(1, 6))):
            class_name = FLOOR_CLUTTER[rng.integers(len(FLOOR_CLUTTER))]
            if picked := self.inventory.pick(rng, class_name, ON_TOP):
                place_free(room, rng, picked[0], class_name)

    def _computer(self, room: Room, rng: np.random.Generator, desk: PlacedObject) -> None:
        for _ in range(int(rng.integers(0, 3))):
            self._top(room, rng, desk, "monitor", region=lambda place: place[:, 1] > 0.1)
        if rng.random() < 0.6:
            self._top(room, rng, desk, "keyboard", region=lambda place: place[:, 1] < -0.1)

    def _top(self, room, rng, base: PlacedObject, class_name: str, region=None, aligned: bool = False) -> None:
        if picked := self.inventory.pick(rng, class_name, ON_TOP):
            place_on_top(room, rng, picked[0], class_name, base, region, aligned or class_name in ALIGNED)


def _draw(rng: np.random.Generator, counts: dict[str, tuple[int, int]]) -> list[tuple[str, int]]:
    """Numbers of each class, the classes in the order of the programme, which puts the largest first."""
    return [(class_name, int(rng.integers(low, high + 1))) for class_name, (low, high) in counts.items()]
