"""Intrinsics as cameras and tools write them: numbers, JSON and YAML, with the size of the image that they are of."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..io.files import DataFileError


# Names of the four numbers, of a matrix row by row, of the image's size, and of distortion coefficients.
_NUMBERS = (("fx", "fl_x"), ("fy", "fl_y"), ("cx", "ppx"), ("cy", "ppy"))
_MATRICES = ("intrinsics", "k", "camera_matrix", "intrinsic_matrix")
_SIZES = (("width", "image_width", "w"), ("height", "image_height", "h"))
_DISTORTIONS = ("d", "distortion", "distortion_coefficients", "dist_coeffs", "dist", "coeffs")
_DISTORTION = re.compile(r"[kp]\d")
_EXPECTED = "fx, fy, cx, cy, or a 3x3 matrix as intrinsics, K, camera_matrix or intrinsic_matrix"


@dataclass(frozen=True, eq=False)
class Camera:
    """Intrinsics, and what their source says of the image.

    Args:
        intrinsics: float64 [3, 3].
        size: (width, height) of the image that they are of, where the source says.
        source: Name of the source, for messages.
    """

    intrinsics: np.ndarray
    size: tuple[int, int] | None = None
    source: str = "intrinsics"

    def of_depth(self, shape: Sequence[int]) -> np.ndarray:
        """The intrinsics, float64 [3, 3], of a depth image [H, W].

        Raises:
            ValueError: They are of an image of another size.
        """
        size = (int(shape[1]), int(shape[0]))
        if self.size not in (None, size):
            raise ValueError(
                f"{self.source}: is of images of {self.size[0]}x{self.size[1]}; the depth image is "
                f"{size[0]}x{size[1]}. Give the intrinsics of the depth image"
            )
        return self.intrinsics


def read_intrinsics(source: str | Path | Sequence[float] | Mapping[str, Any]) -> np.ndarray:
    """Intrinsics, float64 [3, 3]; see `read_camera`."""
    return read_camera(source).intrinsics


def read_camera(source: str | Path | Sequence[float] | Mapping[str, Any]) -> Camera:
    """Intrinsics from what users have.

    Args:
        source: fx, fy, cx, cy; a mapping; or a file of one. Mappings (JSON, YAML of ROS and OpenCV) have `fx`, `fy`,
            `cx`, `cy` (or `ppx`, `ppy`), or `intrinsics`, `K` or `camera_matrix` (3x3, or 9 numbers row by row), or
            `intrinsic_matrix` (9 numbers column by column, as Open3D writes), and perhaps `width` and `height`. Files
            may also hold the four numbers, or 9 or 16 in a line, or 3x3 or 4x4 in lines (as ScanNet exports), or be
            `.npy`.

    Raises:
        ValueError: None of these, or the lens distorts: such images have to be rectified first.
    """
    if isinstance(source, Mapping):
        return _camera_of_mapping(source, "intrinsics")
    if not isinstance(source, str | Path):
        values = np.asarray(source, dtype=np.float64)
        if values.shape != (4,):
            raise ValueError(f"intrinsics are {list(source)}; expected the four numbers fx fy cx cy")
        return Camera(_matrix_of_four(values))
    content = read_numbers(source)
    if isinstance(content, Mapping):
        return _camera_of_mapping(content, str(source))
    matrix = as_matrix(content, source)
    # A single line.
    if matrix.ndim < 2 or matrix.shape[0] == 1:
        if matrix.size == 4:
            return Camera(_matrix_of_four(matrix.ravel()), source=str(source))
        if matrix.size in (9, 16):
            matrix = matrix.reshape(3 if matrix.size == 9 else 4, -1)
    return Camera(_three_by_three(matrix, source), source=str(source))


def _matrix_of_four(values: Sequence[float]) -> np.ndarray:
    fx, fy, cx, cy = values
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def _camera_of_mapping(content: Mapping[str, Any], source: str) -> Camera:
    lower = {str(key).lower(): value for key, value in content.items()}
    _refuse_distortion(lower, source)
    sides = [next((lower[name] for name in names if lower.get(name) is not None), None) for names in _SIZES]
    size = None if None in sides else tuple(_side(side, source) for side in sides)
    found = [next((lower[name] for name in names if name in lower), None) for names in _NUMBERS]
    if None not in found:
        return Camera(_matrix_of_four([_number(value, source) for value in found]), size, source)
    for name in (name for name in _MATRICES if name in lower):
        if isinstance(lower[name], Mapping) and "data" not in lower[name]:
            inner = _camera_of_mapping(lower[name], source)
            return Camera(inner.intrinsics, inner.size or size, source)
        matrix = as_matrix(_listed(lower[name]), source)
        if matrix.ndim == 1 and matrix.size == 9:
            matrix = matrix.reshape(3, 3)
            matrix = matrix.T if name == "intrinsic_matrix" else matrix
        return Camera(_three_by_three(matrix, source), size, source)
    raise ValueError(f"{source}: has the keys {sorted(map(str, content))}; expected {_EXPECTED}")


def _listed(value: Any) -> Any:
    """The numbers of a matrix that ROS and OpenCV write as a mapping of rows, cols and data."""
    return value["data"] if isinstance(value, Mapping) and "data" in value else value


def _refuse_distortion(lower: Mapping[str, Any], source: str) -> None:
    values = {name: _listed(lower[name]) for name in lower if name in _DISTORTIONS or _DISTORTION.fullmatch(name)}
    for name, value in values.items():
        if value is None or isinstance(value, Mapping | str):
            continue
        if np.any(as_matrix(value, source)):
            raise ValueError(
                f"{source}: has the distortion coefficients {name} {value}; depth and colour of a lens that distorts "
                "have to be rectified first (cv2.undistort, image_proc), then give the intrinsics without them"
            )


def _three_by_three(matrix: np.ndarray, path: str | Path) -> np.ndarray:
    if matrix.shape not in ((3, 3), (4, 4)):
        raise ValueError(f"{path}: intrinsics have shape {matrix.shape}; expected 3x3 (or 4x4)")
    return matrix[:3, :3]


class _Loader(yaml.SafeLoader):
    """YAML with the matrices of OpenCV, and without aliases: a few lines of them unfold to any size."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases, which no camera writes")
        return super().compose_node(parent, index)


