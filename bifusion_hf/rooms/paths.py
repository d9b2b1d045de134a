"""Rooms as sequences: a hand-held camera walks through one room, and an object keeps its id in all frames."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..data.frames import RGBDFrame
from .camera import Camera, look_at, sensor_intrinsics
from .furnish import Furnisher
from .generate import SPLITS, RoomGenerator, choose_views
from .layout import Box, Room
from .render import RoomScene
from .sensor import expose, measure_depth


# Between frames a camera moves and turns by no more than this: about what every 40th image of a hand-held scan shows.
MAX_STEP = 0.3
MAX_TURN = np.radians(18)
_CELL = 0.1
_CLEARANCE = 0.2
_LOW_RESOLUTION = (40, 30)


@dataclass(frozen=True, eq=False)
class RoomSequence:
    """A walk through one room.

    Args:
        scene_id: Name of the room.
        frames: With poses, and labels whose instance ids are those of the room.
        instance_ids: int64 [M], the objects of the room.
        instance_boxes: float64 [M, 6], box of each whole object, seen or not: min x, y, z, max x, y, z in metres.
    """

    scene_id: str
    frames: list[RGBDFrame]
    instance_ids: np.ndarray
    instance_boxes: np.ndarray


def room_sequence(generator: RoomGenerator, split: str, number: int, count: int) -> RoomSequence:
    """A walk through a room; a function of the generator's settings, split, number and count alone.

    A room in which no walk succeeds is replaced by another one of the same number.

    Args:
        generator: Gives the furniture and the settings; its number of views is not used.
        split: `"train"` or `"val"`.
        number: Of the room.
        count: Frames.

    Raises:
        RuntimeError: No room of 20 has a walk of so many frames.
    """
    settings = generator.settings
    for attempt in range(20):
        # The last entry keeps the rooms apart from those of single views.
        rng = np.random.default_rng([settings.seed, SPLITS.index(split), number, attempt, 1])
        room = Furnisher(generator.inventories[split]).furnish(rng)
        scene = RoomScene(room, rng, split, generator.texture_pack)
        poses = camera_path(room, scene, rng, count)
        if len(poses) == count:
            scene_id = f"rooms-{settings.seed}-{split}-{number:05d}-path"
            seeds = rng.integers(2**32, size=2)
            frames = [
                _frame(scene, pose, generator, seeds, f"{scene_id}-{index:04d}") for index, pose in enumerate(poses)
            ]
            return RoomSequence(scene_id, frames, *object_boxes(scene))
    raise RuntimeError(f"no walk of {count} frames in 20 rooms (split {split}, number {number})")


def _frame(
    scene: RoomScene, pose: np.ndarray, generator: RoomGenerator, seeds: np.ndarray, frame_id: str
) -> RGBDFrame:
    width, height = generator.settings.width, generator.settings.height
    camera = Camera(sensor_intrinsics(width, height), pose, width, height)
    view = scene.render(camera)
    # One camera and its exposure for the whole walk, but new noise in the depth of each frame.
    exposure = np.random.default_rng(seeds[0])
    noise = np.random.default_rng([seeds[1], int(frame_id.rpartition("-")[2])])
    return RGBDFrame(
        image=expose(view, exposure),
        depth=measure_depth(view, float(camera.intrinsics[0, 0]), noise, generator.settings.sensor),
        intrinsics=camera.intrinsics,
        camera_to_world=pose,
        instance=view.instance,
        semantic=view.semantic,
        frame_id=frame_id,
    )


def object_boxes(scene: RoomScene) -> tuple[np.ndarray, np.ndarray]:
    """Ids int64 [M] and boxes float64 [M, 6] of the whole objects of a scene, min x, y, z, max x, y, z in metres."""
    ids = np.unique(scene.instance[scene.instance >= 0]).astype(np.int64)
    corners = [scene.triangles[scene.instance == index].reshape(-1, 3).astype(np.float64) for index in ids]
    boxes = [np.concatenate([points.min(axis=0), points.max(axis=0)]) for points in corners]
    return ids, np.array(boxes).reshape(-1, 6)


def camera_path(room: Room, scene: RoomScene, rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Up to `count` poses along a walk from good view to good view, around the furniture.

    Returns:
        Poses [4, 4], camera to world, rounded to 1e-9.
    """
    views = choose_views(room, scene, rng, 12)
    if len(views) < 2:
        return []
    free = _free_cells(room)
    path: list[np.ndarray] = [views.pop(0)]
    left = list(views)
    while len(path) < count and left:
        # The nearest view comes next, so that a walk does not cross the room for every one.
        left.sort(key=lambda view: np.linalg.norm(view[:2, 3] - path[-1][:2, 3]))
        target = left.pop(0)
        part = _walk(path[-1], target, free)
        if part is not None and all(_sees_enough(scene, pose) for pose in part):
            path += part
    # Too few views to fill the walk: back the way it came.
    there_and_back = path + path[-2:0:-1]
    while len(there_and_back) < count and len(path) > 2:
        there_and_back += path + path[-2:0:-1]
    return [pose.round(9) for pose in there_and_back[:count]] if len(path) > 2 else []


