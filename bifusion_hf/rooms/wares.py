"""Packages, vessels, books, plants, food and soft things, made from parameters; makers as in `primitives`."""

from dataclasses import replace

import numpy as np

from .meshes import Mesh, grid_mesh, merge
from .primitives import Maker, lathe
from .prints import label, pattern, vivid
from .solids import grounded, moved, slab, tube, turn_about
from .textures import pick_texture, random_color, to_image


METAL = ((0, 0.12), (0.3, 0.85))


def carton(low: tuple[float, float, float], high: tuple[float, float, float]) -> Maker:
    """A printed package: front and back alike, the other sides of one kind with it."""

    def make(rng: np.random.Generator, split: str) -> Mesh:
        front, side = label(rng, 96, 128), label(rng, 48, 128)
        if rng.random() < 0.7:
            # Sides of most packages have the colours of the front.
            side = np.ascontiguousarray(front[::-1, ::2]) if rng.random() < 0.5 else front[:, 20:68]
        lid = to_image(np.broadcast_to(np.median(front, axis=(0, 1)) / 255, (128, 48, 3)))
        x, y, z = rng.uniform(low, high)
        mesh = slab(x, y, z, np.ones(3), texture=np.concatenate([front, side, lid], axis=1))
        # Sides front, right, back, left, top, bottom, two triangles each; the sheet holds three pictures side by side.
        columns = np.repeat([(0, 96), (96, 48), (0, 96), (96, 48), (144, 48), (144, 48)], 2, axis=0) / 192
        uv = 0.02 + 0.96 * mesh.uv
        mesh.uv = np.stack([columns[:, :1] + columns[:, 1:] * uv[..., 0], uv[..., 1]], -1).astype(np.float32)
        return mesh

    return make


def can(rng: np.random.Generator, split: str) -> Mesh:
    """A drink or food can, a jar, a roll: a printed wall between two lids."""
    radius = rng.uniform(0.025, 0.055)
    height, rim = rng.uniform(0.04, 0.16), rng.uniform(0.0, 0.006)
    lid = random_color(rng, *METAL) if rng.random() < 0.6 else vivid(rng)
    wall = lathe(np.array([[radius, rim], [radius, height - rim]]), np.ones(3), label(rng, 160, 80), 28)
    neck = radius * rng.uniform(0.85, 1.0)
    ends = [
        lathe(np.array([[1e-5, 0], [neck, 0], [radius, rim]]), lid, sides=28),
        lathe(np.array([[radius, height - rim], [neck, height], [1e-5, height]]), lid, sides=28),
    ]
    return merge([wall, *ends])


def flask(rng: np.random.Generator, split: str) -> Mesh:
    """A bottle, jug, tube or jar with a cap: round or flat, with a printed band, perhaps with a spray head."""
    radius, height = rng.uniform(0.02, 0.05), rng.uniform(0.09, 0.3)
    shoulder, neck = rng.uniform(0.45, 0.85), radius * rng.uniform(0.25, 0.8)
    aspect, square = (rng.uniform(0.45, 0.9), rng.uniform(0.4, 1)) if rng.random() < 0.5 else (1.0, 1.0)
    body, low, high = vivid(rng), rng.uniform(0.08, 0.2), rng.uniform(0.75, 0.95)
    waist = rng.uniform(0.75, 1.05)
    z = np.array([0, 0.0, low * shoulder, high * shoulder, shoulder, 0.5 * (shoulder + 0.9), 0.9, 0.9])
    r = np.array([1e-5, 0.95, waist, waist, 1.0, 0.6, neck / radius, 1e-5])
    profile = np.stack([r * radius, z * height], -1)
    shape = {"sides": 28, "squareness": square, "aspect": aspect}
    parts = [
        lathe(profile[:3], body, **shape),
        lathe(profile[2:4], np.ones(3), label(rng, 160, 96), **shape),
        lathe(profile[3:], body, **shape),
    ]
    cap = vivid(rng)
    cap_radius = neck * rng.uniform(1.0, 1.3)
    parts.append(
        lathe(np.array([[1e-5, 0.88], [cap_radius / height, 0.88], [cap_radius / height, 1], [1e-5, 1]]) * height, cap)
    )
    if rng.random() < 0.2:
        parts.append(slab(0.07, 0.025, 0.03, cap, (0.015, 0, height)))
        parts.append(tube(np.array([[0.03, 0, height], [0.035, 0, height - 0.04]]), 0.005, cap))
    return merge(parts)


