"""A small frame and its files, which the kinds of mistakes spoil."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bifusion_hf.data.frame_files import read_frame
from bifusion_hf.data.frames import RGBDFrame, encode_image, encode_png16
from bifusion_hf.data.inputs import frame_from_arrays


HEIGHT, WIDTH = 60, 80
CAMERA = {"fx": 72.0, "fy": 72.0, "cx": 39.5, "cy": 29.5}


class Bench:
    """A frame of a wall two metres away that is fine, whole and in parts, in a folder of its own.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.metres = np.linspace(1.0, 3.0, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
        self.millimetres = np.rint(1000 * self.metres).astype(np.uint16)
        self.image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        self.image[:, WIDTH // 2 :] = (200, 60, 30)
        self.intrinsics = np.array([[72.0, 0, 39.5], [0, 72.0, 29.5], [0, 0, 1]])

    def frame(self, **changes: Any) -> RGBDFrame:
        """The frame from arrays; arguments of `frame_from_arrays` in place of the good ones."""
        values = {"image": self.image, "depth": self.metres, "intrinsics": self.intrinsics, **changes}
        return frame_from_arrays(**values)

    def write(self, name: str, content: str | bytes) -> Path:
        """A file of the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def picture(self, name: str, values: np.ndarray | Image.Image, **options: Any) -> Path:
        """A picture of the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(path, **options)
        return path

    def files(self, depth_scale: float | None = 1000.0, pose: Path | None = None, **changes: Path) -> RGBDFrame:
        """The frame from files `image`, `depth` and `camera`, those of `changes` in place of the good ones."""
        good = {
            "image": lambda: self.picture("color.png", self.image),
            "depth": lambda: self.picture("depth.png", self.millimetres),
            "camera": lambda: self.write("camera.json", json.dumps(CAMERA)),
        }
        paths = {name: changes.get(name) or make() for name, make in good.items()}
        return read_frame(paths["image"], paths["depth"], paths["camera"], depth_scale=depth_scale, pose=pose)

    def row(self, **changes: Any) -> dict[str, Any]:
        """A row of a data set."""
        stored = {"image": encode_image(self.image), "depth": encode_png16(self.millimetres), "depth_scale": 1000.0}
        return {**stored, "intrinsics": self.intrinsics.tolist(), "frame_id": "room", **changes}
