"""Recordings of the app Record3D: a `.r3d` file, which is a zip archive.

`metadata` is JSON: `h`, `w` of the colour images, `dh`, `dw` of depth, `K` (column by column) of the colour images or
`perFrameIntrinsicCoeffs` (fx, fy, cx, cy of each frame), `poses` and `initPose` (qx, qy, qz, qw, tx, ty, tz). Poses
are camera to world, relative to the first one, which `initPose` places; axes are those of OpenGL (camera x right, y
up, z backward; world y up). `rgbd/N.jpg` and `rgbd/N.depth`, float32 metres compressed by LZFSE. Sources: the app's
author in issues 7, 24, 27, 33, 83 and 93 of its repository.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ...import_utils import require_package
from ...io.files import DataFileError
from ...io.images import decode_image
from ..camera_files import as_matrix, read_camera, read_intrinsics
from ..frames import RGBDFrame, depth_in_metres, scale_intrinsics
from .base import OPENGL_CAMERA, ReadOptions, Recording, quaternion_pose


# More than a frame's member can hold: 4096 x 4096 of float32.
MAX_MEMBER_BYTES = 2**26
# Pixels; far more than any phone has.
MAX_SIDE = 2**16
# Depth sizes (height, width) of the apps that did not write them: front camera and LiDAR.
KNOWN_SIZES = ((640, 480), (480, 640), (256, 192), (192, 256))


class _Archive:
    def __init__(self, path: Path):
        self.path = path

    def read(self, name: str) -> bytes:
        """Content of a member.

        Raises:
            DataFileError: It is missing, damaged or too large.
        """
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(name) as member:
                data = member.read(MAX_MEMBER_BYTES + 1)
        except KeyError as error:
            raise DataFileError(self.path, f"has no member {name}") from error
        # A damaged archive fails in zipfile, zlib, struct or the file system.
        except Exception as error:
            raise DataFileError(self.path, f"{name} cannot be unpacked ({type(error).__name__}: {error})") from error
        if len(data) > MAX_MEMBER_BYTES:
            raise DataFileError(self.path, f"{name} unpacks to more than {MAX_MEMBER_BYTES} bytes")
        return data


def open_r3d(path: Path, options: ReadOptions) -> Recording:
    """The frames of a `.r3d` file.

    Raises:
        DataFileError: It is damaged, or its metadata lack something.
        ImportError: The package lzfse is missing.
    """
    lzfse = require_package("lzfse")
    archive = _Archive(path)
    try:
        metadata = json.loads(archive.read("metadata"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataFileError(path, f"metadata is not JSON ({error})") from error
    size = _pixels(metadata, ("w", "h"), path)
    poses = _entry(metadata, "poses", path)
    if not isinstance(poses, list):
        raise DataFileError(path, f"metadata has poses {poses!r:.40}; expected a list, one for each frame")
    start = quaternion_pose(metadata.get("initPose", (0, 0, 0, 1, 0, 0, 0)), f"{path} (initPose)")

    def read(index: int) -> RGBDFrame:
        place = f"{path} (rgbd/{index}"
        image = decode_image(archive.read(f"rgbd/{index}.jpg"), f"{place}.jpg)")
        try:
            data = lzfse.decompress(archive.read(f"rgbd/{index}.depth"))
        # A damaged stream asks for an ever larger buffer, until there is none.
        except (lzfse.error, MemoryError) as error:
            raise DataFileError(f"{place}.depth)", f"cannot be decompressed ({error})") from error
        depth = np.frombuffer(data, dtype="<f4") if len(data) % 4 == 0 else np.zeros(0)
        height, width = _depth_size(metadata, depth.size, image.shape, f"{place}.depth)")
        camera = scale_intrinsics(_camera(metadata, index, path, options), width / size[0], height / size[1])
        if options.intrinsics is not None:
            camera = read_camera(options.intrinsics).of_depth((height, width))
        pose = start @ quaternion_pose(poses[index], f"{path} (pose {index})")
        pose[:3, :3] = pose[:3, :3] @ OPENGL_CAMERA
        return RGBDFrame(
            image,
            depth_in_metres(depth.reshape(height, width), options.depth_scale, f"{place}.depth)"),
            camera,
            options.upright(pose, "y"),
            frame_id=f"{path.stem}_{index}",
        )

    ids, images = ([f"{start}{index}" for index in range(len(poses))] for start in (f"{path.stem}_", "rgbd/"))
    return Recording("Record3D", path, ids, True, read, images=images)


def _entry(metadata: Any, name: str, path: Path | str) -> Any:
    if not isinstance(metadata, dict) or name not in metadata:
        raise DataFileError(path, f"metadata has no {name}")
    return metadata[name]


def _pixels(metadata: Any, names: tuple[str, str], path: Path | str) -> tuple[float, ...]:
    size = tuple(_entry(metadata, name, path) for name in names)
    if not all(isinstance(side, int | float) and 0 < side < MAX_SIDE for side in size):
        found = " and ".join(f"{name} {side!r}" for name, side in zip(names, size, strict=True))
        raise DataFileError(path, f"metadata has {found}; expected pixels")
    return size


def _camera(metadata: dict[str, Any], index: int, path: Path, options: ReadOptions) -> np.ndarray:
    """Intrinsics [3, 3] of the colour image of a frame."""
    each = metadata.get("perFrameIntrinsicCoeffs")
    if isinstance(each, list) and index < len(each) and isinstance(each[index], list) and len(each[index]) >= 4:
        return read_intrinsics(each[index][:4])
    values = as_matrix(_entry(metadata, "K", path), f"{path} (K)")
    if values.size != 9:
        raise DataFileError(path, f"metadata has {values.size} numbers as K; expected 9")
    return values.reshape(3, 3).T


def _depth_size(metadata: dict[str, Any], count: int, image_shape: tuple[int, ...], place: str) -> tuple[int, int]:
    """Height and width of a depth image."""
    if "dh" in metadata and "dw" in metadata:
        height, width = map(int, _pixels(metadata, ("dh", "dw"), place))
        sizes = [(height, width)]
    else:
        # The apps that did not write a size had two, upright or lying as the colour image is.
        upright = image_shape[0] > image_shape[1]
        sizes = [(image_shape[0], image_shape[1]), *(size for size in KNOWN_SIZES if (size[0] > size[1]) == upright)]
    for height, width in sizes:
        if height * width == count:
            return height, width
    raise DataFileError(place, f"has {count} values; expected one of {sizes} (height, width)")
