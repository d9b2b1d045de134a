"""A scan's frames, from its `.sens` file or from exported folders; and its 2D label images."""

import zipfile
from pathlib import Path

import numpy as np

from ...io.files import (
    DataFileError,
    parse_floats,
    read_bytes,
    read_text,
)
from ...io.images import decode_image
from ..frames import RGBDFrame, depth_in_metres, scale_intrinsics
from .annotations import read_scan_info
from .registration import register_color, resize_nearest
from .sens import SensFile


# SensReader exports depth as 16-bit PNG in millimetres, whatever the unit in the `.sens`.
EXPORTED_DEPTH_SCALE = 1000.0
# A member of an archive that unpacks to more is no image of a frame.
MAX_IMAGE_BYTES = 2**26


class SensScan:
    """The frames of a `.sens` file. A context manager; frames are numbered by their place in the stream.

    Attributes: `path` of the file or folder; `depth_intrinsics` float64 [3, 3] of the depth image, pixel centres at
    integers; `depth_scale`, units per metre.

    Args:
        path: The file.
        assume_registered: Take colour as registered to depth although the file's extrinsics say otherwise.

    Raises:
        DataFileError: The file is missing or damaged, or its colour is not registered to its depth.
    """

    def __init__(self, path: str | Path, *, assume_registered: bool = False):
        self.path = Path(path)
        self._sens = SensFile(path)
        try:
            self.depth_scale = self._sens.depth_scale
            self.depth_intrinsics = _checked_intrinsics(self._sens.depth_intrinsics, path)
            self._color_intrinsics = _checked_intrinsics(self._sens.color_intrinsics, path)
            offset = np.abs(self._sens.color_extrinsics - self._sens.depth_extrinsics).max()
            # NaN must fail too.
            if not (offset < 1e-3 or assume_registered):
                raise DataFileError(
                    path,
                    "has different extrinsics for colour and depth; expected colour registered to depth. Where it is "
                    "registered nevertheless, say so by assume_registered",
                )
        except DataFileError:
            self._sens.close()
            raise

    def __enter__(self) -> "SensScan":
        return self

    def __exit__(self, *_exception: object):
        self._sens.close()

    def numbers(self) -> list[int]:
        """Numbers of the frames, ascending."""
        return list(range(len(self._sens)))

    def pose(self, number: int) -> np.ndarray:
        """Camera to world, float64 [4, 4]; not finite where it is unknown."""
        return self._sens.frames[number].camera_to_world

    def depth(self, number: int) -> np.ndarray:
        """Integers [H, W], `depth_scale` units per metre."""
        return self._sens.read_depth(number)

    def color(self, number: int) -> np.ndarray:
        """uint8 [H, W, 3] RGB."""
        return self._sens.read_color(number)

    def color_intrinsics(self, _size: tuple[int, int]) -> np.ndarray | None:
        """float64 [3, 3] of colour (or label) images of a size (width, height)."""
        return self._color_intrinsics


