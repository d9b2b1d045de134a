"""The labeler's models against transformers' own zero-shot classification, and the dense mode against a slow form."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_image_text import PATCH, SIDE
from transformers import BertConfig, ViTConfig, ViTModel, pipeline

from bifusion_hf.labeling import TextLabeler
from bifusion_hf.labeling.encoders import load_encoder
from bifusion_hf.labeling.pixels import patch_pixels


LABELS = ["red mug", "keyboard", "office chair", "bed"]
TEMPLATE = "a photo of the {} in a room."


@pytest.fixture(params=["clip", "siglip"])
def folder(request):
    return request.getfixturevalue(f"{request.param}_folder")


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    sizes = [(40, 40), (25, 60), (90, 33)]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) // (1 + index) for index, size in enumerate(sizes)]


def test_scores_are_those_of_transformers(folder, images):
    classify = pipeline("zero-shot-image-classification", model=folder)
    labeler = TextLabeler(folder, templates=TEMPLATE, none_texts=())
    scores, none = labeler.scores(labeler.image_features(images), LABELS)
    assert not none.any()
    for image, row in zip(images, scores, strict=True):
        found = classify(Image.fromarray(image), candidate_labels=LABELS, hypothesis_template=TEMPLATE)
        expected = {item["label"]: item["score"] for item in found}
        np.testing.assert_allclose(row, [expected[label] for label in LABELS], rtol=0, atol=1e-5)
    # The labels differ enough for the comparison to mean something.
    assert np.ptp(scores, axis=1).min() > 1e-3


def test_none_of_these_is_one_more_candidate(clip_folder, images):
    classify = pipeline("zero-shot-image-classification", model=clip_folder)
    labeler = TextLabeler(clip_folder, templates=TEMPLATE, none_texts=("stuff",))
    scores, none = labeler.scores(labeler.image_features(images), LABELS)
    for image, row, rest in zip(images, scores, none, strict=True):
        found = classify(Image.fromarray(image), candidate_labels=[*LABELS, "stuff"], hypothesis_template=TEMPLATE)
        expected = {item["label"]: item["score"] for item in found}
        np.testing.assert_allclose([*row, rest], [expected[label] for label in [*LABELS, "stuff"]], rtol=0, atol=1e-5)


def slow_patches(encoder, image, side):
    """The tower with a mask in its last block that lets every token see itself alone."""
    tower = encoder.model.vision_model
    mean, std = encoder.image_processor.image_mean, encoder.image_processor.image_std
    pixels, size = patch_pixels(image, side, PATCH, mean, std)
    with torch.no_grad():
        hidden = tower.embeddings(pixels, interpolate_pos_encoding=True)
        if hasattr(tower, "pre_layrnorm"):
            hidden = tower.pre_layrnorm(hidden)
        count = hidden.shape[1]
        alone = torch.full((1, 1, count, count), -torch.inf)
        alone[0, 0].fill_diagonal_(0)
        for number, layer in enumerate(tower.encoder.layers):
            last = number == len(tower.encoder.layers) - 1
            output = layer(hidden, attention_mask=alone if last else None)
            hidden = output[0] if isinstance(output, tuple) else output
        tokens = tower.post_layernorm(hidden)[0]
        if hasattr(tower, "head"):
            features = torch.cat([tower.head(token[None, None]) for token in tokens])
        else:
            features = torch.cat([encoder.model.visual_projection(token[None]) for token in tokens[1:]])
    return torch.stack([row / row.norm() for row in features]).reshape(*size, -1)


@pytest.mark.parametrize("side", [SIDE, 2 * SIDE])
def test_patches_against_a_slow_form(folder, images, side):
    encoder = load_encoder(folder)
    for image in images:
        patches = encoder.encode_patches(image, side)
        assert min(patches.shape[:2]) == side // PATCH
        torch.testing.assert_close(patches, slow_patches(encoder, image, side), rtol=0, atol=1e-5)


def test_dense_features_are_means_over_the_pixels(folder, images):
    image = images[1]
    masks = np.zeros((2, *image.shape[:2]), dtype=bool)
    masks[0, 3:11, 5:31] = True
    masks[1, 20:, 40:47] = True
    labeler = TextLabeler(folder, mode="dense")
    found = labeler.instance_features(image, masks)
    patches = labeler.encoder.encode_patches(image, 2 * SIDE).numpy()
    for mask, feature in zip(masks, found, strict=True):
        total = np.zeros(patches.shape[2])
        for row, column in np.argwhere(mask):
            y = int((row + 0.5) / mask.shape[0] * patches.shape[0])
            x = int((column + 0.5) / mask.shape[1] * patches.shape[1])
            total += patches[y, x]
        np.testing.assert_allclose(feature, total / np.linalg.norm(total), rtol=0, atol=1e-5)


def test_a_model_without_a_text_tower_is_refused(tmp_path):
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **size)).save_pretrained(tmp_path / "vit")
    BertConfig(vocab_size=10, **size).save_pretrained(tmp_path / "bert")
    for kind in ("vit", "bert"):
        with pytest.raises(ValueError, match=f"is a '{kind}', which has no text tower"):
            load_encoder(str(tmp_path / kind))


def test_a_model_that_is_not_there_is_told(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such folder, and no id of the Hub"):
        load_encoder(str(tmp_path / "nowhere"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="nobody/no-such-clip: there is no such folder, and from the Hub:"):
        load_encoder("nobody/no-such-clip")


def test_open_clip_names_need_its_package(monkeypatch):
    monkeypatch.setattr("bifusion_hf.import_utils.is_available", lambda package: False)
    with pytest.raises(ImportError, match=r"bifusion_hf\[openclip\]"):
        load_encoder("ViT-B-16/openai")


def test_a_label_longer_than_the_text_tower_is_refused(folder):
    with pytest.raises(ValueError, match="more than the 64 tokens"):
        TextLabeler(folder).text_features(["mug " * 80])


def test_dense_labels_of_an_unknown_tower_are_refused(clip_folder, images):
    encoder = load_encoder(clip_folder)
    encoder.model.config.model_type = "align"
    with pytest.raises(ValueError, match="the mode 'dense' needs one of clip"):
        encoder.encode_patches(images[0], SIDE)
