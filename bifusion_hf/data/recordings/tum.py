"""The layout of the TUM RGB-D benchmark, which ICL-NUIM and many recorders use too.

`rgb.txt`, `depth.txt` and `groundtruth.txt` list files and poses by time stamps in seconds; frames are what lies
nearest in time (Sturm et al., "A Benchmark for the Evaluation of RGB-D SLAM Systems", IROS 2012).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ...io.files import DataFileError, path_inside, read_text
from ...io.images import read_color
from ..camera_files import Camera, read_camera
from ..frame_files import read_depth
from ..frames import RGBDFrame
from .base import ReadOptions, Recording, quaternion_pose


DEPTH_SCALE = 5000.0
POSE_FILES = ("groundtruth.txt", "trajectory.txt", "poses.txt")
CAMERA_FILES = ("intrinsics.txt", "intrinsics.json", "camera.json", "camera_intrinsic.json")
# The benchmark's own calibration of its three cameras, fx, fy, cx, cy; the names of its sequences say which.
CAMERAS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
CAMERA_SIZE = (640, 480)


def is_tum(folder: Path) -> bool:
    """Whether a folder has the lists."""
    return (folder / "rgb.txt").is_file() and (folder / "depth.txt").is_file()


def open_tum(folder: Path, options: ReadOptions) -> Recording:
    """The frames of a folder: a depth image, and the colour image and pose nearest in time.

    Depth images without a colour image within `max_difference` are no frames; without a pose within it, where there
    are poses at all, a frame's pose is interpolated between two that are at most five times as far apart, or the frame
    is refused when it is read.

    Raises:
        DataFileError: A list is missing or malformed, nothing fits, or there are no intrinsics.
    """
    depths, colors = _read_list(folder / "depth.txt", 1), _read_list(folder / "rgb.txt", 1)
    color_times = np.array([time for time, _ in colors])
    pairs = []
    for time, (name,) in depths:
        nearest = int(np.abs(color_times - time).argmin())
        if abs(color_times[nearest] - time) <= options.max_difference:
            pairs.append((time, name, colors[nearest][1][0]))
    if not pairs:
        raise DataFileError(
            folder / "depth.txt",
            f"no depth image has a colour image of rgb.txt within {options.max_difference:g} s; give max_difference",
        )
    camera = _camera(folder, options)
    path = next((folder / name for name in POSE_FILES if (folder / name).is_file()), None)
    poses = None if path is None else _Trajectory(path, options.max_difference)

    def read(index: int) -> RGBDFrame:
        time, depth_name, color_name = pairs[index]
        depth_path = path_inside(folder, depth_name, folder / "depth.txt")
        image = read_color(path_inside(folder, color_name, folder / "rgb.txt"))
        depth = read_depth(depth_path, options.depth_scale, integer_scale=DEPTH_SCALE)
        return RGBDFrame(
            image,
            depth,
            camera.of_depth(depth.shape),
            None if poses is None else options.upright(poses.at(time)),
            frame_id=f"{folder.name}_{time:.6f}",
        )

    ids = [f"{folder.name}_{time:.6f}" for time, *_ in pairs]
    images = [Path(color_name).with_suffix("").as_posix() for *_, color_name in pairs]
    return Recording("TUM RGB-D", folder, ids, poses is not None, read, images=images)


def _camera(folder: Path, options: ReadOptions) -> Camera:
    known = next((name for name in CAMERAS if name in folder.resolve().name.lower()), None)
    if (
        options.intrinsics is None
        and known is not None
        and not any((folder / name).is_file() for name in CAMERA_FILES)
    ):
        return replace(read_camera(CAMERAS[known]), size=CAMERA_SIZE, source=f"the calibration of {known}")
    return options.camera([folder / name for name in CAMERA_FILES], folder)


def _read_list(path: Path, columns: int) -> list[tuple[float, list[str]]]:
    """Time stamp and words of each line.

    Raises:
        DataFileError: A line has another number of words, or no time.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            time = float(words[0])
        except ValueError:
            time = np.nan
        if len(words) != columns + 1 or not np.isfinite(time):
            raise DataFileError(f"{path} (line {number})", f"is {line!r}; expected a time and {columns} entries")
        rows.append((time, words[1:]))
    if not rows:
        raise DataFileError(path, "has no entry")
    return sorted(rows, key=lambda row: row[0])


class _Trajectory:
    """Poses by time: `time tx ty tz qx qy qz qw`."""

    def __init__(self, path: Path, max_difference: float):
        self.path, self.max_difference = path, max_difference
        rows = _read_list(path, 7)
        self.times = np.array([time for time, _ in rows])
        try:
            self.values = np.array([[float(word) for word in words] for _, words in rows])
        except ValueError as error:
            raise DataFileError(path, f"{error}; expected numbers") from error

    def at(self, time: float) -> np.ndarray:
        """Pose [4, 4] at a time; between two poses translation and rotation are interpolated.

        Raises:
            DataFileError: No pose is near enough.
        """
        from scipy.spatial.transform import Rotation, Slerp

        after = int(np.searchsorted(self.times, time))
        around = [index for index in (after - 1, after) if 0 <= index < len(self.times)]
        gaps = [abs(self.times[index] - time) for index in around]
        between = len(around) == 2 and self.times[around[1]] - self.times[around[0]] <= 5 * self.max_difference
        if not between:
            if min(gaps) > self.max_difference:
                raise DataFileError(
                    self.path,
                    f"has no pose within {self.max_difference:g} s of {time:.6f}, the next is {min(gaps):.3f} s off",
                )
            return self._pose(around[int(np.argmin(gaps))])
        first, second = (self._pose(index) for index in around)
        share = gaps[0] / sum(gaps)
        pose = np.eye(4)
        pose[:3, :3] = Slerp([0, 1], Rotation.from_matrix([first[:3, :3], second[:3, :3]]))(share).as_matrix()
        pose[:3, 3] = (1 - share) * first[:3, 3] + share * second[:3, 3]
        return pose

    def _pose(self, index: int) -> np.ndarray:
        values = self.values[index]
        return quaternion_pose([*values[3:], *values[:3]], f"{self.path} (time {self.times[index]:.6f})")
