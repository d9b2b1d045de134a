"""Small things of a household: tools, toys and devices made here, others of `wares`, and how often each is there.

A maker is as in `primitives`: (generator, split) -> mesh that stands on z = 0. What has no class of its own in
ScanNet200 is an "object".
"""

import numpy as np

from . import primitives
from .meshes import Mesh, merge, planar_uv
from .primitives import Maker, lathe
from .prints import pattern, photograph, surface, vivid
from .solids import bent_box, ellipsoid, grounded, moved, slab, tube, turn_about
from .textures import pick_texture, random_color, to_image
from .wares import (
    METAL,
    book,
    bowl,
    can,
    carton,
    cloth,
    flask,
    fruit,
    lump,
    mug,
    pan,
    plant,
    pouch,
    ring,
    stack_of_books,
    tub,
)


def screwdriver(rng: np.random.Generator, split: str) -> Mesh:
    """A screwdriver, brush, marker or knife: a thick grip and what it holds, lying down."""
    grip, shaft = rng.uniform(0.08, 0.13), rng.uniform(0.0, 0.18)
    radius, thin = rng.uniform(0.005, 0.018), rng.uniform(0.002, 0.006)
    x = np.array([0, 0.004, 0.5 * grip, grip - 0.004, grip])
    bars = [tube(np.stack([x, 0 * x, 0 * x], -1), radius * np.array([0.7, 1, 0.85, 1, 0.7]), vivid(rng), 10)]
    if shaft > 0.04:
        metal = random_color(rng, *METAL)
        if rng.random() < 0.5:
            bars.append(tube(np.array([[grip, 0, 0], [grip + shaft, 0, 0]]), thin, metal))
        else:
            bars.append(slab(shaft, rng.uniform(0.01, 0.04), 0.004, metal, (grip + shaft / 2, 0, -0.002)))
    return grounded(merge(bars))


def hammer(rng: np.random.Generator, split: str) -> Mesh:
    """A hammer or mallet, lying on its side."""
    length, radius = rng.uniform(0.2, 0.34), rng.uniform(0.011, 0.016)
    color = random_color(rng, (0.3, 0.6), (0.4, 0.8), 0.09) if rng.random() < 0.5 else vivid(rng)
    shaft = tube(
        np.array([[0, 0, 0], [0.35 * length, 0, 0], [length, 0, 0]]), radius * np.array([1.15, 1, 0.8]), color
    )
    head = rng.uniform(0.08, 0.12)
    metal = random_color(rng, *METAL) * 0.7
    block = tube(
        np.array([[length, -head / 2, 0], [length, 0.2 * head, 0], [length, head / 2, 0]]),
        np.array([0.016, 0.013, 0.006]),
        metal,
    )
    return grounded(merge([shaft, block]))


def pliers(rng: np.random.Generator, split: str) -> Mesh:
    """Pliers or scissors: two crossed bars, perhaps with rings at one end."""
    length, spread, radius = rng.uniform(0.12, 0.2), rng.uniform(0.02, 0.05), rng.uniform(0.004, 0.009)
    color, metal = vivid(rng), random_color(rng, *METAL)
    rings, parts = rng.random() < 0.5, []
    for side in (1, -1):
        t = np.linspace(0, 1, 7)
        grip = np.stack([-0.6 * length * t, side * spread * np.sin(0.6 * np.pi * t), side * 0.002 + 0 * t], -1)
        jaw = np.array([[0, 0, side * 0.002], [0.2 * length, side * -0.008, side * 0.002], [0.4 * length, 0, 0]])
        parts += [tube(jaw, np.array([1.3, 1.2, 0.4]) * radius, metal)]
        if rings:
            angle, ring = np.linspace(0, 2 * np.pi, 15), rng.uniform(0.012, 0.02)
            center = grip[3]
            circle = center + ring * np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)
            parts += [tube(grip[:4], radius, metal), tube(circle, 0.7 * radius, color)]
        else:
            parts += [tube(grip, radius, color)]
    return grounded(merge(parts))


