import base64
import io
import json

import numpy as np
import pytest
import torch
from frame_factory import make_frame
from PIL import Image
from ply_files import read_ply

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.demo.prediction import (
    LOWEST_SCORE,
    PICTURE_WIDTH,
    box_corners,
    cloud_values,
    name_by_text,
    paint_values,
    predict,
    seen_from_camera,
    write_files,
)
from bifusion_hf.labeling import TextLabeler
from bifusion_hf.pipeline_bifusion import RGBDInstanceSegmentationPipeline


HEIGHT, WIDTH = 96, 128


def make_segmenter(**overrides):
    torch.manual_seed(0)
    point_config = {"stem_channels": 8, "planes": [8] * 8, "blocks": [1] * 8}
    values = {"point_config": point_config, "hidden_size": 8, **overrides}
    config = BiFusionConfig.from_preset("tiny", **values)
    model = BiFusionForInstanceSegmentation(config)
    # Untrained queries hardly differ; wider logits spread their scores.
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(3)
    processor = BiFusionProcessor.from_preset("tiny", config, num_points=900, num_superpoints=40)
    return RGBDInstanceSegmentationPipeline(model=model, processor=processor, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def segmenter():
    return make_segmenter()


@pytest.fixture(scope="module")
def frame():
    return make_frame(HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def prediction(segmenter, frame):
    prediction = predict(segmenter, frame, "checkpoint")
    assert len({segment["score"] for segment in prediction.segments}) > 3
    return prediction


def names_of(prediction) -> set[str]:
    return {segment["name"] for segment in prediction.segments}


def middle_score(prediction) -> float:
    scores = sorted(segment["score"] for segment in prediction.segments)
    return (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2


def test_filtering_by_score_is_predicting_with_that_threshold(segmenter, frame, prediction):
    for threshold in (LOWEST_SCORE, middle_score(prediction), 1.0):
        expected = segmenter(frame, threshold=threshold)
        selection = prediction.select(threshold)
        np.testing.assert_array_equal(selection.segmentation, expected["segmentation"])
        assert selection.segments == expected["segments_info"]
        assert [segment["id"] for segment in selection.segments] == np.unique(
            expected["segmentation"][expected["segmentation"] >= 0]
        ).tolist()


def test_filtering_never_runs_the_network(segmenter, frame, monkeypatch):
    prediction = predict(segmenter, frame, "checkpoint")
    monkeypatch.setattr(segmenter.model, "forward", None)
    assert len(prediction.select(middle_score(prediction)).segments) < len(prediction.segments)


def test_filtering_by_class_hides_the_others_and_nothing_else(segmenter, frame):
    """The counts beside the names are those of what is listed and painted, with a filter and without."""
    prediction = predict(segmenter, frame, "checkpoint")
    # Names of our own: untrained networks give one.
    for index, segment in enumerate(prediction.segments):
        segment["name"] = "abc"[index % 3]
    for threshold in (LOWEST_SCORE, middle_score(prediction)):
        everything = prediction.select(threshold)
        counts = everything.name_counts
        assert list(counts) == sorted(counts) and sum(counts.values()) == len(everything.segments) > 2
        for name in counts:
            selection = prediction.select(threshold, [name])
            assert selection.name_counts == counts and len(selection.segments) == counts[name]
            shown = [segment["id"] for segment in everything.segments if segment["name"] == name]
            assert [segment["id"] for segment in selection.segments] == shown
            expected = np.where(np.isin(everything.segmentation, shown), everything.segmentation, -1)
            np.testing.assert_array_equal(selection.segmentation, expected)


def test_names_of_a_class_agnostic_network_are_semantic(segmenter, prediction, frame):
    assert {segment["label"] for segment in prediction.segments} == {"object"}
    assert not {"wall", "floor"} & names_of(prediction)
    batch = segmenter.processor.collate([segmenter.preprocess(frame)])
    outputs = segmenter.forward(batch)["outputs"]
    found = segmenter.processor.post_process_mask_classes(outputs, batch, [prediction.masks])[0]
    names = segmenter.model.config.semantic_id2label
    for segment, row in zip(prediction.segments, found, strict=True):
        assert segment["semantic_label"] == names[int(row.argmax())]
        assert segment["semantic_probability"] == float(row.max())
    # Some of an untrained network's are shown with a threshold among their probabilities.
    middle = float(np.median([segment["semantic_probability"] for segment in prediction.segments]))
    before, segmenter.processor.name_threshold = segmenter.processor.name_threshold, middle
    try:
        again = predict(segmenter, frame, "checkpoint").segments
    finally:
        segmenter.processor.name_threshold = before
    shown = [segment["name"] != "object" for segment in again]
    assert shown == [segment["semantic_probability"] >= middle for segment in again] and any(shown) and not all(shown)


def test_names_of_the_visitors_own(segmenter, frame, clip_folder, tmp_path):
    labeler = TextLabeler(clip_folder)
    prediction = predict(segmenter, frame, "checkpoint")
    own = [segment["name"] for segment in prediction.segments]
    name_by_text(prediction, "", labeler)
    assert prediction.text_features is None
    name_by_text(prediction, "red mug, keyboard,  office chair", labeler)
    allowed = {"red mug", "keyboard", "office chair", "unknown"}
    assert names_of(prediction) <= allowed
    content = json.loads(write_files(prediction, prediction.select(LOWEST_SCORE), tmp_path)["json"].read_text())
    assert all(segment["text_label"] == segment["name"] for segment in content["segments"])
    features = prediction.text_features
    name_by_text(prediction, "bed", labeler)
    assert prediction.text_features is features and names_of(prediction) <= {"bed", "unknown"}
    for words, message in [("mug,,bed", "empty label"), ("mug, mug", "more than once")]:
        with pytest.raises(ValueError, match=message):
            name_by_text(prediction, words, labeler)
    # A file's name is a word like any other.
    name_by_text(prediction, str(tmp_path / "segments.json"), labeler)
    assert names_of(prediction) <= {str(tmp_path / "segments.json"), "unknown"}
    name_by_text(prediction, " ", labeler)
    assert [segment["name"] for segment in prediction.segments] == own
    assert not any("text_label" in segment for segment in prediction.segments)


def test_names_of_a_network_with_classes_are_its_labels(frame):
    segmenter = make_segmenter(num_labels=198)
    prediction = predict(segmenter, frame, "checkpoint")
    assert prediction.segments and "object" not in names_of(prediction)
    assert all(segment["name"] == segment["label"] for segment in prediction.segments)


def numbers(url):
    """What `view.js` reads of a PNG."""
    kind, content = url.split(";base64,")
    assert kind == "data:image/png"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(int)
    assert not pixels[..., 2].any()
    return pixels[..., 0] + 256 * pixels[..., 1]


def test_the_view_gets_the_frame(prediction, frame):
    values = cloud_values(prediction)
    depth = numbers(values["depth"])
    np.testing.assert_allclose(values["unit"] * depth, frame.depth, atol=values["unit"])
    np.testing.assert_array_equal(depth > 0, frame.depth > 0)
    np.testing.assert_allclose(values["camera"], frame.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]])
    picture = Image.open(io.BytesIO(base64.b64decode(values["image"].partition(",")[2])))
    assert picture.size == (PICTURE_WIDTH, PICTURE_WIDTH * HEIGHT // WIDTH)
    json.dumps(values)
    # The view keeps what it has of a frame, and takes another one by its key.
    assert cloud_values(prediction)["key"] == values["key"]


def test_the_view_gets_a_part_of_many_points(segmenter, monkeypatch):
    monkeypatch.setattr("bifusion_hf.demo.prediction.VIEWER_POINTS", 1000)
    frame = make_frame(HEIGHT, WIDTH, with_pose=False)
    prediction = predict(segmenter, frame, "checkpoint")
    values = cloud_values(prediction)
    depth = numbers(values["depth"])
    assert 500 < depth.size <= 1000
    ids = numbers(paint_values(prediction, prediction.select(LOWEST_SCORE))["ids"])
    assert ids.shape == depth.shape and ids.max() > 0
    # The pixels are those of every fourth row and column, in their place.
    rows, columns = np.nonzero(depth)
    fx, fy, cx, cy = values["camera"]
    z = values["unit"] * depth[rows, columns]
    points = np.stack([(columns - cx) / fx * z, (cy - rows) / fy * z, -z], axis=1)
    expected = seen_from_camera(frame, frame.unproject(4 * rows * WIDTH + 4 * columns))
    np.testing.assert_allclose(points, expected, atol=2 * values["unit"])


def test_what_is_painted(prediction):
    selection = prediction.select(LOWEST_SCORE)
    values = paint_values(prediction, selection)
    json.dumps(values)
    ids = numbers(values["ids"])
    assert len(values["segments"]) == len(selection.segments)
    for place, (shown, segment) in enumerate(zip(values["segments"], selection.segments, strict=True), start=1):
        assert shown["text"] == f"{segment['name']} {segment['score']:.2f}"
        assert shown["color"] == prediction.colors[segment["id"]].tolist()
        # Specks go to what is around them, but what is listed is seen.
        inside = ids == place
        assert inside.any() and (selection.segmentation[inside] == segment["id"]).mean() > 0.3
    assert set(np.unique(ids)) <= set(range(len(selection.segments) + 1))
    filtered = paint_values(prediction, prediction.select(LOWEST_SCORE, [prediction.segments[-1]["name"]]))
    assert all(segment in values["segments"] for segment in filtered["segments"])


def test_corners_of_a_box():
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))
    size, center = np.array([0.4, 0.2, 0.1]), np.array([1.0, 2.0, 3.0])
    corners = box_corners({"center": center.tolist(), "rotation": turn.tolist(), "size": size.tolist()})
    assert corners.shape == (8, 3)
    np.testing.assert_allclose(np.abs((corners - center) @ turn), np.tile(size / 2, (8, 1)), atol=1e-12)
    # The edges that view.js draws.
    for first in range(8):
        for axis in range(3):
            other = first ^ (4 >> axis)
            assert np.linalg.norm(corners[first] - corners[other]) == pytest.approx(size[axis])


