"""Rows of a prepared data set from ScanNet's scans."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...io.files import DataFileError
from ...io.storage import Folder
from ...labels import raw_id_to_index
from ..frames import MIN_VALID_POINTS, RGBDFrame, frame_to_row
from .annotations import axis_alignment
from .mesh_labels import MAX_DISTANCE, MeshLabels
from .registration import register_labels
from .scan_mesh import ScanMesh, boxes_by_id, mesh_files, read_scan_mesh
from .scans import ExportedScan, LabelImages, SensScan, open_scan, scan_frame
from .shards import SkippedFrame


LABEL_SOURCES = ("auto", "mesh", "2d", "none")


@dataclass(frozen=True)
class ScanNetSource:
    """Reads scans; see `prepare_scannet200` for what the fields mean.

    Args:
        scans: Folder with a folder for each scan, or its address; from a store each is copied here while it is read.
        label_ids: Raw category ids by name, of `read_label_ids`.
        labels: One of `LABEL_SOURCES`.
        frame_interval: Every how manieth frame of the stream is taken.
        frame_numbers: The frames to take of scans where they are listed; there the interval does not count.
        image_size: (width, height) of colour and depth; None = the depth camera's.
        axis_align: Turn the poses into the axis-aligned world.
        max_label_distance: Of `MeshLabels`, metres.
        jpeg_quality: Of `frame_to_row`.
        assume_registered: Of `SensScan`.
        sequences: Add the columns of `sequence_features()`, with boxes of the mesh's objects in the frames' world.
    """

    scans: str | Path
    label_ids: Mapping[str, int] | None = None
    labels: str = "auto"
    frame_interval: int = 200
    frame_numbers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    axis_align: bool = False
    max_label_distance: float = MAX_DISTANCE
    jpeg_quality: int | None = 95
    assume_registered: bool = False
    sequences: bool = False

    def rows(self, unit: str) -> Iterator[dict[str, Any] | SkippedFrame | str]:
        """Rows, skipped frames and notes of a scan; see `FrameSource`.

        Raises:
            DataFileError: The scan, its mesh or its annotation cannot be read.
        """
        with Folder(self.scans).copy(unit) as folder:
            yield from self._rows(unit, folder)

    def _rows(self, unit: str, folder: Path) -> Iterator[dict[str, Any] | SkippedFrame | str]:
        with open_scan(folder, assume_registered=self.assume_registered) as scan:
            kind = self._label_source(folder)
            alignment = axis_alignment(folder / f"{unit}.txt") if self.axis_align else None
            mesh = read_scan_mesh(folder, self.label_ids) if kind == "mesh" else None
            columns = {}
            if self.sequences:
                if mesh is None:
                    raise DataFileError(folder, f"labels are of kind {kind!r}; expected a mesh, as boxes need one")
                columns = {"scene_id": unit, **_object_columns(mesh, alignment)}
            reader = _FrameReader(
                scan,
                mesh=None if mesh is None else self._mesh_labels(folder, mesh),
                images=LabelImages(folder) if kind == "2d" else None,
                alignment=alignment,
                size=self.image_size,
                jpeg_quality=self.jpeg_quality,
            )
            yield f"labels: {kind}"
            available = scan.numbers()
            listed = self.frame_numbers.get(unit)
            numbers = (
                [number for number in available if number % self.frame_interval == 0] if listed is None else listed
            )
            for number in numbers:
                # The name that ESAM gives the frame.
                frame_id = f"{unit}_{number}"
                if number not in available:
                    yield SkippedFrame(frame_id, "missing", f"{folder}: has no frame {number}")
                    continue
                row = reader.row(number, frame_id)
                yield row if isinstance(row, SkippedFrame) else {**row, **columns}

    def _label_source(self, folder: Path) -> str:
        if self.labels != "auto":
            return self.labels
        if all(path.is_file() for path in mesh_files(folder)):
            return "mesh"
        return "2d" if LabelImages.exist(folder) else "none"

    def _mesh_labels(self, folder: Path, mesh: ScanMesh) -> MeshLabels:
        try:
            return MeshLabels(mesh.vertices, mesh.faces, mesh.labels, self.max_label_distance)
        except ValueError as error:
            raise DataFileError(mesh_files(folder)[0], str(error)) from error


def _object_columns(mesh: ScanMesh, alignment: np.ndarray | None) -> dict[str, Any]:
    """`object_ids` and `object_boxes` of the objects of a mesh, in the world of the frames."""
    vertices = mesh.vertices if alignment is None else mesh.vertices @ alignment[:3, :3].T + alignment[:3, 3]
    ids, boxes = boxes_by_id(vertices, mesh.labels.instance)
    return {"object_ids": ids.tolist(), "object_boxes": boxes.tolist()}


@dataclass
class _FrameReader:
    """Reads frames of one scan.

    Args:
        scan: The scan.
        mesh: Labels the frames, or None.
        images: Label images that do, or None.
        alignment: [4, 4] scan to world, or None where they are the same.
        size: (width, height) of the frames, or None for the depth camera's.
        jpeg_quality: Of `frame_to_row`.
    """

    scan: SensScan | ExportedScan
    mesh: MeshLabels | None
    images: LabelImages | None
    alignment: np.ndarray | None
    size: tuple[int, int] | None
    jpeg_quality: int | None

    def row(self, number: int, frame_id: str) -> dict[str, Any] | SkippedFrame:
        """The row of a frame, or why there is none."""
        place = f"{self.scan.path}: frame {number}"
        try:
            pose = self.scan.pose(number)
            if not np.isfinite(pose).all():
                return SkippedFrame(frame_id, "invalid pose", f"{place}: the pose is not finite")
            depth = self.scan.depth(number)
            measured = np.count_nonzero(depth)
            if measured < MIN_VALID_POINTS:
                return SkippedFrame(frame_id, "empty depth", f"{place}: {measured} pixels with a measurement")
            frame = self._frame(number, frame_id, pose, depth)
            return frame_to_row(frame, self.scan.depth_scale, self.jpeg_quality)
        except DataFileError as error:
            return SkippedFrame(frame_id, "unreadable", str(error))
        except ValueError as error:
            return SkippedFrame(frame_id, "malformed", f"{place}: {error}")

    def _frame(self, number: int, frame_id: str, pose: np.ndarray, depth: np.ndarray) -> RGBDFrame:
        frame = scan_frame(self.scan, number, frame_id, pose, depth, self.size)
        if self.mesh is not None:
            frame.instance, raw_ids = self.mesh.label(frame)
            frame.semantic = raw_id_to_index(raw_ids).astype(np.int32)
        elif self.images is not None:
            size = (frame.depth.shape[1], frame.depth.shape[0])
            instance, raw_ids = self.images.read(number)
            label_intrinsics = self.scan.color_intrinsics((raw_ids.shape[1], raw_ids.shape[0]))
            instance, raw_ids = (
                np.where(frame.depth > 0, register_labels(image, label_intrinsics, frame.intrinsics, size), 0)
                for image in (instance, raw_ids)
            )
            frame.instance, frame.semantic = instance - 1, raw_id_to_index(raw_ids).astype(np.int32)
        if self.alignment is not None:
            frame.camera_to_world = self.alignment @ frame.camera_to_world
        return frame