def _handle(rng: np.random.Generator, radius: float, low: float, high: float, color: np.ndarray) -> Mesh:
    reach, middle = rng.uniform(0.02, 0.04), (low + high) / 2
    t = np.linspace(-1.9, 1.9, 11)
    path = np.stack(
        [radius - 0.004 + reach * np.cos(t / 1.25), 0 * t, middle + (high - low) / 2 * np.sin(t / 1.25)], -1
    )
    return tube(path, rng.uniform(0.004, 0.008), color)


def vessel(outer: np.ndarray, wall: float, color: np.ndarray, texture=None, sides: int = 28, **shape) -> list[Mesh]:
    """An open vessel: its outside, printed or plain, and its inside."""
    inner = np.stack([np.maximum(outer[:, 0] - wall, 1e-5), np.maximum(outer[:, 1], outer[0, 1] + wall)], -1)[::-1]
    inside = 0.3 * color + 0.65 if texture is not None else color
    outside = lathe(outer, np.ones(3) if texture is not None else color, texture, sides, **shape)
    return [outside, lathe(np.concatenate([outer[-1:], inner]), inside, sides=sides, **shape)]


def mug(rng: np.random.Generator, split: str) -> Mesh:
    """A mug with a handle."""
    radius, height = rng.uniform(0.035, 0.05), rng.uniform(0.075, 0.12)
    color = vivid(rng)
    foot = rng.uniform(0.7, 1.0)
    outer = np.array([[1e-5, 0], [foot * radius, 0], [0.5 * (1 + foot) * radius, 0.3 * height], [radius, height]])
    texture = pattern(rng) if rng.random() < 0.35 else None
    parts = vessel(outer, 0.004, color, texture)
    return merge([*parts, _handle(rng, radius, 0.2 * height, 0.85 * height, color)])


def bowl(rng: np.random.Generator, split: str) -> Mesh:
    """A bowl, a dish, or a plate."""
    radius, flatness = rng.uniform(0.05, 0.15), rng.uniform(0.08, 0.9)
    t = np.linspace(0.25, 1, 8)
    outer = np.stack([radius * t ** rng.uniform(0.5, 1), radius * flatness * (t - 0.25) ** rng.uniform(1, 2)], -1)
    texture = pattern(rng, 128, 32) if rng.random() < 0.25 else None
    return merge(vessel(np.concatenate([[[1e-5, 0]], outer]), 0.004, vivid(rng), texture))


def pan(rng: np.random.Generator, split: str) -> Mesh:
    """A pan or a pot with a bar handle."""
    radius, height = rng.uniform(0.07, 0.15), rng.uniform(0.03, 0.14)
    color = random_color(rng, *METAL) if rng.random() < 0.6 else vivid(rng)
    outer = np.array([[1e-5, 0], [0.9 * radius, 0], [radius, height]])
    path = np.array([[0.97, 0, height - 0.01], [1.6, 0, height], [2.2, 0, height + 0.005]]) * [radius, 1, 1]
    return merge([*vessel(outer, 0.003, color), tube(path, rng.uniform(0.007, 0.012), vivid(rng))])


def tub(rng: np.random.Generator, split: str) -> Mesh:
    """A rounded container, open or with a lid."""
    radius, height = rng.uniform(0.04, 0.1), rng.uniform(0.03, 0.12)
    outer = np.array([[1e-5, 0], [0.85 * radius, 0], [radius, height]])
    shape = {"squareness": rng.uniform(0.25, 0.8), "aspect": rng.uniform(0.5, 1)}
    texture = label(rng, 160, 64) if rng.random() < 0.5 else None
    parts = vessel(outer, 0.003, vivid(rng), texture, **shape)
    if rng.random() < 0.6:
        rim = 1.03 * radius
        lid = [[1e-5, height], [rim, height], [rim, height + 0.01], [1e-5, height + 0.01]]
        parts.append(lathe(np.array(lid), vivid(rng), sides=28, **shape))
    return merge(parts)