def drill(rng: np.random.Generator, split: str) -> Mesh:
    """A power drill, a hair dryer, a pistol-like thing, standing on its foot."""
    body, dark, size = vivid(rng), random_color(rng, (0, 0.2), (0.03, 0.2)), rng.uniform(0.7, 1.1)
    x = np.array([-0.08, -0.07, 0.0, 0.06, 0.07, 0.13])
    barrel = tube(np.stack([x, 0 * x, 0 * x + 0.17], -1), np.array([0.02, 0.028, 0.03, 0.026, 0.016, 0.009]), body, 12)
    lean = rng.uniform(-0.03, 0.0)
    grip = tube(np.array([[-0.02 + lean, 0, 0.03], [-0.01, 0, 0.16]]), 0.018, dark if rng.random() < 0.5 else body, 10)
    parts = [barrel, grip]
    if rng.random() < 0.7:
        parts.append(slab(0.11, 0.06, 0.045, dark if rng.random() < 0.6 else body, (-0.01 + lean, 0, 0)))
    return grounded(moved(merge(parts), scale=size))


def cutlery(rng: np.random.Generator, split: str) -> Mesh:
    """A spoon, a fork or a spatula."""
    length = rng.uniform(0.13, 0.28)
    color = random_color(rng, *METAL) if rng.random() < 0.6 else vivid(rng)
    x = np.linspace(0, length, 8)
    stem = tube(np.stack([x, 0 * x, 0.008 * np.sin(np.pi * x / length)], -1), rng.uniform(0.002, 0.005), color)
    head = ellipsoid((length, 0, 0), rng.uniform((0.018, 0.012, 0.003), (0.04, 0.03, 0.007)), color)
    return grounded(merge([stem, head]))


def cable(rng: np.random.Generator, split: str) -> Mesh:
    """A cable that lies about in curves, perhaps with a plug; it passes over itself where it meets itself."""
    radius, count = rng.uniform(0.002, 0.005), 40
    heading = np.cumsum(rng.normal(rng.choice([-0.25, 0.0, 0.25]), 0.3, count))
    steps = rng.uniform(0.012, 0.02) * np.stack([np.cos(heading), np.sin(heading)], -1)
    path = np.concatenate([np.cumsum(steps, axis=0), np.zeros((count, 1))], axis=1)
    apart = np.linalg.norm(path[:, None, :2] - path[None, :, :2], axis=-1)
    later = np.arange(count)[:, None] - np.arange(count)[None] > 4
    path[:, 2] = 2 * radius * (later & (apart < 3 * radius + 0.01)).any(axis=1)
    color = random_color(rng, (0, 0.2), (0.02, 0.2)) if rng.random() < 0.6 else vivid(rng)
    parts = [tube(path, radius, color, 6)]
    if rng.random() < 0.6:
        parts.append(slab(0.04, 0.03, 0.02, color, tuple(path[-1] + [0, 0, -radius])))
    return grounded(merge(parts))


def ball(rng: np.random.Generator, split: str) -> Mesh:
    """A ball, plain or patterned."""
    radius = rng.uniform(0.02, 0.12)
    texture = pattern(rng) if rng.random() < 0.6 else None
    return ellipsoid((0, 0, radius), (radius,) * 3, np.ones(3) if texture is not None else vivid(rng), texture)


def bricks(rng: np.random.Generator, split: str) -> Mesh:
    """A toy brick with studs, a die or a plain cube."""
    unit, (nx, ny, nz) = rng.uniform(0.012, 0.032), rng.integers(1, (5, 3, 4))
    color = random_color(rng, (0.5, 1), (0.4, 1))
    x, y, z = nx * unit, ny * unit, nz * unit * 0.9
    parts = [slab(x, y, z, color)]
    for i in range(nx):
        for j in range(ny):
            stud = lathe(
                np.array([[1e-5, 0], [0.3 * unit, 0], [0.3 * unit, 0.2 * unit], [1e-5, 0.2 * unit]]), color, sides=10
            )
            parts.append(moved(stud, ((i + 0.5) * unit - x / 2, (j + 0.5) * unit - y / 2, z)))
    return merge(parts)


