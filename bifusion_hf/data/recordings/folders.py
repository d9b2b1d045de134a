"""Recordings as folders of pictures: ScanNet's export and ESAM's, Redwood's and Open3D's, and a folder a frame."""

from pathlib import Path

import numpy as np

from ...io.files import DataFileError, parse_floats, read_json, read_text
from ...io.images import read_color
from ..camera_files import read_intrinsics
from ..frame_files import read_depth, read_label_map, read_pose
from ..frames import RGBDFrame
from ..scannet.scans import EXPORTED_DEPTH_SCALE, ExportedScan, SensScan, scan_frame
from .base import ReadOptions, Recording, image_files, natural_order


COLOR_FOLDERS = ("color", "colour", "rgb", "image", "images")
DEPTH_FOLDERS = ("depth",)
POSE_FOLDERS = ("pose", "poses")
TRAJECTORIES = ("trajectory.log", "camera_trajectory.log", "scene/trajectory.log")
INTRINSICS = (
    "intrinsic/intrinsic_depth.txt",
    "intrinsics_depth.txt",
    "intrinsic_depth.txt",
    "intrinsic.txt",
    "intrinsics.txt",
    "intrinsic.json",
    "intrinsics.json",
    "camera_intrinsic.json",
    "camera.json",
)
FRAME_COLORS, FRAME_DEPTHS = ("colour", "color", "rgb"), ("depth",)
FRAME_POSES = ("pose_gravity.txt", "pose.txt")


