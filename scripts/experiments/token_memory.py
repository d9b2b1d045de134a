"""A frozen tower runs once for each image: its tokens are kept in files, found again by what the image holds."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from bifusion_hf.io.atomic import new_file
from bifusion_hf.training.freezing import TOWER


class TokenMemory:
    """Takes the place of a frozen tower's forward.

    An image is known by the bytes of its normalised pixels, so that its size, its statistics and every augmentation
    are part of what it is known by. Tokens are kept in float16, one file an image; processes may share the folder.

    Args:
        tower: The frozen tower.
        folder: Of the files; a folder in it is made for these weights of the tower.
    """

    def __init__(self, tower: nn.Module, folder: str | Path):
        self._run = tower.forward
        self._parameters = list(tower.parameters())
        self.folder = Path(folder) / weights_hash(tower)
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        """The tower's output [B, T, D] of images [B, 3, H, W].

        Where hidden states or attentions are asked for, it is the tower itself that answers.

        Raises:
            ValueError: The tower trains by now (`training.unfreeze_at`); remembered tokens would give it no gradient.
        """
        if any(parameter.requires_grad for parameter in self._parameters):
            raise ValueError(
                f"{TOWER} trains (training.unfreeze_at), but its tokens are remembered: nothing in it would learn"
            )
        if kwargs.get("output_hidden_states") or kwargs.get("output_attentions"):
            return self._run(pixel_values, **kwargs)
        paths = [self._path(image) for image in pixel_values]
        missing = [index for index, path in enumerate(paths) if not path.is_file()]
        if missing:
            with torch.no_grad():
                tokens = self._run(pixel_values[missing], **kwargs).last_hidden_state
            for index, of_image in zip(missing, tokens, strict=True):
                _write(paths[index], of_image.to(torch.float16).cpu().numpy())
        tokens = torch.from_numpy(np.stack([np.load(path) for path in paths]).astype(np.float32))
        return BaseModelOutput(last_hidden_state=tokens.to(pixel_values.device, pixel_values.dtype))

    def _path(self, image: torch.Tensor) -> Path:
        content = np.ascontiguousarray(image.detach().float().cpu().numpy())
        digest = hashlib.blake2b(content, digest_size=16)
        digest.update(str(content.shape).encode())
        return self.folder / f"{digest.hexdigest()}.npy"


def _write(path: Path, values: np.ndarray) -> None:
    with new_file(path) as partial, open(partial, "wb") as file:
        np.save(file, values)


def weights_hash(module: nn.Module) -> str:
    """Of the configuration and all weights of a tower."""
    digest = hashlib.blake2b(module.config.to_json_string().encode(), digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def remember_tokens(model: nn.Module, folder: str | Path) -> None:
    """Gives the tower of a network a `TokenMemory`.

    Args:
        model: The network, after freezing.
        folder: See `TokenMemory`.

    Raises:
        ValueError: The network has no tower, or one of which a part trains.
    """
    tower = dict(model.named_modules()).get(TOWER)
    if tower is None or any(parameter.requires_grad for parameter in tower.parameters()):
        raise ValueError(f"{TOWER} is missing or trains; expected a frozen tower, whose tokens do not change")
    tower.forward = TokenMemory(tower, folder)