def cube(rng: np.random.Generator, split: str) -> Mesh:
    """A block of wood, foam or plastic, printed or not."""
    size = rng.uniform(0.02, 0.12) * rng.uniform(0.4, 1, 3)
    texture = pattern(rng, 48, 48) if rng.random() < 0.4 else None
    return slab(*size, np.ones(3) if texture is not None else vivid(rng), texture=texture)


def figure(rng: np.random.Generator, split: str) -> Mesh:
    """A toy figure or animal: trunk, head, limbs; standing on its legs."""
    size, body, skin = rng.uniform(0.08, 0.25), vivid(rng), random_color(rng, (0.1, 0.7), (0.3, 1), 0.07)
    four = rng.random() < 0.5
    trunk = np.array([0.3, 0.14, 0.15] if four else [0.14, 0.12, 0.25]) * size * rng.uniform(0.8, 1.2, 3)
    height = 0.45 * size
    parts = [ellipsoid((0, 0, height), trunk, body)]
    head = (
        np.array([trunk[0] + 0.08 * size, 0, height + 0.15 * size])
        if four
        else np.array([0, 0, height + trunk[2] + 0.1 * size])
    )
    parts.append(ellipsoid(head, rng.uniform(0.1, 0.18, 3) * size, skin if rng.random() < 0.5 else body))
    for x in (-0.6, 0.6) if four else (0.0,):
        for y in (-0.6, 0.6):
            hip = np.array([x * trunk[0], y * trunk[1], height])
            parts.append(
                tube(
                    np.stack([hip, hip * [1, 1.2, 0] + [0, 0, 0.05 * size]]),
                    0.05 * size,
                    skin if rng.random() < 0.3 else body,
                )
            )
            if not four:
                arm = np.array([0, np.sign(y) * trunk[1], height + 0.5 * trunk[2]])
                parts.append(
                    tube(
                        np.stack(
                            [
                                arm,
                                arm
                                + [
                                    rng.uniform(0, 0.2) * size,
                                    np.sign(y) * 0.15 * size,
                                    rng.uniform(-0.2, 0.2) * size,
                                ],
                            ]
                        ),
                        0.04 * size,
                        body,
                    )
                )
    return grounded(merge(parts))


def car(rng: np.random.Generator, split: str) -> Mesh:
    """A toy car."""
    length = rng.uniform(0.06, 0.25)
    width, wheel = 0.45 * length, 0.1 * length
    color = random_color(rng, (0.4, 1), (0.4, 1))
    parts = [
        slab(length, width, 0.15 * length, color, (0, 0, wheel)),
        slab(
            0.5 * length,
            0.9 * width,
            0.15 * length,
            rng.choice([0.15, 1.0]) * color,
            (-0.05 * length, 0, 0.15 * length + wheel),
        ),
    ]
    for x in (-0.3, 0.3):
        axle = np.array([[x * length, -0.52 * width, wheel], [x * length, 0.52 * width, wheel]])
        parts.append(tube(axle, wheel, np.full(3, 0.06), 12))
    return merge(parts)


