"""The rows of a scan: depth in the unit of its file, and every setting in what is made of it."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from scannet_files import (
    DEPTH_INTRINSICS,
    DEPTH_SIZE,
    axis_alignment,
    color_view,
    depth_view,
    pose,
    room_mesh,
    scan_info,
    sens_bytes,
    view,
    write_exported_scan,
    write_label_images,
    write_sens_scan,
)

from bifusion_hf.data.frames import frame_from_row
from bifusion_hf.data.scannet import source
from bifusion_hf.data.scannet.scan_mesh import mesh_files
from bifusion_hf.data.scannet.source import ScanNetSource
from bifusion_hf.io.files import DataFileError


POSES = [pose(), pose(0.2), pose(-0.2)]
IDS = {"wall": 1, "chair": 2, "floor": 3, "stack of chairs": 2}
BASE = {"label_ids": IDS, "frame_interval": 2}
# Setting -> another value, and where its rows differ: their number, names or columns, or a field of the first frame.
CHANGES = {
    "label_ids": ({"wall": 2}, "semantic"),
    "labels": ("none", "instance"),
    "frame_interval": (1, "number"),
    "frame_numbers": ({"scene0000_00": (1,)}, "names"),
    "image_size": ((32, 24), "depth"),
    "axis_align": (True, "camera_to_world"),
    "max_label_distance": (0.1, "instance"),
    "jpeg_quality": (None, "image"),
    "assume_registered": (True, "number"),
    "sequences": (True, "columns"),
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A scan; one whose file has another unit of depth; and one whose cameras are not registered."""
    folder = tmp_path_factory.mktemp("scans")
    moved = np.eye(4)
    moved[0, 3] = 0.04
    for name, options in (
        ("own", {}),
        ("other", {"depth_scale": 2000.0}),
        ("unregistered", {"depth_extrinsics": moved}),
    ):
        write_sens_scan(folder / name / "scene0000_00", POSES, **options)
    write_label_images(folder / "own" / "scene0000_00", dict(enumerate(POSES)), zipped=False)
    return folder


def test_settings_have_the_published_ones_where_none_are_given():
    assert ScanNetSource("x") == ScanNetSource("x", None, "auto", 200, {}, None, False, 0.05, 95, False, False)


class QuickLabels:
    """Labels of a mesh that say what they were made with: searching the surface takes longer than all the rest."""

    def __init__(self, vertices, faces, labels, max_distance):
        if max_distance > 1:
            raise ValueError("too far")
        self.instance, self.raw_id = round(100 * max_distance), labels.raw_ids.max()

    def label(self, frame):
        return tuple(np.full(frame.depth.shape, value, np.int32) for value in (self.instance, self.raw_id))


@pytest.fixture(autouse=True)
def quick_labels(monkeypatch):
    monkeypatch.setattr(source, "MeshLabels", QuickLabels)


def observe(folder, seen_in, **settings):
    """A field of the first frame, the rows' number, names or columns; or what is said where there are none."""
    made = ScanNetSource(folder, **{**BASE, **settings})
    try:
        rows = [row for row in made.rows("scene0000_00") if isinstance(row, dict)]
    except ValueError as error:
        return str(error)
    if seen_in == "number":
        return len(rows)
    if seen_in == "names":
        return [row["frame_id"] for row in rows]
    if seen_in == "columns":
        return sorted(rows[0])
    return rows[0][seen_in] if seen_in == "depth_scale" else getattr(frame_from_row(rows[0]), seen_in)


@pytest.mark.parametrize(("name", "scale"), [("own", 1000), ("other", 2000)])
def test_depth_has_the_unit_of_the_file(scans, name, scale):
    """What is stored are the file's own integers; in metres half as far where a metre has twice the units."""
    assert observe(scans / name, "depth_scale") == scale
    np.testing.assert_allclose(observe(scans / name, "depth"), depth_view(POSES[0]) / scale, atol=1e-6)


def test_every_setting_is_looked_at():
    assert {field.name for field in dataclasses.fields(ScanNetSource)} == {"scans", *CHANGES}


@pytest.mark.parametrize("name", CHANGES)
def test_setting_changes_the_rows(scans, name):
    value, seen_in = CHANGES[name]
    folder = scans / ("unregistered" if name == "assume_registered" else "own")
    before, after = (observe(folder, seen_in, **changed) for changed in ({}, {name: value}))
    assert not np.array_equal(before, after)


def test_label_images_are_taken_where_they_are_asked_for(scans):
    mesh, images = (observe(scans / "own", "instance", labels=labels) for labels in ("mesh", "2d"))
    assert np.unique(mesh).tolist() == [5] and np.unique(images).tolist() == [-1, 0, 2]
    np.testing.assert_array_equal(observe(scans / "own", "instance"), mesh)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_mesh_without_all_its_files_labels_nothing(scans, tmp_path, kept):
    folder = tmp_path / "scene0000_00"
    write_sens_scan(folder, POSES[:1], annotation=False)
    paths = mesh_files(scans / "other" / "scene0000_00")
    for index, path in enumerate(paths):
        if index != kept:
            (folder / path.name).write_bytes(path.read_bytes())
    note, row = ScanNetSource(tmp_path, **BASE).rows("scene0000_00")
    assert note == "labels: none" and frame_from_row(row).instance is None


