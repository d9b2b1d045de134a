"""Files of a scene: the cloud and its objects, pictures of the frames with colours that stay, an animation."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, features

from ..io.atomic import new_file
from ..visualization.colors import instance_color
from ..visualization.overlay import draw_instances, segment_name
from ..visualization.ply import color_by_instance, write_ply


if TYPE_CHECKING:
    from .objects import SceneObject
    from .session import SceneSession

ANIMATION_FORMATS = ("webp", "gif", "none")


def draw_scene_frame(image: np.ndarray, result: Mapping[str, Any]) -> Image.Image:
    """A frame's picture with its objects in their own colours, and their ids.

    Args:
        image: uint8 [H, W, 3] of the frame.
        result: Of `SceneSession.update`.
    """
    segments = [
        {**segment, "name": f"{segment_name(segment)} {segment['id']}"}
        for segment in result["segments_info"]
        if np.any(result["segmentation"] == segment["id"])
    ]
    return draw_instances(image, result["segmentation"], segments)


def write_scene_cloud(path: str | Path, session: "SceneSession", objects: Sequence["SceneObject"]) -> None:
    """Writes the scene's points as PLY: one colour an object, ids as the property `instance`.

    Args:
        path: The file.
        session: The scene.
        objects: Whose ids are written; the points of others count as without an object.
    """
    points, colors, ids = session.cloud()
    ids = np.where(np.isin(ids, [item.id for item in objects]), ids, -1)
    with new_file(path) as partial:
        names = {item.id: item.name for item in objects}
        write_ply(partial, points, color_by_instance(colors, ids), instance=ids, names=names)


def object_to_json(item: "SceneObject") -> dict[str, Any]:
    """An object as plain JSON, without its points."""
    return {
        "id": item.id,
        "label_id": item.label_id,
        "label": item.label,
        "name": item.name,
        "semantic_label": item.semantic_label,
        "semantic_probability": item.semantic_probability,
        "score": item.score,
        "num_views": item.num_views,
        "num_points": len(item.points),
        "box_3d": np.round(item.box_3d, 4).tolist(),
        "color": instance_color(item.id).tolist(),
    }


def animation_format(wanted: str | None = None) -> str:
    """The format of an animation: the one wanted, or WebP where this Pillow writes it, else GIF."""
    if wanted is not None:
        return wanted
    return "webp" if features.check("webp") else "gif"


def write_animation(path: str | Path, pictures: Iterable[Path], *, width: int = 480, milliseconds: int = 200) -> None:
    """Writes pictures, one after the other, as an animated WebP or GIF by the ending of the path.

    Args:
        path: The file.
        pictures: Files of the pictures; they are read one at a time.
        width: Of the animation in pixels; the height follows from the first picture.
        milliseconds: That each stays.

    Raises:
        ValueError: There is no picture.
    """
    files = list(pictures)
    if not files:
        raise ValueError(f"{path}: no picture to animate")

    def shrunk(file: Path) -> Image.Image:
        with Image.open(file) as picture:
            return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)

    with Image.open(files[0]) as first:
        size = (width, round(first.height * width / first.width))
    with new_file(path) as partial:
        shrunk(files[0]).save(
            partial,
            save_all=True,
            append_images=(shrunk(file) for file in files[1:]),
            duration=milliseconds,
            loop=0,
            format=Path(path).suffix[1:].upper(),
        )
