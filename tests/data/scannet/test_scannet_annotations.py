import json

import numpy as np
import pytest
from scannet_files import LABEL_MAP, axis_alignment, room_mesh, scan_info, write_annotation

from bifusion_hf.data.scannet.annotations import (
    axis_alignment as read_axis_alignment,
)
from bifusion_hf.data.scannet.annotations import read_label_ids, read_scan_info, read_vertex_labels
from bifusion_hf.io.files import DataFileError


IDS = {"wall": 1, "chair": 2, "floor": 3, "stack of chairs": 2, '5" picture': 1357}


def files(folder):
    name = folder.name
    return folder / f"{name}_vh_clean_2.0.010000.segs.json", folder / f"{name}.aggregation.json"


def test_label_table(tmp_path):
    path = tmp_path / "labels.tsv"
    path.write_text(LABEL_MAP)
    assert read_label_ids(path) == IDS
    # The published table has names twice, with other ids further down.
    path.write_text(LABEL_MAP + "\n9\tchair\tsofa\t1\n9\tsofa\tsofa\t1")
    assert read_label_ids(path) == {**IDS, "sofa": 9}
    # Quotes and commas are letters like others.
    path.write_text(LABEL_MAP + "\n0\tunknown\tnone\t1")
    assert read_label_ids(path) == {**IDS, "unknown": 0}
    path.write_text(LABEL_MAP + '\n4\t"exit" sign\tsign\t1\n5\t"\tmark\t1\n6\tlamp, tall\tlamp\t1')
    assert read_label_ids(path) == {**IDS, '"exit" sign': 4, '"': 5, "lamp, tall": 6}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no lines"),
        ("id\tname\n1\twall\n", "no column 'raw_category'"),
        ("id\traw_category\none\twall\n", "one"),
        ("id\traw_category\n-1\twall\n", "id -1"),
        (f"id\traw_category\n{2**31 - 1}\tdoor\n{2**31}\twall\n", "id 2147483648 for 'wall'"),
        ("id\traw_category\n1\n3\tfloor\textra\n", ""),
    ],
)
def test_damaged_label_tables(tmp_path, text, message):
    path = tmp_path / "labels.tsv"
    path.write_text(text)
    if message:
        with pytest.raises(DataFileError, match=message):
            read_label_ids(path)
    else:
        assert read_label_ids(path)["floor"] == 3


def test_a_byte_order_mark_is_no_part_of_a_table(tmp_path):
    path = tmp_path / "labels.tsv"
    path.write_text("\ufeff" + LABEL_MAP, encoding="utf-8")
    assert read_label_ids(path) == IDS


def test_objects_of_another_mesh_are_refused(tmp_path):
    folder = tmp_path / "scene0000_00"
    write_annotation(folder)
    segments, aggregation = files(folder)
    content = json.loads(aggregation.read_text())
    for group in content["segGroups"]:
        group["segments"] = [segment + 10_000 for segment in group["segments"]]
    aggregation.write_text(json.dumps(content))
    with pytest.raises(DataFileError, match=r"aggregation.json: names \d+ segments, of which 0 are in .*another mesh"):
        read_vertex_labels(segments, aggregation, IDS, len(room_mesh()[2]))


def test_vertices_take_the_object_of_their_segment(tmp_path):
    folder = tmp_path / "scene0000_00"
    write_annotation(folder)
    _, _, objects = room_mesh()
    labels = read_vertex_labels(*files(folder), IDS, len(objects))
    np.testing.assert_array_equal(labels.instance, np.where(objects == 3, -1, objects))
    np.testing.assert_array_equal(labels.raw_ids, np.array([1, 3, 2, 0])[objects])
    assert labels.instance.dtype == labels.raw_ids.dtype == np.int32
    # A name that the table lacks is unlabelled, but stays an object.
    labels = read_vertex_labels(*files(folder), {"wall": 1}, len(objects))
    np.testing.assert_array_equal(labels.instance, np.where(objects == 3, -1, objects))
    np.testing.assert_array_equal(labels.raw_ids, np.array([1, 0, 0, 0])[objects])


