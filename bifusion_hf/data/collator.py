"""From prepared samples to one padded batch: the arguments of the model's forward and what post-processing needs."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import BatchFeature

from ..labels import IGNORE
from .frames import RGBDFrame


Sample = dict[str, Any]
# What post-processing alone reads: it stays where it is when a batch goes to the network.
HOST_ENTRIES = ("point_offsets", "point_rotations", "point_scales", "pixel_indices", "superpoint_maps")
# What a network in half precision takes in half precision.
_CAST = ("point_colors", "pixel_values")


class FrameFeatures(BatchFeature):
    """A batch of the processor. `to(dtype)` casts colours and image alone: positions stay where they are."""

    def to(self, *args, **kwargs) -> "FrameFeatures":
        """Moves all tensors to a device, and casts what a network in half precision takes so; as in `BatchFeature`."""
        cast = BatchFeature({name: self[name] for name in _CAST if name in self}).to(*args, **kwargs)
        rest = BatchFeature({name: value for name, value in self.items() if name not in cast})
        args = [value for value in args if not isinstance(value, torch.dtype)]
        kwargs.pop("dtype", None)
        if args or kwargs:
            rest = rest.to(*args, **kwargs)
        self.data = {name: cast[name] if name in cast else rest[name] for name in self.data}
        return self


def normalize(values: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 [..., 3] to float32 [..., 3]: fractions of 255, minus `mean`, over `std`."""
    # One channel after the other in memory, as the image tower wants them: numpy takes ten times as long by pixel.
    channels = torch.from_numpy(np.ascontiguousarray(values)).movedim(-1, 0)
    channels = channels.to(torch.float32, memory_format=torch.contiguous_format)
    mean, std = np.array([mean, std])
    for channel, factor, offset in zip(channels, (1 / (255 * std)).astype(np.float32), mean / std, strict=True):
        channel.mul_(float(factor)).sub_(float(np.float32(offset)))
    return channels.movedim(0, -1)