def device(rng: np.random.Generator, split: str) -> Mesh:
    """A flat device: phone, remote control, calculator, radio, console; with a screen or keys."""
    x, y, z = rng.uniform((0.04, 0.08, 0.008), (0.12, 0.22, 0.05))
    color = random_color(rng, (0, 0.3), (0.03, 0.3)) if rng.random() < 0.6 else vivid(rng)
    parts = [slab(x, y, z, color)]
    if rng.random() < 0.5:
        screen = to_image(photograph(rng, 48, 64)) if rng.random() < 0.5 else None
        parts.append(
            slab(0.9 * x, 0.85 * y, 0.001, np.ones(3) if screen is not None else np.full(3, 0.05), (0, 0, z), screen)
        )
    else:
        keys, ink = rng.integers(2, 5), vivid(rng)
        for i in range(keys):
            for j in range(2 * keys):
                at = ((i + 0.5) / keys * x - x / 2, (j + 0.5) / (2 * keys) * y - y / 2, z)
                parts.append(slab(0.6 * x / keys, 0.3 * y / keys, 0.003, ink, at))
    return merge(parts)


def mouse(rng: np.random.Generator, split: str) -> Mesh:
    """A computer mouse."""
    half = rng.uniform((0.025, 0.045, 0.015), (0.035, 0.06, 0.022))
    color = np.full(3, rng.choice([0.05, 0.15, 0.5, 0.85]))
    base = slab(1.2 * half[0], 1.2 * half[1], 0.5 * half[2], 0.7 * color, (0, 0, -1.05 * half[2]))
    return grounded(merge([ellipsoid((0, 0, 0), half, color), base]))


def laptop(rng: np.random.Generator, split: str) -> Mesh:
    """An open laptop."""
    w, d = rng.uniform(0.28, 0.38), rng.uniform(0.2, 0.26)
    color = np.full(3, rng.choice([0.08, 0.3, 0.7, 0.85]))
    screen = primitives.panel("screen", (w, w), (d, d), (0.008, 0.012))(rng, split)
    lid = moved(screen, (0, d / 2, 0.018), turn_about(0, -rng.uniform(0.0, 0.6)))
    keys = slab(0.85 * w, 0.45 * d, 0.002, np.full(3, 0.06), (0, 0.12 * d, 0.018))
    return grounded(merge([slab(w, d, 0.018, color), keys, lid]))


def tote(rng: np.random.Generator, split: str) -> Mesh:
    """An open bin for many things: a storage crate, a drawer, a cardboard box without its lid."""
    x, y, z = rng.uniform((0.28, 0.22, 0.1), (0.65, 0.45, 0.32))
    wall, flare = rng.uniform(0.003, 0.012), rng.uniform(1.0, 1.15)
    if rng.random() < 0.25:
        color, texture = np.ones(3), pick_texture(rng, split, "cardboard").image[:64, :64]
    else:
        color, texture = (random_color(rng, (0.6, 0.95), (0.35, 0.85)) if rng.random() < 0.6 else vivid(rng)), None
    half = np.array([x, y]) / 2
    parts = [slab(x, y, wall, color, texture=texture)]
    for axis, side in ((0, 1), (0, -1), (1, 1), (1, -1)):
        corner = np.zeros((2, 2, 2, 3))  # along the wall, inside or outside, low or high
        along, out, up = np.mgrid[-1:2:2, 0:2, 0:2]
        spread = 1 + (flare - 1) * up
        corner[..., axis] = side * (half[axis] * spread - wall * (1 - out))
        corner[..., 1 - axis] = along * half[1 - axis] * spread
        corner[..., 2] = up * z
        parts.append(bent_box(corner, color, texture))
    if rng.random() < 0.6:
        parts += [
            tube(
                np.array([[s * half[0] * flare, -half[1] * flare, z], [s * half[0] * flare, half[1] * flare, z]]),
                0.008,
                color,
            )
            for s in (-1, 1)
        ]
    return merge(parts)


