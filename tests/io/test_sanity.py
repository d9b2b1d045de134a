"""What a depth image and a camera can be, by every way in: files, memory, rows."""

import logging

import numpy as np
import pytest
import torch
from frame_factory import make_frame
from PIL import Image

from bifusion_hf.data.frame_files import read_depth
from bifusion_hf.data.frames import RGBDFrame, encode_image, encode_png16, frame_from_row
from bifusion_hf.data.inputs import frame_from_arrays, frames_from_columns
from bifusion_hf.io.sanity import (
    check_camera,
    check_fraction,
    check_stored_depth,
    collected_doubts,
    forget_doubts,
    tell_doubt,
)


INTRINSICS = np.array([[72.0, 0, 39.5], [0, 72.0, 29.5], [0, 0, 1]])
IMAGE = np.full((60, 80, 3), 90, np.uint8)
METRES = np.linspace(1.0, 3.0, 60 * 80).reshape(60, 80)
MILLIMETRES = np.rint(1000 * METRES).astype(np.uint16)


def doubts_of(function, *arguments, **options):
    with collected_doubts() as doubts:
        function(*arguments, **options)
    return doubts


def camera(fx, fy, cx, cy):
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


@pytest.mark.parametrize(
    ("values", "scale", "text"),
    [
        # Floating-point millimetres, integers with a scale of 1, and one too many division.
        (1000 * METRES, None, "median depth is 2e\\+03 m; expected 0.05 to 50 m; millimetres have .*then it is 2 m"),
        (MILLIMETRES, 1.0, "median depth is 2e\\+03 m; .*depth_scale 1000"),
        (METRES, 1000.0, "median depth is 0.002 m; .*is depth_scale right"),
        ((MILLIMETRES // 256).astype(np.uint8), 1000.0, "0.007 m; expected .*Pictures of depth have 8 bits"),
    ],
)
def test_impossible_depth_is_refused(values, scale, text):
    with pytest.raises(ValueError, match=text):
        check_stored_depth(values, scale, "d")


@pytest.mark.parametrize(
    ("values", "scale", "text"),
    [
        (5 * MILLIMETRES, 1000.0, "the median depth is 10 m; TUM RGB-D has 5000 units a metre (depth_scale 5000)"),
        (MILLIMETRES << 3, 1000.0, "the median depth is 16 m; SUN RGB-D's rotated bits make 8000 units a metre"),
        (MILLIMETRES // 16, 1000.0, "the median depth is 0.125 m; centimetres have 100 units a metre"),
        ((MILLIMETRES // 32).astype(np.uint8), 30.0, "depth has 8 bits, 2.07 m in the median. Pictures of depth"),
        (np.where(METRES > 2.9, 60.0, METRES), None, "depth reaches 60 m; values that mean no measurement?"),
    ],
)
def test_doubtful_depth_is_told_with_a_guess(values, scale, text):
    (doubt,) = doubts_of(check_stored_depth, values, scale, "d")
    assert doubt.startswith(f"d: {text}"), doubt


@pytest.mark.parametrize(("values", "scale"), [(METRES, None), (MILLIMETRES, 1000.0), (5 * MILLIMETRES, 5000.0)])
def test_good_depth_is_told_nothing_of(values, scale):
    assert doubts_of(check_stored_depth, values, scale, "d") == []
    # No measurement at all is for the frame to refuse.
    assert doubts_of(check_stored_depth, np.zeros((60, 80)), None, "d") == []


@pytest.mark.parametrize(
    ("intrinsics", "text"),
    [
        (np.eye(3), "the identity stands for no camera"),
        (camera(0.9, 1.2, 0.5, 0.5), "divided by the image's size\\? In pixels they are 72, 72, 40, 30"),
        (camera(72, 72, 100, 29.5), "principal point is outside of the image; intrinsics of an image of about 201x60"),
        (camera(72, 72, 39.5, -3), "principal point is outside"),
        (camera(72, 72, 79, 29.5), "principal point is outside"),
        (camera(5, 5, 39.5, 29.5), "field of view of 166 degrees"),
    ],
)
def test_impossible_cameras_are_refused(intrinsics, text):
    with pytest.raises(ValueError, match=rf"^frame: intrinsics have fx .* for a depth image of 80x60: .*{text}"):
        RGBDFrame(IMAGE, METRES, intrinsics)


@pytest.mark.parametrize(
    ("intrinsics", "text"),
    [
        (camera(72, 72, 70, 29.5), "the principal point is far from the middle; intrinsics of an image of about 141"),
        (camera(72, 39.5, 39.5, 29.5), "pixels that are no squares; is the order fx, fy, cx, cy?"),
        (camera(600, 600, 39.5, 29.5), "a field of view of 8 degrees"),
        (camera(15, 15, 39.5, 29.5), "a field of view of 139 degrees"),
    ],
)
def test_doubtful_cameras_are_told(intrinsics, text):
    (doubt,) = doubts_of(check_camera, intrinsics, 80, 60, "frame")
    assert text in doubt
    assert doubts_of(check_camera, INTRINSICS, 80, 60, "frame") == []


def ways_in(stored, scale, tmp_path):
    """The same depth by every way in."""
    file = tmp_path / "depth.png"
    Image.fromarray(stored).save(file)
    row = {"image": encode_image(IMAGE), "depth_scale": scale, "intrinsics": INTRINSICS.tolist(), "frame_id": "row"}
    return {
        "file": lambda: read_depth(file, scale),
        "array": lambda: frame_from_arrays(IMAGE, stored, INTRINSICS, depth_scale=scale),
        "tensor": lambda: frame_from_arrays(IMAGE, torch.from_numpy(stored), INTRINSICS, depth_scale=scale),
        "picture": lambda: frame_from_arrays(IMAGE, Image.open(file), INTRINSICS, depth_scale=scale),
        "path": lambda: frame_from_arrays(IMAGE, file, INTRINSICS, depth_scale=scale),
        "row": lambda: frame_from_row({**row, "depth": encode_png16(stored)}),
        "decoded row": lambda: frame_from_row({**row, "depth": Image.open(file)}),
    }


def test_every_way_in_is_checked(tmp_path):
    for way, read in ways_in(5 * MILLIMETRES, 1000.0, tmp_path).items():
        assert [doubt for doubt in doubts_of(read) if "TUM RGB-D has 5000" in doubt], way
    for way, read in ways_in(MILLIMETRES, 10.0, tmp_path).items():
        with pytest.raises(ValueError, match="median depth is 200 m"):
            raise AssertionError(f"{way}: {read()}")
    with pytest.raises(ValueError, match="median depth is 2e"):
        RGBDFrame(IMAGE, 1000 * METRES, INTRINSICS)


def test_the_largest_number_is_no_measurement(tmp_path):
    stored = MILLIMETRES.copy()
    stored[:10] = 65535
    for way, read in ways_in(stored, 1000.0, tmp_path).items():
        with collected_doubts() as doubts:
            found = read()
        depth = found if way == "file" else found.depth
        assert (depth[:10] == 0).all() and depth.max() <= 3.0, way
        assert any("800 pixels of depth are 65535" in doubt for doubt in doubts), way


def test_a_doubt_is_told_once_for_names_that_differ_in_their_numbers(caplog):
    forget_doubts()
    with caplog.at_level(logging.WARNING, "bifusion_hf"):
        for name in ("scene_1/7", "scene_2/8", "room"):
            tell_doubt("median", name, "far")
        tell_doubt("other", "room", "near")
    assert [record.getMessage() for record in caplog.records] == ["scene_1/7: far", "room: far", "room: near"]


def test_good_frames_pass_without_a_word():
    with collected_doubts() as doubts:
        make_frame()
    assert doubts == []


@pytest.mark.parametrize("value", [-0.1, 1.5, 50, float("nan")])
def test_a_threshold_is_a_probability(value):
    with pytest.raises(ValueError, match="--threshold is .*; expected a probability, 0 to 1"):
        check_fraction("--threshold", value)
    for good in (None, 0, 0.5, 1):
        check_fraction("--threshold", good)


@pytest.mark.parametrize(
    "depth",
    [
        torch.from_numpy(METRES).bfloat16(),
        torch.from_numpy(METRES).half(),
        torch.from_numpy(METRES).requires_grad_(),
    ],
)
def test_tensors_of_every_kind(depth):
    frame = frame_from_arrays(torch.from_numpy(IMAGE), depth, torch.from_numpy(INTRINSICS).requires_grad_())
    np.testing.assert_allclose(frame.depth, METRES, atol=0.02)
    np.testing.assert_array_equal(frame.intrinsics, INTRINSICS)


def test_files_and_mappings_in_memory(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "color.png")
    np.save(tmp_path / "depth.npy", METRES)
    four = {"fx": 72, "fy": 72, "cx": 39.5, "cy": 29.5}
    (single,) = frames_from_columns(
        {"image": str(tmp_path / "color.png"), "depth": str(tmp_path / "depth.npy"), "intrinsics": four}
    )
    np.testing.assert_array_equal(single.image, IMAGE)
    np.testing.assert_array_equal(single.intrinsics, INTRINSICS)
    for intrinsics in (four, [four, four], [INTRINSICS, four], INTRINSICS):
        frames = frames_from_columns({"image": [IMAGE, IMAGE], "depth": [METRES, METRES], "intrinsics": intrinsics})
        for frame in frames:
            np.testing.assert_array_equal(frame.intrinsics, INTRINSICS)
    with pytest.raises(ValueError, match="intrinsics: is of images of 160x120; the depth image is 80x60"):
        frame_from_arrays(IMAGE, METRES, {**four, "width": 160, "height": 120})


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_colour_of_a_row_is_the_same_decoded_or_not(mode, tmp_path):
    image = Image.fromarray(IMAGE).convert(mode, palette=Image.Palette.ADAPTIVE)
    kind = "jpg" if mode == "CMYK" else "png"
    image.save(tmp_path / f"c.{kind}")
    row = {"depth": encode_png16(MILLIMETRES), "depth_scale": 1000.0, "intrinsics": INTRINSICS.tolist()}
    data = (tmp_path / f"c.{kind}").read_bytes()
    values = (Image.open(tmp_path / f"c.{kind}"), {"bytes": data, "path": None})
    found = [frame_from_row({**row, "image": value}).image for value in values]
    np.testing.assert_array_equal(*found)
    assert np.abs(found[0].astype(int) - 90).max() <= 2
