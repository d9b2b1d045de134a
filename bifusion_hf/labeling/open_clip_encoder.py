"""Image-text models of open_clip by architecture and tag (extra `openclip`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..import_utils import require_package
from ..io.files import DataFileError
from .pixels import patch_pixels, unit


class OpenClipEncoder:
    """A model of open_clip; see `encoders.ImageTextEncoder`.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        transform: From a PIL image to the model's pixels.
        name: What it was loaded from.
    """

    def __init__(self, model: Any, tokenizer: Any, transform: Any, name: str):
        self.model, self.tokenizer, self.transform, self.name = model.eval(), tokenizer, transform, name
        # SigLIP's loss has a bias, for its labels are judged one by one.
        self.independent = getattr(model, "logit_bias", None) is not None
        settings = require_package("open_clip").get_model_preprocess_cfg(model)
        self.image_mean, self.image_std = list(settings["mean"]), list(settings["std"])
        size = settings["size"]
        self.image_size = size if isinstance(size, int) else min(size)

    @classmethod
    def load(cls, architecture: str, tag: str, device: str | torch.device | None = None) -> "OpenClipEncoder":
        """Loads a release.

        Args:
            architecture: One of `open_clip.list_models()`.
            tag: One of `open_clip.list_pretrained_tags_by_model(architecture)`.
            device: Where it runs; None = CPU.

        Raises:
            ImportError: open_clip is missing.
            ValueError: It knows no such release.
            OSError: The weights are not here and cannot be downloaded.
        """
        open_clip = require_package("open_clip")
        release = open_clip.get_pretrained_cfg(architecture, tag)
        if not release:
            tags = open_clip.list_pretrained_tags_by_model(architecture)
            known = f"its tags are {tags}" if tags else "there is no such architecture"
            raise ValueError(f"open_clip {open_clip.__version__} has no release {architecture}/{tag}: {known}")
        name = f"{architecture}/{tag}"
        try:
            model, _, transform = open_clip.create_model_and_transforms(
                architecture, tag, device=device or "cpu", force_quick_gelu=bool(release.get("quick_gelu", False))
            )
        except (RuntimeError, OSError) as error:
            raise DataFileError(name, f"cannot be loaded by open_clip ({error})") from error
        return cls(model, open_clip.get_tokenizer(architecture), transform, name)

    @property
    def _device(self) -> torch.device:
        return self.model.logit_scale.device

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """[T, D], features of sentences.

        Raises:
            ValueError: A sentence has more tokens than the text tower takes; open_clip would cut it off.
        """
        limit = self.tokenizer.context_length
        for text in texts:
            if self._num_tokens(text) > limit:
                raise ValueError(
                    f"{text!r} has more than the {limit} tokens that the text tower of {self.name} takes; expected a "
                    "shorter label"
                )
        return unit(self.model.encode_text(self.tokenizer(list(texts)).to(self._device)))

    def _num_tokens(self, text: str) -> int:
        if hasattr(self.tokenizer, "encode"):
            # Without start and end.
            return len(self.tokenizer.encode(text)) + 2
        return len(self.tokenizer.tokenizer(text)["input_ids"])

    @torch.no_grad()
    def encode_images(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """[N, D], features of images uint8 [H, W, 3] RGB."""
        pixels = torch.stack([self.transform(Image.fromarray(image)) for image in images])
        return unit(self.model.encode_image(pixels.to(self._device)))

    @torch.no_grad()
    def encode_patches(self, image: np.ndarray, side: int) -> torch.Tensor:
        """[h, w, D], features of patches; see `TransformersEncoder.encode_patches`.

        Raises:
            ValueError: The tower is not open_clip's own ViT with a class token.
        """
        visual = self.model.visual
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
        if blocks is None or not hasattr(visual, "conv1") or getattr(visual, "attn_pool", None) is not None:
            raise ValueError(
                f"{self.name} has the image tower {type(visual).__name__}; the mode 'dense' needs open_clip's ViT "
                "with a class token; 'crops' works with any"
            )
        patch = visual.conv1.kernel_size[0]
        pixels, (rows, columns) = patch_pixels(image, side, patch, self.image_mean, self.image_std)
        tokens = visual.conv1(pixels.to(self._device)).flatten(2).transpose(1, 2)
        tokens = torch.cat([visual.class_embedding.expand(1, 1, -1), tokens], dim=1)
        hidden = visual.ln_pre(tokens + self._positions(rows, columns))
        if not visual.transformer.batch_first:
            hidden = hidden.transpose(0, 1)
        for block in blocks[:-1]:
            hidden = block(hidden)
        last = blocks[-1]
        attention, width = last.attn, hidden.shape[2]
        # Packed as query, key and value.
        value = torch.nn.functional.linear(
            last.ln_1(hidden), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]
        )
        hidden = hidden + last.ls_1(attention.out_proj(value))
        hidden = hidden + last.ls_2(last.mlp(last.ln_2(hidden)))
        patches = visual.ln_post(hidden.reshape(-1, width)[1:])
        return unit(patches if visual.proj is None else patches @ visual.proj).unflatten(0, (rows, columns))

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        """[1 + rows * columns, width], position embeddings at another grid, as open_clip resizes them."""
        visual = self.model.visual
        first, grid = visual.positional_embedding[:1], visual.positional_embedding[1:]
        if tuple(visual.grid_size) == (rows, columns):
            return visual.positional_embedding
        grid = grid.T.unflatten(1, tuple(visual.grid_size))[None]
        grid = torch.nn.functional.interpolate(
            grid, size=(rows, columns), mode="bicubic", antialias=True, align_corners=False
        )
        return torch.cat([first, grid[0].flatten(1).T])

    @torch.no_grad()
    def logits(self, cosines: torch.Tensor) -> torch.Tensor:
        """The model's logits of pairs."""
        scaled = cosines * self.model.logit_scale.exp().cpu()
        return scaled + self.model.logit_bias.cpu() if self.independent else scaled
