"""Image-text models behind one interface: features of texts, of images, and of the patches of an image.

All features are float32 and of unit length. `logits` makes of their cosines what the model itself says of a pair.
"""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from ..import_utils import require_package
from ..io.hub_files import OPEN_CLIP_NAME, explain_missing, refuse_nowhere, split_revision
from .pixels import patch_pixels, unit


class ImageTextEncoder(Protocol):
    """What `TextLabeler` needs of a model.

    Attributes: `name`, what it was loaded from; `independent`, whether labels are judged one by one (sigmoid), and not
    against each other (softmax); `image_mean`, fractions of 255, of its images; `image_size`, their side in pixels.
    """

    name: str
    independent: bool
    image_mean: Sequence[float]
    image_size: int

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """[T, D], features of sentences."""

    def encode_images(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """[N, D], features of images uint8 [H, W, 3] RGB of any sizes, each prepared as the model's release does."""

    def encode_patches(self, image: np.ndarray, side: int) -> torch.Tensor:
        """[h, w, D], features of the patches of the whole image, its shorter side brought to about `side` pixels."""

    def logits(self, cosines: torch.Tensor) -> torch.Tensor:
        """The model's logits of pairs."""


def load_encoder(source: str, device: str | torch.device | None = None) -> ImageTextEncoder:
    """Loads an image-text model.

    Args:
        source: Folder or Hub id (`org/name`, `org/name@revision`) of a zero-shot image classification model of
            transformers; or open_clip's `architecture/tag` (extra `openclip`).
        device: Where it runs; None = CPU.

    Raises:
        OSError: There is no such model, or the Hub cannot be reached and it is not cached.
        ValueError: It has no text tower, or is of a kind that gives no separate features.
        ImportError: open_clip is missing.
    """
    named = None if os.path.exists(source) else OPEN_CLIP_NAME.fullmatch(source)
    if named:
        require_package("open_clip")
        from .open_clip_encoder import OpenClipEncoder

        return OpenClipEncoder.load(*named.groups(), device=device)
    return TransformersEncoder.load(source, device)


class TransformersEncoder:
    """CLIP, MetaCLIP, SigLIP, SigLIP 2 and other models of transformers' zero-shot image classification.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        image_processor: Its image processor.
        name: What it was loaded from.

    Raises:
        ValueError: The model gives no features of images and texts apart.
    """

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, name: str):
        kind = model.config.model_type
        if not hasattr(model, "get_text_features") or not hasattr(model, "get_image_features"):
            raise ValueError(f"{name} is a {kind!r}, which gives no features of images and texts apart; expected CLIP")
        self.model, self.tokenizer, self.image_processor, self.name = model.eval(), tokenizer, image_processor, name
        # As transformers' own pipeline tells them apart.
        self.independent = "siglip" in kind
        self.image_mean = list(image_processor.image_mean or (0.5,) * 3)
        self.image_size = getattr(model.config.vision_config, "image_size", None) or 224

    @classmethod
    def load(cls, source: str, device: str | torch.device | None = None) -> "TransformersEncoder":
        """Loads a model by its folder or Hub id; see `load_encoder`."""
        from transformers import (
            AutoConfig,
            AutoImageProcessor,
            AutoModelForZeroShotImageClassification,
            AutoTokenizer,
        )
        from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING

        place, revision = split_revision(source)
        refuse_nowhere(place, source, "labeler")
        pinned = {} if revision is None else {"revision": revision}
        try:
            config = AutoConfig.from_pretrained(place, **pinned)
            if type(config) not in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING:
                raise ValueError(
                    f"{source} is a {config.model_type!r}, which has no text tower; expected an image-text model such "
                    "as CLIP or SigLIP"
                )
            model = AutoModelForZeroShotImageClassification.from_pretrained(
                place, dtype=torch.float32, disable_mmap=True, **pinned
            )
            tokenizer = AutoTokenizer.from_pretrained(place, **pinned)
            image_processor = AutoImageProcessor.from_pretrained(place, **pinned)
        except OSError as error:
            raise explain_missing(place, error) from error
        return cls(model.to(device or "cpu"), tokenizer, image_processor, source)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """[T, D], features of sentences.

        Raises:
            ValueError: A sentence has more tokens than the text tower takes.
        """
        limit = self.model.config.text_config.max_position_embeddings
        # SigLIP was trained with texts of full length, and its last token is what counts.
        padding = {"padding": "max_length", "max_length": limit} if self.independent else {"padding": True}
        inputs = self.tokenizer(list(texts), return_tensors="pt", **padding)
        if inputs["input_ids"].shape[1] > limit:
            longest = max(texts, key=len)
            raise ValueError(
                f"{longest!r} has more than the {limit} tokens that the text tower of {self.name} takes; expected a "
                "shorter label"
            )
        return unit(self.model.get_text_features(**inputs.to(self.model.device)).pooler_output)

    @torch.no_grad()
    def encode_images(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """[N, D], features of images uint8 [H, W, 3] RGB."""
        inputs = self.image_processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        inputs = inputs.to(self.model.device)
        return unit(self.model.get_image_features(**inputs).pooler_output)

    @torch.no_grad()
    def encode_patches(self, image: np.ndarray, side: int) -> torch.Tensor:
        """[h, w, D], features of patches: the tower's, but in its last block every token attends to itself alone.

        What a patch attends to there is the whole image, which is what the pooled feature is made of and a patch's own
        must not be (MaskCLIP, Zhou et al., ECCV 2022).

        Raises:
            ValueError: The tower is of another structure than CLIP's and SigLIP's.
        """
        tower = self.model.vision_model
        patch = getattr(self.model.config.vision_config, "patch_size", None)
        layers = getattr(getattr(tower, "encoder", None), "layers", None)
        if self.model.config.model_type not in DENSE_KINDS or layers is None:
            raise ValueError(
                f"{self.name} is a {self.model.config.model_type!r}; the mode 'dense' needs one of "
                f"{', '.join(DENSE_KINDS)}; 'crops' works with any"
            )
        std = self.image_processor.image_std or (0.5,) * 3
        pixels, (rows, columns) = patch_pixels(image, side, patch, self.image_mean, std)
        outputs = tower(pixels.to(self.model.device), interpolate_pos_encoding=True, output_hidden_states=True)
        # The input of the last block.
        hidden, block = outputs.hidden_states[-2], layers[-1]
        alone = block.self_attn.out_proj(block.self_attn.v_proj(block.layer_norm1(hidden)))
        hidden = hidden + alone
        hidden = hidden + block.mlp(block.layer_norm2(hidden))
        tokens = tower.post_layernorm(hidden[0])
        if self.independent:
            # SigLIP's pooling, of one token at a time.
            features = tower.head(tokens[:, None])
        else:
            features = self.model.visual_projection(tokens[1:])
        return unit(features).unflatten(0, (rows, columns))

    @torch.no_grad()
    def logits(self, cosines: torch.Tensor) -> torch.Tensor:
        """The model's logits of pairs."""
        bias = getattr(self.model, "logit_bias", None)
        scaled = cosines * self.model.logit_scale.exp().cpu()
        return scaled if bias is None else scaled + bias.cpu()


# Model types whose towers `encode_patches` knows.
DENSE_KINDS = ("clip", "metaclip_2", "siglip")
