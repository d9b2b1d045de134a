"""Procedural textures: surfaces of the room, fabrics, and what is printed on flat things.

Every texture is a function of its name alone; the name also decides whether training or validation rooms may use it.
"""

import colorsys
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from .catalog import split_of


TEXTURES_PER_KIND = 60
_SIZE = 256


@dataclass(frozen=True, eq=False)
class Texture:
    """A picture and how large it is.

    Args:
        image: uint8 [h, w, 3] sRGB.
        tile: Metres that one repetition covers.
    """

    image: np.ndarray
    tile: float


def noise(rng: np.random.Generator, exponent: float, stretch: float = 1.0, size: int = _SIZE) -> np.ndarray:
    """Periodic noise [size, size], mean 0, deviation 1, with a 1/f^exponent spectrum; longer along x by `stretch`."""
    frequency = np.fft.fftfreq(size)
    radius = np.hypot(frequency[:, None], frequency[None] * stretch)
    radius[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.normal(size=(size, size))) * np.maximum(radius, 1 / size) ** -exponent
    spectrum[0, 0] = 0
    values = np.fft.ifft2(spectrum).real
    return values / values.std()


def random_color(
    rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float], hue: float | None = None
) -> np.ndarray:
    """An sRGB colour [3] in [0, 1]."""
    hue = rng.random() if hue is None else (hue + rng.normal(0, 0.03)) % 1
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(*saturation), rng.uniform(*value)))


def to_image(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1], clipped, as uint8 of the same shape."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _wall_color(rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.45:
        return random_color(rng, (0, 0.08), (0.75, 0.95), 0.11)
    return random_color(rng, (0.08, 0.5), (0.55, 0.95))


def paint(rng: np.random.Generator) -> Texture:
    """A painted wall."""
    color = _wall_color(rng)
    grain = 0.012 * noise(rng, 0.4) + rng.uniform(0.005, 0.03) * noise(rng, 1.6)
    return Texture(to_image(color * (1 + grain[..., None])), 1.7)


def wallpaper(rng: np.random.Generator) -> Texture:
    """Stripes, checks or waves in two close colours."""
    color, other = _wall_color(rng), _wall_color(rng)
    other = color + 0.45 * (other - color)
    x, y = np.meshgrid(np.arange(_SIZE) / _SIZE, np.arange(_SIZE) / _SIZE)
    count = int(rng.integers(3, 9))
    pattern = rng.integers(3)
    if pattern == 0:
        mask = np.sin(2 * np.pi * count * x) > rng.uniform(-0.5, 0.5)
    elif pattern == 1:
        mask = np.sin(2 * np.pi * count * x) * np.sin(2 * np.pi * count * y) > rng.uniform(0.2, 0.6)
    else:
        mask = np.abs(np.sin(np.pi * count * x) + np.cos(np.pi * count * y + np.sin(2 * np.pi * count * x))) < 0.5
    soft = ndimage.gaussian_filter(mask.astype(float), 1, mode="wrap")[..., None]
    return Texture(
        to_image(color * (1 - soft) + other * soft + 0.01 * noise(rng, 0.3)[..., None]), rng.uniform(0.5, 1.2)
    )


def _bricks(
    rng: np.random.Generator, rows: int, columns: int, offset: bool, joint: float
) -> tuple[np.ndarray, np.ndarray]:
    """Cell number and joint mask [size, size] of a wall of rows x columns cells."""
    y, x = np.mgrid[0:_SIZE, 0:_SIZE] / _SIZE
    row = np.floor(y * rows).astype(int)
    shift = 0.5 * (row % 2) / columns if offset else 0
    position = ((x + shift) % 1) * columns
    cell = row * columns + np.floor(position).astype(int)
    edge = np.minimum(
        np.minimum(y * rows % 1, 1 - y * rows % 1) / rows, np.minimum(position % 1, 1 - position % 1) / columns
    )
    return cell, edge < joint


