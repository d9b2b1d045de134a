"""Checkpoints with the original networks' names, holding the weights of a model of this package."""

import json
import re
from pathlib import Path

import torch

from bifusion_hf.weights.sv3d import HEADS, translate


KEYS = Path(__file__).parent / "fixtures" / "reference" / "keys.json"


def original_state(model: torch.nn.Module, network: str = "single_view") -> dict[str, torch.Tensor]:
    """State dict of a `BiFusionForInstanceSegmentation` without image branch, as ESAM names it.

    Args:
        model: The model.
        network: `"single_view"` or `"online"`; what the model lacks of the latter's heads is left out.
    """
    ours, state, used = model.state_dict(), {}, set()
    for key in json.loads(KEYS.read_text())[network]:
        # Three rows, as the packed attention matrices are cut in three.
        names = [
            name if name.startswith(HEADS) else f"model.{name}" for name in translate(key, torch.zeros(3), "backbone.")
        ]
        if not names:
            state[key] = torch.zeros(2)
        elif set(names) <= set(ours):
            state[key] = torch.cat([ours[name] for name in names]) if len(names) > 1 else ours[names[0]].clone()
            used.update(names)
    left = [name for name in ours if name not in used and not re.match(r"model\.training_", name)]
    assert not left, left
    return state


def save_original(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """Saves as mmengine does."""
    torch.save({"meta": {"epoch": 128}, "message_hub": {}, "state_dict": state}, path)
    return path
