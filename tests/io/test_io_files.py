import io
import pickle
import zlib

import numpy as np
import pytest
from PIL import Image

from bifusion_hf.io.files import (
    DataFileError,
    decode_image,
    parse_floats,
    path_inside,
    read_bytes,
    read_json,
    read_text,
)


NOISE = np.random.default_rng(1).integers(0, 256, (30, 40), dtype=np.uint8)


def png(values, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format=kind)
    return buffer.getvalue()


def test_the_error_names_the_file_and_survives_pickling(tmp_path):
    error = DataFileError(tmp_path / "a", "is broken")
    assert isinstance(error, ValueError)
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == f"{tmp_path / 'a'}: is broken"


def test_files_that_cannot_be_read(tmp_path):
    for path, message in ((tmp_path / "none", "No such file"), (tmp_path, "directory")):
        with pytest.raises(DataFileError, match=message):
            read_bytes(path)
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    with pytest.raises(DataFileError, match="not UTF-8"):
        read_text(tmp_path / "a")
    (tmp_path / "a").write_bytes(b'{"a": [1, 2]}')
    assert read_json(tmp_path / "a") == {"a": [1, 2]}


def test_numbers():
    np.testing.assert_array_equal(parse_floats("1 -2.5\n nan -inf", (2, 2), "f"), [[1, -2.5], [np.nan, -np.inf]])
    with pytest.raises(DataFileError, match="f: has 3 numbers; expected 2x2"):
        parse_floats("1 2 3", (2, 2), "f")
    with pytest.raises(DataFileError, match="f: .*'x'"):
        parse_floats("1 2 3 x", (2, 2), "f")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integer_images(dtype):
    values = np.arange(12, dtype=dtype).reshape(3, 4) * (np.iinfo(dtype).max // 12)
    found = decode_image(png(values), "f", integer=True, size=(4, 3))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, values)


def test_colour_images():
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(png(values), "f"), values)
    np.testing.assert_array_equal(decode_image(png(values[..., 0]), "f"), values[..., :1].repeat(3, axis=2))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"", {}, "no readable PNG or JPEG"),
        (png(NOISE)[:500], {}, "no readable PNG or JPEG"),
        (png(np.zeros((9, 9, 3), np.uint8), "BMP"), {}, "no readable PNG or JPEG"),
        (png(np.zeros((9, 9, 3), np.uint8)), {"integer": True}, "mode RGB"),
        (png(np.zeros((9, 9), np.uint8)), {"size": (9, 8)}, r"\(9, 9\); expected \(9, 8\)"),
    ],
)
def test_other_images_are_refused(data, options, message):
    with pytest.raises(DataFileError, match=message):
        decode_image(data, "f", **options)


def test_an_image_that_claims_too_much_is_not_decoded():
    data = bytearray(png(np.zeros((9, 9), np.uint8)))
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    with pytest.raises(DataFileError, match="60000|exceeds"):
        decode_image(bytes(data), "f")


def test_paths(tmp_path):
    assert path_inside(tmp_path, "a/b.bin", "list") == tmp_path / "a" / "b.bin"
    assert path_inside(tmp_path, "./a\\b.bin", "list") == tmp_path / "a" / "b.bin"
    for name in ("../a", "a/../../b", "/a", "\\a", "C:/a", "", "a\0", 3, None):
        with pytest.raises(DataFileError, match="list"):
            path_inside(tmp_path, name, "list")