def subfolder(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the folders that is there."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def open_sens(path: Path, options: ReadOptions) -> Recording:
    """A `.sens` file of ScanNet."""
    scan = SensScan(path)
    if options.intrinsics is not None:
        scan.depth_intrinsics = read_intrinsics(options.intrinsics)
    if options.depth_scale is not None:
        scan.depth_scale = options.depth_scale
    return _scan_recording("sens", scan, path.stem, options)


def _scan_recording(kind: str, scan: SensScan | ExportedScan, name: str, options: ReadOptions) -> Recording:
    numbers = scan.numbers()
    if not numbers:
        raise DataFileError(scan.path, "has no frame")

    def read(index: int) -> RGBDFrame:
        number = numbers[index]
        frame_id = f"{name}_{number}"
        try:
            return scan_frame(scan, number, frame_id, options.upright(scan.pose(number)), scan.depth(number))
        except DataFileError:
            raise
        except ValueError as error:
            raise _at(error, frame_id) from error

    ids, images = ([f"{start}{number}" for number in numbers] for start in (f"{name}_", "color/"))
    return Recording(kind, scan.path, ids, True, read, images=images)


def _at(error: ValueError, frame_id: str) -> ValueError:
    """The error with the name of the frame in front, where it has none."""
    text = str(error)
    return ValueError(text if text.startswith(frame_id) else f"{frame_id}: {text}")


def open_color_depth(folder: Path, options: ReadOptions) -> Recording:
    """Folders of colour and depth images, with or without poses.

    Images and poses of one frame have the same name, or there are equally many of each. Integer depth is in
    millimetres, as ScanNet, Redwood and Open3D write it.
    """
    is_scan = all((folder / "intrinsic" / f"intrinsic_{kind}.txt").is_file() for kind in ("color", "depth"))
    if is_scan and options.intrinsics is None and subfolder(folder, ("pose",)) and (folder / "color").is_dir():
        scan = ExportedScan(folder)
        if options.depth_scale is not None:
            scan.depth_scale = options.depth_scale
        return _scan_recording("ScanNet export", scan, folder.name, options)
    colors, depths = _pairs(folder)
    camera = options.camera([folder / name for name in INTRINSICS], folder)
    poses, up = _poses(folder, list(depths), options)
    names = list(depths)

    def read(index: int) -> RGBDFrame:
        name = names[index]
        pose = None if poses is None else options.upright(poses(index), up)
        depth = read_depth(depths[name], options.depth_scale, integer_scale=EXPORTED_DEPTH_SCALE)
        return RGBDFrame(
            read_color(colors[name]),
            depth,
            camera.of_depth(depth.shape),
            pose,
            frame_id=f"{folder.name}_{name}",
        )

    kind = "color and depth folders" if up == "z" else "trajectory"
    ids = [f"{folder.name}_{name}" for name in names]
    images = [_without_ending(colors[name].relative_to(folder)) for name in names]
    return Recording(kind, folder, ids, poses is not None, read, images=images)


def _pairs(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Colour and depth files by one name each, in order.

    Raises:
        DataFileError: They are not of the same names, nor equally many.
    """
    color_folder, depth_folder = subfolder(folder, COLOR_FOLDERS), subfolder(folder, DEPTH_FOLDERS)
    if color_folder is None or depth_folder is None:
        raise DataFileError(folder, f"expected folders {' or '.join(COLOR_FOLDERS)}, and {' or '.join(DEPTH_FOLDERS)}")
    colors, depths = image_files(color_folder), image_files(depth_folder)
    common = [name for name in depths if name in colors]
    if common:
        # An exported scan may have every colour image but only some depth images, or the other way round.
        return colors, {name: depths[name] for name in common}
    if len(colors) != len(depths):
        raise DataFileError(
            folder,
            f"has {len(colors)} colour images and {len(depths)} depth images of other names ({next(iter(colors))}, "
            f"{next(iter(depths))}); expected the same names, or equally many",
        )
    return dict(zip(depths, colors.values(), strict=True)), depths


def _poses(folder: Path, names: list[str], options: ReadOptions):
    """A function from the place of a frame to its pose, and the axis that is up; None without poses."""
    pose_folder = subfolder(folder, POSE_FOLDERS)
    if pose_folder is not None:

        def from_folder(index: int) -> np.ndarray:
            for suffix in (".txt", ".npy", ".json"):
                path = pose_folder / f"{names[index]}{suffix}"
                if path.is_file():
                    return read_pose(path)
            raise DataFileError(pose_folder, f"has no pose of frame {names[index]} (.txt, .npy or .json)")

        return from_folder, "z"
    path = next((folder / name for name in TRAJECTORIES if (folder / name).is_file()), None)
    if path is None:
        return None, "z"
    trajectory = read_trajectory_log(path)
    if len(trajectory) == len(names):
        ordered = list(trajectory.values())
        return ordered.__getitem__, "-y"

    def from_log(index: int) -> np.ndarray:
        if index not in trajectory:
            raise DataFileError(path, f"has no pose of frame {index} ({names[index]}); it has {len(trajectory)} poses")
        return trajectory[index]

    return from_log, "-y"


def read_trajectory_log(path: Path) -> dict[int, np.ndarray]:
    """Poses of a `trajectory.log` of Redwood or Open3D: for each a line of three numbers and four of a matrix.

    Returns:
        Camera to world, float64 [4, 4], by the first of the three numbers; by their order where those are not all
        different.

    Raises:
        DataFileError: The file is missing or is none.
    """
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines or len(lines) % 5:
        raise DataFileError(path, f"has {len(lines)} lines; expected five for each pose")
    numbers, poses = [], []
    for start in range(0, len(lines), 5):
        place = f"{path} (line {start + 1})"
        numbers.append(int(parse_floats(lines[start], (3,), place)[0]))
        poses.append(parse_floats("\n".join(lines[start + 1 : start + 5]), (4, 4), place))
    keys = numbers if len(set(numbers)) == len(numbers) else range(len(poses))
    return dict(zip(keys, poses, strict=True))


def is_frame_folder(folder: Path) -> bool:
    """Whether a folder holds the files of one frame."""
    return _one_of(folder, FRAME_COLORS) is not None and _one_of(folder, FRAME_DEPTHS) is not None


def _one_of(folder: Path, stems: tuple[str, ...]) -> Path | None:
    names = (folder / f"{stem}{suffix}" for stem in stems for suffix in (".png", ".jpg", ".jpeg", ".npy", ".npz"))
    return next((path for path in names if path.is_file()), None)


def open_frame_folders(folder: Path, options: ReadOptions) -> Recording:
    """A folder for each frame: `colour.png`, `depth.png`, `intrinsics.json` (with `depth_scale`), and where there are
    a pose, `instance.png` and `semantic.png`.
    """
    folders = sorted(
        (path for path in folder.iterdir() if path.is_dir() and is_frame_folder(path)),
        key=lambda path: natural_order(path.name),
    )
    colors, depths = (
        [path for path in (_one_of(place, stems) for place in folders) if path is not None]
        for stems in (FRAME_COLORS, FRAME_DEPTHS)
    )
    posed = all(_pose_file(path) is not None for path in folders)

    def read(index: int) -> RGBDFrame:
        place = folders[index]
        camera = options.camera([place / "intrinsics.json", place / "intrinsics.txt"], place)
        scale = options.depth_scale
        if scale is None and (place / "intrinsics.json").is_file():
            content = read_json(place / "intrinsics.json")
            scale = content.get("depth_scale") if isinstance(content, dict) else None
        pose = _pose_file(place)
        depth = read_depth(depths[index], scale)
        frame = RGBDFrame(
            read_color(colors[index]),
            depth,
            camera.of_depth(depth.shape),
            None if pose is None else options.upright(read_pose(pose)),
            frame_id=f"{folder.name}_{place.name}",
        )
        for name in ("instance", "semantic"):
            if (place / f"{name}.png").is_file():
                setattr(frame, name, read_label_map(place / f"{name}.png", frame.depth.shape))
        return frame

    ids = [f"{folder.name}_{place.name}" for place in folders]
    images = [_without_ending(path.relative_to(folder)) for path in colors]
    return Recording("a folder for each frame", folder, ids, posed, read, images=images)


def _without_ending(path: Path) -> str:
    return path.with_suffix("").as_posix()


def _pose_file(folder: Path) -> Path | None:
    return next((folder / name for name in FRAME_POSES if (folder / name).is_file()), None)
