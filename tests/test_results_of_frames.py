import base64
import copy
import io
import json
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from frame_factory import make_frame
from PIL import Image
from ply_files import read_comments, read_ply

from bifusion_hf.boxes import describe_points
from bifusion_hf.results import InstanceSegmentation, run_lengths
from bifusion_hf.visualization import instance_colors


@pytest.fixture
def result():
    # Of twice as many pixels as the depth image, and with a name that no file can have.
    frame = make_frame(60, 80, image_scale=2, frame_id="kitchen/frame 7")
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
    assert repr(result) == "<'kitchen/frame 7', 60x80: 2 segments: a <cup> 0.90, box 0.75>"
    for again in (copy.copy(result), pickle.loads(pickle.dumps(result))):
        assert again.frame.frame_id == result.frame.frame_id
        assert (again["segmentation"] == result["segmentation"]).all()


def test_a_notebook_shows_a_picture_and_a_table(result, monkeypatch):
    text = result._repr_html_()
    picture = base64.b64decode(text.partition("base64,")[2].partition('"')[0])
    assert text.startswith("<img") and np.array_equal(np.asarray(Image.open(io.BytesIO(picture))), result.plot())
    assert "<td>a &lt;cup&gt;</td><td>0.90</td>" in text and text.count("<tr>") == 3 and "more" not in text
    sides = " x ".join(f"{side:.2f}" for side in result["segments_info"][1]["oriented_box_3d"]["size"])
    assert f"<td>2</td><td>box</td><td>0.75</td><td>{sides}</td>" in text
    monkeypatch.setattr(InstanceSegmentation, "plot", lambda self: Image.new("RGB", (4, 3)))
    for count, said in ((20, ""), (21, "and 1 more"), (25, "and 5 more")):
        result["segments_info"] = (result["segments_info"] * count)[:count]
        text = result._repr_html_()
        assert said in text and text.count("<tr>") == 1 + 20 and ("more" in text) == (count > 20)


def test_the_measured_pixels_are_points_with_their_own_colour_or_their_instance_s(result):
    points, colors, instance = result.colored_points()
    frame, owner = result.frame, result["segmentation"]
    own = np.asarray(Image.fromarray(frame.image).resize((80, 60), Image.Resampling.BICUBIC))
    rows, columns = np.nonzero(frame.depth)
    assert 0 < len(rows) < 60 * 80
    np.testing.assert_array_equal(points, frame.unproject().reshape(60, 80, 3)[rows, columns])
    np.testing.assert_array_equal(instance, owner[rows, columns])
    palette = instance_colors(3)
    expected = np.where((owner >= 0)[..., None], palette[owner.clip(0)], own)
    np.testing.assert_array_equal(colors, expected[rows, columns])


def test_files(result, tmp_path):
    paths = result.save(tmp_path / "new" / "folder", threshold=0.5)
    names = {"overlay": "kitchen_frame_7_overlay.png", "ply": "kitchen_frame_7.ply", "json": "kitchen_frame_7.json"}
    assert paths == {kind: tmp_path / "new" / "folder" / name for kind, name in names.items()}
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(names.values())
    assert np.array_equal(np.asarray(Image.open(paths["overlay"])), np.asarray(result.plot()))
    content = json.loads(paths["json"].read_text())
    assert content["threshold"] == 0.5 and content["up"] == "pose" and content["coordinates"] == "world"
    first, second = content["segments"]
    assert first["num_parts"] == 2
    assert first["box_2d"] == [10, 5, 30, 25] and first["color"] == instance_colors(1)[-1].tolist()
    assert second["oriented_box_3d"]["size"] == result["segments_info"][1]["oriented_box_3d"]["size"]
    points, colors, instance = result.colored_points()
    vertices = read_ply(paths["ply"])
    np.testing.assert_array_equal(np.stack([vertices[axis] for axis in "xyz"], axis=1), points.astype(np.float32))
    np.testing.assert_array_equal(np.stack([vertices[name] for name in ("red", "green", "blue")], axis=1), colors)
    np.testing.assert_array_equal(vertices["instance"], instance)
    assert read_comments(paths["ply"]) == ["instance 0 a <cup>", "instance 2 box"]
    result.to_npz(tmp_path / "arrays.npz")
    with np.load(tmp_path / "arrays.npz") as arrays:
        for name in ("segmentation", "point_masks", "scores", "labels", "points", "pixel_indices"):
            np.testing.assert_array_equal(arrays[name], result[name])
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
    assert run_lengths(np.array([[0, 2, 1]])) == [1, 2] and run_lengths(np.zeros((0, 3))) == [0]


