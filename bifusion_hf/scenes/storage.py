"""Scenes on disk: one `.safetensors` file, written whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..io.atomic import new_file
from ..io.files import DataFileError
from ..version import __version__, check_checkpoint_version


FORMAT = "bifusion_hf scene"


def write_scene(path: str | Path, arrays: Mapping[str, np.ndarray], content: Mapping[str, Any]) -> None:
    """Writes what a session keeps.

    Args:
        path: The file.
        arrays: By name.
        content: Everything else, as JSON.
    """
    from safetensors.numpy import save_file

    header = {**content, "format": FORMAT, "bifusion_hf_version": __version__}
    with new_file(path) as partial:
        tensors = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        save_file(tensors, partial, {"scene": json.dumps(header)})


def read_scene(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and content of a file that `write_scene` wrote.

    Raises:
        DataFileError: The file is missing, damaged, or not of a scene.
        ValueError: A later release of the package wrote it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # Read, not mapped: a mapped file that is cut meanwhile ends the process.
        with safe_open(path, "numpy", backend="pread") as file:
            content = json.loads((file.metadata() or {}).get("scene", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise DataFileError(path, f"is no readable scene ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataFileError(path, "is not the file of a scene")
    try:
        check_checkpoint_version(content.get("bifusion_hf_version"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return arrays, content
