"""Names of the files that results go to: two inputs never share one."""

import json
import re
from collections.abc import Iterable
from pathlib import Path


def file_name(frame_id: str) -> str:
    """A frame's name as a file may have it."""
    return re.sub(r"[^\w.-]+", "_", frame_id)


def unique_names(names: Iterable[str]) -> list[str]:
    """The names in their order; of equal ones, those after the first with a number behind them."""
    names = list(names)
    taken, result, used = set(names), [], set()
    for name in names:
        found, number = name, 2
        while found in used or (found != name and found in taken):
            found, number = f"{name}-{number}", number + 1
        used.add(found)
        result.append(found)
    return result


def name_for_input(folder: Path, frame_id: str, source: str) -> str:
    """The name of an input's results in a folder that may hold those of others.

    Args:
        folder: Of the results, with `NAME.json` for each; its `input` says what they are of.
        frame_id: Of the input.
        source: What tells it from others.

    Returns:
        The frame's name; with a number behind it where that belongs to another input. Results of the same input are
        to be replaced.
    """
    first = file_name(frame_id)
    name, number = first, 2
    while (folder / f"{name}.json").exists() and _input_of(folder / f"{name}.json") != source:
        name, number = f"{first}-{number}", number + 1
    return name


def _input_of(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    # What was not written by this package is left alone.
    except (OSError, ValueError):
        return None
    return content.get("input") if isinstance(content, dict) else None
