"""Classes that only fine texture tells apart: the part of a data set in which shape and colour say nothing.

The members of a family have one shape, with sizes from one distribution, and a two-coloured print. A print's number
decides its colours, their shares of the area and its period, so that every kind of print exists in the same colours
and shares; only the pattern belongs to the class. The period is below 4 cm, so that the mean colour of a voxel of 4 cm
is the same for all kinds, and points that are sampled from them have the same colours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from .catalog import split_of
from .classes import FREE, ON_TOP, WALL
from .meshes import (
    Mesh,
    box_mesh,
    merge,
    planar_uv,
)
from .primitives import Primitive, frame_meshes, hanging_cloth
from .textures import (
    Texture,
    noise,
    random_color,
    to_image,
)


PRINTS = 120  # of each kind
_SIZE = 256
_PERIODS = 4  # in one repetition of the picture
_PERIOD = (0.026, 0.038)  # metres
_SHARE = (0.35, 0.48)  # of the area that the darker colour covers
_CONTRAST = (0.5, 0.8)


def _rows(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.cos(v)


def _columns(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.cos(u)


def _diagonals(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.cos(u + v)


def _dots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.cos(u) + np.cos(v)


KINDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "rows": _rows,
    "columns": _columns,
    "diagonals": _diagonals,
    "dots": _dots,
}


@lru_cache(maxsize=512)
def make_print(kind: str, number: int) -> Texture:
    """The print of a kind and a number; prints of one number agree in all but the pattern."""
    rng = np.random.default_rng([0x9E11, number])
    mean = random_color(rng, (0.05, 0.6), (0.4, 0.8))
    share, contrast = rng.uniform(*_SHARE), rng.uniform(*_CONTRAST)
    period = rng.uniform(*_PERIOD)
    grain = noise(rng, 0.3)
    angle = 2 * np.pi * _PERIODS * (np.arange(_SIZE) + rng.uniform(0, _SIZE / _PERIODS, (2, 1))) / _SIZE
    field = KINDS[kind](angle[0][None, :], angle[1][:, None]) + np.zeros((_SIZE, _SIZE))
    # A threshold at a quantile of the pattern gives every kind exactly the same share of each colour.
    dark = np.zeros(field.size, bool)
    dark[np.argsort(field, axis=None, kind="stable")[round((1 - share) * field.size) :]] = True
    dark = dark.reshape(field.shape)[..., None]
    # The shares weigh the two colours so that their mean does not depend on the contrast.
    light, deep = 1 + contrast * share, 1 - contrast * (1 - share)
    image = np.where(dark, deep, light) * mean * (1 + 0.03 * grain[..., None])
    return Texture(to_image(image), _PERIODS * period)


def pick_print(rng: np.random.Generator, split: str, kind: str) -> Texture:
    """A random print of a kind, out of those of the split: for all kinds the same numbers."""
    numbers = [number for number in range(PRINTS) if split_of(f"texture/print/{number}") == split]
    return make_print(kind, numbers[rng.integers(len(numbers))])


def _printed_box(low: tuple[float, ...], high: tuple[float, ...], texture: Texture) -> Mesh:
    mesh = box_mesh(np.array(low), np.array(high), np.ones(3), texture.image)
    mesh.uv = planar_uv(mesh.triangles, mesh.normals) / np.float32(texture.tile)
    return mesh


def printed_block(
    kind: str, low: tuple[float, float, float], high: tuple[float, float, float], rng: np.random.Generator, split: str
) -> Mesh:
    """A box with printed sides and a plain lid: seen from above, rows would be columns after a quarter turn."""
    width, depth, height = rng.uniform(low, high)
    texture = pick_print(rng, split, kind)
    lid, edge = 0.004, 0.004
    body = _printed_box((-width / 2, -depth / 2, 0), (width / 2, depth / 2, height - lid), texture)
    top = box_mesh(
        np.array([-width / 2 - edge, -depth / 2 - edge, height - lid]),
        np.array([width / 2 + edge, depth / 2 + edge, height]),
        texture.image.mean(axis=(0, 1)) / 255,
    )
    return merge([body, top])


def printed_panel(
    kind: str, width: tuple[float, float], height: tuple[float, float], rng: np.random.Generator, split: str
) -> Mesh:
    """A framed sheet on a wall, its back at y = 0."""
    w, h = rng.uniform(*width), rng.uniform(*height)
    depth, frame = rng.uniform(0.02, 0.05), rng.uniform(0.015, 0.04)
    color = random_color(rng, (0, 0.5), (0.1, 0.95))
    sheet = _printed_box(
        (-w / 2 + frame, -0.8 * depth, frame), (w / 2 - frame, 0, h - frame), pick_print(rng, split, kind)
    )
    return merge([sheet, *frame_meshes(w, h, depth, frame, color)])


def printed_cloth(
    kind: str, width: tuple[float, float], height: tuple[float, float], rng: np.random.Generator, split: str
) -> Mesh:
    """Hanging cloth with folds."""
    return hanging_cloth(rng, rng.uniform(*width), rng.uniform(*height), pick_print(rng, split, kind))


@dataclass(frozen=True)
class Family:
    """Classes of one shape.

    Args:
        kinds: Class name -> kind of its print.
        make: (kind, generator, split) -> mesh.
        placement: One of the placements of `classes`.
        count: Fewest and most objects of the family in a room.
        elevation: As in `Primitive`.
    """

    kinds: dict[str, str]
    make: Callable[[str, np.random.Generator, str], Mesh]
    placement: str
    count: tuple[int, int]
    elevation: tuple[float, float] = (0.0, 0.0)

    def primitives(self) -> list[Primitive]:
        """The classes as parametric objects."""
        return [
            Primitive(class_name, self.placement, partial(self.make, kind), self.elevation)
            for class_name, kind in self.kinds.items()
        ]


def _block(low: tuple[float, float, float], high: tuple[float, float, float]) -> Callable[..., Mesh]:
    return lambda kind, rng, split: printed_block(kind, low, high, rng, split)


# Cloth before panels: it needs a free wall lower down, where furniture stands.
FAMILIES: dict[str, Family] = {
    "block": Family(
        {"crate": "rows", "suitcase": "columns", "box": "diagonals", "basket": "dots"},
        _block((0.3, 0.25, 0.25), (0.6, 0.45, 0.55)),
        FREE,
        (3, 6),
    ),
    "package": Family(
        {"book": "rows", "speaker": "columns", "cd case": "diagonals", "tissue box": "dots"},
        _block((0.14, 0.12, 0.12), (0.3, 0.25, 0.3)),
        ON_TOP,
        (4, 9),
    ),
    "cloth": Family(
        {"towel": "rows", "curtain": "columns", "blanket": "diagonals", "shower curtain": "dots"},
        lambda kind, rng, split: printed_cloth(kind, (0.4, 0.9), (0.6, 1.4), rng, split),
        WALL,
        (2, 5),
        (0.3, 0.8),
    ),
    "panel": Family(
        {"poster": "rows", "whiteboard": "columns", "picture": "diagonals", "bulletin board": "dots"},
        lambda kind, rng, split: printed_panel(kind, (0.4, 1.2), (0.4, 0.9), rng, split),
        WALL,
        (3, 6),
        (0.9, 1.4),
    ),
}
PHOTOMETRIC_CLASSES: dict[str, list[str]] = {name: list(family.kinds) for name, family in FAMILIES.items()}