def test_files(prediction, frame, tmp_path):
    selection = prediction.select(middle_score(prediction))
    paths = write_files(prediction, selection, tmp_path)
    cloud = read_ply(paths["ply"])
    measured = frame.depth > 0
    points = np.stack([cloud[axis] for axis in "xyz"], axis=1)
    np.testing.assert_allclose(points, frame.unproject()[measured], atol=1e-6)
    np.testing.assert_array_equal(cloud["instance"], selection.segmentation[measured])
    colors = np.stack([cloud[name] for name in ("red", "green", "blue")], axis=1)
    inside = cloud["instance"] >= 0
    np.testing.assert_array_equal(colors[inside], prediction.colors[cloud["instance"][inside]])
    np.testing.assert_array_equal(colors[~inside], frame.image[measured][~inside])
    content = json.loads(paths["json"].read_text())
    assert content["checkpoint"] == "checkpoint" and content["coordinates"] == "world"
    assert content["threshold"] == selection.threshold and content["names"] is None
    assert content["up"] == "pose"
    assert [s["id"] for s in content["segments"]] == [s["id"] for s in selection.segments]
    assert all(s["color"] == prediction.colors[s["id"]].tolist() for s in content["segments"])


@pytest.mark.parametrize("with_pose", [True, False])
def test_seen_from_camera(with_pose):
    """Known points: the pixel of the optical axis is straight ahead, one above and right of it has y and x > 0."""
    frame = make_frame(HEIGHT, WIDTH, with_pose=with_pose, holes=False)
    points = seen_from_camera(frame, frame.unproject().reshape(-1, 3)).reshape(HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(points[..., 2], -frame.depth, atol=1e-5)
    centre = points[HEIGHT // 2 - 1 : HEIGHT // 2 + 1, WIDTH // 2 - 1 : WIDTH // 2 + 1].mean(axis=(0, 1))
    np.testing.assert_allclose(centre[:2], 0, atol=0.05)
    assert (points[0, -1, :2] > 0).all()
