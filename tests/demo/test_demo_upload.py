import json

import numpy as np
import pytest
from PIL import Image

from bifusion_hf.demo.upload import (
    camera_fields,
    camera_text,
    intrinsics_text,
    parse_camera,
    read_upload,
)


MATRIX = np.array([[577.87, 0, 319.5], [0, 576.0, 239.5], [0, 0, 1]])
IMAGE = np.zeros((48, 64, 3), np.uint8)


@pytest.fixture
def depth(tmp_path):
    path = tmp_path / "upload-3f" / "depth.png"
    path.parent.mkdir()
    Image.fromarray(np.full((48, 64), 1500, np.uint16)).save(path)
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        "577.87 576 319.5 239.5",
        " 577.87, 576, 319.5,\n239.5 ",
        "577.87 0 319.5\n0 576 239.5\n0 0 1",
        json.dumps({"fx": 577.87, "fy": 576, "cx": 319.5, "cy": 239.5}),
        json.dumps({"K": MATRIX.tolist()}),
        json.dumps(MATRIX.tolist()),
    ],
)
def test_intrinsics_as_people_have_them(text):
    np.testing.assert_array_equal(parse_camera(text).intrinsics, MATRIX)


def test_intrinsics_text_can_be_read_again():
    assert intrinsics_text(MATRIX) == "577.87 576.00 319.50 239.50"
    np.testing.assert_array_equal(parse_camera(intrinsics_text(MATRIX)).intrinsics, MATRIX)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("577 x 3 4", "intrinsics are '577 x 3 4'; expected the numbers fx fy cx cy, or JSON"),
        ("577 577 3", "expected the four numbers fx fy cx cy"),
        ('{"fx": 5', "^intrinsics.json: cannot be read as JSON"),
        ('{"focal": 5}', "^intrinsics.json: has the keys"),
    ],
)
def test_intrinsics_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        parse_camera(text)


def test_an_intrinsics_file_is_named_without_its_folder(tmp_path):
    path = tmp_path / "camera.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="^camera.json: has the keys"):
        camera_text(str(path))


def test_an_intrinsics_file_keeps_the_size_that_it_names(tmp_path, depth):
    path = tmp_path / "camera.json"
    path.write_text(json.dumps({"fx": 60, "fy": 60, "ppx": 31.5, "ppy": 23.5}))
    assert camera_text(str(path)) == "60.00 60.00 31.50 23.50"
    path.write_text(json.dumps({"K": [120, 0, 63.5, 0, 120, 47.5, 0, 0, 1], "width": 128, "height": 96}))
    with pytest.raises(ValueError, match="is of images of 128x96; the depth image is 64x48"):
        read_upload(IMAGE, depth, 1000.0, camera_text(str(path)), None)


def test_the_frame_of_the_form(depth, tmp_path):
    pose = tmp_path / "pose.txt"
    np.savetxt(pose, np.diag([1.0, -1.0, -1.0, 1.0]))
    frame = read_upload(IMAGE, depth, 1000.0, "60 60 31.5 23.5", str(pose))
    assert frame.frame_id == "depth" and frame.depth.shape == (48, 64) and (frame.depth == 1.5).all()
    assert frame.intrinsics[0].tolist() == [60, 0, 31.5]
    assert frame.camera_to_world[1, 1] == -1
    assert read_upload(IMAGE, depth, 1000.0, "60 60 31.5 23.5", None).camera_to_world is None


def test_what_is_missing_is_listed(depth):
    with pytest.raises(ValueError, match="Missing: the colour image, its intrinsics. A frame needs"):
        read_upload(None, depth, 1000.0, "  ", None)
    with pytest.raises(ValueError, match="Missing: the depth image. A"):
        read_upload(IMAGE, None, 1000.0, "1 2 3 4", None)


@pytest.mark.parametrize(("scale", "found"), [(1.0, "1.5e[+]03"), (100_000.0, "0.015")])
def test_a_wrong_depth_scale_is_noticed(depth, scale, found):
    with pytest.raises(
        ValueError, match=rf"depth.png: the median depth is {found} m; expected 0.05 to 50 m; millimetres have"
    ):
        read_upload(IMAGE, depth, scale, "60 60 31.5 23.5", None)


def test_pasted_intrinsics_of_another_size_are_refused(depth):
    text = json.dumps({"fx": 60, "fy": 60, "cx": 31.5, "cy": 23.5, "width": 128, "height": 96})
    with pytest.raises(ValueError, match="^intrinsics: is of images of 128x96; the depth image is 64x48"):
        read_upload(IMAGE, depth, 1000.0, text, None)


def test_colour_is_read_as_everywhere_else(depth, tmp_path):
    path = tmp_path / "grey16.png"
    Image.fromarray(np.full((48, 64), 257 * 90, np.uint16)).save(path)
    assert (read_upload(str(path), depth, 1000.0, "60 60 31.5 23.5", None).image == 90).all()


def test_messages_name_files_without_folders(depth, tmp_path):
    with pytest.raises(ValueError, match="^depth.png: depth has dtype uint16 and depth_scale is None"):
        read_upload(IMAGE, depth, None, "60 60 31.5 23.5", None)
    text = tmp_path / "depth.txt"
    text.write_text("no image")
    with pytest.raises(ValueError, match="^depth.txt: is no readable picture"):
        read_upload(IMAGE, str(text), 1000.0, "60 60 31.5 23.5", None)
    with pytest.raises(ValueError, match="^depth: image is 64x64 while depth is 64x48"):
        read_upload(np.zeros((64, 64, 3), np.uint8), depth, 1000.0, "60 60 31.5 23.5", None)


def test_camera_fields(depth, tmp_path):
    assert camera_fields("Kinect v1", None) == (1000, "")
    assert camera_fields("Kinect v1", depth) == (1000, "52.50 52.50 31.50 23.50")
    with pytest.raises(ValueError, match="^Kinect v2: depth is 64x48; expected the aspect of"):
        camera_fields("Kinect v2", depth)
    color = tmp_path / "color.png"
    Image.fromarray(IMAGE).save(color)
    with pytest.raises(ValueError, match="^color.png: has mode RGB; expected one channel"):
        camera_fields("Kinect v1", str(color))
