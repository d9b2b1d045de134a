"""Rooms and their frames, each a function of (seed, split, number) alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.frames import NONE, RGBDFrame
from .camera import Camera, random_pose, sensor_intrinsics
from .catalog import open_libraries
from .furnish import Furnisher
from .inventory import Inventory
from .layout import Room
from .photometric import PHOTOMETRIC_CLASSES
from .render import RoomScene
from .sensor import SENSORS, expose, measure_depth, photograph
from .tabletop import Tabletops, choose_cameras
from .texture_pack import TexturePack


SPLITS = ("train", "val")
WORLDS = ("rooms", "tabletop", "mixed")
_LOW_RESOLUTION = (80, 60)
_CANDIDATES = 24
# A piece of this share of the pixels counts as seen when views are chosen.
_SEEN_SHARE = 0.004
_MEASURED_SHARE = 0.1


@dataclass(frozen=True)
class RoomSettings:
    """What decides the content of a data set, together with the split and the number of a room.

    Args:
        furniture: Debian package, folder or `.sh3f` files (see `catalog.open_libraries`); none uses parametric
            furniture alone.
        libraries: Names of the libraries to use.
        cache: Folder for parsed meshes.
        texture_pack: Wheel of `miniworld` whose pictures cover walls and floors too (see `texture_pack`).
        seed: Seed of the data set.
        width: Of the images in pixels; 4:3.
        height: Of the images.
        views: Frames of each room.
        photometric: Classes that only fine texture tells apart (see `photometric`) replace what their names stand for.
        world: "rooms"; "tabletop", close-ups of things (see `tabletop`); "mixed", one and the other in turn.
        sensor: Depth model, a name out of `sensor.SENSORS`, or "mixed", another one for each frame.
        path: The frames of a room lie along a walk through it, ids the same in all (see `paths`).
    """

    furniture: tuple[str, ...]
    libraries: tuple[str, ...]
    cache: str
    texture_pack: str | None = None
    seed: int = 0
    width: int = 320
    height: int = 240
    views: int = 4
    photometric: bool = False
    world: str = "rooms"
    sensor: str = "kinect1"
    path: bool = False

    def __post_init__(self):
        if self.width * 3 != self.height * 4:
            raise ValueError(f"size is {self.width}x{self.height}; expected the sensor's aspect 4:3, e.g. 320x240")
        if self.views < 1:
            raise ValueError(f"views is {self.views}; expected at least 1")
        for name, known in (("world", WORLDS), ("sensor", (*SENSORS, "mixed"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {known}")
        if self.path and self.world != "rooms":
            raise ValueError(f"world is {self.world!r} with path; expected 'rooms', which a camera can walk through")

    def content(self) -> dict:
        """The settings that the frames depend on, as written into a data set."""
        return {
            "libraries": list(self.libraries),
            "texture_pack": None if self.texture_pack is None else Path(self.texture_pack).name,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
            "views": self.views,
            "world": self.world,
            "sensor": self.sensor,
            "path": self.path,
            # Family -> classes, so that results can be read on these and on the other classes apart.
            "photometric": PHOTOMETRIC_CLASSES if self.photometric else {},
        }


class RoomGenerator:
    """Renders rooms; one per process.

    Args:
        settings: The data set's settings.
    """

    def __init__(self, settings: RoomSettings):
        self.settings = settings
        libraries = open_libraries(settings.furniture, settings.libraries) if settings.furniture else []
        self.texture_pack = TexturePack(settings.texture_pack) if settings.texture_pack else None
        self.inventories = {
            split: Inventory(libraries, split, Path(settings.cache), settings.photometric) for split in SPLITS
        }
        self.tabletops = {split: Tabletops(inventory) for split, inventory in self.inventories.items()}

    def room_frames(self, split: str, number: int) -> list[RGBDFrame]:
        """The frames of one room or close-up scene.

        A scene that shows too little from everywhere is replaced by another one of the same number.
        """
        settings = self.settings
        world = ("rooms", "tabletop")[number % 2] if settings.world == "mixed" else settings.world
        for attempt in range(20):
            rng = np.random.default_rng([settings.seed, SPLITS.index(split), number, attempt])
            scene, cameras = (self._room if world == "rooms" else self._tabletop)(split, rng)
            if len(cameras) == settings.views:
                prefix = f"{world}-{settings.seed}-{split}-{number:05d}"
                frames = [
                    self._frame(scene, camera, rng, world, f"{prefix}-{view}") for view, camera in enumerate(cameras)
                ]
                if None not in frames:
                    return frames
        raise RuntimeError(
            f"no scene with {settings.views} good views in 20 tries (world {world}, split {split}, number {number})"
        )

    def _room(self, split: str, rng: np.random.Generator) -> tuple[RoomScene, list[Camera]]:
        room = Furnisher(self.inventories[split]).furnish(rng)
        scene = RoomScene(room, rng, split, self.texture_pack)
        size = self.settings.width, self.settings.height
        poses = choose_views(room, scene, rng, self.settings.views)
        return scene, [Camera(sensor_intrinsics(*size), pose, *size) for pose in poses]

    def _tabletop(self, split: str, rng: np.random.Generator) -> tuple[RoomScene, list[Camera]]:
        stage = self.tabletops[split].stage(rng)
        scene = RoomScene(stage.room, rng, split, self.texture_pack)
        scene.lighting.vary(stage.focus, rng)
        settings = self.settings
        return scene, choose_cameras(stage, scene, rng, settings.views, settings.width, settings.height)

    def _frame(
        self, scene: RoomScene, camera: Camera, rng: np.random.Generator, world: str, frame_id: str
    ) -> RGBDFrame | None:
        """A frame; None where the sensor measures hardly anything, for it is too near or all is dark."""
        if world == "rooms":
            view = scene.render(camera)
            image = expose(view, rng)
        else:
            view = scene.render(camera, samples=2)
            image = photograph(view, rng)
        depth = measure_depth(view, float(camera.intrinsics[0, 0]), rng, self.settings.sensor)
        if np.mean(depth > 0) < _MEASURED_SHARE:
            return None
        return RGBDFrame(
            image=image,
            depth=depth,
            intrinsics=camera.intrinsics,
            camera_to_world=camera.pose,
            instance=view.instance,
            semantic=view.semantic,
            frame_id=frame_id,
        )


def choose_views(room: Room, scene: RoomScene, rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Up to `count` different poses that see several objects from a sensible distance."""
    width, height = _LOW_RESOLUTION
    scored = []
    for _ in range(_CANDIDATES):
        pose = random_pose(room, rng)
        if pose is None:
            continue
        hits = scene.cast(*Camera(sensor_intrinsics(width, height), pose, width, height).rays())
        instance, _ = scene.labels(hits)
        ids, pixels = np.unique(instance, return_counts=True)
        share = pixels / instance.size
        seen = int(np.count_nonzero(share[ids > 0] > _SEEN_SHARE))
        content = float(share[ids > 0].sum())
        largest = float(share[ids != NONE].max(initial=0))
        too_near = np.mean(hits.depth < 0.5)
        if seen < 4 or not 0.15 < content < 0.9 or largest > 0.6 or too_near > 0.1 or np.median(hits.depth) > 5:
            continue
        scored.append((min(seen, 12) + rng.uniform(0, 6), pose))
    chosen: list[np.ndarray] = []
    for _, pose in sorted(scored, key=lambda entry: -entry[0]):
        if len(chosen) < count and all(_differ(pose, other) for other in chosen):
            chosen.append(pose)
    return chosen


def _differ(first: np.ndarray, second: np.ndarray) -> bool:
    distance = np.linalg.norm(first[:3, 3] - second[:3, 3])
    angle = np.arccos(np.clip(first[:3, 2] @ second[:3, 2], -1, 1))
    return bool(distance > 0.8 or angle > np.radians(35))
