"""The labeler on models of open_clip: its own features, and the dense mode against a masked last block."""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tiny_open_clip import VISION, make_model

from bifusion_hf.labeling import TextLabeler
from bifusion_hf.labeling.encoders import load_encoder
from bifusion_hf.labeling.open_clip_encoder import OpenClipEncoder
from bifusion_hf.labeling.pixels import patch_pixels


PATCH, SIDE = VISION["patch_size"], VISION["image_size"]


class Words:
    """A tokenizer for a vocabulary of 64: a letter is a token."""

    context_length = 8

    def encode(self, text):
        return [1 + ord(letter) % 60 for letter in text]

    def __call__(self, texts):
        rows = [[62, *self.encode(text), 63] for text in texts]
        return torch.tensor([row + [0] * (self.context_length - len(row)) for row in rows])


@pytest.fixture(scope="module", params=[True, False], ids=["quick_gelu", "gelu"])
def encoder(request, tmp_path_factory):
    model = make_model(tmp_path_factory.mktemp("model") / "clip", request.param)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), is_train=False
    )
    return OpenClipEncoder(model, Words(), transform, "tiny")


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(40, 40), (30, 64)]]


def test_scores_are_those_of_open_clip(encoder, images):
    labels = ["mug", "cup", "bed"]
    labeler = TextLabeler(encoder, templates="a{}", none_texts=())
    scores, _ = labeler.scores(labeler.image_features(images), labels)
    pixels = torch.stack([encoder.transform(Image.fromarray(image)) for image in images])
    with torch.no_grad():
        outputs = encoder.model(pixels, Words()([f"a{label}" for label in labels]))
        features, texts, scale = outputs[:3]
        expected = (scale * features @ texts.T).softmax(dim=1)
    np.testing.assert_allclose(scores, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [SIDE, 2 * SIDE])
def test_patches_against_a_masked_last_block(encoder, images, side):
    visual = encoder.model.visual
    for image in images:
        found = encoder.encode_patches(image, side)
        pixels, (rows, columns) = patch_pixels(image, side, PATCH, encoder.image_mean, encoder.image_std)
        with torch.no_grad():
            tokens = visual.conv1(pixels).flatten(2).transpose(1, 2)
            tokens = torch.cat([visual.class_embedding[None, None], tokens], dim=1)
            hidden = visual.ln_pre(tokens + encoder._positions(rows, columns))
            alone = torch.full((hidden.shape[1],) * 2, -torch.inf).fill_diagonal_(0)
            for block in visual.transformer.resblocks[:-1]:
                hidden = block(hidden)
            hidden = visual.transformer.resblocks[-1](hidden, attn_mask=alone)
            slow = torch.stack([visual.ln_post(token) @ visual.proj for token in hidden[0, 1:]])
        slow = (slow / slow.norm(dim=1, keepdim=True)).reshape(rows, columns, -1)
        torch.testing.assert_close(found, slow, rtol=0, atol=1e-5)


def test_a_text_that_would_be_cut_off_is_refused(encoder):
    with pytest.raises(ValueError, match="more than the 8 tokens"):
        encoder.encode_texts(["keyboard"])


def test_releases_by_name():
    with pytest.raises(ValueError, match="its tags are"):
        load_encoder("ViT-B-16/nobody")
    with pytest.raises(ValueError, match="there is no such architecture"):
        load_encoder("ViT-Z-16/openai")


def test_other_towers_have_no_patches(encoder, images):
    other = OpenClipEncoder(encoder.model, Words(), encoder.transform, "tiny")
    tower, other.model.visual = encoder.model.visual, torch.nn.Identity()
    try:
        with pytest.raises(ValueError, match="has the image tower Identity; the mode 'dense' needs"):
            other.encode_patches(images[0], SIDE)
    finally:
        encoder.model.visual = tower
