import io
import zlib

import numpy as np
import pytest
from PIL import Image

from bifusion_hf.io.files import DataFileError
from bifusion_hf.io.images import decode_image, read_color, read_values, save_png
from bifusion_hf.io.sanity import collected_doubts


NOISE = np.random.default_rng(1).integers(0, 256, (30, 40), dtype=np.uint8)


def png(values, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format=kind)
    return buffer.getvalue()


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


def pgm(values, maximum, comment="", plain=False):
    height, width = values.shape
    header = f"P{2 if plain else 5}\n{comment}{width} {height}\n{maximum}\n".encode()
    if plain:
        return header + " ".join(map(str, values.ravel())).encode()
    return header + values.astype("u1" if maximum < 256 else ">u2").tobytes()


@pytest.mark.parametrize("maximum", [20, 255, 256, 3302, 65534, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_a_pgm_gives_its_own_numbers(tmp_path, maximum, plain):
    """Pillow stretches them to 255 or 65535."""
    values = np.random.default_rng(0).integers(0, maximum + 1, (6, 8))
    data = pgm(values, maximum, "# a comment 7\n", plain)
    (tmp_path / "d.pgm").write_bytes(data)
    for source in (tmp_path / "d.pgm", str(tmp_path / "d.pgm"), data, {"bytes": data, "path": None}):
        found = read_values(source)
        assert found.dtype == (np.uint8 if maximum < 256 else np.uint16)
        np.testing.assert_array_equal(found, values)
    with Image.open(tmp_path / "d.pgm") as image:
        np.testing.assert_array_equal(read_values(image), values)
    with Image.open(io.BytesIO(data)) as image, pytest.raises(DataFileError, match="Pillow may have stretched"):
        read_values(image)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"P5\n8 6\n255\n123", "no readable PGM"),
        (b"P5\n8 6\n70000\n", "up to 70000"),
        (b"P5\n60000 60000\n255\n", "claims 60000x60000"),
        (b"P2\n2 1\n7\n3 9", "value 9, above the 7"),
        (b"P2\n2 1\n7\n3 x", "no readable PGM"),
        (b"P5" + b" " * 100_000 + b"x", "no readable picture"),
    ],
)
def test_a_damaged_pgm_is_refused(data, message):
    with pytest.raises(DataFileError, match=message):
        read_values(data)


GREY = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (12, 1))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
        (Image.fromarray(GREY.astype(np.int32) * 257), "TIFF"),
        (Image.fromarray(GREY / np.float32(255)), "TIFF"),
        (Image.fromarray(GREY), "PNG"),
        (Image.fromarray(np.dstack([GREY, GREY // 2])), "PNG"),
        (Image.fromarray(np.dstack([GREY] * 3)).convert("RGBA"), "PNG"),
        (Image.fromarray(GREY).convert("P"), "PNG"),
    ],
)
def test_every_mode_shows_the_same_colours(image, kind):
    data = encoded(image, kind)
    for source in (image, data):
        np.testing.assert_array_equal(read_color(source), np.dstack([GREY] * 3))


def test_cmyk_is_turned_into_colours():
    data = encoded(Image.fromarray(np.dstack([GREY] * 3)).convert("CMYK"), "JPEG", quality=100)
    assert np.abs(read_color(data).astype(int) - GREY[..., None]).max() <= 3


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.full((4, 4), 1.5, np.float32)), "floating-point grey from 1.5 to 1.5; expected .* 0 to 1"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "floating-point grey"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), "grey values from 70000"),
        (Image.fromarray(np.zeros((4, 4, 3), np.uint8)).convert("LAB"), "has mode LAB"),
    ],
)
@pytest.mark.filterwarnings("ignore:All-NaN")
def test_what_is_no_colour_is_refused(image, message):
    with pytest.raises(DataFileError, match=message):
        read_color(image)


def test_dark_16_bit_grey_is_doubted():
    with collected_doubts() as doubts:
        read_color(Image.fromarray(GREY.astype(np.uint16)), "infrared")
    assert doubts == ["infrared: 16-bit grey that ends at 255 of 65535 is almost black"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_as_viewers_show_them(orientation):
    values = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
    shown = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.T,
        6: np.rot90(values, -1),
        7: np.rot90(values, 2).T,
        8: np.rot90(values),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(values), "PNG", exif=exif)
    for source in (data, Image.open(io.BytesIO(data))):
        with collected_doubts() as doubts:
            np.testing.assert_array_equal(read_color(source)[..., 0], shown)
            np.testing.assert_array_equal(read_values(data), shown)
        assert bool(doubts) == (orientation > 1)


def test_a_palette_is_for_labels_alone():
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8))
    image = image.convert("P")
    np.testing.assert_array_equal(read_values(image, palette=True), [[0, 1], [2, 3]])
    with pytest.raises(DataFileError, match="mode P; expected one channel of numbers"):
        read_values(image)


def test_missing_and_damaged_files_are_named(tmp_path):
    for read in (read_color, read_values):
        with pytest.raises(DataFileError, match="none.png: No such file"):
            read(tmp_path / "none.png")
        with pytest.raises(DataFileError, match="Is a directory"):
            read(tmp_path)
        (tmp_path / "a.png").write_bytes(b"none")
        with pytest.raises(DataFileError, match="a.png: is no readable picture"):
            read(tmp_path / "a.png")


def test_pictures_are_written_whole_or_not_at_all(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    save_png(Image.fromarray(values), tmp_path / "a.png")
    np.testing.assert_array_equal(read_color(tmp_path / "a.png", formats=["PNG"]), values)
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(OSError, match="cannot write mode"):
        save_png(Image.new("CMYK", (3, 3)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