@pytest.mark.parametrize(
    ("groups", "is_other"),
    [
        # Of the mesh's segments 7, 12, ..., 47; half of those that are named have to be among them.
        ([[7, 12, 1, 2]], False),
        ([[7, 12, 1, 2, 3]], True),
        ([[7, 1, 1, 1]], False),
        ([[7, 7, 1, 2]], True),
        ([[7, 12, 17], [1, 2, 3]], False),
        ([[1, 2], [7, 12]], False),
        ([[7], [1, 2]], True),
        ([], False),
        ([[]], False),
    ],
)
def test_objects_are_of_a_mesh_that_has_half_of_their_segments(tmp_path, groups, is_other):
    folder = tmp_path / "scene0000_00"
    write_annotation(folder)
    segments, aggregation = files(folder)
    groups = [{"segments": group, "label": "wall", "objectId": 65534 - i} for i, group in enumerate(groups)]
    aggregation.write_text(json.dumps({"segGroups": groups}))
    if is_other:
        with pytest.raises(DataFileError, match="another mesh"):
            read_vertex_labels(segments, aggregation, IDS, 36)
        return
    labels = read_vertex_labels(segments, aggregation, IDS, 36)
    expected = {segment: group["objectId"] for group in groups for segment in group["segments"]}
    # The largest id that a frame can keep is one of them.
    assert labels.instance.tolist() == [expected.get(7 + 5 * (vertex // 4), -1) for vertex in range(36)]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (0, {"segIndices": [1, 2]}, "2 vertices; the mesh has 36"),
        (0, {"segIndices": [1.5] * 36}, "no list of integers"),
        (0, {"segIndices": {"a": 1}}, "no list of integers"),
        (0, {"segIndices": None}, "no list of integers"),
        (1, {"segGroups": 3}, "no list"),
        (1, {"segGroups": [3]}, "no segments"),
        (1, {"segGroups": [{"segments": [7], "label": "wall"}]}, "no objectId"),
        (1, {"segGroups": [{"segments": [7], "label": 3, "objectId": 0}]}, "label 3"),
        (1, {"segGroups": [{"segments": [7], "label": "wall", "objectId": -2}]}, "no list of integers"),
        (1, {"segGroups": [{"segments": [7], "label": "wall", "objectId": 65535}]}, "objectId 65535"),
        (1, {"segGroups": [{"segments": [2**31], "label": "wall", "objectId": 0}]}, "no list of integers"),
        (1, {"segGroups": [{"segments": [10**30], "label": "wall", "objectId": 0}]}, "no list of integers"),
    ],
)
def test_damaged_annotations(tmp_path, file, change, message):
    folder = tmp_path / "scene0000_00"
    write_annotation(folder)
    path = files(folder)[file]
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataFileError, match=message) as error:
        read_vertex_labels(*files(folder), IDS, 36)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100000, '{"segIndices": [1,'])
def test_files_that_are_no_json(tmp_path, text):
    folder = tmp_path / "scene0000_00"
    write_annotation(folder)
    files(folder)[0].write_text(text)
    with pytest.raises(DataFileError, match="is not JSON"):
        read_vertex_labels(*files(folder), IDS, 36)


def test_axis_alignment(tmp_path):
    path = tmp_path / "scene0000_00.txt"
    path.write_text(scan_info(axis_alignment()) + "  \n\n")
    np.testing.assert_allclose(read_axis_alignment(path), axis_alignment(), atol=1e-6)
    assert read_scan_info(path)["sceneType"] == "Bedroom / Hotel"
    for text, message in (
        ("colorWidth = 3\n", "no axisAlignment"),
        ("axisAlignment = 1 2 3\n", "3 numbers"),
        (scan_info(np.full((4, 4), np.nan)), "rigid"),
        (scan_info(2 * np.eye(4)), "rigid"),
        (scan_info(np.diag([1, 1.0008, 1, 1])), "rigid"),
        (scan_info(np.eye(4) + [[0, 0, 0, np.inf], *np.zeros((3, 4))]), "rigid"),
        (scan_info(np.diag([1, 1, 1, 2])), "rigid"),
        (scan_info(np.eye(4) + [*np.zeros((3, 4)), [0, 0, 1, 0]]), "rigid"),
        ("axisAlignment\n", "expected name = value"),
    ):
        path.write_text(text)
        with pytest.raises(DataFileError, match=message):
            read_axis_alignment(path)
    # As rigid as numbers of three digits are.
    path.write_text(scan_info(np.diag([1, 1.0004, 1, 1])))
    assert read_axis_alignment(path)[1, 1] == 1.0004
