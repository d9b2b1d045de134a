"""Labels of images as people draw them and programs write them: COCO, YOLO, labelme, pictures."""

from collections.abc import Mapping
from pathlib import Path

from ...io.files import DataFileError, read_json
from .base import Annotations


__all__ = ["FORMATS", "Annotations", "open_annotations"]

FORMATS = ("coco", "yolo", "labelme")


def open_annotations(path: str | Path, kind: str = "auto", names: Mapping[int, str] | None = None) -> Annotations:
    """Reads annotations of objects.

    Args:
        path: A JSON file of COCO; a folder of label files of YOLO (segmentation), or of files of labelme.
        kind: One of `FORMATS`, or `"auto"`: told by what is there.
        names: Names of the classes by their number: which numbers of YOLO's mean what; for the others, the only names
            that may occur, in their order.

    Raises:
        DataFileError: There is nothing of the kind, or something malformed; the message names file and place.
        ValueError: There is no such kind.
    """
    from .coco import read_coco
    from .labelme import read_labelme
    from .yolo import read_yolo

    readers = {"coco": read_coco, "yolo": read_yolo, "labelme": read_labelme}
    if kind == "auto":
        kind = _tell(Path(path))
    if kind not in readers:
        raise ValueError(f"format is {kind!r}; expected auto or one of {', '.join(FORMATS)}")
    return readers[kind](path, names)


def _tell(path: Path) -> str:
    if path.is_file():
        content = read_json(path)
        return "labelme" if isinstance(content, dict) and "shapes" in content else "coco"
    if not path.is_dir():
        raise DataFileError(path, "no such file or folder")
    from .yolo import label_files

    is_labelme, is_yolo = any(path.rglob("*.json")), bool(label_files(path))
    if is_labelme == is_yolo:
        found = "both .json and .txt" if is_yolo else "neither .json nor .txt"
        raise DataFileError(path, f"has {found} files; expected those of labelme or those of YOLO (see --format)")
    return "labelme" if is_labelme else "yolo"
