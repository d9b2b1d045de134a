import json

import numpy as np
import pytest
import torch
from frame_factory import make_frame
from ply_files import read_ply

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.data.augmentation import resize_image
from bifusion_hf.demo.prediction import (
    LOWEST_SCORE,
    PICTURE_WIDTH,
    VIEWER_POINTS,
    annotated_image,
    name_by_text,
    predict,
    seen_from_camera,
    viewer_distance,
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


def test_filtering_by_class_uncovers_what_lay_below(segmenter, frame):
    """Pixels of an instance are those of its mask that no better *shown* instance has."""
    prediction = predict(segmenter, frame, "checkpoint")
    # Names of our own: untrained networks give one.
    for index, segment in enumerate(prediction.segments):
        segment["name"] = "abc"[index % 3]
    names = sorted(prediction.name_counts)
    assert names == ["a", "b", "c"] and sum(prediction.name_counts.values()) == len(prediction.segments)
    for name in names:
        selection = prediction.select(LOWEST_SCORE, [name])
        kept = [segment["id"] for segment in prediction.segments if segment["name"] == name]
        assert len(kept) == prediction.name_counts[name]
        # Listed is what is seen.
        shown = [segment["id"] for segment in selection.segments]
        assert shown == np.unique(selection.segmentation[selection.segmentation >= 0]).tolist()
        assert set(shown) <= set(kept)
        covered = prediction.masks[kept].any(dim=0).numpy()
        sampled = selection.segmentation.ravel()[prediction.pixel_indices.numpy()]
        np.testing.assert_array_equal(sampled >= 0, covered)


def test_names_of_a_class_agnostic_network_are_semantic(segmenter, prediction, frame):
    assert {segment["label"] for segment in prediction.segments} == {"object"}
    assert not {"wall", "floor"} & set(prediction.name_counts)
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
    assert set(prediction.name_counts) <= allowed
    content = json.loads(write_files(prediction, prediction.select(LOWEST_SCORE), tmp_path)["json"].read_text())
    assert all(segment["text_label"] == segment["name"] for segment in content["segments"])
    features = prediction.text_features
    name_by_text(prediction, "bed", labeler)
    assert prediction.text_features is features and set(prediction.name_counts) <= {"bed", "unknown"}
    for words, message in [("mug,,bed", "empty label"), ("mug, mug", "more than once")]:
        with pytest.raises(ValueError, match=message):
            name_by_text(prediction, words, labeler)
    # A file's name is a word like any other.
    name_by_text(prediction, str(tmp_path / "segments.json"), labeler)
    assert set(prediction.name_counts) <= {str(tmp_path / "segments.json"), "unknown"}
    name_by_text(prediction, " ", labeler)
    assert [segment["name"] for segment in prediction.segments] == own
    assert not any("text_label" in segment for segment in prediction.segments)


def test_names_of_a_network_with_classes_are_its_labels(frame):
    segmenter = make_segmenter(num_labels=198)
    prediction = predict(segmenter, frame, "checkpoint")
    assert prediction.segments and {"object"}.isdisjoint(prediction.name_counts)
    assert all(segment["name"] == segment["label"] for segment in prediction.segments)


def test_annotated_image(prediction, frame):
    selection = prediction.select(LOWEST_SCORE)
    (image, parts), colors = annotated_image(prediction, selection)
    assert image.shape == (PICTURE_WIDTH * HEIGHT // WIDTH, PICTURE_WIDTH, 3)
    np.testing.assert_array_equal(image, resize_image(frame.image, image.shape[:2]))
    texts = [text for _, text in parts]
    assert len(set(texts)) == len(texts) and set(texts) == set(colors)
    segmentation = selection.segmentation.repeat(5, 0).repeat(5, 1)
    for opacity, text in parts:
        candidates = [s for s in selection.segments if text.startswith(f"{s['name']} {s['score']:.2f}")]
        # Specks are smoothed away: most of the mask lies on the instance.
        share = max((segmentation[opacity > 0] == s["id"]).mean() for s in candidates)
        assert opacity.shape == image.shape[:2] and opacity.max() == 1 and share > 0.5
    # Parts do not overlap.
    assert np.sum([opacity > 0 for opacity, _ in parts], axis=0).max() == 1


def test_colors_stay_when_filtered(prediction):
    everything = annotated_image(prediction, prediction.select(LOWEST_SCORE))[1]
    name = prediction.segments[-1]["name"]
    part = annotated_image(prediction, prediction.select(LOWEST_SCORE, [name]))[1]
    assert part and all(everything[text] == color for text, color in part.items() if text in everything)


def test_files(prediction, frame, tmp_path):
    selection = prediction.select(middle_score(prediction))
    paths = write_files(prediction, selection, tmp_path)
    cloud, viewer = read_ply(paths["ply"]), read_ply(paths["viewer"])
    measured = frame.depth > 0
    points = np.stack([cloud[axis] for axis in "xyz"], axis=1)
    np.testing.assert_allclose(points, frame.unproject()[measured], atol=1e-6)
    np.testing.assert_array_equal(cloud["instance"], selection.segmentation[measured])
    colors = np.stack([cloud[name] for name in ("red", "green", "blue")], axis=1)
    inside = cloud["instance"] >= 0
    np.testing.assert_array_equal(colors[inside], prediction.colors[cloud["instance"][inside]])
    np.testing.assert_array_equal(colors[~inside], frame.image[measured][~inside])
    # Few enough for the viewer: the same points, seen along -z.
    np.testing.assert_allclose(-viewer["z"], frame.depth[measured], atol=1e-5)
    assert len(viewer["x"]) == len(points)

    content = json.loads(paths["json"].read_text())
    assert content["checkpoint"] == "checkpoint" and content["coordinates"] == "world"
    assert content["threshold"] == selection.threshold and content["names"] is None
    assert [s["id"] for s in content["segments"]] == [s["id"] for s in selection.segments]
    assert all(s["color"] == prediction.colors[s["id"]].tolist() for s in content["segments"])


def test_the_viewer_gets_a_part_of_many_points(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr("bifusion_hf.demo.prediction.VIEWER_POINTS", 1000)
    prediction = predict(segmenter, make_frame(HEIGHT, WIDTH, with_pose=False), "checkpoint")
    paths = write_files(prediction, prediction.select(0.5), tmp_path)
    assert VIEWER_POINTS > 1000 and 500 < len(read_ply(paths["viewer"])["x"]) <= 1000
    assert json.loads(paths["json"].read_text())["coordinates"].startswith("camera axes")


@pytest.mark.parametrize("with_pose", [True, False])
def test_seen_from_camera(with_pose):
    """Known points: the pixel of the optical axis is straight ahead, one above and right of it has y and x > 0."""
    frame = make_frame(HEIGHT, WIDTH, with_pose=with_pose, holes=False)
    points = seen_from_camera(frame, frame.unproject().reshape(-1, 3)).reshape(HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(points[..., 2], -frame.depth, atol=1e-5)
    centre = points[HEIGHT // 2 - 1 : HEIGHT // 2 + 1, WIDTH // 2 - 1 : WIDTH // 2 + 1].mean(axis=(0, 1))
    np.testing.assert_allclose(centre[:2], 0, atol=0.05)
    assert (points[0, -1, :2] > 0).all()
    # Behind the camera, which is half of the sum away from the middle.
    assert viewer_distance(frame) > (frame.depth.min() + frame.depth.max()) / 2
