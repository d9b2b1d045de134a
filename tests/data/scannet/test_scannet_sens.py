import struct

import numpy as np
import pytest
from PIL import Image
from scannet_files import (
    COLOR_INTRINSICS,
    COLOR_SIZE,
    DEPTH_INTRINSICS,
    DEPTH_SIZE,
    color_view,
    depth_view,
    encode,
    pose,
    sens_bytes,
)

from bifusion_hf.data.scannet.sens import SensFile
from bifusion_hf.io.files import DataFileError


POSES = [pose(), pose(0.4, (0.1, 0.2, 1.3)), np.full((4, 4), -np.inf)]
COLORS = [color_view(pose()), color_view(pose(0.4)), color_view(pose())]
DEPTHS = [depth_view(pose()), depth_view(pose(0.4)), np.zeros(DEPTH_SIZE[::-1], np.uint16)]


def write(tmp_path, name="a.sens", **options):
    path = tmp_path / name
    path.write_bytes(sens_bytes(POSES, COLORS, DEPTHS, **options))
    return path


@pytest.mark.parametrize("color_type", [0, 1, 2])
@pytest.mark.parametrize("depth_type", [0, 1])
def test_reads_back_what_was_written(tmp_path, color_type, depth_type):
    with SensFile(write(tmp_path, color_type=color_type, depth_type=depth_type)) as sens:
        assert sens.sensor_name == "StructureSensor"
        assert (len(sens), sens.color_size, sens.depth_size, sens.depth_scale) == (3, COLOR_SIZE, DEPTH_SIZE, 1000)
        assert sens.color_compression == ("raw", "png", "jpeg")[color_type]
        assert sens.depth_compression == ("raw_ushort", "zlib_ushort")[depth_type]
        np.testing.assert_allclose(sens.color_intrinsics, COLOR_INTRINSICS, rtol=1e-6)
        np.testing.assert_allclose(sens.depth_intrinsics, DEPTH_INTRINSICS, rtol=1e-6)
        np.testing.assert_array_equal(sens.depth_extrinsics, np.eye(4))
        # Backwards, so that nothing hangs on the order of reading.
        for index in reversed(range(3)):
            frame = sens.frames[index]
            np.testing.assert_array_equal(frame.camera_to_world, POSES[index].astype(np.float32))
            assert (frame.color_timestamp, frame.depth_timestamp) == (1000 * index, 1000 * index + 7)
            depth = sens.read_depth(index)
            assert depth.dtype == np.uint16
            np.testing.assert_array_equal(depth, DEPTHS[index])
            color = sens.read_color(index)
            expected = COLORS[index]
            if color_type == 2:
                (tmp_path / "a.jpg").write_bytes(encode(expected, "JPEG", quality=95))
                expected = np.asarray(Image.open(tmp_path / "a.jpg"))
            assert color.dtype == np.uint8
            np.testing.assert_array_equal(color, expected)


def test_inertial_frames_do_not_matter(tmp_path):
    for count in (0, 5):
        assert len(SensFile(write(tmp_path, imu_frames=count))) == 3


@pytest.mark.parametrize("end", [0, 3, 11, 20, 200, 330, 400, 3000, -700])
def test_a_file_that_was_cut_short_is_refused_on_opening(tmp_path, end):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(DataFileError, match=r"a\.sens: .*(cut short|has)"):
        SensFile(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": 3}, "version 3"),
        ({"depth_type": 2}, "depth compression 2"),
        ({"color_type": -1}, "colour compression -1"),
    ],
)
def test_other_versions_and_compressions_are_refused(tmp_path, options, message):
    path = write(tmp_path)
    data = bytearray(path.read_bytes())
    compressions = 12 + len("StructureSensor") + 256
    if "version" in options:
        data[:4] = struct.pack("<I", options["version"])
    if "color_type" in options:
        data[compressions : compressions + 4] = struct.pack("<i", options["color_type"])
    if "depth_type" in options:
        data[compressions + 4 : compressions + 8] = struct.pack("<i", options["depth_type"])
    path.write_bytes(data)
    with pytest.raises(DataFileError, match=message):
        SensFile(path)


def test_a_damaged_image_names_file_and_frame(tmp_path):
    path = write(tmp_path)
    with SensFile(path) as sens:
        frame = sens.frames[1]
    data = bytearray(path.read_bytes())
    data[frame.offset : frame.offset + 4] = b"\0\0\0\0"
    start = frame.offset + frame.color_bytes
    data[start + 30 : start + 60] = bytes(30)
    path.write_bytes(data)
    with SensFile(path) as sens:
        with pytest.raises(DataFileError, match=r"a\.sens \(colour of frame 1\)"):
            sens.read_color(1)
        with pytest.raises(DataFileError, match=r"a\.sens: depth of frame 1"):
            sens.read_depth(1)
        np.testing.assert_array_equal(sens.read_depth(0), DEPTHS[0])


@pytest.mark.parametrize("color_type", [0, 1, 2])
def test_a_picture_of_another_size_than_the_header_says_is_refused(tmp_path, color_type):
    colors = [COLORS[0], COLORS[1][:-2], COLORS[2]]
    (tmp_path / "a.sens").write_bytes(sens_bytes(POSES, colors, DEPTHS, color_type=color_type))
    with SensFile(tmp_path / "a.sens") as sens:
        assert sens.read_color(2).shape == COLORS[2].shape
        with pytest.raises(DataFileError, match="colour of frame 1"):
            sens.read_color(1)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataFileError, match=r"b\.sens: No such file"):
        SensFile(tmp_path / "b.sens")
