"""Reader of data prepared for ESAM (Xu et al. 2024) and OneFormer3D: clouds of 20,000 points a frame.

Files of single views, under one folder: `scannet200_sv_oneformer3d_infos_<split>.pkl`, and named by it `points/*.bin`
(float32 [N, 6]: position minus the frame's centroid, metres, z up; RGB 0..255), `super_points/`, `instance_mask/`,
`semantic_mask/` (int64 [N]; instances from 1, raw ScanNet category ids, 0 = none), `pose_centered/<scan>/<frame>.npy`,
and the colour image `2D/<scan>/color/<frame>.jpg`, 640x480.

Of multiple views (every 40th frame of a scan, for the online stage): `scannet200_mv_oneformer3d_infos_<split>.pkl`,
whose rows are scans with lists of the names `points/<scan>/<frame>.bin` and so on, and of the poses. Positions are in
the scan's world, and an object has one id in all frames.

Every point was made from a pixel of the depth image, so it is given back to that pixel: a frame here is an `RGBDFrame`
whose depth image is empty but for the points. The network then sees the very points of the files, and everything that
takes frames (training, evaluation, viewers) takes these.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..batch import Engine
from ..io.files import (
    DataFileError,
    path_inside,
    read_bytes,
)
from ..io.images import decode_image
from ..io.safe_pickle import load_pickle
from ..labels import raw_id_to_index
from .alignment import ALIGNMENT_THRESHOLD, alignment_error
from .frames import RGBDFrame, frame_to_row
from .projection import project_points
from .scannet.preparation import write_data_set
from .scannet.scan_mesh import boxes_by_id
from .scannet.shards import SkippedFrame


logger = logging.getLogger(__name__)

# ESAM unprojects all scans with these, at 640x480.
ESAM_INTRINSICS = np.array([[577.870605, 0, 319.5], [0, 577.870605, 239.5], [0, 0, 1]])
ESAM_SIZE = (640, 480)
# The raw category ids of ScanNet's label table end at 1357.
MAX_RAW_ID = 1357
# Pixels by which the points of a frame may lie beside pixel centres (median). With the right pose and intrinsics it is
# the rounding of float32, some 1e-3.
MAX_PIXEL_RESIDUAL = 0.1


@dataclass(frozen=True)
class EsamCloud:
    """A frame as its files have it.

    Args:
        points: float32 [N, 3] metres, in the world of `frame.camera_to_world`.
        colors: uint8 [N, 3] RGB.
        pixels: int64 [N, 2], column and row of each point's pixel.
        depth: float32 [N] metres along the optical axis.
        superpoints: int64 [N].
        instance: int64 [N], -1 = none.
        semantic: int64 [N], class index of `labels`, -1 = unlabelled.
        image: uint8 [480, 640, 3].
        camera_to_world: float64 [4, 4].
        frame_id: `<scan>_<frame>`.
    """

    points: np.ndarray
    colors: np.ndarray
    pixels: np.ndarray
    depth: np.ndarray
    superpoints: np.ndarray
    instance: np.ndarray
    semantic: np.ndarray
    image: np.ndarray
    camera_to_world: np.ndarray
    frame_id: str

    @property
    def color_error(self) -> float:
        """Mean difference between the points' colours and the image at their pixels, 0..1."""
        height, width = self.image.shape[:2]
        return alignment_error(
            {
                "image": self.image,
                "point_pixels": (self.pixels + 0.5) / np.array([width, height]),
                "point_visible": np.ones(len(self.points), dtype=bool),
                "point_rgb": self.colors,
                "frame_id": self.frame_id,
            }
        )


