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
MOVED = np.diag([1.0, 1, 1, 1]) + [[0, 0, 0, 0.25], *np.zeros((3, 4))]
# Where the header's parts begin: compression, sizes of images, unit of depth, number of frames; and the frames.
TYPES = 12 + len("StructureSensor") + 256
SIZES, SCALE, COUNT, FRAMES = TYPES + 8, TYPES + 24, TYPES + 28, TYPES + 36
DEPTHS = [depth_view(pose()), depth_view(pose(0.4)), np.zeros(DEPTH_SIZE[::-1], np.uint16)]


def write(tmp_path, name="a.sens", **options):
    path = tmp_path / name
    path.write_bytes(sens_bytes(POSES, COLORS, DEPTHS, **options))
    return path


@pytest.mark.parametrize("color_type", [0, 1, 2])
@pytest.mark.parametrize("depth_type", [0, 1])
def test_reads_back_what_was_written(tmp_path, color_type, depth_type):
    with SensFile(write(tmp_path, color_type=color_type, depth_type=depth_type, depth_extrinsics=MOVED)) as sens:
        assert sens.sensor_name == "StructureSensor"
        assert (len(sens), sens.color_size, sens.depth_size, sens.depth_scale) == (3, COLOR_SIZE, DEPTH_SIZE, 1000)
        assert sens.color_compression == ("raw", "png", "jpeg")[color_type]
        assert sens.depth_compression == ("raw_ushort", "zlib_ushort")[depth_type]
        np.testing.assert_allclose(sens.color_intrinsics, COLOR_INTRINSICS, rtol=1e-6)
        np.testing.assert_allclose(sens.depth_intrinsics, DEPTH_INTRINSICS, rtol=1e-6)
        np.testing.assert_array_equal(sens.color_extrinsics, np.eye(4))
        np.testing.assert_array_equal(sens.depth_extrinsics, MOVED)
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
            assert color.dtype == np.uint8 and color.flags.writeable and depth.flags.writeable
            np.testing.assert_array_equal(color, expected)


def test_inertial_frames_do_not_matter(tmp_path):
    for count in (0, 5):
        assert len(SensFile(write(tmp_path, imu_frames=count))) == 3
    # Not even their number has to be there.
    path = write(tmp_path, imu_frames=0)
    data = path.read_bytes()
    path.write_bytes(data[:-8])
    with SensFile(path) as sens:
        assert len(sens) == 3
        np.testing.assert_array_equal(sens.read_depth(2), DEPTHS[2])
    path.write_bytes(data[:-9])
    with pytest.raises(
        DataFileError, match=rf"frame 2 of 3 ends at byte {len(data) - 8}, the file at {len(data) - 9}"
    ):
        SensFile(path)


def patched(tmp_path, place, kind, value):
    path = write(tmp_path)
    data = bytearray(path.read_bytes())
    data[place : place + struct.calcsize(kind)] = struct.pack(kind, value)
    path.write_bytes(data)
    return path


def test_a_number_of_frames_that_the_file_cannot_hold_is_refused_at_once(tmp_path):
    """A frame without images takes 96 bytes."""
    most = (write(tmp_path).stat().st_size - FRAMES) // 96
    with pytest.raises(DataFileError, match=rf"claims {most + 1} frames, more than its \d+ bytes hold"):
        SensFile(patched(tmp_path, COUNT, "<Q", most + 1))
    with pytest.raises(DataFileError, match=rf"frame \d+ of {most}( ends|: )"):
        SensFile(patched(tmp_path, COUNT, "<Q", most))
    assert len(SensFile(patched(tmp_path, COUNT, "<Q", 2))) == 2


@pytest.mark.parametrize("index", range(4))
def test_sizes_of_images_are_those_of_a_camera(tmp_path, index):
    sizes = [*COLOR_SIZE, *DEPTH_SIZE]
    for side in (0, 16385):
        sizes[index] = side
        message = "claims images of {}x{} and {}x{}".format(*sizes)
        with pytest.raises(DataFileError, match=message):
            SensFile(patched(tmp_path, SIZES + 4 * index, "<I", side))
    for side in (1, 16384):
        sizes[index] = side
        sens = SensFile(patched(tmp_path, SIZES + 4 * index, "<I", side))
        assert [*sens.color_size, *sens.depth_size] == sizes


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_units_of_depth_are_positive(tmp_path, scale):
    with pytest.raises(DataFileError, match=rf"has a depth scale of {scale} units per metre"):
        SensFile(patched(tmp_path, SCALE, "<f", scale))
    assert SensFile(patched(tmp_path, SCALE, "<f", 0.5)).depth_scale == 0.5


def test_a_sensor_has_a_name_of_at_most_4096_bytes(tmp_path):
    path = write(tmp_path)
    data = path.read_bytes()
    for length in (0, 4096, 4097):
        path.write_bytes(data[:4] + struct.pack("<Q", length) + bytes([ord("x")]) * length + data[27:])
        if length > 4096:
            with pytest.raises(DataFileError, match="claims a sensor name of 4097 bytes"):
                SensFile(path)
        else:
            with SensFile(path) as sens:
                assert sens.sensor_name == "x" * length
                np.testing.assert_array_equal(sens.read_depth(1), DEPTHS[1])


def test_a_file_that_is_cut_short_while_it_is_read_is_told(tmp_path):
    path = write(tmp_path)
    with SensFile(path) as sens:
        frame = sens.frames[1]
        path.write_bytes(path.read_bytes()[: frame.offset + frame.color_bytes + 5])
        sens.read_color(1)
        with pytest.raises(DataFileError, match=rf"depth of frame 1: 5 of {frame.depth_bytes} bytes could be read"):
            sens.read_depth(1)


@pytest.mark.parametrize("end", [0, 3, 11, 20, 200, 330, 400, 3000, -700])
def test_a_file_that_was_cut_short_is_refused_on_opening(tmp_path, end):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(DataFileError, match=r"a\.sens: .*(cut short|has)"):
        SensFile(path)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("version", 3, "version 3"),
        ("depth_type", 2, "depth compression 2"),
        ("color_type", -1, "colour compression -1"),
    ],
)
def test_other_versions_and_compressions_are_refused(tmp_path, option, value, message):
    place, kind = {"version": (0, "<I"), "color_type": (TYPES, "<i"), "depth_type": (TYPES + 4, "<i")}[option]
    with pytest.raises(DataFileError, match=message):
        SensFile(patched(tmp_path, place, kind, value))


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
        with pytest.raises(DataFileError, match=r"a\.sens: depth of frame 1 cannot be decompressed"):
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


@pytest.mark.parametrize("rows", [-1, 1])
@pytest.mark.parametrize("depth_type", [0, 1])
def test_depth_of_another_size_than_the_header_says_is_refused(tmp_path, depth_type, rows):
    width, height = DEPTH_SIZE
    depths = [DEPTHS[0], np.zeros((height + rows, width), np.uint16), DEPTHS[2]]
    (tmp_path / "a.sens").write_bytes(sens_bytes(POSES, COLORS, depths, depth_type=depth_type))
    expected = 2 * width * height
    found = expected + 2 * width * rows
    with SensFile(tmp_path / "a.sens") as sens:
        # No more is unpacked than shows that it is too much.
        found = min(found, expected + 1) if depth_type == 1 else found
        with pytest.raises(DataFileError, match=f"depth of frame 1 has {found} bytes; expected {expected}$"):
            sens.read_depth(1)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataFileError, match=r"b\.sens: No such file"):
        SensFile(tmp_path / "b.sens")
