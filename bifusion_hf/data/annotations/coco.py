"""COCO's annotations: one JSON file with images, categories and objects as polygons or runs of pixels.

Format: https://cocodataset.org/#format-data; the letters of compressed runs as in its API (`maskApi`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...io.files import DataFileError, read_json
from .base import AnnotatedImage, AnnotatedObject, ObjectAnnotations, check_polygon


def read_coco(path: str | Path, names: Mapping[int, str] | None = None) -> ObjectAnnotations:
    """The objects of a file.

    Args:
        path: The file.
        names: Names of the only classes that may occur, in their order; by default the file's categories.

    Raises:
        DataFileError: The file is malformed, or an object has a box alone; the message has the place.
    """
    path = Path(path)
    content = read_json(path)
    parts = {key: _list(content, key, path) for key in ("images", "categories", "annotations")}
    categories = {}
    for index, category in enumerate(parts["categories"]):
        place = f"{path} (categories[{index}])"
        name = _entry(category, "name", str, place).strip()
        if not name or (names is not None and name not in names.values()):
            raise DataFileError(
                place, f"is named {name!r}; expected one of {sorted((names or {}).values()) or 'text'}"
            )
        categories[_entry(category, "id", int, place)] = name
    images: dict[int, list[AnnotatedObject]] = {}
    names_of_images: dict[int, str] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for index, image in enumerate(parts["images"]):
        place = f"{path} (images[{index}])"
        number, name = _entry(image, "id", int, place), _entry(image, "file_name", str, place)
        size = (_entry(image, "width", int, place), _entry(image, "height", int, place))
        if number in sizes or name in names_of_images.values() or min(size) < 1:
            raise DataFileError(place, f"has id {number}, name {name!r}, size {size}; expected another of each image")
        names_of_images[number], sizes[number], images[number] = name, size, []
    for index, annotation in enumerate(parts["annotations"]):
        place = f"{path} (annotations[{index}])"
        number = _entry(annotation, "image_id", int, place)
        category = _entry(annotation, "category_id", int, place)
        if number not in images or category not in categories:
            raise DataFileError(place, f"is of image {number} and category {category}; the file does not have both")
        label, is_crowd = categories[category], bool(annotation.get("iscrowd", 0))
        images[number].append(_object(annotation.get("segmentation"), sizes[number], label, is_crowd, place))
    found = {
        names_of_images[number]: AnnotatedImage(
            sizes[number], tuple(objects), f"{path} (image {names_of_images[number]})"
        )
        for number, objects in images.items()
    }
    labels = [categories[key] for key in sorted(categories)] if names is None else names.values()
    return ObjectAnnotations(found, dict.fromkeys(labels), [path])


def _object(shape: Any, size: tuple[int, int], label: str, is_crowd: bool, place: str) -> AnnotatedObject:
    if isinstance(shape, list) and shape:
        polygons = tuple(check_polygon(polygon, size, place) for polygon in shape)
        return AnnotatedObject(label, polygons, place, crowd=is_crowd)
    if isinstance(shape, dict):
        return AnnotatedObject(label, (), place, runs=read_runs(shape, size, place), crowd=is_crowd)
    raise DataFileError(place, f"has the segmentation {shape!r}; expected polygons or runs: a box is no mask")


def read_runs(shape: Mapping[str, Any], size: tuple[int, int], place: str) -> np.ndarray:
    """Runs of pixels, `{"size": [height, width], "counts": numbers or text}`, as `AnnotatedObject` has them.

    Raises:
        DataFileError: They are malformed, or of another size (width, height).
    """
    if shape.get("size") != [size[1], size[0]]:
        raise DataFileError(place, f"has runs of size {shape.get('size')}; expected [{size[1]}, {size[0]}]")
    counts = shape.get("counts")
    if isinstance(counts, str):
        counts = _decode_counts(counts, place)
    try:
        runs = np.asarray(counts, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataFileError(place, f"has runs that are no numbers ({error})") from error
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise DataFileError(place, f"has runs over {runs.sum()} pixels; expected {size[0]}x{size[1]}")
    return runs


def _decode_counts(text: str, place: str) -> list[int]:
    """Numbers of compressed runs: six bits a letter (from "0"), five of a number and one that says that it goes on.

    The fifth bit of a number's last letter is its sign; from the fourth on, a number is the difference to the last
    but one.
    """
    numbers: list[int] = []
    value, shift = 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise DataFileError(place, f"has the letter {letter!r} in its runs; expected COCO's compressed ones")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise DataFileError(place, "has runs that are cut short")
    return numbers


def _list(content: Any, key: str, path: Path) -> list[Any]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise DataFileError(path, f"has no list {key!r}; expected COCO's images, categories and annotations")
    return found


def _entry(values: Any, key: str, kind: type, place: str) -> Any:
    found = values.get(key) if isinstance(values, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        raise DataFileError(place, f"has {key} {found!r}; expected {'text' if kind is str else 'a whole number'}")
    return found
