"""Readers of a scan's annotation: label table, mesh segments, object groups, scan information.

- `scannetv2-labels.combined.tsv`: category names as annotated, and the id of each.
- `<scan>_vh_clean_2.0.010000.segs.json`: the segment of each vertex of `<scan>_vh_clean_2.ply`.
- `<scan>.aggregation.json`: the objects, each a group of segments with a category name.
- `<scan>.txt`: lines `name = value`, among them the matrix `axisAlignment`.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...io.files import (
    DataFileError,
    parse_floats,
    read_json,
    read_text,
)


# A frame keeps its objects, plus one, in 16 bits.
MAX_OBJECT_ID = 2**16 - 2


@dataclass(frozen=True)
class VertexLabels:
    """Annotation of a mesh's vertices.

    Args:
        instance: int32 [V], `objectId` of the object, -1 = none.
        raw_ids: int32 [V], id of its category in the label table, 0 = none (or a name that the table lacks).
    """

    instance: np.ndarray
    raw_ids: np.ndarray


def read_label_ids(path: str | Path) -> dict[str, int]:
    """Raw category ids by the category names of the annotation.

    Args:
        path: `scannetv2-labels.combined.tsv`; the columns `raw_category` and `id` are used. Several names may share
            an id.

    Raises:
        DataFileError: The file is missing, damaged, or lacks a column.
    """
    try:
        rows = csv.DictReader(io.StringIO(read_text(path)), delimiter="\t", quoting=csv.QUOTE_NONE)
        ids: dict[str, int] = {}
        for row in rows:
            # The first line of a name counts, as in the benchmark's own preprocessing.
            ids.setdefault(row["raw_category"], int(row["id"]))
    except KeyError as error:
        raise DataFileError(path, f"has no column {error}") from error
    except (csv.Error, TypeError, ValueError) as error:
        if isinstance(error, DataFileError):
            raise
        raise DataFileError(path, f"is no label table ({error})") from error
    bad = [name for name, value in ids.items() if not 0 <= value < 2**31]
    if bad or not ids:
        raise DataFileError(path, f"has the id {ids[bad[0]]} for {bad[0]!r}" if bad else "has no lines")
    return ids


def read_segments(path: str | Path, num_vertices: int) -> np.ndarray:
    """The segment of each vertex of a scan's mesh, int64 [V].

    Args:
        path: `<scan>_vh_clean_2.0.010000.segs.json`.
        num_vertices: Number V of vertices of the mesh.

    Raises:
        DataFileError: The file is missing or damaged, or belongs to another mesh.
    """
    segments = _integers(_field(read_json(path), "segIndices", path), "segIndices", path)
    if len(segments) != num_vertices:
        raise DataFileError(
            path, f"has segIndices of {len(segments)} vertices; the mesh has {num_vertices}: another mesh"
        )
    return segments


def read_vertex_labels(
    segments_path: str | Path, aggregation_path: str | Path, label_ids: dict[str, int], num_vertices: int
) -> VertexLabels:
    """Annotation of the vertices of a scan's mesh.

    Args:
        segments_path: `<scan>_vh_clean_2.0.010000.segs.json`.
        aggregation_path: `<scan>.aggregation.json`.
        label_ids: Of `read_label_ids`.
        num_vertices: Number V of vertices of the mesh.

    Raises:
        DataFileError: A file is missing or damaged, or belongs to another mesh.
    """
    segments = read_segments(segments_path, num_vertices)
    values, segment_of_vertex = np.unique(segments, return_inverse=True)
    instance = np.full(len(values), -1, dtype=np.int32)
    raw_ids = np.zeros(len(values), dtype=np.int32)
    groups = _field(read_json(aggregation_path), "segGroups", aggregation_path)
    if not isinstance(groups, list):
        raise DataFileError(aggregation_path, "has segGroups that are no list")
    named, known = 0, 0
    for group in groups:
        members = _integers(_field(group, "segments", aggregation_path), "segments", aggregation_path)
        label = _field(group, "label", aggregation_path)
        (object_id,) = _integers([_field(group, "objectId", aggregation_path)], "objectId", aggregation_path)
        if object_id > MAX_OBJECT_ID:
            raise DataFileError(aggregation_path, f"has the objectId {object_id}; expected at most {MAX_OBJECT_ID}")
        if not isinstance(label, str):
            raise DataFileError(aggregation_path, f"has the label {label!r}; expected text")
        chosen = np.isin(values, members)
        named, known = named + len(np.unique(members)), known + int(chosen.sum())
        instance[chosen] = object_id
        raw_ids[chosen] = label_ids.get(label, 0)
    if 2 * known < named:
        raise DataFileError(
            aggregation_path, f"names {named} segments, of which {known} are in {segments_path}: another mesh"
        )
    return VertexLabels(instance[segment_of_vertex], raw_ids[segment_of_vertex])


def read_scan_info(path: str | Path) -> dict[str, str]:
    """The lines `name = value` of a scan's `.txt`.

    Raises:
        DataFileError: The file is missing or damaged.
    """
    info = {}
    for line in read_text(path).splitlines():
        name, separator, value = line.partition("=")
        if separator:
            info[name.strip()] = value.strip()
        elif line.strip():
            raise DataFileError(path, f"has the line {line!r}; expected name = value")
    return info


def axis_alignment(path: str | Path) -> np.ndarray:
    """The matrix that turns a scan so that its walls follow the axes, float64 [4, 4] scan to aligned.

    Args:
        path: The scan's `.txt`.

    Raises:
        DataFileError: The file is missing or damaged, or has no rigid `axisAlignment` (the test scans have none).
    """
    info = read_scan_info(path)
    if "axisAlignment" not in info:
        raise DataFileError(path, "has no axisAlignment")
    matrix = parse_floats(info["axisAlignment"], (4, 4), path)
    rotation = matrix[:3, :3]
    rigid = np.isfinite(matrix).all() and np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3)
    if not rigid or not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise DataFileError(path, f"has the axisAlignment {matrix.tolist()}; expected a rigid motion")
    return matrix


def _field(value: Any, name: str, path: str | Path) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise DataFileError(path, f"has no {name}")
    return value[name]


def _integers(values: Any, name: str, path: str | Path) -> np.ndarray:
    """int64 [n] of a list of integers 0..2^31-1."""
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 2**31 for value in values):
        raise DataFileError(path, f"has {name} that are no list of integers from 0")
    return np.array(values, dtype=np.int64)
