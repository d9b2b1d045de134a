"""Weights for tests in which every part of a network has to matter."""

import zlib

import torch


def random_weights(model):
    """Weights of which every one matters, a function of name and shape alone: nothing is 0 or 1 any more."""
    state = {}
    for name, value in model.state_dict().items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        random = torch.randn(value.shape, generator=generator)
        if not value.is_floating_point() or name.endswith(("log_frequencies", "fusion.scale")):
            state[name] = value
        elif name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(value.shape, generator=generator)
        elif name.endswith("kernel"):
            state[name] = random * (2.5 / value.shape[-2] / min(len(value), 8 if value.ndim == 3 else 1)) ** 0.5
        elif value.ndim > 1:
            state[name] = random * (2.0 / value[0].numel()) ** 0.5
        elif "norm" in name and name.endswith("weight"):
            state[name] = 1 + 0.3 * random
        else:
            state[name] = 0.3 * random
    return state
