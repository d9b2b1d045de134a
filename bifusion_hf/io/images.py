"""The one reader of pictures: colour as 8-bit RGB, depth and labels as the numbers that the file holds.

Pillow by itself changes values without a word: it stretches a PGM whose maximum is not that of its type, makes white
of 16-bit grey and black of floating-point grey, and leaves a turned photograph as the sensor had it. Here one rule
holds for all files: pictures are turned as their EXIF orientation says, as viewers show them; transparency is dropped;
palettes and CMYK become RGB; 16-bit and floating-point grey are scaled to 8 bits as a whole; what else there is, is
refused by name. What is drawn is written by `save_png`.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .atomic import new_file
from .files import DataFileError, read_bytes
from .sanity import tell_doubt


# More than any depth camera gives; an image whose header claims more is taken as damaged.
MAX_IMAGE_PIXELS = 2**26
# zlib's level for drawn pictures: a third of the time of Pillow's 6, a tenth more bytes.
PNG_LEVEL = 4
# Modes that Pillow brings to RGB without changing what they show.
_COLOR_MODES = ("RGB", "RGBX", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")
_GAP = rb"(?:\s|#[^\n]*\n)+"
_PGM = re.compile(rb"P([25])" + _GAP + rb"(\d+)" + _GAP + rb"(\d+)" + _GAP + rb"(\d+)\s")

Source = str | Path | bytes | Image.Image | Mapping[str, Any]


def read_color(source: Source, name: str | Path | None = None, *, formats: Sequence[str] | None = None) -> np.ndarray:
    """Colour, uint8 [H, W, 3] RGB.

    Args:
        source: A file, its content, a PIL image, or the undecoded value of a `datasets` Image column.
        name: Where it comes from, for messages; by default the file.
        formats: The only ones that are tried, as Pillow names them.

    Raises:
        DataFileError: It cannot be read, or holds no colours.
    """
    with _opened(source, name, formats) as (image, place):
        image = _turned(image, place)
        if image.mode in _COLOR_MODES:
            return np.array(image.convert("RGB"))
        if image.mode == "F":
            values = np.asarray(image, dtype=np.float64)
            if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
                found = f"{np.nanmin(values):g} to {np.nanmax(values):g}"
                raise DataFileError(place, f"has floating-point grey from {found}; expected colour from 0 to 1")
            return _grey(255 * values)
        if image.mode.startswith("I"):
            values = np.asarray(image).astype(np.int64)
            if values.min() < 0 or values.max() > 65535:
                found = f"{values.min()} to {values.max()}"
                raise DataFileError(place, f"has grey values from {found}; expected colour of 8 or 16 bits")
            if values.max() < 4096:
                tell_doubt("dark", str(place), f"16-bit grey that ends at {values.max()} of 65535 is almost black")
            return _grey(values / 257)
        raise DataFileError(place, f"has mode {image.mode}; expected colour or grey")


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.rint(values).astype(np.uint8)[..., None], 3, axis=2)


def read_values(
    source: Source,
    name: str | Path | None = None,
    *,
    palette: bool = False,
    formats: Sequence[str] | None = None,
) -> np.ndarray:
    """The numbers of a picture of one channel, [H, W] of the file's own type: depth, or labels.

    Args:
        source: See `read_color`.
        name: See `read_color`.
        palette: Take the indices of a palette for the numbers, as label images have them.
        formats: See `read_color`.

    Raises:
        DataFileError: It cannot be read, or has not one channel of numbers.
    """
    raw = None if formats else _read_pgm(source, name)
    if raw is not None:
        return raw
    with _opened(source, name, formats) as (image, place):
        if not (image.mode in ("L", "F") or image.mode.startswith("I") or (palette and image.mode in ("P", "1"))):
            raise DataFileError(
                place, f"has mode {image.mode}; expected one channel of numbers (not a coloured picture)"
            )
        values = np.array(_turned(image, place))
    values = values.astype(np.uint8) if values.dtype == bool else values
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def read_mask(source: Source, name: str | Path | None = None) -> np.ndarray:
    """Where a picture is not 0, bool [H, W]; of colours in any channel, whatever the transparency.

    Args:
        source: See `read_color`.
        name: See `read_color`.

    Raises:
        DataFileError: It cannot be read.
    """
    with _opened(source, name, None) as (image, place):
        image = _turned(image, place)
        if image.mode in ("1", "L", "P", "F") or image.mode.startswith("I"):
            return np.asarray(image) != 0
        return (np.asarray(image.convert("RGB")) != 0).any(axis=-1)


def decode_image(
    data: bytes, path: str | Path, *, integer: bool = False, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Pixels of a PNG or JPEG of a data set.

    Args:
        data: The encoded image.
        path: Where it comes from, for messages.
        integer: True for one channel of 8- or 16-bit integers (depth, labels), False for RGB.
        size: (width, height) that it must have.

    Returns:
        uint8 [H, W, 3] RGB, or int32 [H, W] with `integer`.

    Raises:
        DataFileError: It cannot be decoded, or has another kind or size.
    """
    read = read_values if integer else read_color
    pixels = read(data, path, formats=("PNG", "JPEG"))
    found = (pixels.shape[1], pixels.shape[0])
    if size is not None and found != size:
        raise DataFileError(path, f"image is {found}; expected {size} (width, height)")
    return pixels.astype(np.int32) if integer else pixels