def _pad(rows: list[torch.Tensor], value: float | int | bool) -> torch.Tensor:
    """[N_i, ...] rows to [B, max N_i, ...], filled up with `value`."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def _present(samples: Sequence[Mapping], key: str) -> bool:
    """Whether every sample has `key`; that only some have it is an error."""
    having = [sample.get(key) is not None for sample in samples]
    if any(having) and not all(having):
        lacking = [sample["frame_id"] for sample, has in zip(samples, having, strict=True) if not has]
        raise ValueError(f"{', '.join(lacking)}: {key} is missing; expected in all samples of a batch or in none")
    return having[0]


def _stack_images(samples: Sequence[Mapping], mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    # Not by name: frames may share one.
    sizes = [sample["image"].shape[:2] for sample in samples]
    if len(set(sizes)) > 1:
        found = ", ".join(
            f"{sample['frame_id']} {height}x{width}" for sample, (height, width) in zip(samples, sizes, strict=True)
        )
        raise ValueError(
            f"images of one batch have different sizes (height x width): {found}; expected one size: "
            "set the processor's image_size"
        )
    images = np.stack([sample["image"] for sample in samples])
    return normalize(images, mean, std).permute(0, 3, 1, 2).contiguous()


def _mask_labels(sample: Mapping, num_points: int) -> torch.Tensor:
    """The points of each ground-truth instance, bool [M, num_points]."""
    masks = np.zeros((len(sample["class_labels"]), num_points), dtype=bool)
    points = np.flatnonzero(sample["instance"] >= 0)
    masks[sample["instance"][points], points] = True
    return torch.from_numpy(masks)


def collate_samples(
    samples: Sequence[Sample],
    *,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    color_mean: Sequence[float],
    color_std: Sequence[float],
) -> dict[str, Any]:
    """Pads samples of `BiFusionProcessor.prepare_frame` into a batch.

    Args:
        samples: At least one sample.
        image_mean: Of the image branch, as fractions of 255; `image_std` likewise.
        image_std: See `image_mean`.
        color_mean: Of the point colours, as fractions of 255; `color_std` likewise.
        color_std: See `color_mean`.

    Returns:
        `points` float32 [B, N, 3] metres, `point_colors` float32 [B, N, 3], `point_mask` bool [B, N],
        `superpoint_ids` int64 [B, N] (-1 at padding); with an image `pixel_values` float32 [B, 3, H, W],
        `point_pixels` float32 [B, N, 2], `point_visible` bool [B, N], `camera_rotations` float32 [B, 3, 3]; with
        labels `mask_labels` list of bool [M_i, N], `class_labels` list of int64 [M_i], `semantic_labels` int64 [B, N]
        (-100 = ignore); `point_offsets` float32 [B, 3], `point_rotations` float32 [B, 3, 3] and `point_scales` float32
        [B], which lead back to the input, `up_sources`, `pixel_indices` int64 [B, N] (-1 at padding and where a cloud
        has no depth image), `superpoint_maps` list of int32 [H, W] or None, `frame_ids`; and, where the samples carry
        them, `query_seeds` int64 [B] and `alignment_errors` float32 [B].

    Raises:
        ValueError: No sample, images of different size, or a field that only some of the samples have.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")

    def rows(key: str, fill: float | int | bool) -> torch.Tensor:
        return _pad([torch.from_numpy(np.ascontiguousarray(sample[key])) for sample in samples], fill)

    counts = [len(sample["points"]) for sample in samples]
    num_points = max(counts)
    batch: dict[str, Any] = {
        "points": rows("points", 0.0),
        "point_colors": _pad([normalize(sample["point_rgb"], color_mean, color_std) for sample in samples], 0.0),
        "point_mask": torch.arange(num_points) < torch.tensor(counts)[:, None],
        "superpoint_ids": rows("superpoint_ids", -1),
    }
    if _present(samples, "image"):
        batch["pixel_values"] = _stack_images(samples, image_mean, image_std)
        # Padding sits at the image centre, inside [0, 1]; point_visible keeps it from being used.
        batch["point_pixels"] = rows("point_pixels", 0.5)
        batch["point_visible"] = rows("point_visible", False)
        batch["camera_rotations"] = torch.from_numpy(np.stack([sample["camera_rotation"] for sample in samples]))
    if _present(samples, "instance"):
        batch["mask_labels"] = [_mask_labels(sample, num_points) for sample in samples]
        batch["class_labels"] = [torch.from_numpy(sample["class_labels"]) for sample in samples]
    if _present(samples, "semantic"):
        batch["semantic_labels"] = rows("semantic", IGNORE)
    batch["point_offsets"] = torch.from_numpy(np.stack([sample["point_offset"] for sample in samples]))
    batch["point_rotations"] = torch.from_numpy(np.stack([sample["point_rotation"] for sample in samples]))
    batch["point_scales"] = torch.from_numpy(np.stack([sample["point_scale"] for sample in samples]))
    batch["up_sources"] = [sample["up_source"] for sample in samples]
    batch["pixel_indices"] = rows("pixel_indices", -1)
    maps = [sample["superpoint_map"] for sample in samples]
    batch["superpoint_maps"] = [None if value is None else torch.from_numpy(value) for value in maps]
    batch["frame_ids"] = [sample["frame_id"] for sample in samples]
    if _present(samples, "query_seed"):
        batch["query_seeds"] = torch.tensor([sample["query_seed"] for sample in samples], dtype=torch.int64)
    if _present(samples, "alignment_error"):
        errors = [sample["alignment_error"] for sample in samples]
        batch["alignment_errors"] = torch.tensor(errors, dtype=torch.float32)
    return batch


class FrameProcessor(Protocol):
    """What data sets and collators need of `BiFusionProcessor`."""

    def prepare_frame(self, frame: RGBDFrame, rng: np.random.Generator | None = None) -> Sample:
        """The sample of a frame, its points drawn with `rng`."""

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The samples as a batch; see `collate_samples`."""


def to_numpy(value: Any) -> Any:
    """A batch, or a part of one, with arrays in the place of tensors."""
    if isinstance(value, dict):
        return {name: to_numpy(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [to_numpy(entry) for entry in value]
    return value.numpy() if isinstance(value, torch.Tensor) else value


class BiFusionCollator:
    """`collate_fn` of a DataLoader over `FrameDataset`.

    Frames that the data set skipped (None) are left out of the batch; where all were, there is no batch (None).

    Args:
        processor: Gives the normalisation.
    """

    def __init__(self, processor: FrameProcessor):
        self.processor = processor

    def __call__(self, samples: Sequence[Sample | None]) -> dict[str, Any] | None:
        """A batch as `collate_samples` describes it.

        Raises:
            ValueError: The frames do not fit one batch.
        """
        kept = [sample for sample in samples if sample is not None]
        return self.processor.collate(kept) if kept else None
