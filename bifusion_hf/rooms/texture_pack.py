"""Pictures for walls, floors and ceilings out of the wheel of `miniworld` (Apache-2.0)."""

import io
import zipfile
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from .catalog import split_of
from .textures import Texture


_SIZE = 256
# surface: (beginning of the file's name, metres that one repetition covers)
_USES = {
    "wall": {"brick_wall": 1.2, "cinder_blocks": 1.6, "concrete_": 2.0, "drywall": 2.0, "marble": 1.5, "stucco": 1.5},
    "floor": {"concrete": 2.0, "floor_tiles": 1.2, "marble": 1.5, "wood": 1.2, "asphalt": 2.0, "rock": 2.0},
    "ceiling": {"ceiling_tile": 1.2, "drywall": 2.0, "stucco": 1.5},
}


class TexturePack:
    """The usable textures of a wheel.

    Args:
        path: The `.whl` file.

    Raises:
        ValueError: The file is no wheel with `miniworld/textures/*.png`.
    """

    def __init__(self, path: str | Path):
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is no wheel; expected the one of miniworld")
        self.archive = zipfile.ZipFile(path)
        self.files = {
            PurePosixPath(member).stem: member
            for member in sorted(self.archive.namelist())
            if PurePosixPath(member).match("miniworld/textures/*.png")
        }
        if not self.files:
            raise ValueError(f"{path} holds no miniworld/textures/*.png; expected the wheel of miniworld")
        self._read = lru_cache(maxsize=64)(self._read_image)

    def _read_image(self, name: str) -> np.ndarray:
        image = Image.open(io.BytesIO(self.archive.read(self.files[name]))).convert("RGB")
        image.thumbnail((_SIZE, _SIZE))
        return np.asarray(image)

    def pick(self, rng: np.random.Generator, split: str, surface: str) -> Texture | None:
        """A random texture for `"wall"`, `"floor"` or `"ceiling"`, out of those of the split; None if it has none."""
        found = [
            (name, tile)
            for name in self.files
            for beginning, tile in _USES[surface].items()
            if name.startswith(beginning) and split_of(f"texture/miniworld/{name}") == split
        ]
        if not found:
            return None
        name, tile = found[rng.integers(len(found))]
        return Texture(self._read(name), tile)
