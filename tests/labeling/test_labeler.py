import numpy as np
import pytest
import torch

from bifusion_hf.labeling import UNKNOWN, TextLabeler
from bifusion_hf.labeling.crops import instance_crops


LABELS = ["mug", "keyboard", "chair"]


class AxesEncoder:
    """Texts and images are axes of space: every word has its own, and an image the one of its first pixel's red."""

    name, independent, image_mean, image_size = "axes", False, (0.5, 0.5, 0.5), 32
    words = (*LABELS, "object")

    def __init__(self, independent=False):
        self.independent = independent
        self.asked: list[str] = []

    def encode_texts(self, texts):
        self.asked += texts
        rows = [[float(word in text) for word in self.words] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(rows) + 1e-3)

    def encode_images(self, images):
        return torch.eye(4)[[int(image[0, 0, 0]) for image in images]]

    def logits(self, cosines):
        return 10 * cosines - (4 if self.independent else 0)


def features(*rows):
    values = np.array(rows, dtype=np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("independent", [False, True])
def test_labels_and_unknown(independent):
    labeler = TextLabeler(AxesEncoder(independent), none_texts=("object",))
    found = labeler.label(features([0, 1, 0.2, 0], [0, 0, 0.4, 0.5], [1, 0, 0, 0.9]), LABELS, top_k=2)
    assert [item["label"] for item in found] == ["keyboard", UNKNOWN, "mug"]
    assert [item["label"] for item in found[0]["labels"]] == ["keyboard", "chair"]
    assert found[0]["score"] == found[0]["labels"][0]["score"] > found[0]["labels"][1]["score"]
    # The score of what is unknown is that of "none of these", which was better than the best label.
    assert found[1]["score"] > found[1]["labels"][0]["score"] and found[1]["labels"][0]["label"] == "chair"
    without = TextLabeler(AxesEncoder(independent), none_texts=())
    assert without.label(features([0, 0, 0.4, 0.5]), LABELS)[0]["label"] == "chair"


def test_floor():
    rows = features([1, 0.8, 0.8, 0])
    best = TextLabeler(AxesEncoder(), none_texts=()).label(rows, LABELS)[0]
    assert best["label"] == "mug"
    above = TextLabeler(AxesEncoder(), none_texts=(), floor=best["score"] + 0.01)
    assert above.label(rows, LABELS)[0]["label"] == UNKNOWN


def test_texts_are_encoded_once():
    encoder = AxesEncoder()
    labeler = TextLabeler(encoder, templates=["a {}", "the {}"], none_texts=("object",), batch_size=3)
    first = labeler.text_features(LABELS)
    assert sorted(encoder.asked) == sorted(f"{word} {label}" for word in ("a", "the") for label in LABELS)
    encoder.asked.clear()
    np.testing.assert_array_equal(labeler.text_features(LABELS[::-1]), first[::-1])
    assert not encoder.asked
    labeler.label(features([1, 0, 0, 0]), [*LABELS, "bed"])
    assert encoder.asked == ["a bed", "the bed", "a object", "the object"]
    # Braces of a label are its own.
    labeler.text_features(["{0} mug"])
    assert encoder.asked[-1] == "the {0} mug"


def test_the_mean_over_templates():
    labeler = TextLabeler(AxesEncoder(), templates=["{}", "{} keyboard"], none_texts=())
    one, two = (row / row.norm() for row in labeler.encoder.encode_texts(["mug", "mug keyboard"]))
    mean = ((one + two) / 2).numpy()
    np.testing.assert_allclose(labeler.text_features(["mug"])[0], mean / np.linalg.norm(mean), rtol=1e-6)


def test_crops_at_all_scales_count(clip_folder):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    masks = np.zeros((2, 30, 40), dtype=bool)
    masks[0, 5:15, 10:20], masks[1, 12:28, 3:35] = True, True
    labeler = TextLabeler(clip_folder, batch_size=2)
    found = labeler.instance_features(image, masks)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    # The masks are of half the image's size.
    large = masks.repeat(2, axis=1).repeat(2, axis=2)
    fill = np.round(255 * np.array(labeler.encoder.image_mean))
    for mask, feature in zip(large, found, strict=True):
        mean = np.mean([labeler.image_features([crop])[0] for crop in instance_crops(image, mask, fill)], axis=0)
        np.testing.assert_allclose(feature, mean / np.linalg.norm(mean), rtol=0, atol=1e-5)


def test_segments_are_named_in_place():
    labeler = TextLabeler(AxesEncoder(), none_texts=())
    segmentation = np.array([[0, 0, 5], [0, -1, 5]])
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    image[:, 2] = 1
    result = {"segmentation": segmentation, "segments_info": [{"id": 5, "name": "object"}, {"id": 0}]}
    # Every crop's first pixel is the fill of the background here, so what is read is a crop of the axes' own.
    labeler.instance_features = lambda image, masks: np.eye(4, dtype=np.float32)[[int(mask[0, 2]) for mask in masks]]
    labeler.label_segments(image, result, LABELS, top_k=1)
    assert [segment["name"] for segment in result["segments_info"]] == ["keyboard", "mug"]
    assert result["segments_info"][0]["text_labels"] == [
        {"label": "keyboard", "score": result["segments_info"][0]["text_score"]}
    ]
    empty = {"segmentation": np.full((2, 3), -1), "segments_info": []}
    labeler.label_segments(image, empty, LABELS)
    assert empty["segments_info"] == []


def test_bad_arguments(clip_folder):
    for arguments, message in [
        ({"mode": "patches"}, "mode is 'patches'; expected one of crops, dense"),
        ({"floor": 2.0}, "floor"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"templates": ["a thing"]}, "one place"),
        ({"none_texts": ["", "x"]}, "empty label"),
    ]:
        with pytest.raises(ValueError, match=message):
            TextLabeler(AxesEncoder(), **arguments)
    labeler = TextLabeler(clip_folder)
    with pytest.raises(ValueError, match="top_k is 0"):
        labeler.label(features([1, 0, 0, 0]), LABELS, top_k=0)
    with pytest.raises(ValueError, match="candidate_labels has no label"):
        labeler.label(features([1, 0, 0, 0]), [])
    with pytest.raises(ValueError, match="mask 1 is empty"):
        labeler.instance_features(np.zeros((4, 4, 3), np.uint8), np.array([np.ones((4, 4)), np.zeros((4, 4))]))
