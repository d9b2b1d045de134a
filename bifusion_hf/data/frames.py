"""The RGB-D frame: what one is, what makes one valid, and how it is kept in a `datasets` row.

Conventions: metres; camera x right, y down, z forward; pixel (0, 0) has its centre at (0, 0), so that a depth of z at
pixel (u, v) is the camera point `z * [(u - cx) / fx, (v - cy) / fy, 1]`; poses are camera to world, world z up.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..io.files import DataFileError
from ..io.hub_files import refuse_nowhere, split_revision
from ..io.images import read_color, read_values
from ..io.mapped import in_memory
from ..io.sanity import check_camera, check_depth, check_stored_depth, saturated
from ..io.storage import Folder
from ..labels import NONE


if TYPE_CHECKING:
    import datasets

MIN_VALID_POINTS = 100


@dataclass(eq=False)
class RGBDFrame:
    """One RGB-D frame, checked when it is made.

    Args:
        image: uint8 [Hc, Wc, 3] RGB, registered to the depth image; it may have another size, but the same aspect.
        depth: float [H, W] metres along the optical axis. 0, negative, NaN and inf mean "no measurement" and are
            set to 0.
        intrinsics: [3, 3] of the depth image, pixel centres at integers.
        camera_to_world: [4, 4] rigid pose, or None where it is unknown.
        instance: int [H, W], -1 = none, or None.
        semantic: int [H, W], class index of `bifusion_hf.labels`, -1 = unlabelled, or None.
        superpoints: int [H, W], -1 = none, or None.
        frame_id: Name used in messages and reports.

    Raises:
        ValueError: A field is malformed; the message names the frame, the field, its shape and what was expected; or
            it maps a file that was cut since.
    """

    image: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    camera_to_world: np.ndarray | None = None
    instance: np.ndarray | None = None
    semantic: np.ndarray | None = None
    superpoints: np.ndarray | None = None
    frame_id: str = field(default="frame", kw_only=True)

    def __post_init__(self):
        self.image = self._array("image", self.image)
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            self._fail("image", f"has shape {self.image.shape} and dtype {self.image.dtype}", "uint8 [H, W, 3] RGB")
        self.depth = self._array("depth", self.depth)
        if self.depth.ndim != 2 or not np.issubdtype(self.depth.dtype, np.floating):
            self._fail(
                "depth",
                f"has shape {self.depth.shape} and dtype {self.depth.dtype}",
                "float [H, W] in metres (divide an integer depth image by its units per metre)",
            )
        # inf survives as a float32 overflow too, so the cast comes before the test.
        with np.errstate(over="ignore", invalid="ignore"):
            depth = self.depth.astype(np.float32)
        self.depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
        height, width = self.depth.shape
        image_height, image_width = self.image.shape[:2]
        # One pixel of rounding is allowed, in either direction.
        if abs(image_width * height - image_height * width) > max(image_width, image_height, width, height):
            self._fail(
                "image",
                f"is {image_width}x{image_height} while depth is {width}x{height}",
                "the same aspect ratio (colour registered to depth)",
            )
        valid = int(np.count_nonzero(self.depth))
        if valid < MIN_VALID_POINTS:
            self._fail("depth", f"has {valid} pixels with a measurement", f"at least {MIN_VALID_POINTS}")
        check_depth(self.depth, self.frame_id)
        self.intrinsics = self._check_intrinsics(self.intrinsics)
        check_camera(self.intrinsics, width, height, self.frame_id)
        if self.camera_to_world is not None:
            self.camera_to_world = self._check_pose(self.camera_to_world)
        for name in ("instance", "semantic", "superpoints"):
            value = getattr(self, name)
            if value is None:
                continue
            value = self._array(name, value)
            if value.shape != self.depth.shape or not np.issubdtype(value.dtype, np.integer):
                self._fail(name, f"has shape {value.shape} and dtype {value.dtype}", f"integers {self.depth.shape}")
            setattr(self, name, value.astype(np.int32))

    def _array(self, name: str, value: Any) -> np.ndarray:
        return in_memory(np.asarray(value), f"{self.frame_id}: {name}")

    def _fail(self, name: str, found: str, expected: str):
        raise ValueError(f"{self.frame_id}: {name} {found}; expected {expected}")

    def _check_intrinsics(self, value: Any) -> np.ndarray:
        value = np.asarray(value, dtype=np.float64)
        if value.shape != (3, 3):
            self._fail("intrinsics", f"has shape {value.shape}", "[3, 3]")
        if not np.isfinite(value).all():
            self._fail("intrinsics", "is not finite", "finite numbers")
        if not (value[0, 0] > 0 and value[1, 1] > 0):
            self._fail("intrinsics", f"has focal lengths {value[0, 0]:g}, {value[1, 1]:g}", "positive ones")
        if not np.allclose(value[2], [0, 0, 1]) or abs(value[1, 0]) > 1e-6 or abs(value[0, 1]) > 1e-3 * value[0, 0]:
            self._fail("intrinsics", f"is {value.tolist()}", "[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
        return value

    def _check_pose(self, value: Any) -> np.ndarray:
        value = np.asarray(value, dtype=np.float64)
        if value.shape != (4, 4):
            self._fail("camera_to_world", f"has shape {value.shape}", "[4, 4]")
        rotation = value[:3, :3]
        if not np.isfinite(value).all():
            self._fail("camera_to_world", "is not finite", "a rigid pose")
        # Poses of real data sets carry rounding of their text form, hence 1e-3.
        orthogonal = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3)
        if not orthogonal or np.linalg.det(rotation) < 0 or not np.allclose(value[3], [0, 0, 0, 1], atol=1e-6):
            self._fail("camera_to_world", f"is {value.tolist()}", "a rigid pose (a proper rotation, last row 0 0 0 1)")
        return value

    @property
    def camera_rotation(self) -> np.ndarray:
        """float64 [3, 3], camera axes to point axes.

        Without a pose the points are, by convention, the camera's axes relabelled x right, y forward, z up.
        """
        return CAMERA_TO_POINTS.copy() if self.camera_to_world is None else self.camera_to_world[:3, :3].copy()

    @property
    def axes(self) -> str:
        """What the axes of its points are, in words."""
        return "camera axes relabelled x right, y forward, z up" if self.camera_to_world is None else "world"

    def unproject(self, pixels: np.ndarray | None = None) -> np.ndarray:
        """Positions of pixels in metres, in point axes (the world's, or `CAMERA_TO_POINTS`).

        Args:
            pixels: int [P], flat indices; None = all.

        Returns:
            float32 [P, 3], or [H, W, 3] of all; pixels without a measurement give the camera centre.
        """
        height, width = self.depth.shape
        v, u = np.indices((height, width)) if pixels is None else np.divmod(pixels, width)
        depth = (self.depth if pixels is None else self.depth.reshape(-1)[pixels]).astype(np.float64)
        x = depth * ((u - self.intrinsics[0, 2]) / self.intrinsics[0, 0])
        y = depth * ((v - self.intrinsics[1, 2]) / self.intrinsics[1, 1])
        points = np.stack([x, y, depth], axis=-1) @ self.camera_rotation.T
        if self.camera_to_world is not None:
            points += self.camera_to_world[:3, 3]
        return points.astype(np.float32)


CAMERA_TO_POINTS = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])


def depth_in_metres(values: np.ndarray, depth_scale: float | None, name: str) -> np.ndarray:
    """Depth as it is stored, in metres: float64 of the same shape.

    Args:
        values: Integers, of which 65535 is no measurement, or floating point.
        depth_scale: Units per metre by which it is divided; None = metres, which integers are not.
        name: Of the frame or file, for messages.

    Raises:
        ValueError: Integers without `depth_scale`, one that is not positive, or one that gives no camera's depth.
    """
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{name}: depth has dtype {values.dtype}; expected integers or floating point")
    if depth_scale is None and not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"{name}: depth has dtype {values.dtype} and depth_scale is None; expected depth_scale, the units per "
            "metre of integer depth (1000 for millimetres, 5000 for TUM RGB-D), or floating-point metres"
        )
    if depth_scale is not None and not _is_positive(depth_scale):
        raise ValueError(f"{name}: depth_scale is {depth_scale}; expected positive units per metre, one number")
    none = saturated(values, name)
    if none is not None:
        values = np.where(none, values.dtype.type(0), values)
    check_stored_depth(values, depth_scale, name)
    return values.astype(np.float64) / (1.0 if depth_scale is None else float(depth_scale))


def _is_positive(value: Any) -> bool:
    try:
        return np.ndim(value) == 0 and bool(np.isfinite(value) and value > 0)
    except TypeError:
        return False


def scale_intrinsics(intrinsics: np.ndarray, scale_x: float, scale_y: float) -> np.ndarray:
    """Intrinsics after a resize by (scale_x, scale_y); pixel centres stay at integers: cx -> (cx + 0.5) s - 0.5."""
    scaled = np.array(intrinsics, dtype=np.float64)
    scaled[0, 0] *= scale_x
    scaled[1, 1] *= scale_y
    scaled[0, 2] = (scaled[0, 2] + 0.5) * scale_x - 0.5
    scaled[1, 2] = (scaled[1, 2] + 0.5) * scale_y - 0.5
    return scaled


def frame_features() -> "datasets.Features":
    """Columns of a frame in a `datasets` data set.

    `depth` is 16-bit with `depth_scale` units per metre; `instance`, `semantic` and `superpoints` are 16-bit with one
    added (0 = none); `camera_to_world` and the three label images may be None.
    """
    from datasets import Array2D, Features, Value
    from datasets import Image as ImageFeature

    return Features(
        {
            "frame_id": Value("string"),
            "image": ImageFeature(),
            "depth": ImageFeature(),
            "depth_scale": Value("float64"),
            "intrinsics": Array2D((3, 3), "float64"),
            "camera_to_world": Array2D((4, 4), "float64"),
            "instance": ImageFeature(),
            "semantic": ImageFeature(),
            "superpoints": ImageFeature(),
        }
    )


def sequence_features() -> "datasets.Features":
    """Columns of a frame of a sequence: those of a frame, and what its scene is and holds.

    `scene_id` is the same in all frames of a scene, which are stored in the order of time. `object_ids` [M] and
    `object_boxes` [M, 6] (min x, y, z, max x, y, z in metres of the world) are of the whole objects, seen or not;
    their ids are those of `instance`.
    """
    from datasets import Features, List, Value

    return Features(
        {
            **frame_features(),
            "scene_id": Value("string"),
            "object_ids": List(Value("int32")),
            "object_boxes": List(List(Value("float64"))),
        }
    )


def encode_png16(values: np.ndarray) -> dict[str, Any]:
    """A 16-bit PNG of unsigned integers [H, W], as the value of a `datasets` Image column."""
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise ValueError(f"values {values.min()}..{values.max()} do not fit 16 bits")
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def encode_image(image: np.ndarray, jpeg_quality: int | None = None) -> dict[str, Any]:
    """A PNG, or with `jpeg_quality` a JPEG without chroma subsampling, of uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    if jpeg_quality is None:
        Image.fromarray(image).save(buffer, format="PNG")
    else:
        Image.fromarray(image).save(buffer, format="JPEG", quality=jpeg_quality, subsampling=0)
    return {"bytes": buffer.getvalue(), "path": None}


def frame_to_row(frame: RGBDFrame, depth_scale: float = 1000.0, jpeg_quality: int | None = None) -> dict[str, Any]:
    """One row of `frame_features()`.

    Args:
        frame: The frame.
        depth_scale: Units per metre of the stored 16-bit depth.
        jpeg_quality: Quality of a JPEG colour image; None keeps it lossless.

    Raises:
        ValueError: A depth or label does not fit 16 bits.
    """

    def labels(values: np.ndarray | None) -> dict[str, Any] | None:
        return None if values is None else encode_png16(values - NONE)

    return {
        "frame_id": frame.frame_id,
        "image": encode_image(frame.image, jpeg_quality),
        "depth": encode_png16(np.rint(frame.depth.astype(np.float64) * depth_scale)),
        "depth_scale": float(depth_scale),
        "intrinsics": frame.intrinsics.tolist(),
        "camera_to_world": None if frame.camera_to_world is None else frame.camera_to_world.tolist(),
        "instance": labels(frame.instance),
        "semantic": labels(frame.semantic),
        "superpoints": labels(frame.superpoints),
    }


def _read_column(value: Any, read: Callable[..., np.ndarray], name: str, **options: Any) -> np.ndarray:
    """An Image column's value, decoded (PIL) or not ({"bytes"} or {"path"}), or an array, as an array."""
    if isinstance(value, Mapping | Image.Image):
        return read(value, name, **options)
    return np.asarray(value)


def frame_from_row(row: Mapping[str, Any]) -> RGBDFrame:
    """The frame of a row with the columns of `frame_features()`.

    Raises:
        ValueError: A required column is missing, or the frame is malformed; the message names the frame.
    """
    name = str(row.get("frame_id") or "frame")
    missing = [key for key in ("image", "depth", "depth_scale", "intrinsics") if row.get(key) is None]
    if missing:
        raise ValueError(f"{name}: row has no {', '.join(missing)}; it has {sorted(row)}")

    def labels(key: str) -> np.ndarray | None:
        value = row.get(key)
        # Stored with one added, so that 0 is "none", as in ScanNet's own label images.
        if value is None:
            return None
        return _read_column(value, read_values, f"{name}: {key}", palette=True).astype(np.int32) + NONE

    return RGBDFrame(
        image=_read_column(row["image"], read_color, f"{name}: image"),
        depth=depth_in_metres(_read_column(row["depth"], read_values, f"{name}: depth"), row["depth_scale"], name),
        intrinsics=row["intrinsics"],
        camera_to_world=row.get("camera_to_world"),
        instance=labels("instance"),
        semantic=labels("semantic"),
        superpoints=labels("superpoints"),
        frame_id=name,
    )


def load_frames(source: str | Path, split: str, *, streaming: bool = False):
    """A data set of frames, undecoded; read its rows with `frame_from_row`.

    Args:
        source: A folder with `data/{split}-*.parquet`, or its address (`io.storage`); `"sample"` for the frames that
            the package carries, or a data set id of the Hub, `"org/name"`, or `"org/name@revision"` for a branch, a
            tag or a commit of it.
        split: `"train"`, `"val"`, ...
        streaming: Give a `datasets.IterableDataset`.

    Raises:
        ValueError: The folder has no shard of that split, or no revision follows the `@`.
        FileNotFoundError: The Hub has no such data set or revision.
    """
    import datasets
    import pyarrow

    if str(source) == "sample":
        from .. import assets

        source = assets.SAMPLE_FRAMES
    folder = Folder(source)
    if folder.path is None or folder.path.is_dir():
        shards = [str(folder.place(name)) for name in folder.names(f"data/{split}-*.parquet")]
        if not shards:
            found = folder.names("*.parquet") + folder.names("data/*.parquet")
            raise ValueError(f"{folder}: no data/{split}-*.parquet; its shards: {found}")
        try:
            data = datasets.load_dataset("parquet", data_files={split: shards}, split=split, streaming=streaming)
        except (OSError, ValueError, TypeError, datasets.exceptions.DatasetsError, pyarrow.ArrowException) as error:
            reason = error.__cause__ or error
            raise DataFileError(folder.address, f"data/{split}-*.parquet cannot be read ({reason})") from error
    else:
        repository, revision = split_revision(source)
        refuse_nowhere(repository, source, "frames")
        data = datasets.load_dataset(repository, split=split, streaming=streaming, revision=revision)
    for column, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    return data
