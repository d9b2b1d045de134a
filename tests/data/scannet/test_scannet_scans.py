import zipfile

import numpy as np
import pytest
from scannet_files import (
    COLOR_INTRINSICS,
    COLOR_SIZE,
    DEPTH_INTRINSICS,
    axis_alignment,
    color_view,
    depth_view,
    encode,
    pose,
    scan_info,
    view,
    write_exported_scan,
    write_label_images,
    write_sens_scan,
)

from bifusion_hf.data.frames import scale_intrinsics
from bifusion_hf.data.scannet.scans import ExportedScan, LabelImages, SensScan, open_scan, scan_frame
from bifusion_hf.io.files import DataFileError


POSES = {0: pose(), 20: pose(0.2), 200: pose(-0.2)}


def test_a_sens_scan(tmp_path):
    folder = tmp_path / "scene0000_00"
    write_sens_scan(folder, list(POSES.values()), annotation=False)
    with open_scan(folder) as scan:
        assert isinstance(scan, SensScan)
        assert scan.numbers() == [0, 1, 2]
        np.testing.assert_array_equal(scan.depth(1), depth_view(POSES[20]))
        np.testing.assert_allclose(scan.pose(1), POSES[20], atol=1e-6)
        np.testing.assert_allclose(scan.depth_intrinsics, DEPTH_INTRINSICS, rtol=1e-6)
        np.testing.assert_allclose(scan.color_intrinsics(COLOR_SIZE), COLOR_INTRINSICS, rtol=1e-6)
        assert scan.depth_scale == 1000


def test_unregistered_colour_has_to_be_asked_for(tmp_path):
    extrinsics = np.eye(4)
    extrinsics[0, 3] = 0.0015
    folder = tmp_path / "scene0000_00"
    write_sens_scan(folder, [pose()], annotation=False, depth_extrinsics=extrinsics)
    with pytest.raises(DataFileError, match=r"scene0000_00\.sens: .*registered"):
        open_scan(folder)
    with pytest.raises(DataFileError, match="registered"):
        SensScan(folder / "scene0000_00.sens")
    with open_scan(folder, assume_registered=True) as scan:
        assert scan.numbers() == [0]
    # Less than a millimetre is rounding; what is unknown is not.
    for value in (0.0009, -0.0009, -0.0015, np.nan):
        extrinsics[0, 3] = value
        write_sens_scan(folder, [pose()], annotation=False, depth_extrinsics=extrinsics)
        if abs(value) < 0.001:
            assert open_scan(folder).numbers() == [0]
        else:
            with pytest.raises(DataFileError, match="registered"):
                open_scan(folder)


def test_an_exported_scan(tmp_path):
    folder = tmp_path / "scene0000_00"
    write_exported_scan(folder, POSES)
    with open_scan(folder) as scan:
        assert isinstance(scan, ExportedScan)
        assert scan.numbers() == [0, 20, 200]
        np.testing.assert_array_equal(scan.depth(200), depth_view(POSES[200]))
        np.testing.assert_allclose(scan.pose(200), POSES[200], atol=1e-6)
        assert np.abs(scan.color(20).astype(int) - color_view(POSES[20])).mean() < 3
        np.testing.assert_allclose(scan.color_intrinsics(COLOR_SIZE), COLOR_INTRINSICS, rtol=1e-6)
        with pytest.raises(DataFileError, match="depth: has no frame 7"):
            scan.depth(7)


def test_resized_colour_images_take_their_original_size_from_the_scan_information(tmp_path):
    folder = tmp_path / "scene0000_00"
    write_exported_scan(folder, POSES, color_size=(64, 48))
    # Without it they are registered by a resize.
    assert ExportedScan(folder).color_intrinsics((64, 48)) is None
    (folder / "scene0000_00.txt").write_text(scan_info(axis_alignment()))
    expected = scale_intrinsics(COLOR_INTRINSICS, 64 / COLOR_SIZE[0], 48 / COLOR_SIZE[1])
    np.testing.assert_allclose(ExportedScan(folder).color_intrinsics((64, 48)), expected, rtol=1e-6)
    for width in (0, -1, "inf", "nan"):
        (folder / "scene0000_00.txt").write_text(f"colorWidth = {width}\ncolorHeight = 48\n")
        with pytest.raises(DataFileError, match=r"scene0000_00\.txt: has a colour image of"):
            ExportedScan(folder).color_intrinsics((64, 48))


