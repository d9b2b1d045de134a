"""Reading files that came from elsewhere: one error type, checked content, paths that stay in their folder."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np


class DataFileError(ValueError):
    """A file is missing, damaged, or not of the expected format.

    Args:
        path: The file, or the member of an archive; the message begins with it.
        problem: What was found and what was expected.
    """

    def __init__(self, path: str | Path, problem: str):
        # Both go to `args`, so that the error survives the way back from a worker process.
        super().__init__(str(path), problem)

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


def read_bytes(path: str | Path) -> bytes:
    """Content of a file.

    Raises:
        DataFileError: It cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataFileError(path, error.strerror or str(error)) from error


def read_text(path: str | Path) -> str:
    """Content of a UTF-8 text file, without the byte order mark that some editors put in front.

    Raises:
        DataFileError: It cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataFileError(path, f"is not UTF-8 text ({error})") from error


def read_json(path: str | Path) -> Any:
    """Value of a JSON file.

    Raises:
        DataFileError: It cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    # Deep nesting ends in a RecursionError.
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataFileError(path, f"is not JSON ({error})") from error


def parse_floats(text: str, shape: tuple[int, ...], path: str | Path) -> np.ndarray:
    """float64 array of numbers that white space separates; NaN and inf are kept.

    Raises:
        DataFileError: Not numbers, or not as many as the shape has.
    """
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError as error:
        raise DataFileError(path, f"{error}; expected numbers") from error
    if values.size != np.prod(shape):
        raise DataFileError(path, f"has {values.size} numbers; expected {'x'.join(map(str, shape))}")
    return values.reshape(shape)


def path_inside(folder: str | Path, relative: str, source: str | Path) -> Path:
    """Path of a file that another file names, kept inside a folder.

    The check is on the name alone: links that the owner of the folder has set are followed.

    Args:
        folder: The folder.
        relative: The name, relative to the folder.
        source: The file that holds the name, for messages.

    Raises:
        DataFileError: The name is no text, is absolute, or leaves the folder.
    """
    if not isinstance(relative, str) or not relative or "\0" in relative:
        raise DataFileError(source, f"has the file name {relative!r}; expected text")
    parts = PurePosixPath(relative.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise DataFileError(source, f"names the file {relative!r}; expected one inside {folder}")
    return Path(folder, *parts.parts)