class ExportedScan:
    """The frames of folders `color/ depth/ pose/ intrinsic/`, as SensReader exports them. A context manager.

    Attributes: see `SensScan`.

    Args:
        folder: The folder that holds them. Colour images may have been resized; their original size is then taken
            from `<folder name>.txt`.

    Raises:
        DataFileError: A folder or the intrinsics are missing or damaged.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        self._files = {kind: _numbered_files(self.path / kind) for kind in ("color", "depth", "pose")}
        self.depth_intrinsics, self.depth_scale = self._intrinsics("depth"), EXPORTED_DEPTH_SCALE
        self._color_intrinsics = self._intrinsics("color")

    def __enter__(self) -> "ExportedScan":
        return self

    def __exit__(self, *_exception: object):
        pass

    def numbers(self) -> list[int]:
        """Numbers of the frames that have a depth image, ascending."""
        return sorted(self._files["depth"])

    def pose(self, number: int) -> np.ndarray:
        """Camera to world, float64 [4, 4]; not finite where it is unknown."""
        path = self._file("pose", number)
        return parse_floats(read_text(path), (4, 4), path)

    def depth(self, number: int) -> np.ndarray:
        """Integers [H, W], `depth_scale` units per metre."""
        path = self._file("depth", number)
        return decode_image(read_bytes(path), path, integer=True)

    def color(self, number: int) -> np.ndarray:
        """uint8 [H, W, 3] RGB."""
        path = self._file("color", number)
        return decode_image(read_bytes(path), path)

    def color_intrinsics(self, size: tuple[int, int]) -> np.ndarray | None:
        """float64 [3, 3] of colour (or label) images of a size (width, height).

        None where images were resized on export and their original size is unknown: they are registered by a resize.
        """
        info_path = self.path / f"{self.path.name}.txt"
        if not info_path.is_file():
            # An export keeps the camera's size unless told otherwise, and the principal point is near the centre.
            centred = np.abs(self._color_intrinsics[:2, 2] / np.array(size) - 0.5).max() < 0.1
            return self._color_intrinsics if centred else None
        info = read_scan_info(info_path)
        original = parse_floats(f"{info.get('colorWidth')} {info.get('colorHeight')}", (2,), info_path)
        if not (np.isfinite(original).all() and (original > 0).all()):
            raise DataFileError(info_path, f"has a colour image of {original.tolist()}")
        return scale_intrinsics(self._color_intrinsics, *(np.array(size) / original))

    def _file(self, kind: str, number: int) -> Path:
        if number not in self._files[kind]:
            raise DataFileError(self.path / kind, f"has no frame {number}")
        return self._files[kind][number]

    def _intrinsics(self, kind: str) -> np.ndarray:
        # The second name is that of ScanNet's "frames 25k" download.
        candidates = [
            self.path / "intrinsic" / f"intrinsic_{kind}.txt",
            self.path / f"intrinsics_{kind}.txt",
        ]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise DataFileError(
                candidates[0],
                "no such file; export it with SensReader (--export_intrinsics). The values in the scan's .txt are of "
                "the sensor before its depth was registered to colour, so they are not used instead",
            )
        return _checked_intrinsics(parse_floats(read_text(path), (4, 4), path)[:3, :3], path)


def open_scan(folder: str | Path, *, assume_registered: bool = False) -> SensScan | ExportedScan:
    """A scan's frames: from `<name>/<name>.sens`, else from exported folders.

    Raises:
        DataFileError: There is neither, or what there is is damaged.
    """
    folder = Path(folder)
    sens = folder / f"{folder.name}.sens"
    if sens.is_file():
        return SensScan(sens, assume_registered=assume_registered)
    if (folder / "depth").is_dir():
        return ExportedScan(folder)
    if not folder.is_dir():
        raise DataFileError(folder, "no such folder")
    raise DataFileError(folder, f"has neither {sens.name} nor the folders color, depth, pose, intrinsic")


def scan_frame(
    scan: SensScan | ExportedScan,
    number: int,
    frame_id: str,
    pose: np.ndarray,
    depth: np.ndarray,
    size: tuple[int, int] | None = None,
) -> RGBDFrame:
    """A frame of a scan, its colour brought onto the grid of the depth image.

    Args:
        scan: The scan.
        number: Of the frame.
        frame_id: Name of the frame.
        pose: Of the frame, [4, 4].
        depth: Of the frame, as the scan gives it.
        size: (width, height) of the frame; None = of the depth image.

    Raises:
        DataFileError: The colour image is missing or damaged.
        ValueError: The frame is malformed, or `size` has another aspect.
    """
    own_size = (depth.shape[1], depth.shape[0])
    size = size or own_size
    if abs(size[0] * own_size[1] - own_size[0] * size[1]) > max(*size, *own_size):
        raise ValueError(f"depth is {own_size} while image_size is {size}; expected the same aspect")
    # Every depth camera of ScanNet has its principal point near the middle.
    center = (scan.depth_intrinsics[:2, 2] + 0.5) / np.array(own_size)
    if np.abs(center - 0.5).max() > 0.1:
        raise ValueError(
            f"depth is {own_size} (width, height), its intrinsics are of an image of about "
            f"{tuple(np.rint(2 * scan.depth_intrinsics[:2, 2] + 1).astype(int).tolist())}: resized on export? Then "
            "scale intrinsic_depth.txt as well"
        )
    intrinsics = scale_intrinsics(scan.depth_intrinsics, size[0] / own_size[0], size[1] / own_size[1])
    color = scan.color(number)
    color_intrinsics = scan.color_intrinsics((color.shape[1], color.shape[0]))
    return RGBDFrame(
        image=register_color(color, color_intrinsics, intrinsics, size),
        depth=depth_in_metres(resize_nearest(depth, size), scan.depth_scale, frame_id),
        intrinsics=intrinsics,
        camera_to_world=pose,
        frame_id=frame_id,
    )


class LabelImages:
    """A scan's filtered 2D label images, from its zip archives or from unpacked folders.

    Args:
        folder: The scan's folder, with `<scan>_2d-label-filt.zip` and `<scan>_2d-instance-filt.zip`, or the folders
            `label-filt` and `instance-filt`.

    Raises:
        DataFileError: They are missing or damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        missing = [kind for kind in ("label-filt", "instance-filt") if not self._places(self.folder, kind)]
        if missing:
            raise DataFileError(self.folder, f"has no 2D images {' and '.join(missing)}, as a folder or a zip archive")

    @classmethod
    def exist(cls, folder: str | Path) -> bool:
        """Whether a scan has them."""
        return all(cls._places(Path(folder), kind) for kind in ("label-filt", "instance-filt"))

    @staticmethod
    def _places(folder: Path, kind: str) -> list[Path]:
        candidates = [folder / kind, folder / f"{folder.name}_2d-{kind}.zip"]
        return [path for path in candidates if path.exists()]

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels of a frame, in the size of its colour image.

        Returns:
            `instance` int32 [H, W], `objectId` plus one, and `raw_ids` int32 [H, W], the raw category id; 0 = none.

        Raises:
            DataFileError: An image is missing or damaged, or the two differ in size.
        """
        raw_ids = self._read("label-filt", number)
        return self._read("instance-filt", number, size=(raw_ids.shape[1], raw_ids.shape[0])), raw_ids

    def _read(self, kind: str, number: int, size: tuple[int, int] | None = None) -> np.ndarray:
        place = self._places(self.folder, kind)[0]
        name = f"{kind}/{number}.png"
        if place.is_dir():
            path = place / f"{number}.png"
            return decode_image(read_bytes(path), path, integer=True, size=size)
        try:
            with zipfile.ZipFile(place) as archive, archive.open(name) as member:
                data = member.read(MAX_IMAGE_BYTES)
        except KeyError as error:
            raise DataFileError(place, f"has no member {name}") from error
        # A damaged archive fails in zipfile, zlib, struct or the file system.
        except Exception as error:
            raise DataFileError(place, f"cannot be unpacked ({type(error).__name__}: {error})") from error
        return decode_image(data, f"{place} ({name})", integer=True, size=size)


def _checked_intrinsics(matrix: np.ndarray, path: str | Path) -> np.ndarray:
    if not (np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise DataFileError(path, f"has the intrinsics {matrix.tolist()}; expected finite, positive focal lengths")
    return matrix


def _numbered_files(folder: Path) -> dict[int, Path]:
    """Files of a folder by the number that their name is ("0.jpg", "000020.png")."""
    if not folder.is_dir():
        raise DataFileError(folder, "no such folder")
    return {int(path.stem): path for path in folder.iterdir() if path.stem.isascii() and path.stem.isdigit()}
