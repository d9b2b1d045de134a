"""What all readers of recordings give, and what they share."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np

from ...io.files import DataFileError
from ..camera_files import Camera, read_camera
from ..frames import CAMERA_TO_POINTS, RGBDFrame


# A rotation of the world for each name of the axis that points up in it.
UP_ROTATIONS = {
    "z": np.eye(3),
    "-z": np.diag([1.0, -1.0, -1.0]),
    "y": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "-y": CAMERA_TO_POINTS,
    "x": np.array([[0, 0, -1.0], [0, 1, 0], [1, 0, 0]]),
    "-x": np.array([[0, 0, 1.0], [0, 1, 0], [-1, 0, 0]]),
}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".tif", ".tiff", ".bmp", ".webp")
# Camera axes of OpenGL and ARKit (x right, y up, z backward) to ours.
OPENGL_CAMERA = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class ReadOptions:
    """What a user may say of a recording beside its place; see `open_recording`."""

    intrinsics: str | Path | Sequence[float] | None = None
    depth_scale: float | None = None
    up: str | None = None
    split: str = "val"
    scene: str | None = None
    max_difference: float = 0.02

    def upright(self, pose: np.ndarray, up: str = "z") -> np.ndarray:
        """A pose in a world with z up.

        Args:
            pose: [4, 4], camera to world.
            up: The axis that points up in that world by the layout's own convention; the user's word goes before it.
        """
        result = np.array(pose, dtype=np.float64)
        # A lost pose is for the frame to refuse.
        if np.isfinite(result).all():
            result[:3] = UP_ROTATIONS[self.up or up] @ result[:3]
        return result

    def camera(self, candidates: Sequence[Path], folder: Path) -> Camera:
        """Intrinsics: the user's, else those of the first of the files that is there.

        Raises:
            DataFileError: There are none.
        """
        if self.intrinsics is not None:
            return read_camera(self.intrinsics)
        for path in candidates:
            if path.is_file():
                return read_camera(path)
        names = ", ".join(str(path.relative_to(folder)) for path in candidates)
        raise DataFileError(folder, f"has no intrinsics ({names}); expected one of these files, or give intrinsics")


@dataclass(frozen=True, eq=False)
class Recording(Sequence):
    """Frames of a recording in the order of time; they are read when they are asked for.

    `recording[i]` is an `RGBDFrame`, a slice gives a shorter recording.

    Args:
        kind: Name of the layout.
        path: The folder or file.
        ids: Name of each frame.
        posed: The layout has a pose for each frame. A single one may still be broken: its frame is then refused.
        read: Gives the frame of a number.
        numbers: Numbers of the frames, of a part of a recording.
        images: Where in the recording the colour image of each frame is, a path without ending; None = the ids.

    A frame that is missing, damaged or malformed raises a ValueError (a `DataFileError` where a file is at fault); the
    message names frame or file.
    """

    kind: str
    path: str | Path
    ids: Sequence[str]
    posed: bool
    read: Callable[[int], RGBDFrame]
    numbers: Sequence[int] | None = None
    images: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> RGBDFrame: ...

    @overload
    def __getitem__(self, index: slice) -> "Recording": ...

    def __getitem__(self, index: int | slice) -> "RGBDFrame | Recording":
        if isinstance(index, slice):
            numbers = range(len(self.ids)) if self.numbers is None else self.numbers
            images = None if self.images is None else self.images[index]
            return replace(self, ids=self.ids[index], numbers=numbers[index], images=images)
        place = range(len(self))[index]
        return self.read(place if self.numbers is None else self.numbers[place])

    def __repr__(self) -> str:
        return f"Recording({self.kind}, {str(self.path)!r}, {len(self)} frames{'' if self.posed else ', no poses'})"


def image_files(folder: Path) -> dict[str, Path]:
    """Pictures and arrays of a folder by their name without ending, in the order of the numbers in the names.

    Raises:
        DataFileError: There is no such folder, or nothing in it, or two files of one name.
    """
    if not folder.is_dir():
        raise DataFileError(folder, "no such folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: natural_order(path.stem)):
        if path.suffix.lower() in (*IMAGE_SUFFIXES, ".npy", ".npz"):
            if path.stem in files:
                raise DataFileError(folder, f"has both {files[path.stem].name} and {path.name}; expected one")
            files[path.stem] = path
    if not files:
        raise DataFileError(folder, f"has no images ({', '.join(IMAGE_SUFFIXES)} or .npy)")
    return files


def natural_order(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts "frame 9" before "frame 10"."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


def quaternion_pose(values: Sequence[float], place: str | Path) -> np.ndarray:
    """A pose [4, 4] of qx, qy, qz, qw, tx, ty, tz.

    Raises:
        DataFileError: Not seven finite numbers, or the quaternion has no length.
    """
    from scipy.spatial.transform import Rotation

    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataFileError(place, f"has the pose {values!r}; expected qx qy qz qw tx ty tz") from error
    if numbers.shape != (7,) or not np.isfinite(numbers).all() or np.linalg.norm(numbers[:4]) < 1e-6:
        raise DataFileError(place, f"has the pose {numbers.tolist()}; expected qx qy qz qw tx ty tz")
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat(numbers[:4]).as_matrix()
    pose[:3, 3] = numbers[4:]
    return pose
