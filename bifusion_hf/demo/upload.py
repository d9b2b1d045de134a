"""From what a visitor of the demo page enters to a frame."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.camera_files import Camera, read_camera
from ..data.frame_files import read_depth, read_pose
from ..data.frames import RGBDFrame
from ..io.images import read_color
from ..visualization.cameras import CAMERA_PRESETS, nominal_intrinsics


def read_upload(
    image: np.ndarray | str | None, depth: str | None, depth_scale: float | None, intrinsics: str, pose: str | None
) -> RGBDFrame:
    """The frame of the form.

    Args:
        image: uint8 [H, W, 3] RGB, or a file for `read_color`.
        depth: File for `read_depth`.
        depth_scale: Units per metre; None = the file is in metres.
        intrinsics: See `parse_camera`.
        pose: File for `read_pose`, or None.

    Returns:
        The frame, named after the depth file.

    Raises:
        ValueError: Something is missing or malformed; files are named without their folder.
        OSError: A file cannot be read.
    """
    given = {"the colour image": image is not None, "the depth image": depth, "its intrinsics": intrinsics.strip()}
    missing = [name for name, there in given.items() if not there]
    if missing:
        raise ValueError(f"Missing: {', '.join(missing)}. A frame needs colour, depth and the depth's intrinsics.")
    try:
        colors = read_color(image) if isinstance(image, str) else image
        meters = read_depth(depth, depth_scale)
        camera_to_world = None if pose is None else read_pose(pose)
    except (ValueError, OSError) as error:
        files = [path for path in (image, depth, pose) if isinstance(path, str)]
        raise ValueError(_with_file_names(str(error), *files)) from error
    camera = parse_camera(intrinsics).of_depth(meters.shape)
    return RGBDFrame(colors, meters, camera, camera_to_world, frame_id=Path(depth).stem)


def parse_camera(text: str) -> Camera:
    """Intrinsics from fx, fy, cx, cy, from nine numbers row by row, or from pasted JSON.

    Raises:
        ValueError: None of these; see `read_camera`.
    """
    text = text.strip()
    if not text.startswith(("{", "[")):
        try:
            numbers = [float(word) for word in text.replace(",", " ").split()]
        except ValueError:
            raise ValueError(f"intrinsics are {text!r}; expected the numbers fx fy cx cy, or JSON") from None
        return Camera(np.reshape(numbers, (3, 3))) if len(numbers) == 9 else read_camera(numbers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "intrinsics.json"
        path.write_text(text, encoding="utf-8")
        try:
            return replace(read_camera(path), source="intrinsics")
        except ValueError as error:
            raise ValueError(_with_file_names(str(error), str(path))) from error


def camera_text(path: str) -> str:
    """What the form shows of an intrinsics file: its numbers, with the size of the image where the file names it.

    Raises:
        ValueError: See `read_camera`; the message does not mention the file's folder.
    """
    try:
        camera = read_camera(path)
    except (ValueError, OSError) as error:
        raise ValueError(_with_file_names(str(error), path)) from error
    if camera.size is None:
        return intrinsics_text(camera.intrinsics)
    names = dict(zip(("fx", "fy", "cx", "cy"), map(float, intrinsics_text(camera.intrinsics).split()), strict=True))
    return json.dumps({**names, "width": camera.size[0], "height": camera.size[1]})


def intrinsics_text(matrix: np.ndarray) -> str:
    """fx fy cx cy of intrinsics [3, 3], as the form shows them."""
    return " ".join(f"{matrix[row, column]:.2f}" for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))


def camera_fields(camera: str, depth: str | None) -> tuple[float, str]:
    """Depth scale and intrinsics (text) of a camera by its name, for the size of the depth image.

    Args:
        camera: Key of `CAMERA_PRESETS`.
        depth: The depth file; without one the intrinsics stay empty.

    Raises:
        ValueError: The file is no depth image, or of an aspect that the camera does not give.
    """
    scale = CAMERA_PRESETS[camera].depth_scale
    if depth is None:
        return scale, ""
    try:
        height, width = read_depth(depth, scale).shape
    except (ValueError, OSError) as error:
        raise ValueError(_with_file_names(str(error), depth)) from error
    return scale, intrinsics_text(nominal_intrinsics(camera, width, height))


def _with_file_names(message: str, *paths: str) -> str:
    """A message that names files without the folders that uploads lie in."""
    for path in paths:
        message = message.replace(path, Path(path).name)
    return message