def plant(rng: np.random.Generator, split: str) -> Mesh:
    """A pot with leaves, broad or like grass."""
    radius, height = rng.uniform(0.04, 0.12), rng.uniform(0.06, 0.16)
    pot = random_color(rng, (0.4, 0.7), (0.4, 0.8), 0.05) if rng.random() < 0.4 else vivid(rng)
    outer = np.array([[1e-5, 0], [0.7 * radius, 0], [radius, height]])
    parts = vessel(outer, 0.005, pot)
    parts.append(
        lathe(np.array([[1e-5, 0.8 * height], [0.93 * radius, 0.8 * height]])[::-1], np.array([0.2, 0.13, 0.08]))
    )
    green = random_color(rng, (0.4, 0.9), (0.2, 0.7), rng.uniform(0.2, 0.38))
    reach, width = rng.uniform(1.2, 3.5) * radius, rng.uniform(0.06, 0.5)
    for _ in range(rng.integers(8, 30)):
        t = np.linspace(0, 1, 7)
        up = rng.uniform(0.3, 1.0)
        curve = np.stack(
            [reach * (1 - 0.5 * up) * t, 0 * t, 0.8 * height + reach * (up * 1.6 * t - (1.2 - up) * t**2)], -1
        )
        half = width * reach * np.maximum(np.sin(np.pi * t**0.8), 0.03) * rng.uniform(0.2, 0.4)
        side = np.stack([0 * t, half, 0.2 * half], -1)
        sheet = grid_mesh(
            np.stack([curve - side, curve, curve + side * [1, 1, -1]]),
            np.zeros((3, 7, 2)),
            green * rng.uniform(0.7, 1.2),
        )
        parts.append(moved(sheet, turn=turn_about(2, rng.uniform(0, 2 * np.pi))))
    return grounded(merge(parts))


def book(rng: np.random.Generator, split: str) -> Mesh:
    """A book or magazine: two printed covers, a spine, and pages between; lying."""
    x, y, z = rng.uniform((0.1, 0.14, 0.003), (0.24, 0.31, 0.05))
    cover, board = carton((x, y, z), (x, y, z))(rng, split), 0.0015
    texture = cover.textures[0]
    top = slab(x, y, board, np.ones(3), (0, 0, z - board), texture[:, :96])
    bottom = slab(x, y, board, np.ones(3), (0, 0, 0), texture[:, :96])
    spine = slab(board, y, z, np.median(texture[:, :96], axis=(0, 1)) / 255, (-x / 2, 0, 0))
    pages = slab(x - 0.006, y - 0.006, z - 2 * board, np.full(3, rng.uniform(0.75, 0.95)), (0, 0, board))
    return grounded(merge([top, bottom, spine, pages]))


def stack_of_books(rng: np.random.Generator, split: str) -> Mesh:
    """Upright books side by side, of printed covers."""
    parts, x = [], 0.0
    for _ in range(rng.integers(2, 8)):
        thick, depth, height = rng.uniform((0.01, 0.11, 0.16), (0.05, 0.19, 0.27))
        parts.append(
            moved(carton((thick, depth, height), (thick, depth, height))(rng, split), (x + thick / 2, -depth / 2, 0))
        )
        x += thick
    return merge(parts)


def fruit(rng: np.random.Generator, split: str) -> Mesh:
    """Fruit or vegetable: round, longish or curved."""
    hue = rng.choice([0.0, 0.03, 0.08, 0.14, 0.3])
    color = random_color(rng, (0.6, 0.95), (0.5, 0.95), hue)
    if rng.random() < 0.3:
        t, bend, thick = np.linspace(-1, 1, 11), rng.uniform(0.2, 0.8), rng.uniform(0.014, 0.022)
        length = rng.uniform(0.06, 0.1)
        path = np.stack([length * np.sin(t * bend) / bend, length * (1 - np.cos(t * bend)) / bend, 0 * t], -1)
        return grounded(tube(path, thick * np.sqrt(np.clip(1.05 - t**4, 0.05, 1)), color, 10))
    half = rng.uniform(0.02, 0.05) * rng.uniform(0.8, 1.25, 3)
    t = np.linspace(-np.pi / 2, np.pi / 2, 11)
    radius = np.maximum(np.cos(t), 1e-5) * (1 + rng.uniform(-0.25, 0.25) * np.sin(t))
    texture = to_image(np.clip(color * (1 + 0.15 * rng.normal(size=(12, 16, 1))), 0, 1))
    body = lathe(np.stack([radius, np.sin(t)], -1), np.ones(3), texture, 18)
    return grounded(replace(body, triangles=(body.triangles * half).astype(np.float32)))


