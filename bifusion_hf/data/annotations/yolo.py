"""YOLO's segmentation labels: a text file an image, `class x1 y1 x2 y2 ...` a line, in fractions of the sides.

Format: https://docs.ultralytics.com/datasets/segment/
"""

from collections.abc import Mapping
from pathlib import Path

from ...io.files import DataFileError, read_text
from ..class_names import read_name_file
from .base import AnnotatedImage, AnnotatedObject, ObjectAnnotations, check_polygon


NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")


def label_files(folder: Path) -> list[Path]:
    """The label files in a folder and those in it."""
    return [path for path in sorted(folder.rglob("*.txt")) if path.name not in NAME_FILES]


def read_yolo(folder: str | Path, names: Mapping[int, str] | None = None) -> ObjectAnnotations:
    """The objects of a folder of label files; an empty file is an image without objects.

    Args:
        folder: With `NAME.txt` for each image, in folders below too.
        names: Of the classes by their number; by default those of a `data.yaml`, `classes.txt`, ... in the folder or
            up to two above it.

    Raises:
        DataFileError: There are no names or labels, or a line is malformed, or has a box alone.
    """
    folder = Path(folder)
    sources = label_files(folder)
    if not sources:
        raise DataFileError(folder, "has no label files (.txt)")
    if names is None:
        places = [parent / name for parent in (folder, *folder.absolute().parents[:2]) for name in NAME_FILES]
        path = next((path for path in places if path.is_file()), None)
        if path is None:
            raise DataFileError(folder, f"has no names of classes ({', '.join(NAME_FILES)}); give a file of them")
        names, _ = read_name_file(path)
        sources.append(path)
    images = {}
    for path in sources:
        if path.name in NAME_FILES:
            continue
        objects = []
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if line.strip():
                objects.append(_object(line.split(), names, f"{path} (line {number})"))
        name = path.relative_to(folder).with_suffix("").as_posix()
        images[name] = AnnotatedImage(None, tuple(objects), str(path))
    return ObjectAnnotations(images, [names[number] for number in sorted(names)], sources)


def _object(words: list[str], names: Mapping[int, str], place: str) -> AnnotatedObject:
    try:
        number, values = int(words[0]), [float(word) for word in words[1:]]
    except ValueError as error:
        raise DataFileError(place, f"{error}; expected a class and numbers") from error
    if number not in names:
        raise DataFileError(place, f"has the class {number}; expected one of {min(names)} to {max(names)}")
    if len(values) == 4:
        raise DataFileError(place, "has a box; expected the corners of a polygon: a box is no mask")
    return AnnotatedObject(names[number], (check_polygon(values, (1, 1), place),), place)
