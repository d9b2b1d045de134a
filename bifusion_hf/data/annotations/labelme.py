"""Annotations of the program labelme: a JSON file an image, with `shapes` (https://github.com/wkentaro/labelme)."""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...io.files import DataFileError, read_json
from ...io.images import read_mask
from ..class_names import like
from .base import AnnotatedImage, AnnotatedObject, ObjectAnnotations, check_polygon, runs_of


# Corners of the polygon that stands for a circle: it leaves out less than 1 part in 2000 of its area.
_CIRCLE = 128


def read_labelme(folder: str | Path, names: Mapping[int, str] | None = None) -> ObjectAnnotations:
    """The objects of a folder of labelme's files; shapes of one label and `group_id` are one object.

    Args:
        folder: With a JSON file for each image, or one such file.
        names: Names of the only classes that may occur, in their order; by default those that do, by the alphabet.

    Raises:
        DataFileError: There is no such file, or one is malformed; the message has the place.
    """
    folder = Path(folder)
    sources = [folder] if folder.is_file() else sorted(folder.rglob("*.json"))
    if not sources:
        raise DataFileError(folder, "has no files of labelme (.json)")
    images: dict[str, AnnotatedImage] = {}
    labels: set[str] = set()
    for path in sources:
        name, image = _read(path, names)
        if name in images:
            raise DataFileError(path, f"is of the image {name!r}, as is {images[name].place}")
        images[name] = image
        labels |= {item.label for item in image.objects}
    return ObjectAnnotations(images, sorted(labels) if names is None else names.values(), sources)


def _read(path: Path, names: Mapping[int, str] | None) -> tuple[str, AnnotatedImage]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise DataFileError(path, "has no list 'shapes'; expected a file of labelme")
    width, height = content.get("imageWidth"), content.get("imageHeight")
    if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
        raise DataFileError(path, f"has imageWidth and imageHeight {(width, height)}; expected whole numbers")
    size = (width, height)
    groups: dict[Any, list[AnnotatedObject]] = {}
    for index, shape in enumerate(content["shapes"]):
        place = f"{path} (shapes[{index}])"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"].strip():
            raise DataFileError(place, "has no label")
        label = shape["label"].strip()
        if names is not None and label not in names.values():
            known = list(names.values())
            raise DataFileError(place, f"has the label {label!r}, which is none of the classes{like(label, known)}")
        group = shape.get("group_id")
        if isinstance(group, list | dict):
            raise DataFileError(place, f"has the group_id {group!r}; expected a number or none")
        key = index if group is None else ("group", group, label)
        groups.setdefault(key, []).append(_object(shape, label, size, place))
    objects = tuple(_together(parts) for parts in groups.values())
    name = content.get("imagePath")
    return (name if isinstance(name, str) and name else path.stem), AnnotatedImage(size, objects, str(path))


def _object(shape: Mapping[str, Any], label: str, size: tuple[int, int], place: str) -> AnnotatedObject:
    kind = shape.get("shape_type", "polygon")
    try:
        points = np.asarray(shape.get("points"), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataFileError(place, f"has points that are no numbers ({error})") from error
    if kind not in ("polygon", "rectangle", "circle", "mask"):
        raise DataFileError(place, f"is a {kind}; expected a polygon, rectangle, circle or mask")
    corners = None if kind == "polygon" else 2
    if points.ndim != 2 or points.shape[1] != 2 or (corners is not None and len(points) != corners):
        raise DataFileError(place, f"is a {kind} with points of shape {points.shape}; expected [{corners or 'P'}, 2]")
    if kind == "mask":
        return AnnotatedObject(label, (), place, runs=_mask_runs(shape.get("mask"), points, size, place))
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    elif kind == "circle":
        angles = 2 * np.pi * np.arange(_CIRCLE) / _CIRCLE
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = points[0] + np.linalg.norm(points[1] - points[0]) * circle
    return AnnotatedObject(label, (check_polygon(points, size, place),), place)


def _mask_runs(data: Any, points: np.ndarray, size: tuple[int, int], place: str) -> np.ndarray:
    """Runs of a mask that is stored as the picture, in base64, of the pixels from the first point to the second."""
    try:
        mask = read_mask(base64.b64decode(data, validate=True), place)
    except (TypeError, binascii.Error) as error:
        raise DataFileError(place, f"has a mask that is not base64 ({error})") from error
    left, top = (round(value) for value in points[0])
    inside = np.zeros((size[1], size[0]), dtype=bool)
    if left < 0 or top < 0 or left + mask.shape[1] > size[0] or top + mask.shape[0] > size[1]:
        raise DataFileError(
            place, f"has a mask of {mask.shape[1]}x{mask.shape[0]} at ({left}, {top}), outside of {size[0]}x{size[1]}"
        )
    inside[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return runs_of(inside)


def _together(parts: list[AnnotatedObject]) -> AnnotatedObject:
    """One object of the shapes of a group."""
    if len(parts) == 1:
        return parts[0]
    if any(part.runs is not None for part in parts):
        raise DataFileError(parts[0].place, "is a mask in a group; expected polygons, rectangles and circles there")
    polygons = tuple(polygon for part in parts for polygon in part.polygons)
    return AnnotatedObject(parts[0].label, polygons, parts[0].place)