def test_coco(result):
    found = result.to_coco(image_id=7, first_id=100)
    assert found["images"] == [{"id": 7, "file_name": result.frame.frame_id, "width": 80, "height": 60}]
    assert found["categories"] == [{"id": 0, "name": "a <cup>"}, {"id": 2, "name": "box"}]
    first, second = found["annotations"]
    assert (first["id"], first["bbox"], first["name"]) == (100, [10, 5, 20, 20], "a <cup>")
    segmentation = second.pop("segmentation")
    assert second == {
        "id": 101,
        "image_id": 7,
        "category_id": 2,
        "area": 600,
        "bbox": [40, 30, 30, 20],
        "iscrowd": 0,
        "score": 0.75,
        "name": "box",
        "num_parts": 2,
    }
    counts, size = segmentation["counts"], segmentation["size"]
    values = np.repeat(np.arange(len(counts)) % 2, counts).reshape(size[::-1]).T
    assert (values == (result["segmentation"] == 2)).all()
    json.dumps(found)
    alone = result.to_coco()
    assert alone["images"][0]["id"] == alone["annotations"][0]["image_id"] == 0
    assert [annotation["id"] for annotation in alone["annotations"]] == [1, 2]


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
    points, colors, _ = result.colored_points()
    assert cloud.points.dtype == np.float64
    np.testing.assert_array_equal(cloud.points, points)
    np.testing.assert_allclose(cloud.colors, colors / 255.0)
    for drawn, segment in zip((first, second), result["segments_info"], strict=True):
        box = segment["oriented_box_3d"]
        assert drawn.center.tolist() == box["center"] and drawn.extent.tolist() == box["size"]
        assert drawn.R.tolist() == box["rotation"]
        np.testing.assert_allclose(drawn.color, instance_colors(3)[segment["id"]] / 255.0)


def test_a_missing_package_is_named(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "bifusion_hf\[open3d\]"'):
        result.to_open3d()


class FakeRerun:
    """A stand-in: what is made is (kind, arguments, keywords), and a recording is written when it ends."""

    ViewCoordinates = SimpleNamespace(RIGHT_HAND_Z_UP="z up")

    def __init__(self):
        self.logged, self.calls = [], []

    def __getattr__(self, kind):
        return lambda *args, **kwargs: (kind, args, kwargs)

    def RecordingStream(self, name):
        def save(path):
            self.calls.append(name)
            self.path = path

        def log(path, value, *, static=False):
            assert not self.path.exists() and static
            self.logged.append((path, value))

        def disconnect():
            self.path.write_bytes(b"recorded")

        return SimpleNamespace(save=save, log=log, flush=lambda: self.calls.append("flush"), disconnect=disconnect)


def test_the_rerun_viewer_gets_what_the_file_says(result, tmp_path, monkeypatch):
    """A stand-in, which takes what the constructors of Rerun 0.26 take."""
    rerun = FakeRerun()
    monkeypatch.setattr("bifusion_hf.results.require_package", lambda name: {"rerun": rerun}[name])
    result.to_rerun(tmp_path / "frame.rrd")
    # It lies there whole, or not at all.
    assert (tmp_path / "frame.rrd").read_bytes() == b"recorded" and rerun.path != tmp_path / "frame.rrd"
    paths = ["world", "world/points", "world/segments", "image", "image", "image/segments"]
    assert [path for path, _ in rerun.logged] == paths
    axes, points, boxes, context, image, ids = (value for _, value in rerun.logged)
    assert axes == "z up"
    where, colors, _ = result.colored_points()
    np.testing.assert_array_equal(points[1][0], where)
    np.testing.assert_array_equal(points[2]["colors"], colors)
    tints = instance_colors(3)[[0, 2]]
    corners = np.array([segment["box_3d"] for segment in result["segments_info"]])
    np.testing.assert_array_equal(boxes[2]["mins"], corners[:, :3])
    np.testing.assert_allclose(boxes[2]["mins"] + boxes[2]["sizes"], corners[:, 3:])
    np.testing.assert_array_equal(boxes[2]["colors"], tints)
    labels = ["a <cup> 0.90", "box 0.75"]
    assert boxes[0] == "Boxes3D" and boxes[2]["labels"] == labels
    # No instance is class 0 of the image.
    assert [(number, label, color.tolist()) for number, label, color in context[1][0]] == [
        (1, labels[0], tints[0].tolist()),
        (3, labels[1], tints[1].tolist()),
    ]
    assert image[0] == "Image" and image[1][0].shape == (60, 80, 3)
    assert ids[1][0].dtype == np.uint16
    np.testing.assert_array_equal(ids[1][0].astype(int), result["segmentation"] + 1)


def test_a_recording_of_a_frame_without_segments_has_no_boxes(result, tmp_path, monkeypatch):
    rerun = FakeRerun()
    monkeypatch.setattr("bifusion_hf.results.require_package", lambda name: {"rerun": rerun}[name])
    result["segments_info"], result["segmentation"] = [], np.full((60, 80), -1, np.int32)
    result.to_rerun(tmp_path / "frame.rrd")
    logged = dict(rerun.logged)
    assert "world/segments" not in logged and not logged["image/segments"][1][0].any()


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


@pytest.mark.parametrize("is_notebook", [True, False])
def test_show_is_a_picture_below_the_cell_in_a_notebook(result, monkeypatch, is_notebook):
    """IPython may be installed without a notebook that runs."""
    displayed, shown = [], []
    shell = SimpleNamespace(display=SimpleNamespace(display=displayed.append))
    shell.get_ipython = lambda: shell if is_notebook else None
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture))
    result.show()
    assert displayed == ([result] if is_notebook else []) and len(shown) == (0 if is_notebook else 1)
