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
from .sensor import expose, measure_depth
from .texture_pack import TexturePack


SPLITS = ("train", "val")
_LOW_RESOLUTION = (80, 60)
_CANDIDATES = 24
# A piece of this share of the pixels counts as seen when views are chosen.
_SEEN_SHARE = 0.004


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

    def __post_init__(self):
        if self.width * 3 != self.height * 4:
            raise ValueError(f"size is {self.width}x{self.height}; expected the sensor's aspect 4:3, e.g. 320x240")
        if self.views < 1:
            raise ValueError(f"views is {self.views}; expected at least 1")

    def content(self) -> dict:
        """The settings that the frames depend on, as written into a data set."""
        return {
            "libraries": list(self.libraries),
            "texture_pack": None if self.texture_pack is None else Path(self.texture_pack).name,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
            "views": self.views,
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

    def room_frames(self, split: str, number: int) -> list[RGBDFrame]:
        """The frames of one room.

        A room that shows too little from everywhere is replaced by another one of the same number.
        """
        for attempt in range(20):
            rng = np.random.default_rng([self.settings.seed, SPLITS.index(split), number, attempt])
            room = Furnisher(self.inventories[split]).furnish(rng)
            scene = RoomScene(room, rng, split, self.texture_pack)
            poses = choose_views(room, scene, rng, self.settings.views)
            if len(poses) == self.settings.views:
                prefix = f"rooms-{self.settings.seed}-{split}-{number:05d}"
                return [self._frame(scene, pose, rng, f"{prefix}-{view}") for view, pose in enumerate(poses)]
        raise RuntimeError(
            f"no room with {self.settings.views} good views in 20 tries (split {split}, number {number})"
        )

    def _frame(self, scene: RoomScene, pose: np.ndarray, rng: np.random.Generator, frame_id: str) -> RGBDFrame:
        width, height = self.settings.width, self.settings.height
        camera = Camera(sensor_intrinsics(width, height), pose, width, height)
        view = scene.render(camera)
        return RGBDFrame(
            image=expose(view, rng),
            depth=measure_depth(view, float(camera.intrinsics[0, 0]), rng),
            intrinsics=camera.intrinsics,
            camera_to_world=pose,
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
