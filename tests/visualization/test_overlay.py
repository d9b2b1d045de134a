import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from bifusion_hf.visualization import (
    draw_comparison,
    draw_instances,
    instance_colors,
    segments_to_json,
    side_by_side,
)


@pytest.fixture
def frame():
    image = np.full((240, 320, 3), 120, np.uint8)
    segmentation = np.full((240, 320), -1, np.int32)
    segmentation[40:140, 30:150] = 3
    segmentation[100:220, 200:300] = 7
    info = [
        {"id": 7, "label_id": 0, "label": "chair", "score": 0.912, "num_points": 10, "box_3d": [0.0] * 6},
        {"id": 3, "label_id": 1, "label": "table", "score": 0.5, "num_points": 20, "box_3d": [0.0] * 6},
    ]
    return image, segmentation, info


@pytest.mark.parametrize("size", [(240, 320), (480, 640), (968, 1296)])
def test_masks_are_tinted_outlined_and_the_rest_is_left(size):
    image = np.full((*size, 3), 120, np.uint8)
    segmentation = np.full(size, -1, np.int32)
    segmentation[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = 0
    picture = draw_instances(image, segmentation, [{"id": 0}])
    scale = picture.width // size[1]
    assert picture.size == (scale * size[1], scale * size[0]) and 900 < picture.width < 1500
    pixels = np.asarray(picture).astype(float)
    color = instance_colors(1)[0]
    tint = 0.55 * 120 + 0.45 * color
    assert np.abs(pixels[scale * (size[0] * 3 // 8), scale * (size[1] * 3 // 8)] - tint).max() <= 1
    assert (pixels[: scale * size[0] // 5] == 120).all()
    row = pixels[scale * (size[0] * 3 // 8)]
    start = scale * (size[1] // 4)
    assert (row[start - 1] == color).all() and np.abs(row[start] - tint).max() <= 1


def test_colours_follow_the_ids(frame):
    """So that a picture and a point cloud of the same prediction agree, whatever ids are left out."""
    image, segmentation, _ = frame
    pixels = np.asarray(draw_instances(image, segmentation, [{"id": 7}, {"id": 3}])).astype(float)
    scale = pixels.shape[1] // 320
    for index, (row, column) in {3: (60, 60), 7: (200, 250)}.items():
        tint = 0.55 * 120 + 0.45 * instance_colors(8)[index]
        assert np.abs(pixels[scale * row, scale * column] - tint).max() <= 1


def test_labels_and_scores_are_written(frame):
    image, segmentation, info = frame
    bare = [{"id": segment["id"]} for segment in info]
    plain = draw_instances(image, segmentation, bare)
    texts = {"own": draw_instances(image, segmentation, info)}
    texts["renamed"] = draw_instances(image, segmentation, info, {0: "sofa", 1: "desk"})
    texts["rescored"] = draw_instances(image, segmentation, [{**segment, "score": 0.123} for segment in info])
    for picture in texts.values():
        box = ImageChops.difference(plain, picture).getbbox()
        # At least 12 pixels high at 960 wide.
        assert box is not None and box[3] - box[1] >= 12
    assert len({picture.tobytes() for picture in texts.values()}) == 3
    assert draw_instances(image, segmentation, info).tobytes() == texts["own"].tobytes()


def test_labels_of_neighbours_do_not_cover_each_other():
    from bifusion_hf.visualization.overlay import _free_place

    taken = []
    for _ in range(5):
        taken.append(_free_place((100, 60), (80, 15), (320, 240), taken))
    for i, a in enumerate(taken):
        assert a[0] >= 0 and a[1] >= 0 and a[2] < 320 and a[3] < 240
        for b in taken[:i]:
            assert a[3] <= b[1] or b[3] <= a[1]


def test_tensors_are_taken_and_inputs_left_alone(frame):
    image, segmentation, info = frame
    before = image.copy()
    expected = draw_instances(image, segmentation, info)
    assert draw_instances(image, torch.from_numpy(segmentation), info).tobytes() == expected.tobytes()
    np.testing.assert_array_equal(image, before)


def test_specks_and_pinholes_are_drawn_as_what_surrounds_them():
    image = np.full((240, 320, 3), 120, np.uint8)
    solid = np.full((240, 320), -1)
    solid[40:200, 40:200] = 0
    solid[50:58, 300:308] = 1
    speckled = solid.copy()
    speckled[100, 100], speckled[120, 120], speckled[20, 20] = -1, 1, 0
    info = [{"id": 0}, {"id": 1}]
    expected = np.asarray(draw_instances(image, solid, info))
    assert np.array_equal(np.asarray(draw_instances(image, speckled, info)), expected)
    # What is small but no speck stays.
    solid[50:58, 300:308] = -1
    assert not np.array_equal(np.asarray(draw_instances(image, solid, info)), expected)


def test_nothing_found(frame):
    image, segmentation, _ = frame
    picture = draw_instances(image, np.full_like(segmentation, -1), [])
    assert (np.asarray(picture) == 120).all()
    # A segment that others cover altogether.
    draw_instances(image, np.full_like(segmentation, -1), [{"id": 0, "label": "object", "score": 1.0}])


def test_malformed_input(frame):
    image, segmentation, info = frame
    with pytest.raises(ValueError, match=r"ids \[3\] that segments_info lacks; it has \[7\]"):
        draw_instances(image, segmentation, info[:1])
    with pytest.raises(ValueError, match="segmentation has shape .* float64"):
        draw_instances(image, segmentation * 1.0, info)
    with pytest.raises(ValueError, match=r"image has shape \(240, 320\)"):
        draw_instances(image[..., 0], segmentation, info)


def test_prediction_wears_the_colour_of_the_truth(frame):
    image, truth, info = frame
    found = np.full_like(truth, -1)
    found[105:220, 200:300] = 0
    found[0:20, 0:20] = 1
    prediction = [{"id": 0}, {"id": 1}]
    bare = [{"id": segment["id"]} for segment in info]
    picture = np.asarray(draw_comparison(image, (found, prediction), (truth, bare)))
    panel = np.asarray(draw_instances(image, truth, bare, colors=instance_colors(2)))
    height, width = panel.shape[:2]
    left, right = picture[-height:, :width], picture[-height:, -width:]
    scale = width // 320
    np.testing.assert_array_equal(left, panel)
    np.testing.assert_array_equal(left[160 * scale, 250 * scale], right[160 * scale, 250 * scale])
    alone = {
        tuple(right[10 * scale, 10 * scale]),
        tuple(left[90 * scale, 90 * scale]),
        tuple(left[160 * scale, 250 * scale]),
    }
    assert len(alone) == 3


def test_side_by_side_scales_to_the_first():
    result = side_by_side({"a": Image.new("RGB", (100, 50)), "b": Image.new("RGB", (300, 100), "red")})
    assert result.width == 100 + 8 + 150
    assert result.getpixel((200, result.height - 5)) == (255, 0, 0)


def test_segments_as_json(frame):
    _, segmentation, info = frame
    info[0]["score"] = np.float32(0.5)
    info[1]["box_3d"] = torch.arange(6.0)
    info.append({"id": 9, "label_id": 0, "score": torch.tensor(0.25), "box_3d": None})
    found = json.loads(json.dumps(segments_to_json("desk", segmentation, info, model="tiny")))
    assert (found["frame_id"], found["height"], found["width"], found["model"]) == ("desk", 240, 320, "tiny")
    first, second, third = found["segments"]
    assert first["box_2d"] == [200, 100, 300, 220] and first["num_pixels"] == 12000 and first["score"] == 0.5
    assert second["box_3d"] == [0, 1, 2, 3, 4, 5] and second["label"] == "table"
    assert third["box_2d"] is None and third["num_pixels"] == 0 and third["score"] == 0.25