_Loader.add_constructor("tag:yaml.org,2002:opencv-matrix", _Loader.construct_yaml_map)


def read_numbers(source: str | Path) -> Any:
    """Content of a JSON, YAML, `.npy` or text file of numbers; rows of text become lists.

    Raises:
        ValueError: It is not what its name says.
        OSError: It cannot be read.
    """
    path = Path(source)
    if path.suffix == ".npy":
        return load_array(path)
    kind = {".json": "JSON", ".yaml": "YAML", ".yml": "YAML"}.get(path.suffix.lower(), "numbers")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if kind == "JSON":
            return json.loads(text)
        if kind == "YAML":
            # OpenCV writes a directive that YAML does not have; `rostopic echo` ends with an empty document.
            return next(iter(yaml.load_all(re.sub(r"^%YAML.*", "", text), _Loader)))
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        return [[float(word) for word in line.replace(",", " ").split()] for line in lines if line]
    except (ValueError, RecursionError, yaml.YAMLError, StopIteration) as error:
        raise ValueError(f"{path}: cannot be read as {kind}: {error}") from None


def load_array(path: str | Path, wanted: Sequence[str] = ()) -> np.ndarray:
    """The array of a `.npy` file, or the one of a `.npz` file.

    Args:
        path: The file.
        wanted: Names that are taken where there are several.

    Raises:
        DataFileError: It is damaged, or it is not clear which array is meant.
    """
    path = Path(path)
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            names = [name for name in wanted if name in content.files] or content.files
            if len(names) != 1:
                raise DataFileError(path, f"has the arrays {content.files}; expected one, or {' or '.join(wanted)}")
            values = content[names[0]]
            if not isinstance(values, np.ndarray):
                raise DataFileError(path, f"its {names[0]} is no array")
            return values
    except DataFileError:
        raise
    except OSError as error:
        raise DataFileError(path, error.strerror or str(error)) from error
    # A damaged array ends in errors of numpy, zipfile and zlib.
    except Exception as error:
        raise DataFileError(path, f"not a {path.suffix} array ({error})") from None


def as_matrix(values: Any, path: str | Path) -> np.ndarray:
    """Rows of numbers as float64.

    Raises:
        ValueError: They are none.
    """
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{path}: is no matrix of numbers (rows of different length, or something else)") from None


def _side(value: Any, path: str | Path) -> int:
    number = _number(value, path)
    if not np.isfinite(number):
        raise ValueError(f"{path}: {value!r} is no width or height of an image")
    return round(number)


def _number(value: Any, path: str | Path) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{path}: {value!r} is no number") from None