def test_a_mesh_that_cannot_label_is_named(scans):
    with pytest.raises(DataFileError, match=r"scene0000_00_vh_clean_2\.ply: too far"):
        list(ScanNetSource(scans / "own", max_label_distance=2.0, **BASE).rows("scene0000_00"))


def write_scan(folder, poses, depths, **options):
    folder.mkdir(parents=True)
    colors = [color_view(POSES[0])] * len(poses)
    (folder / f"{folder.name}.sens").write_bytes(sens_bytes(poses, colors, depths, **options))


def test_why_a_frame_is_left_out(tmp_path):
    """A hundred measurements are enough; a pose that is not known wholly is not known."""
    lost = pose()
    lost[0, 3] = np.nan
    depths = [np.zeros((48, 64), dtype=np.uint16) for _ in range(4)]
    for depth, count in zip(depths, (100, 99, 0, 100), strict=True):
        depth.ravel()[:count] = 1000
    skewed = pose()
    skewed[0, 0] = 2
    write_scan(tmp_path / "scene0000_00", [pose(), pose(), lost, skewed], depths)
    _, row, *skipped = ScanNetSource(tmp_path, labels="none", frame_interval=1).rows("scene0000_00")
    assert row["frame_id"] == "scene0000_00_0" and np.count_nonzero(frame_from_row(row).depth) == 100
    reasons = [(item.frame_id[-1], item.reason) for item in skipped]
    assert reasons == [("1", "empty depth"), ("2", "invalid pose"), ("3", "malformed")]
    place = f"{tmp_path / 'scene0000_00' / 'scene0000_00.sens'}: frame "
    assert skipped[0].detail == f"{place}1: 99 pixels with a measurement"
    assert skipped[1].detail == f"{place}2: the pose is not finite" and skipped[2].detail.startswith(f"{place}3: ")


def test_pixels_without_a_measurement_have_no_label_of_a_label_image(tmp_path):
    folder = tmp_path / "scene0000_00"
    depth = depth_view(POSES[0])
    depth[:, ::2] = 0
    # Whatever the unit: here the whole room is nearer than a metre.
    write_scan(folder, POSES[:1], [depth], depth_scale=4000.0)
    write_label_images(folder, {0: POSES[0]}, zipped=False)
    path = folder / "instance-filt" / "0.png"
    values = np.asarray(Image.open(path))
    Image.fromarray(values + np.where(values > 0, 4, 0).astype(np.uint8)).save(path)
    _, row = ScanNetSource(tmp_path, labels="2d", frame_interval=1).rows("scene0000_00")
    frame = frame_from_row(row)
    # Objects 0, 1 and 2, now 4, 5 and 6, are of the classes of these numbers; the ceiling is neither.
    ids = view(POSES[0], DEPTH_INTRINSICS, DEPTH_SIZE)[1]
    for values, added in ((frame.instance, 4), (frame.semantic, 0)):
        assert (values[:, ::2] == -1).all()
        assert (values == np.where(ids == 3, -1, ids + added))[:, 1::2].mean() > 0.96


def test_label_images_of_an_export_are_seen_by_its_colour_camera(tmp_path):
    folder = tmp_path / "scene0000_00"
    write_exported_scan(folder, {0: POSES[1]})
    write_label_images(folder, {0: POSES[1]}, zipped=False)
    (folder / "scene0000_00.txt").write_text(scan_info(np.eye(4)))
    _, row = ScanNetSource(tmp_path, labels="2d", frame_interval=1).rows("scene0000_00")
    ids = view(POSES[1], DEPTH_INTRINSICS, DEPTH_SIZE)[1]
    assert (frame_from_row(row).semantic == np.where(ids == 3, -1, ids)).mean() > 0.96


@pytest.mark.parametrize("aligned", [False, True])
def test_rows_of_sequences_have_the_boxes_of_all_objects(scans, aligned):
    _, row = ScanNetSource(scans / "other", IDS, sequences=True, frame_interval=5, axis_align=aligned).rows(
        "scene0000_00"
    )
    vertices, _, objects = room_mesh()
    if aligned:
        vertices = vertices @ axis_alignment()[:3, :3].T + axis_alignment()[:3, 3]
    boxes = [[*vertices[objects == i].min(axis=0), *vertices[objects == i].max(axis=0)] for i in range(3)]
    assert row["scene_id"] == "scene0000_00" and row["object_ids"] == [0, 1, 2]
    np.testing.assert_allclose(row["object_boxes"], boxes, atol=1e-5)
    with pytest.raises(DataFileError, match="scene0000_00: labels are of kind 'none'; expected a mesh"):
        list(ScanNetSource(scans / "other", sequences=True, labels="none").rows("scene0000_00"))