def _free_cells(room: Room) -> np.ndarray:
    """bool [X, Y], cells of the floor plan through which a camera may pass at any height of a view."""
    shape = (int(room.width / _CELL), int(room.depth / _CELL))
    free = np.zeros(shape, dtype=bool)
    for x, y in np.ndindex(shape):
        center = (np.array([x, y]) + 0.5) * _CELL
        free[x, y] = room.is_free(Box(center, np.full(2, _CLEARANCE), 0.0, (0.9, 2.0)))
    return free


def _walk(start: np.ndarray, stop: np.ndarray, free: np.ndarray) -> list[np.ndarray] | None:
    """Poses after `start` up to and with `stop`; None where no way leads there."""
    places = _way(start[:2, 3], stop[:2, 3], free)
    if places is None:
        return None
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(places, axis=0), axis=1))])
    turns = np.array([_turn(pose) for pose in (start, stop)])
    # The short way round.
    turns[1, 0] = turns[0, 0] + (turns[1, 0] - turns[0, 0] + np.pi) % (2 * np.pi) - np.pi
    steps = max(1, int(np.ceil(max(lengths[-1] / MAX_STEP, np.abs(turns[1] - turns[0]).max() / MAX_TURN))))
    poses = []
    for share in np.arange(1, steps + 1) / steps:
        yaw, pitch, roll = turns[0] + share * (turns[1] - turns[0])
        ahead = np.array([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)])
        place = [np.interp(share * lengths[-1], lengths, places[:, axis]) for axis in range(2)]
        position = np.array([*place, start[2, 3] + share * (stop[2, 3] - start[2, 3])])
        poses.append(look_at(position, position + ahead, roll))
    return poses


def _turn(pose: np.ndarray) -> np.ndarray:
    """Yaw and pitch of the optical axis and roll about it, [3] radians, as `look_at` takes them."""
    ahead = pose[:3, 2]
    level = look_at(np.zeros(3), ahead, 0.0)
    roll = np.arctan2(pose[:3, 0] @ level[:3, 1], pose[:3, 0] @ level[:3, 0])
    return np.array([np.arctan2(ahead[1], ahead[0]), np.arcsin(np.clip(ahead[2], -1, 1)), roll])


def _way(start: np.ndarray, stop: np.ndarray, free: np.ndarray) -> np.ndarray | None:
    """Places [P, 2] of a way around the furniture, smoothed; None where there is none."""
    first, last = (tuple(np.clip((place / _CELL).astype(int), 0, np.array(free.shape) - 1)) for place in (start, stop))
    open_cells = free.copy()
    # A view may stand where only it has room.
    open_cells[first] = open_cells[last] = True
    distance = np.full(free.shape, np.inf)
    front = np.zeros(free.shape, dtype=bool)
    front[last] = True
    step = 0
    while front.any() and not np.isfinite(distance[first]):
        distance[front] = step
        front = ndimage.binary_dilation(front, np.ones((3, 3))) & open_cells & ~np.isfinite(distance)
        step += 1
    if not np.isfinite(distance[first]):
        return None
    cells = [first]
    while cells[-1] != last:
        x, y = cells[-1]
        around = [
            (i, j)
            for i in range(max(x - 1, 0), min(x + 2, free.shape[0]))
            for j in range(max(y - 1, 0), min(y + 2, free.shape[1]))
        ]
        cells.append(min(around, key=lambda cell: (distance[cell], abs(cell[0] - x) + abs(cell[1] - y))))
    places = np.concatenate([[start], (np.array(cells[1:-1]).reshape(-1, 2) + 0.5) * _CELL, [stop]])
    smooth = ndimage.uniform_filter1d(places, 5, axis=0, mode="nearest")
    smooth[0], smooth[-1] = start, stop
    return smooth


def _sees_enough(scene: RoomScene, pose: np.ndarray) -> bool:
    """Whether a view between two good ones is neither against a wall nor inside the furniture."""
    width, height = _LOW_RESOLUTION
    hits = scene.cast(*Camera(sensor_intrinsics(width, height), pose, width, height).rays())
    return bool(np.mean(hits.depth < 0.5) < 0.2 and 0.8 < np.median(hits.depth) < 6)
