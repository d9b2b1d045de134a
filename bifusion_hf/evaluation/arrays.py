"""What the metrics share: arrays from tensors, means that leave absent classes out, ScanNet200's class groups."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..labels import SPLIT_NAMES, SPLIT_OF_CLASS


def to_array(value: Any) -> np.ndarray:
    """A numpy array of a tensor on any device, an array or a list."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        # numpy has no bfloat16.
        value = value.float() if value.dtype == torch.bfloat16 else value
    return np.asarray(value)


def integer_array(name: str, value: Any, length: int | None = None) -> np.ndarray:
    """A one-dimensional int64 array; an empty list counts as one.

    Raises:
        ValueError: Not integers, not one-dimensional, or not of the given length.
    """
    array = to_array(value)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} has dtype {array.dtype}; expected integers")
    if array.ndim != 1 or (length is not None and len(array) != length):
        raise ValueError(f"{name} has shape {array.shape}; expected [{'any' if length is None else length}]")
    return array.astype(np.int64)


def mean_without_nan(values: np.ndarray) -> float:
    """Mean of the entries that are not NaN; NaN where there is none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def class_groups(class_names: Sequence[str]) -> Mapping[str, list[int]]:
    """ScanNet200's head, common and tail groups as rows of `class_names`; empty if a name is not of ScanNet200."""
    if not all(name in SPLIT_OF_CLASS for name in class_names):
        return {}
    return {
        split: [row for row, name in enumerate(class_names) if SPLIT_OF_CLASS[name] == split] for split in SPLIT_NAMES
    }