@pytest.mark.parametrize(
    ("size", "is_own"),
    [
        # The principal point is at (64.6, 48.2), a tenth of each side from the centre at most.
        ((108, 81), True), ((107, 97), False), ((130, 80), False), ((99, 74), False),
        ((161, 120), True), ((162, 97), False), ((130, 121), False), ((130, 97), True),
    ],
)  # fmt: skip
def test_colour_images_are_of_the_cameras_size_where_its_principal_point_is_their_centre(tmp_path, size, is_own):
    folder = tmp_path / "scene0000_00"
    write_exported_scan(folder, {})
    found = ExportedScan(folder).color_intrinsics(size)
    if is_own:
        np.testing.assert_allclose(found, COLOR_INTRINSICS, rtol=1e-6)
    else:
        assert found is None


def test_files_that_are_no_frames_and_intrinsics_beside_the_folders(tmp_path):
    """As ScanNet's download of some frames has them."""
    folder = tmp_path / "scene0000_00"
    write_exported_scan(folder, {20: pose()})
    for kind in ("color", "depth"):
        (folder / "intrinsic" / f"intrinsic_{kind}.txt").rename(folder / f"intrinsics_{kind}.txt")
    for name in ("notes.txt", "20_old.png", "\u0662.png", "\u00b2.png"):
        (folder / "depth" / name).touch()
    (folder / "depth" / "20.png").rename(folder / "depth" / "000020.png")
    scan = open_scan(folder)
    assert scan.numbers() == [20] and scan.depth(20).shape == (48, 64)
    np.testing.assert_allclose(scan.depth_intrinsics, DEPTH_INTRINSICS, rtol=1e-6)
    np.testing.assert_allclose(scan.color_intrinsics(COLOR_SIZE), COLOR_INTRINSICS, rtol=1e-6)


class OneFrame:
    """A scan of one colour image, whose camera is that of its depth image."""

    def __init__(self, center=(31.5, 23.5)):
        self.depth_scale = 500.0
        self.depth_intrinsics = np.array([[57.0, 0, center[0]], [0, 58.0, center[1]], [0, 0, 1]])

    def color(self, number):
        return np.full((48, 64, 3), number, dtype=np.uint8)

    def color_intrinsics(self, size):
        return scale_intrinsics(self.depth_intrinsics, size[0] / 64, size[1] / 48)


DEPTH = np.full((48, 64), 1000, dtype=np.uint16)


@pytest.mark.parametrize(
    ("size", "is_same"),
    [
        ((32, 24), True), ((32, 25), True), ((32, 23), True), ((33, 24), True), ((31, 24), True), ((128, 94), True),
        ((32, 26), False), ((32, 22), False), ((34, 24), False), ((30, 24), False), ((128, 93), False),
    ],
)  # fmt: skip
def test_a_frame_may_have_another_size_of_the_same_aspect(size, is_same):
    """Up to a pixel of rounding."""
    if is_same:
        frame = scan_frame(OneFrame(), 7, "frame", POSES[0], DEPTH, size)
        assert frame.depth.shape == size[::-1] and frame.image.shape == (*size[::-1], 3)
        assert (frame.depth == 2).all() and (frame.image == 7).all() and frame.frame_id == "frame"
        expected = scale_intrinsics(OneFrame().depth_intrinsics, size[0] / 64, size[1] / 48)
        np.testing.assert_allclose(frame.intrinsics, expected)
        np.testing.assert_array_equal(frame.camera_to_world, POSES[0])
    else:
        with pytest.raises(ValueError, match=r"depth is \(64, 48\) while image_size is .*expected the same aspect"):
            scan_frame(OneFrame(), 7, "frame", POSES[0], DEPTH, size)


@pytest.mark.parametrize(
    ("center", "is_fine"),
    [
        # Centres of pixels are at integers: the middle is (31.5, 23.5), and a tenth of the sides 6.4 and 4.8 pixels.
        ((37.8, 23.5), True), ((25.2, 23.5), True), ((31.5, 28.2), True), ((31.5, 18.8), True),
        ((38.0, 23.5), False), ((25.0, 23.5), False), ((31.5, 28.4), False), ((31.5, 18.6), False),
    ],
)  # fmt: skip
def test_a_principal_point_is_within_a_tenth_of_the_middle(center, is_fine):
    if is_fine:
        frame = scan_frame(OneFrame(center), 7, "frame", POSES[0], DEPTH)
        assert tuple(frame.intrinsics[:2, 2]) == center and frame.depth.shape == (48, 64)
    else:
        with pytest.raises(ValueError, match=r"depth is \(64, 48\) \(width, height\), its intrinsics are of an image"):
            scan_frame(OneFrame(center), 7, "frame", POSES[0], DEPTH)


