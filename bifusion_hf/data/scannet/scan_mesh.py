"""A scan's annotated mesh: what frames are labelled by, and what whole scenes are evaluated on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...io.files import DataFileError
from .annotations import VertexLabels, read_label_ids, read_segments, read_vertex_labels
from .mesh import read_mesh


@dataclass(frozen=True, eq=False)
class ScanMesh:
    """A mesh as its files have it, before axis alignment.

    Args:
        vertices: float64 [V, 3] metres.
        faces: int64 [F, 3].
        segments: int64 [V], segment of each vertex.
        labels: Annotation of the vertices.
    """

    vertices: np.ndarray
    faces: np.ndarray
    segments: np.ndarray
    labels: VertexLabels


def mesh_files(folder: Path) -> tuple[Path, Path, Path]:
    """Mesh, segments and objects of the scan of a folder."""
    name = folder.name
    return (
        folder / f"{name}_vh_clean_2.ply",
        folder / f"{name}_vh_clean_2.0.010000.segs.json",
        folder / f"{name}.aggregation.json",
    )


def read_scan_mesh(folder: Path, label_ids: Mapping[str, int]) -> ScanMesh:
    """The annotated mesh of the scan of a folder.

    Args:
        folder: Of the scan.
        label_ids: Of `read_label_ids`.

    Raises:
        DataFileError: A file is missing or damaged, or belongs to another mesh.
    """
    mesh_path, segments_path, aggregation_path = mesh_files(folder)
    vertices, faces = read_mesh(mesh_path)
    labels = read_vertex_labels(segments_path, aggregation_path, dict(label_ids), len(vertices))
    return ScanMesh(vertices, faces, read_segments(segments_path, len(vertices)), labels)


class ScanMeshes(Mapping):
    """The annotated meshes of scans by their names, read when they are asked for.

    Args:
        folder: With a folder for each scan.
        label_map: `scannetv2-labels.combined.tsv`.

    Raises:
        DataFileError: The folder or the label table is missing or damaged.
    """

    def __init__(self, folder: str | Path, label_map: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataFileError(folder, "no such folder")
        self._label_ids = read_label_ids(label_map)

    def __getitem__(self, scan: str) -> ScanMesh:
        return read_scan_mesh(self.folder / scan, self._label_ids)

    def __iter__(self) -> Iterator[str]:
        return (path.name for path in sorted(self.folder.iterdir()) if mesh_files(path)[0].is_file())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def boxes_by_id(points: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which ids there are, int64 [M], and the box of the points of each, float64 [M, 6] min x, y, z, max x, y, z.

    Args:
        points: float [P, 3].
        ids: int [P], negative = none.
    """
    order = np.argsort(ids, kind="stable")
    order = order[np.searchsorted(ids[order], 0) :]
    found, starts = np.unique(ids[order], return_index=True)
    if not len(found):
        return np.zeros(0, dtype=np.int64), np.zeros((0, 6))
    ordered = np.asarray(points, dtype=np.float64)[order]
    corners = [reduce.reduceat(ordered, starts, axis=0) for reduce in (np.minimum, np.maximum)]
    return found.astype(np.int64), np.concatenate(corners, axis=1)