class EsamFrames(Sequence):
    """The frames of a split, as `RGBDFrame`s.

    Args:
        folder: Folder of the prepared data.
        split: `"train"`, `"val"`, or the path of an infos file.
        check_rows: Number of frames, from the first, whose point colours are compared with their image now.
        skip_broken: Compare later frames in the place of those that cannot be read.

    Attributes: `color_errors`, of the frames that were compared, as fractions of the colour range; `sequences`,
    whether the data are of multiple views.

    Raises:
        DataFileError: A file is missing or damaged, or names a file outside the folder.
        ValueError: The colours do not agree: wrong images, poses, or channel order.
    """

    def __init__(self, folder: str | Path, split: str | Path, check_rows: int = 8, skip_broken: bool = False):
        self.folder = Path(folder)
        self.infos_path = _infos_path(self.folder, split)
        infos = load_pickle(self.infos_path)
        rows = infos.get("data_list") if isinstance(infos, dict) else None
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise DataFileError(self.infos_path, "has no data_list; expected an infos file of ESAM's data")
        self.sequences = "pts_paths" in rows[0]
        # How messages count.
        self._unit = "frame" if self.sequences else "row"
        if self.sequences:
            rows = [frame for index, row in enumerate(rows) for frame in _frames_of_scan(row, index, self.infos_path)]
        self._rows = rows
        errors = self._color_errors(check_rows, skip_broken)
        self.color_errors = list(errors.values())
        if errors:
            worst = max(errors, key=errors.get)
            if errors[worst] > ALIGNMENT_THRESHOLD:
                raise ValueError(
                    f"{self.infos_path}: {self._unit} {worst}: the colours of the points differ from the image at "
                    f"their pixels by {255 * errors[worst]:.1f}/255 in the mean; expected at most "
                    f"{255 * ALIGNMENT_THRESHOLD:.1f}/255. Wrong image, pose, or order of the colour channels?"
                )
            logger.info(
                "%s: point colours differ from their pixels by at most %.2f/255 in the first %d rows",
                self.infos_path,
                255 * max(self.color_errors),
                len(self.color_errors),
            )

    def _color_errors(self, wanted: int, skip_broken: bool) -> dict[int, float]:
        """The colour error of the first rows, by row."""
        errors: dict[int, float] = {}
        first: DataFileError | None = None
        # Where so many in a row are broken, more would be too.
        for index in range(min(len(self._rows), 4 * wanted if skip_broken else wanted)):
            if len(errors) == wanted:
                break
            try:
                errors[index] = self.read_cloud(index).color_error
            except DataFileError as error:
                if not skip_broken:
                    raise
                first = first or error
        if first is not None and not errors:
            raise first
        return errors

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> RGBDFrame:
        """The frame of a row; see `read_frame`."""
        return self.read_frame(range(len(self))[index])

    def frame_id(self, index: int) -> str:
        """`<scan>_<frame>` of a row."""
        path = self._file_name(index, "points")
        return f"{path.parent.name}_{path.stem}" if self.sequences else path.stem

    def indices_by_scan(self) -> dict[str, list[int]]:
        """Rows of each scan, in their order.

        Raises:
            DataFileError: A row has no valid name.
        """
        rows: dict[str, list[int]] = {}
        for index in range(len(self)):
            rows.setdefault(self.frame_id(index).rpartition("_")[0], []).append(index)
        return rows

    def scan_objects(self, scan: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids, int64 [M], and boxes, float64 [M, 6] metres of the world, of the objects of a scan of multiple views.

        The box is around all points of an object in all frames; frames that cannot be read are passed over.
        """
        points, ids = [np.zeros((0, 3))], [np.zeros(0, dtype=np.int64)]
        for index in self.indices_by_scan()[scan]:
            try:
                _, values = self._read_array(index, "points", np.dtype("<f4"), 6)
                path, labels = self._read_array(index, "instance_mask", np.dtype("<i8"), 1)
                if len(labels) != len(values):
                    raise DataFileError(path, f"has {len(labels)} entries; the cloud has {len(values)} points")
            except DataFileError:
                continue
            points.append(values[:, :3])
            ids.append(labels - 1)
        return boxes_by_id(np.concatenate(points), np.concatenate(ids))

    def read_frame(self, index: int) -> RGBDFrame:
        """A row as a frame.

        Returns:
            A frame of 640x480. Its depth, instance, semantic and superpoint images are empty but at the pixels of the
            points. Points that the preparation drew twice (frames with fewer pixels than points) are there once.

        Raises:
            DataFileError: See `read_cloud`.
            ValueError: The frame has too few points; the message has its name.
        """
        cloud = self.read_cloud(index)
        columns, rows = cloud.pixels.T

        def image_of(values: np.ndarray, empty: float, dtype: type) -> np.ndarray:
            result = np.full(ESAM_SIZE[::-1], empty, dtype=dtype)
            result[rows, columns] = values
            return result

        return RGBDFrame(
            image=cloud.image,
            depth=image_of(cloud.depth, 0, np.float32),
            intrinsics=ESAM_INTRINSICS,
            camera_to_world=cloud.camera_to_world,
            instance=image_of(cloud.instance, -1, np.int32),
            semantic=image_of(cloud.semantic, -1, np.int32),
            superpoints=image_of(cloud.superpoints, -1, np.int32),
            frame_id=cloud.frame_id,
        )

    def read_cloud(self, index: int) -> EsamCloud:
        """A row as its files have it, projected to its pixels.

        Raises:
            DataFileError: A file is missing or damaged, or is named outside the folder; or the points do not lie on
                pixels of the image (another pose, or other intrinsics).
        """
        frame_id = self.frame_id(index)
        points_path, values = self._read_array(index, "points", np.dtype("<f4"), 6)
        positions, colors = values[:, :3], values[:, 3:]
        if not np.isfinite(values).all() or colors.min() < 0 or colors.max() > 255:
            raise DataFileError(points_path, "has points that are not finite, or colours outside of 0..255")
        labels = {}
        for name, largest in (("super_points", len(values)), ("instance_mask", 2**15), ("semantic_mask", MAX_RAW_ID)):
            path, labels[name] = self._read_array(index, name, np.dtype("<i8"), 1)
            if len(labels[name]) != len(values):
                raise DataFileError(path, f"has {len(labels[name])} entries; the cloud has {len(values)} points")
            if labels[name].min() < 0 or labels[name].max() > largest:
                found = f"{labels[name].min()}..{labels[name].max()}"
                raise DataFileError(path, f"has values {found}; expected 0..{largest}")
        image_path = self._image_path(index)
        image = decode_image(read_bytes(image_path), image_path, size=ESAM_SIZE)
        pose, pose_path = self._pose(index)
        try:
            # The projection asks a frame for its camera alone; the depth image is what it shall become.
            camera = RGBDFrame(image, np.ones(ESAM_SIZE[::-1], np.float32), ESAM_INTRINSICS, pose, frame_id=frame_id)
        except ValueError as error:
            raise DataFileError(pose_path, str(error)) from error
        with np.errstate(over="ignore", invalid="ignore"):
            places, depth = project_points(positions, camera)
            pixels = _pixels(places, depth, points_path)
        return EsamCloud(
            points=positions,
            colors=np.rint(colors).astype(np.uint8),
            pixels=pixels,
            depth=depth.astype(np.float32),
            superpoints=labels["super_points"],
            instance=labels["instance_mask"] - 1,
            semantic=raw_id_to_index(labels["semantic_mask"]),
            image=image,
            camera_to_world=pose,
            frame_id=frame_id,
        )

    def _value(self, index: int, *keys: str) -> Any:
        value: Any = self._rows[index]
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise DataFileError(self.infos_path, f"{self._unit} {index} has no {'.'.join(keys)}")
            value = value[key]
        return value

    def _file_name(self, index: int, folder: str) -> Path:
        name = self._value(index, *_NAME_KEYS[folder])
        path = path_inside(self.folder / folder, name, f"{self.infos_path}: {self._unit} {index}")
        if (path.parent.parent if self.sequences else path.parent) != self.folder / folder:
            expected = "a scan's folder and a name" if self.sequences else "a name alone"
            raise DataFileError(self.infos_path, f"{self._unit} {index} names the file {name!r}; expected {expected}")
        return path

    def _read_array(self, index: int, folder: str, dtype: np.dtype, columns: int) -> tuple[Path, np.ndarray]:
        path = self._file_name(index, folder)
        data = read_bytes(path)
        row_bytes = dtype.itemsize * columns
        if len(data) == 0 or len(data) % row_bytes:
            raise DataFileError(path, f"has {len(data)} bytes; expected a multiple of {row_bytes}, above 0")
        values = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
        return path, values if columns == 1 else values.reshape(-1, columns)

    def _image_path(self, index: int) -> Path:
        name = self._value(index, "img_path")
        # The name begins with the folder that the data were prepared in, so it is taken from its part "2D" on.
        parts = PurePosixPath(name.replace("\\", "/")).parts if isinstance(name, str) else ()
        if ".." not in parts and "2D" in parts:
            name = "/".join(parts[len(parts) - parts[::-1].index("2D") - 1 :])
        return path_inside(self.folder, name, f"{self.infos_path}: {self._unit} {index}")

    def _pose(self, index: int) -> tuple[np.ndarray, str | Path]:
        """float64 [4, 4] camera to world, and the file it is from."""
        if "pose" in self._rows[index]:
            pose, place = self._rows[index]["pose"], f"{self.infos_path}: {self._unit} {index}"
        else:
            scan, _, number = self.frame_id(index).rpartition("_")
            place = path_inside(self.folder / "pose_centered", f"{scan}/{number}.npy", self.infos_path)
            try:
                pose = np.load(place, allow_pickle=False)
            # numpy raises ValueError, EOFError, OSError, SyntaxError, ... on damaged files.
            except Exception as error:
                raise DataFileError(place, f"is no readable array ({type(error).__name__}: {error})") from error
        try:
            return np.asarray(pose, dtype=np.float64).reshape(4, 4), place
        except (TypeError, ValueError) as error:
            raise DataFileError(place, f"has a pose that is no 4x4 matrix ({error})") from error


def prepare_esam(
    folder: str | Path,
    out: str | Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    jpeg_quality: int | None = None,
    scans_per_shard: int = 16,
    workers: int = 1,
    engine: Engine | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Writes the frames of ESAM's prepared data as parquet shards, with a report and a card.

    Those of multiple views get the columns of `sequence_features()`, with boxes around what the frames saw of objects.
    The point colours of the first rows of each split are compared with the images first, and the result is in the
    report's settings. Rows that cannot be read are left out, and the report names them.

    Args:
        folder: Folder of the prepared data.
        out: Folder of the data set, or its address (`io.storage`).
        splits: Of the infos files.
        jpeg_quality: Of the stored colour images; None = lossless PNG, so that no colour changes.
        scans_per_shard: Scans of a parquet file.
        workers: Number of processes of this machine.
        engine: Makes the shards in place of those processes.
        progress: Show a progress bar.

    Returns:
        The report; see `scannet.prepare_scannet200`.

    Raises:
        DataFileError: An infos file cannot be read, or none of its first rows.
        ValueError: See `EsamFrames` and `scannet.prepare_scannet200`.
    """
    units, errors, sequences = {}, {}, {}
    for split in splits:
        frames = EsamFrames(folder, split, skip_broken=True)
        sequences[split] = frames.sequences
        units[split] = [f"{split}/{scan}" for scan in frames.indices_by_scan()]
        errors[split] = [round(255 * error, 2) for error in frames.color_errors]
    settings = {
        "source": "data prepared for ESAM",
        "jpeg_quality": jpeg_quality,
        "colour difference of the first rows, in 255": errors,
    }
    if len(set(sequences.values())) > 1:
        raise ValueError(f"{folder}: of multiple views are {sequences}; expected all splits or none")
    is_sequence = all(sequences.values())
    if is_sequence:
        settings["sequences"] = True
    options = {"units_per_shard": scans_per_shard, "workers": workers, "engine": engine, "progress": progress}
    return write_data_set(EsamSource(Path(folder), jpeg_quality, is_sequence), units, out, settings, **options)


@dataclass(frozen=True)
class EsamSource:
    """Rows of a prepared data set; see `scannet.shards.FrameSource`. A unit is `<split>/<scan>`.

    Args:
        folder: Folder of ESAM's data.
        jpeg_quality: Of `frame_to_row`.
        sequences: The data are of multiple views.
    """

    folder: Path
    jpeg_quality: int | None
    sequences: bool = False

    def rows(self, unit: str) -> Iterator[dict[str, Any] | SkippedFrame | str]:
        """Rows and skipped frames of a scan."""
        split, scan = unit.split("/")
        frames = _frames_of(self.folder, split, _stamp(self.folder, split))
        columns = {}
        if self.sequences:
            ids, boxes = frames.scan_objects(scan)
            columns = {"scene_id": scan, "object_ids": ids.tolist(), "object_boxes": boxes.tolist()}
        for index in frames.indices_by_scan()[scan]:
            try:
                # ScanNet's depth is in millimetres, so nothing is lost.
                yield {**frame_to_row(frames.read_frame(index), 1000.0, self.jpeg_quality), **columns}
            except DataFileError as error:
                yield SkippedFrame(frames.frame_id(index), "unreadable", str(error))
            except ValueError as error:
                yield SkippedFrame(frames.frame_id(index), "malformed", str(error))


def _infos_path(folder: Path, split: str | Path) -> Path:
    """The infos file of a split, of single views or of multiple ones; a split may be its path."""
    if Path(split).suffix == ".pkl":
        return Path(split)
    single, multiple = (folder / f"scannet200_{kind}_oneformer3d_infos_{split}.pkl" for kind in ("sv", "mv"))
    if single.is_file() and multiple.is_file():
        raise DataFileError(
            folder, f"has {single.name} and {multiple.name}; give the path of one of them as the split"
        )
    return multiple if multiple.is_file() else single


def _stamp(folder: Path, split: str) -> tuple[int, ...]:
    """What changes with the infos file; nothing where it is missing, which reading it tells."""
    path = _infos_path(folder, split)
    status = path.stat() if path.is_file() else None
    return () if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)