def brick(rng: np.random.Generator) -> Texture:
    """A brick wall."""
    color = random_color(rng, (0.3, 0.6), (0.4, 0.75), 0.04) if rng.random() < 0.6 else _wall_color(rng)
    cell, joint = _bricks(rng, 10, 4, True, 0.008)
    tone = rng.normal(1, 0.1, size=cell.max() + 1)[cell] + 0.06 * noise(rng, 0.8)
    image = np.where(joint[..., None], rng.uniform(0.5, 0.85), color * tone[..., None])
    return Texture(to_image(image + 0.02 * noise(rng, 0.2)[..., None]), 0.9)


def tiles(rng: np.random.Generator) -> Texture:
    """Ceramic tiles, of one or two colours."""
    color = random_color(rng, (0, 0.22), (0.45, 0.95))
    count = int(rng.choice([2, 3, 4]))
    cell, joint = _bricks(rng, count, count, bool(rng.random() < 0.2), 0.006)
    second = random_color(rng, (0, 0.4), (0.2, 0.9)) if rng.random() < 0.3 else color
    chosen = np.where((((cell // count) + cell) % 2 == 0)[..., None], color, second)
    tone = rng.normal(1, 0.03, size=cell.max() + 1)[cell] + 0.04 * noise(rng, 1.4)
    return Texture(
        to_image(np.where(joint[..., None], rng.uniform(0.3, 0.9), chosen * tone[..., None])),
        count * rng.uniform(0.15, 0.45),
    )


def _wood_color(rng: np.random.Generator) -> np.ndarray:
    return random_color(rng, (0.3, 0.65), (0.3, 0.8), 0.08)


def planks(rng: np.random.Generator) -> Texture:
    """A floor of boards."""
    color = _wood_color(rng)
    rows = int(rng.integers(6, 12))
    cell, joint = _bricks(rng, rows, 2, True, 0.0025)
    tone = rng.normal(1, 0.1, size=cell.max() + 1)[cell] + 0.07 * noise(rng, 1.1, stretch=12)
    return Texture(
        to_image(np.where(joint[..., None], 0.45 * color, color * tone[..., None])), rows * rng.uniform(0.09, 0.16)
    )


def wood(rng: np.random.Generator) -> Texture:
    """Veneer."""
    color = _wood_color(rng)
    rings = np.sin(14 * noise(rng, 2.0, stretch=9) * 0.6)
    return Texture(
        to_image(color * (1 + 0.06 * rings + 0.05 * noise(rng, 0.8, stretch=14))[..., None]), rng.uniform(0.5, 1.0)
    )


def carpet(rng: np.random.Generator) -> Texture:
    """Carpet pile."""
    color = random_color(rng, (0.02, 0.5), (0.25, 0.75))
    return Texture(
        to_image(color * (1 + 0.12 * noise(rng, 0.2) + 0.05 * noise(rng, 1.2))[..., None]), rng.uniform(0.6, 1.2)
    )


def concrete(rng: np.random.Generator) -> Texture:
    """Concrete or rough plaster."""
    color = random_color(rng, (0, 0.12), (0.4, 0.8), 0.1)
    return Texture(to_image(color * (1 + 0.07 * noise(rng, 1.5) + 0.02 * noise(rng, 0.2))[..., None]), 2.0)


def marble(rng: np.random.Generator) -> Texture:
    """Stone with veins."""
    color = random_color(rng, (0, 0.2), (0.6, 0.95))
    veins = np.abs(noise(rng, 1.8))
    image = color * (1 - 0.35 * np.exp(-6 * veins) + 0.02 * noise(rng, 0.8))[..., None]
    return Texture(to_image(image), rng.uniform(0.8, 1.6))


def ceiling_panels(rng: np.random.Generator) -> Texture:
    """A suspended ceiling."""
    cell, joint = _bricks(rng, 2, 2, False, 0.01)
    image = np.where(joint, 0.6, rng.uniform(0.8, 0.95) + 0.03 * noise(rng, 0.1))
    return Texture(to_image(np.repeat(image[..., None], 3, axis=2)), 1.2)


def fabric(rng: np.random.Generator) -> Texture:
    """Cloth: plain, striped, checked, dotted or blotched."""
    color = random_color(rng, (0.05, 0.75), (0.2, 0.9))
    other = random_color(rng, (0.0, 0.7), (0.2, 0.95))
    y, x = np.mgrid[0:_SIZE, 0:_SIZE] / _SIZE
    count = int(rng.integers(2, 8))
    pattern = rng.integers(5)
    if pattern == 0:
        mask = np.zeros((_SIZE, _SIZE))
    elif pattern == 1:
        mask = (x * count % 1) < rng.uniform(0.2, 0.5)
    elif pattern == 2:
        mask = 0.5 * ((x * count % 1) < 0.4) + 0.5 * ((y * count % 1) < 0.4)
    elif pattern == 3:
        mask = np.hypot(x * count % 1 - 0.5, y * count % 1 - 0.5) < 0.28
    else:
        mask = noise(rng, 1.8) > 0.4
    mask = np.asarray(mask, dtype=float)[..., None]
    weave = 0.04 * np.sin(2 * np.pi * 64 * x) * np.sin(2 * np.pi * 64 * y) + 0.04 * noise(rng, 0.3)
    return Texture(to_image((color * (1 - mask) + other * mask) * (1 + weave[..., None])), rng.uniform(0.3, 0.7))


def _draw(
    rng: np.random.Generator, background: np.ndarray, size: tuple[int, int], lines: int, shapes: int
) -> Image.Image:
    """A background [3] with random shapes and lines of writing."""
    width, height = size
    image = Image.fromarray(to_image(np.broadcast_to(background, (height, width, 3))))
    draw = ImageDraw.Draw(image)

    def color(value: tuple[float, float] = (0.1, 1.0)) -> tuple[int, ...]:
        return tuple(int(255 * c) for c in random_color(rng, (0.1, 0.9), value))

    for _ in range(shapes):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(width // 10, width // 2), rng.integers(height // 10, height // 2)
        kind = rng.integers(3)
        if kind == 0:
            draw.rectangle([x, y, x + w, y + h], fill=color())
        elif kind == 1:
            draw.ellipse([x, y, x + w, y + h], fill=color())
        else:
            draw.polygon([(x, y), (x + w, y + h // 3), (x + w // 2, y + h)], fill=color())
    ink = color((0.05, 0.4))
    for line in range(lines):
        y = int(height * (0.1 + 0.85 * line / max(lines, 1)))
        x = int(width * 0.08)
        end = width * rng.uniform(0.4, 0.92)
        while x < end:
            word = int(rng.integers(4, 24))
            draw.rectangle([x, y, min(x + word, end), y + max(height // 60, 2)], fill=ink)
            x += word + 5
    return image


def art(rng: np.random.Generator) -> Texture:
    """A picture: a landscape, an abstract painting, or a photograph-like smear of colours."""
    kind = rng.integers(3)
    if kind == 0:
        sky, land = random_color(rng, (0.1, 0.6), (0.6, 1.0), 0.58), random_color(rng, (0.2, 0.7), (0.15, 0.6))
        horizon = 0.45 + 0.08 * noise(rng, 2.0)[0][None, :]
        y = np.linspace(0, 1, _SIZE)[:, None]
        mask = (y > horizon)[..., None]
        image = np.where(mask, land, sky) * (1 + 0.12 * noise(rng, 1.4))[..., None]
    elif kind == 1:
        image = np.asarray(_draw(rng, random_color(rng, (0, 0.7), (0.3, 1)), (_SIZE, _SIZE), 0, 9)) / 255
    else:
        colors = np.stack([random_color(rng, (0.1, 0.9), (0.1, 1.0)) for _ in range(4)])
        weights = np.exp(2.5 * np.stack([noise(rng, 1.7) for _ in range(4)], -1))
        image = (weights / weights.sum(-1, keepdims=True)) @ colors
    return Texture(to_image(np.asarray(image) + 0.02 * noise(rng, 0.5)[..., None]), 1.0)


def poster(rng: np.random.Generator) -> Texture:
    """A printed sheet: writing and a few shapes."""
    background = random_color(rng, (0, 0.5), (0.7, 1))
    return Texture(
        np.asarray(_draw(rng, background, (_SIZE, _SIZE), int(rng.integers(8, 16)), int(rng.integers(1, 4)))), 1.0
    )


def scribbles(rng: np.random.Generator) -> Texture:
    """A whiteboard: white with thin strokes."""
    image = Image.fromarray(to_image(np.full((_SIZE, _SIZE, 3), rng.uniform(0.86, 0.97))))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 14))):
        steps = rng.normal(0, 9, size=(int(rng.integers(4, 14)), 2)) + [6, 0]
        points = rng.uniform(20, _SIZE - 60, 2) + np.cumsum(steps, axis=0)
        ink = tuple(int(255 * c) for c in random_color(rng, (0.5, 1), (0.1, 0.7)))
        draw.line([tuple(point) for point in points], fill=ink, width=2)
    return Texture(np.asarray(image), 1.0)


def outdoors(rng: np.random.Generator) -> Texture:
    """What is seen through a window: bright sky, blurred greenery or houses, sashes in front."""
    y = np.linspace(0, 1, _SIZE)[:, None]
    sky = random_color(rng, (0, 0.25), (0.92, 1.0), 0.58)
    ground = random_color(rng, (0.1, 0.5), (0.35, 0.75), rng.choice([0.3, 0.1]))
    mask = ndimage.gaussian_filter((y > 0.5 + 0.1 * noise(rng, 1.8)[0][None]).astype(float), 4)[..., None]
    image = sky * (1 - mask) + ground * (1 + 0.2 * noise(rng, 1.5)[..., None]) * mask
    image = np.clip(1.1 * image, 0, 1)
    bar, sash = int(rng.integers(4, 9)), rng.uniform(0.6, 0.95)
    columns, rows = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    for column in range(columns + 1):
        x = round(column * (_SIZE - bar) / columns)
        image[:, x : x + bar] = sash
    for row in range(rows + 1):
        x = round(row * (_SIZE - bar) / rows)
        image[x : x + bar] = sash
    return Texture(to_image(image), 1.0)


def cover(rng: np.random.Generator) -> Texture:
    """A book cover."""
    background = random_color(rng, (0.1, 0.9), (0.15, 0.95))
    return Texture(
        np.asarray(_draw(rng, background, (128, 128), int(rng.integers(1, 4)), int(rng.integers(0, 3)))), 1.0
    )


def cardboard(rng: np.random.Generator) -> Texture:
    """A cardboard box: brown, tape across, perhaps a label."""
    color = random_color(rng, (0.3, 0.5), (0.55, 0.8), 0.09)
    image = color * (1 + 0.03 * noise(rng, 0.9, stretch=6))[..., None]
    middle, half = _SIZE // 2, int(rng.integers(6, 14))
    image[middle - half : middle + half] = 0.75 * color + 0.25
    if rng.random() < 0.7:
        x, y = rng.integers(20, 150, 2)
        image[y : y + 50, x : x + 70] = 0.95
        image[y + 8 : y + 44 : 9, x + 6 : x + 60] = 0.15
    return Texture(to_image(image), 1.0)


def screen(rng: np.random.Generator) -> Texture:
    """A monitor: dark, or windows of a desktop."""
    if rng.random() < 0.4:
        return Texture(to_image(np.full((32, 32, 3), rng.uniform(0.02, 0.08))), 1.0)
    background = random_color(rng, (0.2, 0.9), (0.2, 0.7))
    return Texture(np.asarray(_draw(rng, background, (_SIZE, 160), int(rng.integers(3, 12)), 2)), 1.0)


KINDS: dict[str, Callable[[np.random.Generator], Texture]] = {
    function.__name__: function
    for function in (
        paint, wallpaper, brick, tiles, planks, wood, carpet, concrete, marble, ceiling_panels, fabric, art, poster,
        scribbles, outdoors, cover, cardboard, screen,
    )
}  # fmt: skip


@lru_cache(maxsize=256)
def make_texture(key: str) -> Texture:
    """The texture of a name `"kind/number"`."""
    seed = int.from_bytes(hashlib.sha256(f"texture/{key}".encode()).digest()[:8], "big")
    return KINDS[key.split("/")[0]](np.random.default_rng(seed))


def pick_texture(rng: np.random.Generator, split: str, kinds: str | tuple[str, ...]) -> Texture:
    """A random texture of one of the kinds, out of those of the split."""
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    kind = kinds[rng.integers(len(kinds))]
    keys = [f"{kind}/{index}" for index in range(TEXTURES_PER_KIND)]
    keys = [key for key in keys if split_of(f"texture/{key}") == split]
    return make_texture(keys[rng.integers(len(keys))])