def compartment(rng: np.random.Generator, split: str) -> Mesh:
    """One compartment of a shelf, open in front (-y): boards below and above, sides and back."""
    w, d, h, t = *rng.uniform((0.35, 0.25, 0.25), (1.0, 0.5, 0.5)), rng.uniform(0.004, 0.025)
    covers = [surface(rng, split) for _ in range(2)]
    parts = []
    for at, size, cover in (
        ((0, 0, 0), (w, d, t), covers[0]),
        ((0, 0, h), (w, d, t), covers[0]),
        ((-w / 2, 0, t), (t, d, h - t), covers[1]),
        ((w / 2, 0, t), (t, d, h - t), covers[1]),
        ((0, d / 2, t), (w, t, h - t), covers[1]),
    ):
        board = slab(*size, np.ones(3), at, cover.image)
        board.uv = planar_uv(board.triangles, board.normals) / np.float32(cover.tile)
        parts.append(board)
    return merge(parts)


# How surfaces shine: how often they do, and then the least and most of what they mirror straight on, and of roughness.
FINISHES: dict[str, tuple[float, tuple[float, float], tuple[float, float]]] = {
    "matt": (0.0, (0.0, 0.0), (1.0, 1.0)),
    "print": (0.4, (0.01, 0.04), (0.2, 0.5)),
    "plastic": (0.8, (0.02, 0.06), (0.08, 0.4)),
    "glaze": (0.9, (0.04, 0.1), (0.03, 0.2)),
    "metal": (0.9, (0.06, 0.3), (0.08, 0.35)),
}


def shine(rng: np.random.Generator, finish: str) -> tuple[float, float]:
    """A thing's shine (see `layout.PlacedObject`) by its finish."""
    share, strength, rough = FINISHES[finish]
    return (rng.uniform(*strength), rng.uniform(*rough)) if rng.random() < share else (0.0, 1.0)


# (how often, ScanNet200 class, maker, finish)
THINGS: tuple[tuple[float, str, Maker, str], ...] = (
    (3.0, "box", carton((0.05, 0.03, 0.08), (0.22, 0.09, 0.32)), "print"),
    (2.0, "box", carton((0.03, 0.02, 0.04), (0.12, 0.06, 0.14)), "print"),
    (1.5, "box", primitives.block("cardboard", (0.08, 0.06, 0.04), (0.38, 0.3, 0.28)), "matt"),
    (0.5, "tissue box", carton((0.11, 0.11, 0.07), (0.24, 0.13, 0.13)), "print"),
    (3.0, "object", can, "metal"),
    (3.5, "bottle", flask, "glaze"),
    (0.6, "bottle", primitives.bottle, "glaze"),
    (2.5, "cup", mug, "glaze"),
    (0.8, "cup", primitives.cup, "glaze"),
    (2.0, "bowl", bowl, "glaze"),
    (0.6, "plate", bowl, "glaze"),
    (0.8, "object", pan, "metal"),
    (1.5, "container", tub, "plastic"),
    (1.2, "object", screwdriver, "plastic"),
    (0.8, "object", hammer, "matt"),
    (1.2, "object", pliers, "metal"),
    (0.8, "object", drill, "plastic"),
    (0.7, "object", cutlery, "metal"),
    (0.7, "object", cable, "plastic"),
    (1.0, "potted plant", plant, "matt"),
    (2.0, "book", book, "print"),
    (0.6, "book", stack_of_books, "print"),
    (1.2, "ball", ball, "print"),
    (1.0, "object", bricks, "plastic"),
    (1.5, "object", cube, "print"),
    (1.0, "object", figure, "plastic"),
    (0.8, "object", car, "plastic"),
    (1.5, "object", fruit, "print"),
    (2.0, "bag", pouch, "print"),
    (0.8, "clothes", cloth, "matt"),
    (1.2, "object", device, "plastic"),
    (0.5, "mouse", mouse, "plastic"),
    (0.4, "laptop", laptop, "plastic"),
    (0.5, "keyboard", primitives.keyboard, "plastic"),
    (0.5, "monitor", primitives.monitor, "plastic"),
    (0.4, "lamp", primitives.lamp((0.25, 0.5)), "matt"),
    (0.5, "decoration", primitives.vase, "glaze"),
    (0.8, "object", ring, "print"),
    (2.0, "object", lump, "plastic"),
)
