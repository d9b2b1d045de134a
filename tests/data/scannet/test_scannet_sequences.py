"""Scans as sequences: ids that are the same in all frames, boxes of whole objects, windows, and meshes by name."""

from pathlib import Path

import numpy as np
import pytest
from scannet_files import (
    BOX,
    LABEL_MAP,
    OBJECTS,
    axis_alignment,
    pose,
    room_mesh,
    write_exported_scan,
    write_sens_scan,
)

from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.data.recordings.rows import RowScenes
from bifusion_hf.data.scannet import prepare_scannet200
from bifusion_hf.data.scannet.scan_mesh import ScanMeshes, boxes_by_id, mesh_files
from bifusion_hf.data.windows import Scenes, WindowCollator, WindowDataset
from bifusion_hf.io.files import DataFileError
from bifusion_hf.processing_bifusion import BiFusionProcessor


# The box is seen in all of them.
POSES = [pose(0.04 * index, (0.05 * index, 0.0, 1.4)) for index in range(5)]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    root = tmp_path_factory.mktemp("scannet")
    for name in ("scene0000_00", "scene0000_01"):
        write_sens_scan(root / "scans" / name, POSES)
    write_exported_scan(root / "scans" / "scene0001_00", {0: pose()})
    (root / "labels.tsv").write_text(LABEL_MAP)
    (root / "train.txt").write_text("scene0000_00\nscene0000_01\n")
    (root / "val.txt").write_text("scene0001_00\n")
    return root


def prepare(scans, out, split="train", **options):
    options = {"label_map": scans / "labels.tsv", "frame_interval": 2, "progress": False, **options}
    return prepare_scannet200(scans / "scans", out, {split: scans / f"{split}.txt"}, **options)


@pytest.mark.parametrize("aligned", [False, True])
def test_rows_have_the_objects_of_the_whole_mesh_in_the_world_of_the_frames(aligned, scans, tmp_path):
    prepare(scans, tmp_path, sequences=True, axis_align=aligned)
    rows = load_frames(tmp_path, "train")
    assert rows["scene_id"] == ["scene0000_00"] * 3 + ["scene0000_01"] * 3
    vertices, _, objects = room_mesh()
    if aligned:
        vertices = vertices @ axis_alignment()[:3, :3].T + axis_alignment()[:3, 3]
    for row in rows:
        # The ceiling is not annotated.
        assert row["object_ids"] == [index for index, *_ in OBJECTS]
        for index, box in zip(row["object_ids"], row["object_boxes"], strict=True):
            corners = vertices[objects == index]
            np.testing.assert_allclose(box, [*corners.min(axis=0), *corners.max(axis=0)], atol=1e-5)
        frame = frame_from_row(row)
        seen = frame.unproject()[(frame.instance == 2) & (frame.depth > 0)]
        low, high = np.array(row["object_boxes"][2]).reshape(2, 3)
        assert len(seen) > 50 and (seen > low - 0.1).all() and (seen < high + 0.1).all()
        if not aligned:
            np.testing.assert_allclose([low, high], BOX, atol=1e-5)


def test_a_prepared_scan_gives_windows(scans, tmp_path):
    prepare(scans, tmp_path, sequences=True, frame_interval=1)
    scenes = Scenes(load_frames(tmp_path, "train"))
    assert [scene.name for scene in scenes] == ["scene0000_00", "scene0000_01"] and len(scenes[0]) == 5
    processor = BiFusionProcessor(num_points=300, num_superpoints=20)
    batch = WindowCollator(processor)([WindowDataset(scenes, processor, 3)[0, 1]])
    # Wall and floor have no instances; the box is object 2 in each frame.
    assert [ids.tolist() for ids in batch["instance_ids"]] == [[2]] * 3
    np.testing.assert_allclose(batch["object_boxes"][1][0], BOX.ravel(), atol=1e-5)


def test_a_scan_without_a_mesh_has_no_boxes_and_fails_by_name(scans, tmp_path):
    with pytest.raises(ValueError, match="split 'val' has no frame"):
        prepare(scans, tmp_path, "val", sequences=True)
    assert "scene0001_00: labels are of kind 'none'; expected a mesh" in (tmp_path / "report.txt").read_text()
    with pytest.raises(ValueError, match="begun with another sequences"):
        prepare(scans, tmp_path, "val")


def test_settings_are_as_before_without_sequences(scans, tmp_path):
    report = prepare(scans, tmp_path)
    assert "sequences" not in report["settings"]
    rows = load_frames(tmp_path, "train")
    assert "scene_id" not in rows.column_names
    # Its scenes have the names of the scans all the same.
    assert list(RowScenes(tmp_path, rows)) == list(ScanMeshes(scans / "scans", scans / "labels.tsv"))


def test_meshes_by_the_names_of_scenes(scans, tmp_path, monkeypatch):
    meshes = ScanMeshes(scans / "scans", scans / "labels.tsv")
    assert list(meshes) == ["scene0000_00", "scene0000_01"] and len(meshes) == 2
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", lambda folder: sorted(folder.glob("*"), reverse=True))
        assert list(meshes) == ["scene0000_00", "scene0000_01"], "whatever order the folder has"
    # What has no mesh is no scan.
    (tmp_path / "rest" / "b").mkdir(parents=True)
    for path in mesh_files(tmp_path / "rest" / "b")[1:]:
        path.touch()
    assert list(ScanMeshes(tmp_path / "rest", scans / "labels.tsv")) == []
    vertices, faces, objects = room_mesh()
    for mesh in meshes.values():
        np.testing.assert_allclose(mesh.vertices, vertices)
        np.testing.assert_array_equal(mesh.faces, faces)
        np.testing.assert_array_equal(mesh.labels.instance, np.where(objects == 3, -1, objects))
        np.testing.assert_array_equal(mesh.segments, 7 + 5 * (np.arange(len(vertices)) // 4))
    with pytest.raises(DataFileError, match="scene0001_00_vh_clean_2.ply"):
        meshes["scene0001_00"]
    with pytest.raises(DataFileError, match="no such folder"):
        ScanMeshes(tmp_path / "absent", scans / "labels.tsv")


def test_boxes_are_of_all_points_of_an_id():
    rng = np.random.default_rng(0)
    points, ids = rng.normal(size=(200, 3)), rng.integers(-2, 5, 200) * 3
    found, boxes = boxes_by_id(points, ids.astype(np.int32))
    assert found.dtype == np.int64
    assert boxes_by_id(points.astype(np.float32), ids)[1].dtype == np.float64
    assert found.tolist() == [0, 3, 6, 9, 12]
    for index, box in zip(found, boxes, strict=True):
        own = points[ids == index]
        np.testing.assert_array_equal(box, [*own.min(axis=0), *own.max(axis=0)])
    found, boxes = boxes_by_id(points, np.full(200, -1))
    assert found.shape == (0,) and found.dtype == np.int64 and boxes.shape == (0, 6)
