"""Files of a scene, of stand-ins for session and objects."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from ply_files import read_comments, read_ply

from bifusion_hf.scenes.files import (
    animation_format,
    draw_scene_frame,
    object_to_json,
    write_animation,
    write_scene_cloud,
)
from bifusion_hf.scenes.objects import SceneObject
from bifusion_hf.visualization.colors import instance_color
from bifusion_hf.visualization.overlay import draw_instances


def scene_object(index, name, **semantic):
    box = np.array([0, 0, 0, 1, 2, 3.00004])
    points = np.zeros((7, 3), np.float32)
    return SceneObject(index, 4, "thing", 0.75, box, 3, points, points.astype(np.uint8), name, **semantic)


def test_an_object_as_json():
    found = object_to_json(scene_object(5, "red chair", semantic_label="chair", semantic_probability=0.5))
    assert json.loads(json.dumps(found)) == {
        "id": 5,
        "label_id": 4,
        "label": "thing",
        "name": "red chair",
        "semantic_label": "chair",
        "semantic_probability": 0.5,
        "score": 0.75,
        "num_views": 3,
        "num_points": 7,
        "box_3d": [0, 0, 0, 1, 2, 3],
        "color": instance_color(5).tolist(),
    }
    plain = object_to_json(scene_object(5, "red chair"))
    assert plain["semantic_label"] is None and plain["semantic_probability"] == 0


def test_the_cloud_has_the_ids_of_what_is_shown(tmp_path):
    points = np.arange(12, dtype=np.float32).reshape(4, 3)
    colors = np.full((4, 3), 200, np.uint8)
    session = SimpleNamespace(cloud=lambda: (points, colors, np.array([5, -1, 6, 5])))
    write_scene_cloud(tmp_path / "scene.ply", session, [scene_object(5, "red chair")])
    found = read_ply(tmp_path / "scene.ply")
    # Object 6 is not shown.
    assert found["instance"].tolist() == [5, -1, -1, 5]
    np.testing.assert_array_equal(np.stack([found[axis] for axis in "xyz"], axis=1), points)
    red = found["red"]
    assert red[0] == red[3] != red[1] == red[2]
    assert any("red chair" in comment for comment in read_comments(tmp_path / "scene.ply"))


def test_a_frame_s_picture_names_what_it_shows_with_the_ids_of_the_scene():
    image = np.full((60, 80, 3), 90, np.uint8)
    segmentation = np.full((60, 80), -1)
    segmentation[20:50, 30:70] = 5
    # Object 6 is hidden by another one.
    segments = [{"id": index, "name": name, "label": "object"} for index, name in ((5, "chair"), (6, "bed"))]
    found = draw_scene_frame(image, {"segmentation": segmentation, "segments_info": segments})
    expected = draw_instances(image, segmentation, [{**segments[0], "name": "chair 5"}])
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    # An object may fill the picture.
    filled = {"segmentation": np.full((60, 80), 5), "segments_info": segments[:1]}
    assert (np.asarray(draw_scene_frame(image, filled)) != np.asarray(found)).any()


@pytest.mark.parametrize("kind", [animation_format(), "gif"])
def test_an_animation_shows_each_picture_for_its_time_at_the_width_asked_for(tmp_path, kind):
    pictures = []
    # The size is that of the first one.
    for index, (grey, size) in enumerate(((0, (82, 60)), (120, (90, 50)), (240, (82, 60)))):
        pictures.append(tmp_path / f"{index}.png")
        Image.new("RGB", size, (grey, grey, grey)).save(pictures[-1])
    write_animation(tmp_path / f"scan.{kind}", iter(pictures), width=40, milliseconds=150)
    with Image.open(tmp_path / f"scan.{kind}") as animation:
        # 29.3 rows.
        assert animation.size == (40, 29) and animation.n_frames == 3 and animation.info["loop"] == 0
        for index, grey in enumerate((0, 120, 240)):
            animation.seek(index)
            animation.load()
            assert animation.info["duration"] == 150
            assert abs(int(np.asarray(animation.convert("L")).mean()) - grey) < 6
    write_animation(tmp_path / f"usual.{kind}", pictures[:2])
    with Image.open(tmp_path / f"usual.{kind}") as animation:
        animation.load()
        assert animation.size == (480, 351) and animation.info["duration"] == 200
    with pytest.raises(ValueError, match="no picture to animate"):
        write_animation(tmp_path / f"none.{kind}", [])


def test_the_format_of_an_animation_is_the_one_wanted(monkeypatch):
    assert animation_format("gif") == "gif"
    for has_webp, expected in ((True, "webp"), (False, "gif")):
        monkeypatch.setattr("bifusion_hf.scenes.files.features.check", lambda name, has=has_webp: has)
        assert animation_format() == expected