def pouch(rng: np.random.Generator, split: str) -> Mesh:
    """A soft printed bag, lying: crisps, sweets, a wrapped cloth; seams at its ends."""
    w, d, h = rng.uniform((0.06, 0.08, 0.02), (0.2, 0.28, 0.08))
    sheet = label(rng) if rng.random() < 0.75 else pick_texture(rng, split, "fabric").image[:128, :128]
    s = np.linspace(-1, 1, 15)
    x, y = np.meshgrid(s, s)
    wrinkle = 1 + 0.15 * np.sin(rng.uniform(3, 9) * x + rng.uniform(0, 6)) * np.sin(rng.uniform(3, 9) * y)
    bulge = ((1 - x**4) * (1 - y**4)) ** rng.uniform(0.5, 0.9) * wrinkle
    halves = []
    for sign in (1, -1):
        grid = np.stack([sign * x * w / 2, y * d / 2, sign * np.maximum(bulge, 0.02) * h / 2], -1)
        halves.append(grid_mesh(grid, np.stack([x, y], -1) / 2 + 0.5, np.ones(3), sheet))
    return grounded(merge(halves))


def cloth(rng: np.random.Generator, split: str) -> Mesh:
    """A crumpled cloth, garment or paper, lying."""
    size, height = rng.uniform(0.12, 0.35), rng.uniform(0.02, 0.08)
    s = np.linspace(-1, 1, 21)
    x, y = np.meshgrid(s, s)
    field = sum(
        np.sin(rng.uniform(2, 8) * (x * np.cos(a) + y * np.sin(a)) + rng.uniform(0, 6)) for a in rng.uniform(0, 6, 5)
    )
    outline = np.clip(1.3 - np.hypot(x, y) + 0.1 * field, 0, 1)
    z = height * outline * (0.5 + 0.2 * field - 0.2 * field.min()) / 1.2 + 0.004
    texture = pick_texture(rng, split, "fabric")
    color = rng.uniform(0.6, 1, 3)
    shape = np.stack([x * size * (0.7 + 0.3 * outline), y * size * (0.7 + 0.3 * outline)], -1) * rng.uniform(0.5, 1)
    uv = np.stack([x, y], -1) * size / texture.tile
    top = grid_mesh(np.dstack([shape, z]), uv, color, texture.image)
    under = grid_mesh(np.dstack([shape, 0 * z])[:, ::-1], uv[:, ::-1], color, texture.image)
    return merge([top, under])


def ring(rng: np.random.Generator, split: str) -> Mesh:
    """A roll of tape or a ring, lying."""
    outer = rng.uniform(0.03, 0.07)
    inner, height = outer * rng.uniform(0.5, 0.85), rng.uniform(0.008, 0.05)
    profile = np.array([[inner, 0], [outer, 0], [outer, height], [inner, height], [inner, 0]])
    return lathe(profile, vivid(rng), sides=28)


def lump(rng: np.random.Generator, split: str) -> Mesh:
    """Something turned and squashed of no name, so that shapes are not only those above."""
    height = rng.uniform(0.03, 0.25)
    z = np.linspace(0, 1, 9)
    radius = rng.uniform(0.02, 0.08) * np.maximum(
        1 + np.interp(z, np.linspace(0, 1, 4), rng.uniform(-0.6, 0.5, 4)), 0.2
    )
    profile = np.concatenate([[[1e-5, 0]], np.stack([radius, height * z], -1), [[1e-5, height]]])
    texture = (label if rng.random() < 0.4 else pattern)(rng) if rng.random() < 0.6 else None
    color = np.ones(3) if texture is not None else vivid(rng)
    return lathe(profile, color, texture, 28, squareness=rng.uniform(0.3, 1.3), aspect=rng.uniform(0.4, 1))
