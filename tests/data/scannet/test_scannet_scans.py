import numpy as np
import pytest
from scannet_files import (
    COLOR_INTRINSICS,
    COLOR_SIZE,
    DEPTH_INTRINSICS,
    axis_alignment,
    color_view,
    depth_view,
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
    extrinsics[0, 3] = 0.04
    folder = tmp_path / "scene0000_00"
    write_sens_scan(folder, [pose()], annotation=False, depth_extrinsics=extrinsics)
    with pytest.raises(DataFileError, match=r"scene0000_00\.sens: .*registered"):
        open_scan(folder)
    with open_scan(folder, assume_registered=True) as scan:
        assert scan.numbers() == [0]


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
    (folder / "scene0000_00.txt").write_text("colorWidth = 0\ncolorHeight = 48\n")
    with pytest.raises(DataFileError, match=r"scene0000_00\.txt: has a colour image of"):
        ExportedScan(folder).color_intrinsics((64, 48))


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
    ids = view(POSES[20], COLOR_INTRINSICS, COLOR_SIZE)[1]
    instance, raw_ids = LabelImages(folder).read(20)
    np.testing.assert_array_equal(instance, np.where(ids == 3, 0, ids + 1))
    np.testing.assert_array_equal(raw_ids, np.array([1, 3, 2, 0])[ids])
    with pytest.raises(DataFileError, match="21.png"):
        LabelImages(folder).read(21)


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
