"""Rows of a data set of frames as a recording."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...io.files import DataFileError
from ..frames import RGBDFrame, frame_from_row, load_frames
from .base import ReadOptions, Recording


ROWS_KIND = "data set"


def scene_of(row: dict[str, Any]) -> str:
    """The scene that a row's frame belongs to: its `scene_id`, else its name without the number at the end."""
    if row.get("scene_id"):
        return str(row["scene_id"])
    name = str(row.get("frame_id") or "frame")
    return name.rstrip("0123456789").rstrip("-_/. ") or name


def scenes_of(data: Any) -> dict[str, list[int]]:
    """Rows of each scene of a data set, in their order."""
    columns = [name for name in ("frame_id", "scene_id") if name in data.column_names]
    scenes: dict[str, list[int]] = {}
    for index, row in enumerate(data.select_columns(columns)):
        scenes.setdefault(scene_of(row), []).append(index)
    return scenes


def rows_recording(source: Any, data: Any, rows: Sequence[int], options: ReadOptions) -> Recording:
    """Some rows of a data set, in the order given."""
    names = data.select_columns(["frame_id"])["frame_id"]
    has_pose = "camera_to_world" in data.column_names

    def read(index: int) -> RGBDFrame:
        try:
            frame = frame_from_row(data[rows[index]])
        except (ValueError, TypeError, OSError) as error:  # Arrow's errors are of these kinds
            raise DataFileError(source, str(error)) from error
        if frame.camera_to_world is not None:
            frame.camera_to_world = options.upright(frame.camera_to_world)
        return frame

    return Recording(ROWS_KIND, source, [str(names[row] or f"row {row}") for row in rows], has_pose, read)


class RowScenes(Mapping):
    """The scenes of a data set, each a recording by its name.

    Args:
        source: Name of the data set, for messages.
        data: Its rows, as `load_frames` gives them.
        limit: Only the first scenes.
    """

    def __init__(self, source: Any, data: Any, limit: int | None = None):
        self.source, self.data = source, data
        self._rows = dict(list(scenes_of(data).items())[:limit])

    def __getitem__(self, name: str) -> Recording:
        return rows_recording(self.source, self.data, self._rows[name], ReadOptions())

    def __iter__(self):
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def open_rows(source: Any, options: ReadOptions) -> Recording:
    """The frames of one scene of a data set.

    Raises:
        ValueError: The data set has several scenes and `scene` names none of them.
    """
    data = load_frames(source, options.split)
    if "frame_id" not in data.column_names:
        raise DataFileError(source, f"has the columns {data.column_names}; expected frame_id and those of a frame")
    try:
        scenes = scenes_of(data)
    except UnicodeDecodeError as error:
        raise DataFileError(source, f"has a frame_id or scene_id that is no text ({error})") from error
    if not scenes:
        raise DataFileError(source, f"{options.split!r} has no frames")
    if options.scene is None and len(scenes) > 1:
        raise ValueError(f"{source}: {options.split!r} has {len(scenes)} scenes; give scene: {_some(scenes)}")
    scene = options.scene or next(iter(scenes))
    if scene not in scenes:
        raise ValueError(f"{source}: {options.split!r} has no scene {scene!r}; it has {_some(scenes)}")
    return rows_recording(source, data, scenes[scene], options)


def _some(names: dict[str, Any]) -> str:
    return ", ".join(list(names)[:5]) + (", ..." if len(names) > 5 else "")