@functools.lru_cache(maxsize=2)
def _frames_of(folder: Path, split: str, _stamp: tuple[int, ...]) -> EsamFrames:
    return EsamFrames(folder, split, check_rows=0)


def _frames_of_scan(row: dict[str, Any], index: int, place: Path) -> list[dict[str, Any]]:
    """The frames of a scan's row, each as a row of single views."""
    lists = {}
    for key in ("poses", "img_paths", *_LIST_KEYS.values()):
        lists[key] = row.get(key)
        if not isinstance(lists[key], list) or len(lists[key]) != len(lists["poses"]):
            raise DataFileError(place, f"row {index} has no list {key} with an entry for each of its frames")
        if key != "poses" and not all(isinstance(name, str) for name in lists[key]):
            raise DataFileError(place, f"row {index} has {key} that are no names")

    def name(folder: str, number: int) -> str:
        # Its folder is `points/`, ..., whatever stands before that.
        return "/".join(PurePosixPath(lists[_LIST_KEYS[folder]][number].replace("\\", "/")).parts[-2:])

    return [
        {
            "lidar_points": {"lidar_path": name("points", number)},
            **{_NAME_KEYS[folder][0]: name(folder, number) for folder in _LIST_KEYS if folder != "points"},
            "img_path": lists["img_paths"][number],
            "pose": pose,
        }
        for number, pose in enumerate(lists["poses"])
    ]


