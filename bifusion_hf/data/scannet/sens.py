"""Reader of ScanNet's `.sens` files: the RGB-D stream of a scan.

Format, version 4, little endian (ScanNet's SensReader): header with the sensor's name, both cameras' matrices,
compression types and image sizes; then per frame the pose, two time stamps, two sizes and the two compressed images;
then inertial measurements, which are not read here. Frames have no fixed length, so their places are found once, by a
walk over the sizes; images are read and decompressed when they are asked for.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...io.files import DataFileError
from ...io.images import decode_image


VERSION = 4
COLOR_COMPRESSION = {0: "raw", 1: "png", 2: "jpeg"}
DEPTH_COMPRESSION = {0: "raw_ushort", 1: "zlib_ushort"}
MAX_NAME_BYTES = 4096
MAX_IMAGE_SIDE = 16384

_CAMERAS = struct.Struct("<64f")
_IMAGES = struct.Struct("<iiIIIIfQ")
_FRAME = struct.Struct("<16fQQQQ")


@dataclass(frozen=True)
class SensFrame:
    """What a frame says of itself beside its images.

    Args:
        camera_to_world: float64 [4, 4]; not finite where the reconstruction lost the camera.
        color_timestamp: By convention microseconds; `depth_timestamp` likewise.
        depth_timestamp: See `color_timestamp`.
        color_bytes: Length of the compressed colour image; `depth_bytes` of the depth image.
        depth_bytes: See `color_bytes`.
        offset: Place of the colour image in the file; the depth image follows it.
    """

    camera_to_world: np.ndarray
    color_timestamp: int
    depth_timestamp: int
    color_bytes: int
    depth_bytes: int
    offset: int


class SensFile:
    """A `.sens` file, open for reading. A context manager.

    Attributes: `sensor_name`; `color_intrinsics`, `depth_intrinsics` float64 [3, 3] of the images' own sizes;
    `color_extrinsics`, `depth_extrinsics` float64 [4, 4] to the common base frame; `color_size`, `depth_size`
    (width, height); `color_compression`, `depth_compression`; `depth_scale`, units per metre; `frames`.

    Args:
        path: The file.

    Raises:
        DataFileError: The file is missing, damaged, of another version, or compressed by a method that is not
            published (`occi_ushort`).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._file: BinaryIO = self.path.open("rb")
            self._length = self.path.stat().st_size
        except OSError as error:
            raise DataFileError(path, error.strerror or str(error)) from error
        try:
            self._read_header()
            self.frames = self._find_frames()
        except DataFileError:
            self.close()
            raise

    def __enter__(self) -> "SensFile":
        return self

    def __exit__(self, *_exception: object):
        self.close()

    def close(self):
        """Closes the file."""
        self._file.close()

    def __len__(self) -> int:
        return len(self.frames)

    def read_color(self, index: int) -> np.ndarray:
        """Colour image of a frame, uint8 [H, W, 3] RGB.

        Raises:
            DataFileError: It cannot be decompressed.
        """
        frame = self.frames[index]
        data = self._read_at(frame.offset, frame.color_bytes, f"colour of frame {index}")
        if self.color_compression != "raw":
            return decode_image(data, f"{self.path} (colour of frame {index})", size=self.color_size)
        width, height = self.color_size
        if len(data) != width * height * 3:
            raise self._error(f"colour of frame {index} has {len(data)} bytes; expected {width * height * 3}")
        return np.frombuffer(data, np.uint8).reshape(height, width, 3).copy()

    def read_depth(self, index: int) -> np.ndarray:
        """Depth image of a frame, uint16 [H, W], `depth_scale` units per metre, 0 = no measurement.

        Raises:
            DataFileError: It cannot be decompressed.
        """
        frame = self.frames[index]
        data = self._read_at(frame.offset + frame.color_bytes, frame.depth_bytes, f"depth of frame {index}")
        width, height = self.depth_size
        expected = width * height * 2
        if self.depth_compression == "zlib_ushort":
            try:
                # The bound keeps a damaged stream from growing without end.
                data = zlib.decompressobj().decompress(data, expected + 1)
            except zlib.error as error:
                raise self._error(f"depth of frame {index} cannot be decompressed ({error})") from error
        if len(data) != expected:
            raise self._error(f"depth of frame {index} has {len(data)} bytes; expected {expected}")
        return np.frombuffer(data, "<u2").reshape(height, width).astype(np.uint16)

    def _error(self, problem: str) -> DataFileError:
        return DataFileError(self.path, problem)

    def _read_at(self, offset: int, count: int, what: str) -> bytes:
        if offset + count > self._length:
            raise self._error(f"{what} ends at byte {offset + count}, the file at {self._length}: it is cut short")
        self._file.seek(offset)
        data = self._file.read(count)
        if len(data) != count:
            raise self._error(f"{what}: {len(data)} of {count} bytes could be read")
        return data

    def _read_header(self):
        version, name_bytes = struct.unpack("<IQ", self._read_at(0, 12, "header"))
        if version != VERSION:
            raise self._error(f"has version {version}; expected a .sens file of version {VERSION}")
        if name_bytes > MAX_NAME_BYTES:
            raise self._error(f"claims a sensor name of {name_bytes} bytes")
        self.sensor_name = self._read_at(12, name_bytes, "header").decode("utf-8", "replace")
        place = 12 + name_bytes
        matrices = _CAMERAS.unpack(self._read_at(place, _CAMERAS.size, "header"))
        # The file has color intrinsics, color extrinsics, depth intrinsics, depth extrinsics, 4x4 each.
        color, self.color_extrinsics, depth, self.depth_extrinsics = np.array(matrices).reshape(4, 4, 4)
        self.color_intrinsics, self.depth_intrinsics = color[:3, :3], depth[:3, :3]
        place += _CAMERAS.size
        values = _IMAGES.unpack(self._read_at(place, _IMAGES.size, "header"))
        color_type, depth_type, *sizes, self.depth_scale, self._frame_count = values
        if color_type not in COLOR_COMPRESSION or depth_type not in DEPTH_COMPRESSION:
            raise self._error(
                f"has colour compression {color_type} and depth compression {depth_type}; "
                f"expected one of {COLOR_COMPRESSION} and one of {DEPTH_COMPRESSION}"
            )
        self.color_compression = COLOR_COMPRESSION[color_type]
        self.depth_compression = DEPTH_COMPRESSION[depth_type]
        if not all(0 < side <= MAX_IMAGE_SIDE for side in sizes):
            raise self._error(f"claims images of {sizes[0]}x{sizes[1]} and {sizes[2]}x{sizes[3]}")
        self.color_size, self.depth_size = (sizes[0], sizes[1]), (sizes[2], sizes[3])
        if not (np.isfinite(self.depth_scale) and self.depth_scale > 0):
            raise self._error(f"has a depth scale of {self.depth_scale} units per metre")
        self._first_frame = place + _IMAGES.size

    def _find_frames(self) -> list[SensFrame]:
        if self._frame_count > (self._length - self._first_frame) // _FRAME.size:
            raise self._error(
                f"claims {self._frame_count} frames, more than its {self._length} bytes hold: it is cut short"
            )
        frames = []
        place = self._first_frame
        for index in range(self._frame_count):
            *pose, color_time, depth_time, color_bytes, depth_bytes = _FRAME.unpack(
                self._read_at(place, _FRAME.size, f"frame {index} of {self._frame_count}")
            )
            place += _FRAME.size
            end = place + color_bytes + depth_bytes
            if end > self._length:
                raise self._error(
                    f"frame {index} of {self._frame_count} ends at byte {end}, the file at {self._length}: "
                    "it is cut short"
                )
            frames.append(
                SensFrame(np.array(pose).reshape(4, 4), color_time, depth_time, color_bytes, depth_bytes, place)
            )
            place = end
        return frames
