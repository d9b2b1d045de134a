"""Names by an image-text model: features of instances, and which of the candidate labels fits them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..io.sanity import check_fraction
from .crops import SCALES, instance_crops, pool_patches
from .encoders import ImageTextEncoder, load_encoder
from .texts import NONE_TEXTS, UNKNOWN, read_labels, read_templates


MODES = ("crops", "dense")


class TextLabeler:
    """Names instances in the user's own words.

    ```python
    labeler = TextLabeler("google/siglip2-base-patch16-224")
    features = labeler.instance_features(frame.image, masks)      # [K, D], once
    for found in labeler.label(features, ["mug", "keyboard"]):    # as often as one likes
        print(found["label"], found["score"])
    ```

    Args:
        model: See `encoders.load_encoder`; or an encoder.
        mode: `"crops"`: each instance is cut out at three scales and goes through the model three times. `"dense"`:
            the model sees each frame once, and the features of its patches are pooled over the masks.
        templates: See `texts.read_templates`. A label's feature is the mean over all templates.
        none_texts: "None of these": what none of the labels fits better than the best of these is `"unknown"`. ()
            leaves it out.
        floor: A label with a score not above it is `"unknown"` too.
        batch_size: Crops, or sentences, of one forward.
        dense_size: Shorter side of a frame in the mode `"dense"`; None = twice the size of the model's images, since a
            small thing is smaller than a patch else.
        device: Where the model runs; None = CPU.

    Raises:
        ValueError: An argument is malformed, or the model has no text tower.
        OSError: There is no such model.
    """

    def __init__(
        self,
        model: str | Path | ImageTextEncoder,
        *,
        mode: str = "crops",
        templates: str | Path | Sequence[str] | None = None,
        none_texts: Sequence[str] = NONE_TEXTS,
        floor: float = 0.0,
        batch_size: int = 32,
        dense_size: int | None = None,
        device: str | torch.device | None = None,
    ):
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; expected one of {', '.join(MODES)}")
        check_fraction("floor", floor)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        self.templates = read_templates(templates)
        self.none_texts = tuple(read_labels(none_texts)) if none_texts else ()
        self.encoder = load_encoder(str(model), device) if isinstance(model, str | Path) else model
        self.mode, self.floor, self.batch_size = mode, float(floor), batch_size
        self.dense_size = 2 * self.encoder.image_size if dense_size is None else dense_size
        self._texts: dict[str, torch.Tensor] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What the features of instances follow from, as plain values; only alike ones may be compared."""
        size = {"dense_size": self.dense_size} if self.mode == "dense" else {"scales": list(SCALES)}
        return {"model": self.encoder.name, "mode": self.mode, **size}

    def text_features(self, labels: Sequence[str]) -> np.ndarray:
        """float32 [T, D], of unit length: the mean over the templates. Each label is encoded once and then kept."""
        missing = [label for label in dict.fromkeys(labels) if label not in self._texts]
        if missing:
            # `str.format` would take braces in a label, which are its own, for places.
            sentences = [template.replace("{}", label) for label in missing for template in self.templates]
            parts = [
                self.encoder.encode_texts(sentences[start : start + self.batch_size])
                for start in range(0, len(sentences), self.batch_size)
            ]
            means = torch.cat(parts).unflatten(0, (len(missing), len(self.templates))).mean(dim=1)
            self._texts.update(zip(missing, means / means.norm(dim=1, keepdim=True), strict=True))
        return torch.stack([self._texts[label] for label in labels]).numpy()

    def image_features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [N, D], of unit length, of images uint8 [H, W, 3] RGB."""
        parts = [
            self.encoder.encode_images(images[start : start + self.batch_size])
            for start in range(0, len(images), self.batch_size)
        ]
        return torch.cat(parts).numpy()

    def instance_features(self, image: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Features of the instances of an image.

        Args:
            image: uint8 [Hc, Wc, 3] RGB.
            masks: bool [K, H, W], of the same aspect as the image, none of them empty.

        Returns:
            float32 [K, D], of unit length.

        Raises:
            ValueError: A mask is empty.
        """
        masks = np.asarray(masks, dtype=bool)
        if not len(masks):
            return np.zeros((0, 0), dtype=np.float32)
        empty = np.flatnonzero(~masks.any(axis=(1, 2)))
        if len(empty):
            raise ValueError(f"mask {empty[0]} is empty; expected instances with pixels")
        if self.mode == "dense":
            patches = self.encoder.encode_patches(image, self.dense_size).numpy()
            return np.stack([pool_patches(patches, mask) for mask in masks])
        fill = np.round(255 * np.asarray(self.encoder.image_mean))
        crops = [crop for mask in _at_size(masks, image.shape[:2]) for crop in instance_crops(image, mask, fill)]
        features = self.image_features(crops).reshape(len(masks), len(SCALES), -1).mean(axis=1)
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    def scores(self, features: np.ndarray, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """How well labels fit.

        Without `none_texts` these are the scores of transformers' zero-shot image classification: softmax over the
        labels, or for SigLIP a sigmoid of each. "None of these" is one more candidate, the best of its texts.

        Args:
            features: float [K, D], of unit length.
            labels: The L labels.

        Returns:
            float32 [K, L]; and float32 [K], the score of "none of these" (0 without `none_texts`).
        """
        texts = self.text_features([*labels, *self.none_texts])
        logits = self.encoder.logits(torch.from_numpy(np.asarray(features, dtype=np.float32) @ texts.T))
        if self.none_texts:
            none = logits[:, len(labels) :].max(dim=1, keepdim=True).values
            logits = torch.cat([logits[:, : len(labels)], none], dim=1)
        scores = (logits.sigmoid() if self.encoder.independent else logits.softmax(dim=1)).numpy()
        none = scores[:, len(labels)] if self.none_texts else np.zeros(len(scores), dtype=np.float32)
        return scores[:, : len(labels)], none

    def label(
        self, features: np.ndarray, candidate_labels: str | Path | Sequence[str], top_k: int = 5
    ) -> list[dict[str, Any]]:
        """The labels of instances.

        Args:
            features: float [K, D], of `instance_features`.
            candidate_labels: See `texts.read_labels`.
            top_k: Candidates that are listed.

        Returns:
            For each `label`, the best candidate or `"unknown"`; `score`, its own or that of "none of these"; `labels`,
            the best candidates in descending order as `label` and `score`.

        Raises:
            ValueError: The labels or `top_k` are malformed.
        """
        labels = read_labels(candidate_labels)
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; expected at least 1")
        if not len(features):
            return []
        found = []
        for row, none in zip(*self.scores(features, labels), strict=True):
            order = np.argsort(-row, kind="stable")[:top_k]
            best = float(row[order[0]])
            known = best > self.floor and best >= none
            found.append(
                {
                    "label": labels[order[0]] if known else UNKNOWN,
                    "score": best if known else float(none),
                    "labels": [{"label": labels[index], "score": float(row[index])} for index in order],
                }
            )
        return found

    def label_segments(
        self,
        image: np.ndarray,
        result: Mapping[str, Any],
        candidate_labels: str | Path | Sequence[str],
        top_k: int = 5,
    ) -> None:
        """Names the segments of a frame, in place.

        Args:
            image: uint8 [Hc, Wc, 3] RGB of the frame.
            result: `segmentation` and `segments_info` as of the processor; each segment gets `text_label`,
                `text_score` and `text_labels` of `label`, and the label as its `name`.
            candidate_labels: See `label`.
            top_k: See `label`.
        """
        segments = result["segments_info"]
        segmentation = np.asarray(result["segmentation"])
        masks = np.array([segmentation == segment["id"] for segment in segments], dtype=bool)
        features = self.instance_features(image, masks) if segments else np.zeros((0, 0), dtype=np.float32)
        for segment, found in zip(segments, self.label(features, candidate_labels, top_k), strict=True):
            segment.update({f"text_{key}": value for key, value in found.items()}, name=found["label"])


def _at_size(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks [K, H, W] at the size of the image, each pixel as the nearest one."""
    if masks.shape[1:] == tuple(size):
        return masks
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, masks.shape[1:], strict=True)
    )
    return masks[:, rows[:, None], columns]
