"""The classes of a data set: those of ScanNet200, or its own, which its file `classes.json` names.

The number in a `semantic` image is an index into this list (one added). Either way wall and floor come first, which
have no instances, so that the label of an instance is its class index minus two (`labels.STUFF_CLASSES`).
"""

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import yaml

from ..io.files import DataFileError, read_json, read_text
from ..labels import SCANNET200_CLASS_NAMES, STUFF_CLASSES


CLASSES_FILE = "classes.json"
_STUFF = tuple(SCANNET200_CLASS_NAMES[index] for index in STUFF_CLASSES)


def class_list(names: Sequence[str]) -> tuple[str, ...]:
    """Names of the classes by class index, for a data set whose objects have these names.

    Returns:
        ScanNet200's order where all names are of it; else wall, floor and the names in their order.
    """
    if set(names) <= set(SCANNET200_CLASS_NAMES):
        return SCANNET200_CLASS_NAMES
    return (*_STUFF, *(name for name in dict.fromkeys(names) if name not in _STUFF))


def classes_text(classes: Sequence[str]) -> str:
    """Content of `classes.json`."""
    return json.dumps(classes, indent=1, ensure_ascii=False) + "\n"


def read_classes(source: str | Path) -> tuple[str, ...]:
    """Names of the classes of a data set by class index.

    Args:
        source: As for `load_frames`.

    Returns:
        Those of its `classes.json`; ScanNet200's where it has none.

    Raises:
        DataFileError: The file is no list of different names that begins with wall and floor.
    """
    path = _classes_file(source)
    if path is None:
        return SCANNET200_CLASS_NAMES
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataFileError(path, "is no list of class names")
    if tuple(names[: len(_STUFF)]) != _STUFF or len(set(names)) != len(names):
        raise DataFileError(path, f"has the names {names[:4]}...; expected different ones, {_STUFF} first")
    return tuple(names)


def _classes_file(source: str | Path) -> Path | None:
    if str(source) == "sample":
        return None
    if Path(source).is_dir():
        path = Path(source) / CLASSES_FILE
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    from ..io.hub_files import split_revision, verify_download

    repository, revision = split_revision(source)
    try:
        path = hf_hub_download(repository, CLASSES_FILE, repo_type="dataset", revision=revision)
    # Without a network too: what was loaded before this file was ever asked for had no classes of its own.
    except EntryNotFoundError:
        return None
    verify_download(path)
    return Path(path)


def read_name_file(path: str | Path) -> tuple[dict[int, str], bool]:
    """Names of classes from a file.

    Args:
        path: Text with a name a line; JSON or YAML with a list, with names by number, or with either under `names`,
            as a `data.yaml` of YOLO has them.

    Returns:
        The names by their number, from 0 where the file has a list; and whether it gives the numbers itself.

    Raises:
        DataFileError: The file is none of these, has an empty name, or one name twice.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".yaml", ".yml"):
        try:
            content = yaml.safe_load(read_text(path))
        except yaml.YAMLError as error:
            raise DataFileError(path, f"is not YAML ({error})") from error
    elif suffix == ".json":
        content = read_json(path)
    else:
        content = [line for line in read_text(path).splitlines() if line.strip()]
    if isinstance(content, dict) and "names" in content:
        content = content["names"]
    numbered = isinstance(content, dict)
    try:
        names = {int(key): name for key, name in (content.items() if numbered else enumerate(content))}
    except (TypeError, ValueError) as error:
        raise DataFileError(path, f"has no names of classes ({error}); expected a list, or names by number") from error
    if not names or not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise DataFileError(path, f"has the names {list(names.values())[:8]}; expected text")
    names = {number: name.strip() for number, name in names.items()}
    if len(set(names.values())) != len(names):
        twice = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise DataFileError(path, f"has the name {twice!r} twice")
    return names, numbered


def like(name: str, names: Sequence[str]) -> str:
    """What a name may have meant, as the end of a message; empty where nothing is like it."""
    found = get_close_matches(name.lower().replace("_", " "), names)
    return f" (did you mean {found[0]!r}?)" if found else ""