@contextmanager
def _opened(
    source: Source, name: str | Path | None, formats: Sequence[str] | None
) -> Iterator[tuple[Image.Image, str | Path]]:
    """The picture, not decoded yet, and where it comes from."""
    data, place = (None, name or "image") if isinstance(source, Image.Image) else _content(source, name)
    kinds = "PNG or JPEG" if formats else "picture"
    try:
        if data is None:
            yield source, place
            return
        # Of a name Pillow would map the file, and a mapped file that is cut ends the process.
        with (
            data.open("rb") if isinstance(data, Path) else io.BytesIO(data) as file,
            Image.open(file, formats=formats) as image,
        ):
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise DataFileError(place, f"image claims {image.width}x{image.height} pixels")
            yield image, place
    except DataFileError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataFileError(place, error.strerror or str(error)) from error
    except UnidentifiedImageError as error:
        # Pillow's message names an open file, and not which.
        raise DataFileError(place, f"is no readable {kinds}: of no known format, or damaged at its start") from error
    # Damaged images end in errors of many kinds: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        raise DataFileError(place, f"is no readable {kinds} ({type(error).__name__}: {error})") from error


def _content(source: Any, name: str | Path | None) -> tuple[Path | bytes, str | Path]:
    if isinstance(source, Mapping):
        source = source["bytes"] if source.get("bytes") is not None else source["path"]
    if isinstance(source, bytes):
        return source, name or "image"
    return Path(source), name or source


def _turned(image: Image.Image, place: str | Path) -> Image.Image:
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation == 1:
        return image
    tell_doubt("orientation", str(place), f"turned as its EXIF orientation {orientation} says, as viewers show it")
    return ImageOps.exif_transpose(image)


def _read_pgm(source: Source, name: str | Path | None) -> np.ndarray | None:
    """Numbers of a PGM as they are written, uint8 or uint16 [H, W]; None for anything else."""
    if isinstance(source, Image.Image):
        if source.format != "PPM":
            return None
        # Pillow has stretched what it opened, and forgotten by how much.
        if not getattr(source, "filename", ""):
            raise DataFileError(name or "image", "is a PGM that Pillow may have stretched; give the file, or an array")
        source, name = source.filename, name or source.filename
    data, place = _content(source, name)
    if isinstance(data, Path):
        try:
            with open(data, "rb") as file:
                if file.read(2) not in (b"P2", b"P5"):
                    return None
        except OSError as error:
            raise DataFileError(place, error.strerror or str(error)) from error
        data = read_bytes(data)
    header = _PGM.match(data)
    if header is None:
        return None
    width, height, maximum = (int(header[index]) for index in (2, 3, 4))
    if not 0 < maximum < 65536 or not 0 < width * height <= MAX_IMAGE_PIXELS:
        raise DataFileError(place, f"claims {width}x{height} pixels up to {maximum}; expected at most 65535")
    dtype = np.dtype("u1" if maximum < 256 else ">u2")
    try:
        if header[1] == b"2":
            values = np.array(data[header.end() :].split()[: width * height], dtype=np.int64)
        else:
            values = np.frombuffer(data, dtype, width * height, header.end())
        values = values.reshape(height, width)
    except ValueError as error:
        raise DataFileError(place, f"is no readable PGM ({error})") from error
    if values.max() > maximum:
        raise DataFileError(place, f"has the value {values.max()}, above the {maximum} of its header")
    return values.astype(dtype.newbyteorder("="))


def save_png(image: Image.Image, path: Path) -> None:
    """Writes a PNG file, whole or not at all."""
    with new_file(path) as partial:
        image.save(partial, format="PNG", compress_level=PNG_LEVEL)
