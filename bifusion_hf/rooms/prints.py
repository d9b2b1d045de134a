"""Pictures that are new for every object: labels of packages, patterns, photographs, and what covers a table.

Unlike the named `textures` they're drawn from the scene's own generator, so that no two packages are alike.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .textures import Texture, pick_texture, random_color, to_image


_LETTERS = np.array(list("AAABCDEEEFGHIIKLMNNOOPRRSSTTUVWXYZaaabcdeeefghiijklmnnooprrsstttuvwxyz0123456789&%!-."))


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def vivid(rng: np.random.Generator) -> np.ndarray:
    """A colour [3] of things that are sold: often strong, often white or black."""
    choice = rng.random()
    if choice < 0.16:
        return random_color(rng, (0, 0.08), (0.8, 1.0))
    if choice < 0.28:
        return random_color(rng, (0, 0.3), (0.02, 0.2))
    if choice < 0.4:
        return random_color(rng, (0, 0.2), (0.25, 0.8))
    return random_color(rng, (0.35, 1.0), (0.3, 1.0))


def _ink(color: np.ndarray) -> tuple[int, ...]:
    return tuple(int(255 * value) for value in color)


def _word(rng: np.random.Generator, length: int) -> str:
    return "".join(_LETTERS[rng.integers(len(_LETTERS), size=length)])


def gradient(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A smooth passage between two colours, float [h, w, 3]."""
    angle, first, second = rng.uniform(0, 2 * np.pi), vivid(rng), vivid(rng)
    y, x = np.mgrid[-0.5 : 0.5 : 1j * height, -0.5 : 0.5 : 1j * width]
    share = np.clip(0.5 + x * np.cos(angle) + y * np.sin(angle), 0, 1)[..., None]
    return first * (1 - share) + second * share


def photograph(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Something like a photograph: coloured patches of several sizes with edges and grain, float [h, w, 3]."""
    image = np.zeros((height, width, 3))
    base = np.stack([vivid(rng) for _ in range(3)])
    for cells, weight in ((2, 0.5), (5, 0.3), (13, 0.2)):
        weights = rng.dirichlet([0.5] * 3, size=(cells, cells))
        patches = Image.fromarray(to_image(weights @ base))
        method = Image.Resampling.BICUBIC if rng.random() < 0.7 else Image.Resampling.NEAREST
        image += weight * np.asarray(patches.resize((width, height), method)) / 255
    return image + rng.uniform(0, 0.06) * rng.normal(size=(height, width, 1))


def pattern(rng: np.random.Generator, width: int = 96, height: int = 96) -> np.ndarray:
    """Stripes, checks, dots, a gradient, speckles or a photograph, uint8 [h, w, 3]."""
    kind = rng.integers(6)
    if kind == 4:
        return to_image(gradient(rng, width, height))
    if kind == 5:
        return to_image(photograph(rng, width, height))
    y, x = np.mgrid[0 : 1 : 1j * height, 0 : 1 : 1j * width]
    u, v, count = x, y, rng.integers(2, 10)
    if kind == 0:
        mask = ((u if rng.random() < 0.5 else v) * count % 1) < rng.uniform(0.2, 0.6)
    elif kind == 1:
        mask = (np.floor(u * count) + np.floor(v * count)) % 2 == 0
    elif kind == 2:
        mask = np.hypot(u * count % 1 - 0.5, v * count % 1 - 0.5) < rng.uniform(0.15, 0.4)
    else:
        mask = rng.random((height, width)) < rng.uniform(0.05, 0.5)
    return to_image(np.where(mask[..., None], vivid(rng), vivid(rng)))


def label(rng: np.random.Generator, width: int = 96, height: int = 128) -> np.ndarray:
    """A printed package: a ground, bands and shapes, perhaps a picture, a name, small print, a bar code.

    Returns:
        uint8 [height, width, 3].
    """
    choice = rng.random()
    if choice < 0.55:
        ground = np.broadcast_to(vivid(rng), (height, width, 3))
    elif choice < 0.8:
        ground = gradient(rng, width, height)
    else:
        ground = photograph(rng, width, height)
    image = Image.fromarray(to_image(ground))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 4)):
        color = _ink(vivid(rng))
        x, y = rng.integers(0, [width, height])
        w, h = rng.integers([width // 8, height // 10], [width, height // 2])
        kind = rng.integers(4)
        if kind == 0:
            draw.rectangle([0, y, width, y + h // 2], fill=color)
        elif kind == 1:
            draw.ellipse([x - w // 2, y - h // 2, x + w // 2, y + h // 2], fill=color)
        elif kind == 2:
            draw.polygon([tuple(rng.integers(0, [width, height])) for _ in range(3)], fill=color)
        else:
            draw.rectangle([x, y, x + w // 2, y + h // 2], fill=color)
    if rng.random() < 0.4:
        w, h = rng.integers(width // 3, width), rng.integers(height // 5, height // 2)
        picture = Image.fromarray(to_image(photograph(rng, int(w), int(h))))
        image.paste(picture, (int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))))
    for _ in range(rng.integers(0, 4)):
        size = int(rng.integers(height // 9, height // 3))
        place = (int(rng.integers(-width // 8, width // 2)), int(rng.integers(0, height - size // 2)))
        draw.text(place, _word(rng, int(rng.integers(3, 9))), fill=_ink(vivid(rng)), font=_font(size))
    ink = _ink(random_color(rng, (0, 0.8), (0.0, 0.3) if np.mean(ground) > 0.4 else (0.8, 1.0)))
    top = int(rng.integers(0, height))
    for row in range(rng.integers(0, 8)):
        text = " ".join(_word(rng, int(length)) for length in rng.integers(2, 8, size=6))
        draw.text((int(0.08 * width), top + 8 * row), text[: width // 5], fill=ink, font=_font(8))
    if rng.random() < 0.2:
        x, y = int(rng.integers(0, width // 2)), int(rng.integers(0, height - 20))
        draw.rectangle([x, y, x + 38, y + 22], fill=(250, 250, 250))
        for bar in np.flatnonzero(rng.random(32) < 0.5):
            draw.line([x + 3 + bar, y + 2, x + 3 + bar, y + 18], fill=(10, 10, 10))
    return np.asarray(image)


def surface(rng: np.random.Generator, split: str) -> Texture:
    """What a table top or a shelf is covered with: mostly wood, also plain, stone, cloth, squares, or prints."""
    choice = rng.random()
    if choice < 0.4:
        return pick_texture(rng, split, ("wood", "planks"))
    if choice < 0.62:
        color = random_color(rng, (0, 0.25), (0.02, 1.0)) if rng.random() < 0.7 else vivid(rng)
        grain = 1 + 0.02 * rng.normal(size=(64, 64, 1))
        return Texture(to_image(color * grain), 0.3)
    if choice < 0.78:
        return pick_texture(rng, split, ("marble", "concrete", "tiles", "carpet"))
    if choice < 0.9:
        return pick_texture(rng, split, "fabric")
    return Texture(pattern(rng), rng.uniform(0.2, 0.8))