_LIST_KEYS = {
    "points": "pts_paths",
    "super_points": "super_pts_paths",
    "instance_mask": "pts_instance_mask_paths",
    "semantic_mask": "pts_semantic_mask_paths",
}
_NAME_KEYS = {
    "points": ("lidar_points", "lidar_path"),
    "super_points": ("super_pts_path",),
    "instance_mask": ("pts_instance_mask_path",),
    "semantic_mask": ("pts_semantic_mask_path",),
}


def _pixels(places: np.ndarray, depth: np.ndarray, path: Path) -> np.ndarray:
    """int64 [N, 2], column and row of places [N, 2] (fractions of width and height)."""
    size = np.array(ESAM_SIZE)
    exact = places * size - 0.5
    nearest = np.rint(exact)
    # NaN is neither inside nor outside, hence the form of the tests.
    inside = (depth > 0) & ((nearest >= 0) & (nearest < size)).all(axis=1)
    residual = float(np.median(np.abs(exact - nearest)))
    if not (inside.all() and residual <= MAX_PIXEL_RESIDUAL):
        raise DataFileError(
            path,
            f"has {np.count_nonzero(~inside)} of {len(depth)} points outside of the image, and they lie "
            f"{residual:.3f} pixels beside pixel centres (median); expected 0, and at most {MAX_PIXEL_RESIDUAL}: "
            "another pose, or other intrinsics",
        )
    return nearest.astype(np.int64)
