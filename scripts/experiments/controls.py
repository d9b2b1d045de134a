"""Controls of a fused network: what remains of its result when the image is another one, or none at all."""

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from bifusion_hf.data.dataset import FrameDataset


def derangement(count: int, seed: int) -> np.ndarray:
    """A random permutation int64 [count] that leaves nothing in its place: one cycle through all.

    Raises:
        ValueError: `count` is under 2.
    """
    if count < 2:
        raise ValueError(f"count is {count}; expected at least 2, or nothing could change places")
    order = np.random.default_rng(seed).permutation(count)
    result = np.empty(count, dtype=np.int64)
    result[order] = np.roll(order, 1)
    return result


class ShuffledImages(Dataset):
    """Samples whose image, the image branch's input, is that of another frame.

    Points, their colours, their pixels and the labels stay a frame's own.

    Args:
        dataset: The frames; their images must have one size.
        partners: int [F], whose image each frame gets.
    """

    def __init__(self, dataset: FrameDataset, partners: np.ndarray):
        self.dataset = dataset
        self.partners = partners

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of a frame."""
        return {**self.dataset[index], "image": self.dataset[int(self.partners[index])]["image"]}


class HiddenImages(Dataset):
    """Samples of which the image shows no point: every gate is 0, so that the network runs on points alone.

    Args:
        dataset: The frames.
    """

    def __init__(self, dataset: FrameDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of a frame."""
        sample = self.dataset[index]
        return {**sample, "point_visible": np.zeros_like(sample["point_visible"])}
