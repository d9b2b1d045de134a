import copy
import json
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from frame_factory import make_frame
from PIL import Image

from bifusion_hf.boxes import describe_points
from bifusion_hf.results import InstanceSegmentation, run_lengths
from bifusion_hf.visualization import instance_colors


@pytest.fixture
def result():
    frame = make_frame(60, 80)
    segmentation = np.full((60, 80), -1, np.int32)
    segmentation[5:25, 10:30], segmentation[30:50, 40:70] = 0, 2
    pixels = np.flatnonzero(frame.depth)[::3]
    points = frame.unproject(pixels)
    masks = np.stack([segmentation.reshape(-1)[pixels] == index for index in range(3)])
    segments = [
        {
            "id": index,
            "label_id": index,
            "label": label,
            "score": score,
            "num_points": int(masks[index].sum()),
            "num_parts": 2,
        }
        | describe_points(points[masks[index]])
        for index, label, score in ((0, "a <cup>", 0.9), (2, "box", 0.75))
    ]
    values = {
        "segmentation": segmentation,
        "segments_info": segments,
        "point_masks": masks,
        "scores": np.array([0.9, 0.8, 0.75], np.float32),
        "labels": np.array([0, 1, 2]),
        "points": points,
        "pixel_indices": pixels,
        "up": "pose",
    }
    return InstanceSegmentation(values, frame)


def test_it_is_a_dict_that_says_what_is_in_it(result):
    assert dict(result)["up"] == "pose" and list(result) == list(dict(result))
    assert repr(result) == f"<'{result.frame.frame_id}', 60x80: 2 segments: a <cup> 0.90, box 0.75>"
    for again in (copy.copy(result), pickle.loads(pickle.dumps(result))):
        assert again.frame.frame_id == result.frame.frame_id
        assert (again["segmentation"] == result["segmentation"]).all()


def test_a_notebook_shows_a_picture_and_a_table(result):
    text = result._repr_html_()
    assert text.startswith("<img") and "data:image/png;base64," in text
    assert "<td>a &lt;cup&gt;</td><td>0.90</td>" in text and text.count("<tr>") == 3 and "more" not in text
    result["segments_info"] = [{**result["segments_info"][0], "id": index} for index in range(25)]
    result["segmentation"] = np.arange(60 * 80, dtype=np.int32).reshape(60, 80) // 192
    assert "and 5 more" in result._repr_html_()


def test_files(result, tmp_path):
    paths = result.save(tmp_path / "new", threshold=0.5)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths.values())
    assert np.array_equal(np.asarray(Image.open(paths["overlay"])), np.asarray(result.plot()))
    content = json.loads(paths["json"].read_text())
    assert content["threshold"] == 0.5 and content["up"] == "pose" and content["coordinates"] == "world"
    first, second = content["segments"]
    assert first["num_parts"] == 2
    assert first["box_2d"] == [10, 5, 30, 25] and first["color"] == instance_colors(1)[-1].tolist()
    assert second["oriented_box_3d"]["size"] == result["segments_info"][1]["oriented_box_3d"]["size"]
    header, _, body = paths["ply"].read_bytes().partition(b"end_header\n")
    count = np.count_nonzero(result.frame.depth)
    assert f"element vertex {count}".encode() in header and len(body) == count * (12 + 3 + 4)
    result.to_npz(tmp_path / "arrays.npz")
    with np.load(tmp_path / "arrays.npz") as arrays:
        assert (arrays["point_masks"] == result["point_masks"]).all()
        assert json.loads(str(arrays["segments_info"])) == result["segments_info"]
    assert set(result.save(tmp_path, "name")) == {"overlay", "ply", "json"} and (tmp_path / "name.ply").exists()


def test_run_lengths_are_those_of_a_slow_count():
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (3, 5), (7, 2)):
        for _ in range(20):
            mask = rng.random((height, width)) < 0.5
            counts, value = [0], False
            for pixel in mask.T.ravel():
                if pixel != value:
                    counts.append(0)
                    value = not value
                counts[-1] += 1
            assert run_lengths(mask) == counts
    assert run_lengths(np.zeros((2, 3))) == [6] and run_lengths(np.ones((2, 3))) == [0, 6]


def test_coco(result):
    found = result.to_coco(image_id=7, first_id=100)
    assert found["images"] == [{"id": 7, "file_name": result.frame.frame_id, "width": 80, "height": 60}]
    assert found["categories"] == [{"id": 0, "name": "a <cup>"}, {"id": 2, "name": "box"}]
    first, second = found["annotations"]
    assert (first["id"], second["id"], second["image_id"], second["category_id"]) == (100, 101, 7, 2)
    assert second["bbox"] == [40, 30, 30, 20] and second["area"] == 600 and second["score"] == 0.75
    counts, size = second["segmentation"]["counts"], second["segmentation"]["size"]
    values = np.repeat(np.arange(len(counts)) % 2, counts).reshape(size[::-1]).T
    assert (values == (result["segmentation"] == 2)).all()
    json.dumps(found)


def test_open3d_gets_points_and_boxes(result, monkeypatch):
    """A stand-in, which takes what the constructors of Open3D 0.18 take."""
    module = SimpleNamespace(
        utility=SimpleNamespace(Vector3dVector=np.array),
        geometry=SimpleNamespace(
            PointCloud=lambda points: SimpleNamespace(points=points),
            OrientedBoundingBox=lambda center, R, extent: SimpleNamespace(center=center, R=R, extent=extent),
        ),
    )
    monkeypatch.setattr("bifusion_hf.results.require_package", lambda name: {"open3d": module}[name])
    cloud, first, second = result.to_open3d()
    assert cloud.points.shape == cloud.colors.shape == (np.count_nonzero(result.frame.depth), 3)
    assert cloud.points.dtype == np.float64 and cloud.colors.min() >= 0 and cloud.colors.max() <= 1
    box = result["segments_info"][1]["oriented_box_3d"]
    assert second.center.tolist() == box["center"] and second.extent.tolist() == box["size"]
    assert np.allclose(second.R @ second.R.T, np.eye(3)) and not np.array_equal(first.color, second.color)


def test_a_missing_package_is_named(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "bifusion_hf\[open3d\]"'):
        result.to_open3d()


def test_a_recording_of_the_rerun_viewer(result, tmp_path):
    pytest.importorskip("rerun")
    result.to_rerun(tmp_path / "frame.rrd")
    content = (tmp_path / "frame.rrd").read_bytes()
    assert content.startswith(b"RRF2") and len(content) > 10_000
    for name in (b"/world/points", b"/world/segments", b"/image/segments"):
        assert name in content


def test_show_opens_the_picture_outside_of_notebooks(result, monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture.size))
    result.show()
    assert shown == [result.plot().size]