def test_intrinsics_are_never_made_up(tmp_path):
    folder = tmp_path / "scene0000_00"
    write_exported_scan(folder, POSES)
    path = folder / "intrinsic" / "intrinsic_depth.txt"
    for place, value in (((0, 0), 0), ((1, 1), 0), ((0, 0), -50), ((1, 1), -50), ((0, 2), np.nan), ((1, 2), np.inf)):
        matrix = np.eye(4)
        matrix[:3, :3] = DEPTH_INTRINSICS
        matrix[place] = value
        np.savetxt(path, matrix)
        with pytest.raises(
            DataFileError, match="intrinsic_depth.txt: has the intrinsics .* expected finite, positive"
        ):
            open_scan(folder)
    path.unlink()
    (folder / "scene0000_00.txt").write_text(scan_info(axis_alignment()))
    with pytest.raises(DataFileError, match=r"intrinsic_depth.txt: no such file; export it with SensReader"):
        open_scan(folder)


def test_intrinsics_of_another_size_than_the_depth_images_are_refused(tmp_path):
    """Depth that was made smaller on export, say; points would lie beside their pixels."""
    folder = tmp_path / "scene0000_00"
    write_exported_scan(folder, POSES)
    matrix = np.eye(4)
    matrix[:3, :3] = scale_intrinsics(DEPTH_INTRINSICS, 2, 2)
    np.savetxt(folder / "intrinsic" / "intrinsic_depth.txt", matrix)
    with open_scan(folder) as scan, pytest.raises(ValueError, match="its intrinsics are of an image of .*resized on"):
        scan_frame(scan, 0, "frame", POSES[0], scan.depth(0))


def test_folders_that_are_no_scan(tmp_path):
    with pytest.raises(DataFileError, match="no such folder"):
        open_scan(tmp_path / "scene0000_00")
    with pytest.raises(DataFileError, match="neither"):
        open_scan(tmp_path)
    for name in ("color", "depth", "pose"):
        folder = tmp_path / f"without {name}"
        write_exported_scan(folder, {})
        (folder / name).rmdir()
        with pytest.raises(DataFileError, match="neither" if name == "depth" else f"{name}: no such folder"):
            open_scan(folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_label_images(tmp_path, zipped):
    folder = tmp_path / "scene0000_00"
    folder.mkdir()
    assert not LabelImages.exist(folder)
    with pytest.raises(DataFileError, match="no 2D images label-filt and instance-filt"):
        LabelImages(folder)
    write_label_images(folder, POSES, zipped=zipped)
    assert LabelImages.exist(folder)
    half = tmp_path / "scene0001_00"
    (half / "label-filt").mkdir(parents=True)
    assert not LabelImages.exist(half)
    with pytest.raises(DataFileError, match="has no 2D images instance-filt, as a folder"):
        LabelImages(half)
    ids = view(POSES[20], COLOR_INTRINSICS, COLOR_SIZE)[1]
    instance, raw_ids = LabelImages(folder).read(20)
    np.testing.assert_array_equal(instance, np.where(ids == 3, 0, ids + 1))
    np.testing.assert_array_equal(raw_ids, np.array([1, 3, 2, 0])[ids])
    with pytest.raises(DataFileError, match="21.png"):
        LabelImages(folder).read(21)


@pytest.mark.parametrize("zipped", [True, False])
def test_label_images_of_two_sizes_are_refused(tmp_path, zipped):
    folder = tmp_path / "scene0000_00"
    folder.mkdir()
    write_label_images(folder, {0: pose()}, zipped=zipped)
    place = folder / ("scene0000_00_2d-instance-filt.zip" if zipped else "instance-filt")
    small = encode(np.zeros((48, 64), dtype=np.uint8))
    if zipped:
        with zipfile.ZipFile(place, "w") as archive:
            archive.writestr("instance-filt/0.png", small)
    else:
        (place / "0.png").write_bytes(small)
    with pytest.raises(DataFileError, match=r"instance-filt.*0\.png.* is \(64, 48\); expected \(130, 97\)"):
        LabelImages(folder).read(0)


def test_a_damaged_archive(tmp_path):
    folder = tmp_path / "scene0000_00"
    folder.mkdir()
    write_label_images(folder, POSES, zipped=True)
    path = folder / "scene0000_00_2d-instance-filt.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataFileError, match=r"2d-instance-filt\.zip: cannot be unpacked"):
        LabelImages(folder).read(0)
    # What was unpacked goes before its archive.
    write_label_images(folder, POSES, zipped=False)
    LabelImages(folder).read(0)
