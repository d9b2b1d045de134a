"""Weights made by the rule of the reference files: any tensor of the original networks from its name and shape."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch


SEED = 5206
# The first text that occurs in the name gives the gain.
GAINS = {
    "conv0p1s1": 2.5,
    "block3.": 0.8,
    "block4.": 0.7,
    "block8.": 2.0,
    "conv1.kernel": 1.4,
    "conv2.kernel": 1.0,
    "downsample.0.kernel": 1.4,
    "convtr": 1.8,
    "conv1p1s2": 2.5,
    "conv2p2s2": 1.8,
    "conv3p4s2": 1.4,
    "conv4p8s2": 1.4,
    "in_proj_weight": 1.6,
    "attn.out_proj.weight": 0.25,
    "ffn_layers": 0.5,
    "query_proj": 2.0,
    "x_mask.2.weight": 0.15,
    "x_pts_mask.2.weight": 0.08,
    "out_cls.2.weight": 2.0,
    "pts_proj2.3.weight": 2.0,
}


def rule_tensor(key: str, shape: list[int]) -> torch.Tensor:
    rng = np.random.RandomState((zlib.crc32(key.encode()) + SEED) % 2**32)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(1)
    if key.endswith("running_var"):
        value = 0.5 + rng.random_sample(shape)
    elif key.endswith(("running_mean", "bias")):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        value = 1 + 0.1 * rng.standard_normal(shape)
    else:
        value = rng.standard_normal(shape)
        axis = len(shape) - 2 if key.endswith(".kernel") else 1
        value -= value.mean(axis=axis, keepdims=True)
        fan_in = shape[axis]
        if len(shape) == 3 and "convtr" not in key:
            fan_in *= {8: 4, 27: 10, 125: 10}[shape[0]]
        value *= next((gain for text, gain in GAINS.items() if text in key), 1.0) / np.sqrt(fan_in)
    return torch.from_numpy(np.asarray(value)).float()


def rule_state_dict(keys_file: Path, network: str) -> dict[str, torch.Tensor]:
    """State dict of `network` ("single_view" or "online"), names and shapes from keys.json."""
    keys = json.loads(keys_file.read_text())[network]
    return {key: rule_tensor(key, shape) for key, (shape, _) in keys.items()}
