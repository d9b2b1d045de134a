"""Furniture and clutter made from parameters: what the catalogues lack, and more shapes of what they have.

A maker returns a mesh in mesh coordinates (see `meshes`): ground at z = 0, front towards -y. What makes the class is
either the shape or, for panels, blocks and drapes, what is printed on it: one shape serves several classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .classes import (
    AGAINST_WALL,
    FREE,
    ON_TOP,
    WALL,
)
from .meshes import (
    Mesh,
    box_mesh,
    grid_mesh,
    merge,
)
from .textures import Texture, pick_texture, random_color


Maker = Callable[[np.random.Generator, str], Mesh]


@dataclass(frozen=True)
class Primitive:
    """A class of parametric objects.

    Args:
        class_name: ScanNet200 name.
        placement: One of the placements of `classes`.
        make: (generator, split) -> mesh.
        elevation: Range of the height of the lower edge above the floor, for what hangs on a wall.
    """

    class_name: str
    placement: str
    make: Maker
    elevation: tuple[float, float] = (0.0, 0.0)


def _box(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], color, texture=None) -> Mesh:
    return box_mesh(np.array([x[0], y[0], z[0]]), np.array([x[1], y[1], z[1]]), color, texture)


def lathe(
    profile: np.ndarray, color: np.ndarray, texture: np.ndarray | None = None, sides: int = 20,
    squareness: float = 1.0, aspect: float = 1.0,
) -> Mesh:  # fmt: skip
    """Turns a profile [n, 2] of (radius, height) around the z axis.

    Args:
        profile: From below to above, for a surface that faces outwards.
        color: sRGB [3].
        texture: Goes once around, upright.
        sides: Number of corners.
        squareness: 1 gives circles, towards 0 their outline becomes a square.
        aspect: Extent along y against that along x.
    """
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    radius, height = profile[:, :1], profile[:, 1:]
    x, y = (np.sign(values) * np.abs(values) ** squareness for values in (np.cos(angle), np.sin(angle)))
    positions = np.stack([radius * x, radius * y * aspect, np.broadcast_to(height, (len(profile), sides + 1))], -1)
    u, v = np.meshgrid(np.linspace(0, 1, sides + 1), np.linspace(0, 1, len(profile)))
    return grid_mesh(positions, np.stack([u, v], -1), color, texture)


def _wood(rng: np.random.Generator, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour and texture of furniture: mostly wood, sometimes lacquer."""
    if rng.random() < 0.65:
        return np.ones(3), pick_texture(rng, split, "wood").image
    return random_color(rng, (0, 0.5), (0.1, 0.95)), None


def _panel(
    width: float, height: float, depth: float, frame: float, content: np.ndarray, frame_color: np.ndarray
) -> Mesh:
    """A flat thing on a wall (its back at y = 0): a frame and a printed sheet within it."""
    sheet = _box(
        (-width / 2 + frame, width / 2 - frame), (-0.8 * depth, 0), (frame, height - frame), np.ones(3), content
    )
    return sheet if frame <= 0 else merge([sheet, *frame_meshes(width, height, depth, frame, frame_color)])


def frame_meshes(width: float, height: float, depth: float, frame: float, color: np.ndarray) -> list[Mesh]:
    """The four sides of a frame on a wall, its back at y = 0; `frame` is their breadth."""
    half = width / 2
    return [
        _box((-half, half), (-depth, 0), (0, frame), color),
        _box((-half, half), (-depth, 0), (height - frame, height), color),
        _box((-half, -half + frame), (-depth, 0), (frame, height - frame), color),
        _box((half - frame, half), (-depth, 0), (frame, height - frame), color),
    ]


def panel(kind: str, width: tuple[float, float], height: tuple[float, float], frame: tuple[float, float]) -> Maker:
    """Panels with a texture kind: pictures, posters, whiteboards, windows share this shape."""

    def make(rng: np.random.Generator, split: str) -> Mesh:
        color = random_color(rng, (0, 0.5), (0.1, 0.95))
        content = pick_texture(rng, split, kind).image
        return _panel(
            rng.uniform(*width), rng.uniform(*height), rng.uniform(0.015, 0.05), rng.uniform(*frame), content, color
        )

    return make


def block(kind: str, low: tuple[float, float, float], high: tuple[float, float, float]) -> Maker:
    """Boxes with a texture kind: cardboard boxes, books, crates share this shape."""

    def make(rng: np.random.Generator, split: str) -> Mesh:
        width, depth, height = rng.uniform(low, high)
        return _box(
            (-width / 2, width / 2),
            (-depth / 2, depth / 2),
            (0, height),
            np.ones(3),
            pick_texture(rng, split, kind).image,
        )

    return make


def drape(width: tuple[float, float], height: tuple[float, float]) -> Maker:
    """Hanging cloth with folds: curtains and towels share this shape."""

    def make(rng: np.random.Generator, split: str) -> Mesh:
        w, h = rng.uniform(*width), rng.uniform(*height)
        return hanging_cloth(rng, w, h, pick_texture(rng, split, "fabric"))

    return make


def hanging_cloth(rng: np.random.Generator, width: float, height: float, texture: Texture) -> Mesh:
    """A cloth with folds, its back towards +y."""
    x = np.linspace(-width / 2, width / 2, max(int(width / 0.02), 12))
    z = np.linspace(0, height, 12)
    folds = 0.5 + 0.5 * np.sin(2 * np.pi * x / rng.uniform(0.08, 0.2) + rng.uniform(0, 6))
    depth = 0.015 + rng.uniform(0.02, 0.06) * folds[None] * (1 - 0.3 * z[:, None] / height)
    grid = np.stack([np.broadcast_to(x, depth.shape), -depth, np.broadcast_to(z[:, None], depth.shape)], -1)
    uv = np.stack([grid[..., 0], grid[..., 2]], -1) / texture.tile
    return grid_mesh(grid, uv, np.ones(3), texture.image)


def cushion(rng: np.random.Generator, split: str) -> Mesh:
    """A pillow that lies flat."""
    w, d, h = rng.uniform(0.3, 0.65), rng.uniform(0.3, 0.45), rng.uniform(0.09, 0.16)
    texture = pick_texture(rng, split, "fabric")
    s = np.linspace(-1, 1, 13)
    x, y = np.meshgrid(s, s)
    bulge = np.sqrt(np.clip((1 - x**4) * (1 - y**4), 0, 1))
    halves = []
    for sign in (1, -1):
        z = h / 2 + sign * bulge * h / 2
        grid = np.stack([sign * x * w / 2, y * d / 2, z], -1)
        halves.append(grid_mesh(grid, grid[..., :2] / texture.tile, np.ones(3), texture.image))
    return merge(halves)


def rug(rng: np.random.Generator, split: str) -> Mesh:
    """A carpet of a few millimetres, other furniture may stand on it."""
    w, d = rng.uniform(1.0, 2.4), rng.uniform(0.7, 1.6)
    return _box(
        (-w / 2, w / 2), (-d / 2, d / 2), (0, 0.008), np.ones(3), pick_texture(rng, split, ("fabric", "art")).image
    )


def door(rng: np.random.Generator, split: str) -> Mesh:
    """A closed door in its frame, back at y = 0."""
    width, height, frame = rng.uniform(0.75, 0.95), rng.uniform(1.95, 2.1), 0.06
    color, texture = _wood(rng, split)
    trim = color * rng.uniform(0.5, 1.0)
    half = width / 2
    parts = [
        _box((-half, half), (-0.04, 0), (0, height), color, texture),
        _box((-half - frame, -half), (-0.07, 0), (0, height + frame), trim),
        _box((half, half + frame), (-0.07, 0), (0, height + frame), trim),
        _box((-half, half), (-0.07, 0), (height, height + frame), trim),
        _box((half - 0.15, half - 0.04), (-0.1, -0.08), (0.98, 1.01), np.full(3, 0.6)),
        _box((half - 0.07, half - 0.04), (-0.1, -0.04), (0.98, 1.01), np.full(3, 0.6)),
    ]
    if rng.random() < 0.6:
        inset = 0.12
        for z in ((0.15, 0.85), (1.1, height - 0.15)):
            parts.append(_box((-half + inset, half - inset), (-0.055, -0.04), z, 0.92 * color, texture))
    return merge(parts)


def table(width: tuple[float, float], depth: tuple[float, float], height: tuple[float, float]) -> Maker:
    """A table: a top, four legs or two sides."""

    def make(rng: np.random.Generator, split: str) -> Mesh:
        w, d, h = rng.uniform(*width), rng.uniform(*depth), rng.uniform(*height)
        color, texture = _wood(rng, split)
        legs = color if rng.random() < 0.5 else random_color(rng, (0, 0.3), (0.05, 0.8))
        legs_texture = texture if legs is color else None
        top, thick = rng.uniform(0.02, 0.05), rng.uniform(0.03, 0.08)
        parts = [_box((-w / 2, w / 2), (-d / 2, d / 2), (h - top, h), color, texture)]
        x, y = w / 2 - rng.uniform(0, 0.08), d / 2 - rng.uniform(0, 0.06)
        if rng.random() < 0.25:
            parts += [_box((a, a + thick / 2), (-y, y), (0, h - top), legs, legs_texture) for a in (-x, x - thick / 2)]
        else:
            parts += [
                _box((a, a + thick), (b, b + thick), (0, h - top), legs, legs_texture)
                for a in (-x, x - thick)
                for b in (-y, y - thick)
            ]
        if rng.random() < 0.4:
            parts.append(_box((-x, x), (y - 0.02, y), (0.5 * h, h - top), legs, legs_texture))
        return merge(parts)

    return make


def cabinet(width: tuple[float, float], depth: tuple[float, float], height: tuple[float, float]) -> Maker:
    """A closed body with doors or drawers and their handles."""

    def make(rng: np.random.Generator, split: str) -> Mesh:
        w, d, h = rng.uniform(*width), rng.uniform(*depth), rng.uniform(*height)
        color, texture = _wood(rng, split)
        front, front_texture = (color, texture) if rng.random() < 0.6 else _wood(rng, split)
        handle = np.full(3, rng.uniform(0.1, 0.8))
        plinth, gap = rng.choice([0.0, 0.06]), 0.004
        parts = [_box((-w / 2, w / 2), (-d / 2, d / 2), (plinth, h), color, texture)]
        if plinth:
            parts.append(
                _box((-w / 2 + 0.02, w / 2 - 0.02), (-d / 2 + 0.05, d / 2), (0, plinth), 0.4 * color, texture)
            )
        columns = max(1, round(w / rng.uniform(0.4, 0.6)))
        rows = max(1, round((h - plinth) / rng.choice([0.25, 0.4, 2.0])))
        xs, zs = np.linspace(-w / 2, w / 2, columns + 1), np.linspace(plinth + 0.01, h - 0.02, rows + 1)
        for column in range(columns):
            for row in range(rows):
                x, z = (xs[column] + gap, xs[column + 1] - gap), (zs[row] + gap, zs[row + 1] - gap)
                parts.append(_box(x, (-d / 2 - 0.018, -d / 2), z, front, front_texture))
                middle = (x[0] + x[1]) / 2 if z[1] - z[0] < 0.45 else x[1] - 0.05
                top = z[1] - 0.05 if z[1] - z[0] > 0.2 else (z[0] + z[1]) / 2
                parts.append(
                    _box((middle - 0.04, middle + 0.04), (-d / 2 - 0.045, -d / 2 - 0.018), (top - 0.012, top), handle)
                )
        return merge(parts)

    return make


def shelves(rng: np.random.Generator, split: str) -> Mesh:
    """An open bookcase; the layout fills its boards."""
    w, d, h = rng.uniform(0.5, 1.4), rng.uniform(0.24, 0.4), rng.uniform(0.8, 2.1)
    color, texture = _wood(rng, split)
    board = rng.uniform(0.015, 0.03)
    parts = [_box((x, x + board), (-d / 2, d / 2), (0, h), color, texture) for x in (-w / 2, w / 2 - board)]
    count = max(2, round(h / rng.uniform(0.28, 0.42)))
    for z in np.linspace(0.03, h - board, count + 1):
        parts.append(_box((-w / 2 + board, w / 2 - board), (-d / 2, d / 2), (z, z + board), color, texture))
    if rng.random() < 0.8:
        parts.append(_box((-w / 2, w / 2), (d / 2 - 0.006, d / 2), (0, h), 0.9 * color, texture))
    return merge(parts)


def monitor(rng: np.random.Generator, split: str) -> Mesh:
    """A flat monitor on its foot."""
    w = rng.uniform(0.42, 0.65)
    h, lift = w * rng.uniform(0.56, 0.68), rng.uniform(0.08, 0.16)
    color = np.full(3, rng.choice([0.04, 0.12, 0.6, 0.85]))
    foot = rng.uniform(0.09, 0.13)
    head = _panel(w, h, 0.045, 0.015, pick_texture(rng, split, "screen").image, color)
    head = replace(head, triangles=head.triangles + np.array([0, 0, lift], np.float32))
    return merge(
        [
            head,
            _box((-0.03, 0.03), (0, 0.03), (0.01, lift + 0.1), color),
            _box((-0.14, 0.14), (-foot, foot), (0, 0.012), color),
        ]
    )


def keyboard(rng: np.random.Generator, split: str) -> Mesh:
    """A computer keyboard."""
    w, d = rng.uniform(0.34, 0.46), rng.uniform(0.12, 0.17)
    color = np.full(3, rng.choice([0.06, 0.2, 0.8]))
    rows = [
        _box((-w / 2 + 0.01, w / 2 - 0.01), (y, y + 0.017), (0.018, 0.026), 0.8 * color + 0.05)
        for y in np.arange(-d / 2 + 0.01, d / 2 - 0.02, 0.022)
    ]
    return merge([_box((-w / 2, w / 2), (-d / 2, d / 2), (0, 0.018), color), *rows])


def books(rng: np.random.Generator, split: str) -> Mesh:
    """A row of upright books, one instance as in ScanNet's annotation."""
    parts, x = [], 0.0
    depth = rng.uniform(0.13, 0.2)
    for _ in range(int(rng.integers(4, 16))):
        thick, height = rng.uniform(0.015, 0.05), rng.uniform(0.17, 0.26)
        color = random_color(rng, (0, 0.9), (0.1, 0.95))
        parts.append(_box((x, x + thick), (-depth / 2, depth / 2 - rng.uniform(0, 0.03)), (0, height), color))
        x += thick + rng.choice([0.0, 0.002])
    return merge(parts)


def bin_(rng: np.random.Generator, split: str) -> Mesh:
    """An open waste bin."""
    bottom, height = rng.uniform(0.09, 0.16), rng.uniform(0.26, 0.6)
    top = bottom * rng.uniform(1.0, 1.4)
    profile = np.array([[0, 0], [bottom, 0], [top, height], [top - 0.01, height], [bottom - 0.01, 0.02], [0, 0.02]])
    return lathe(profile, random_color(rng, (0, 0.6), (0.08, 0.85)))


def vase(rng: np.random.Generator, split: str) -> Mesh:
    """A vase of a random profile."""
    height, base = rng.uniform(0.12, 0.4), rng.uniform(0.03, 0.08)
    z = np.linspace(0, height, 10)
    radius = base * (
        1
        + rng.uniform(0, 0.9) * np.sin(np.pi * z / height * rng.uniform(0.6, 1.3))
        + rng.uniform(-0.3, 0.3) * z / height
    )
    return lathe(np.concatenate([[[0, 0]], np.stack([radius, z], -1)]), random_color(rng, (0.05, 0.8), (0.15, 0.95)))


def bottle(rng: np.random.Generator, split: str) -> Mesh:
    """A bottle."""
    radius, height = rng.uniform(0.03, 0.05), rng.uniform(0.18, 0.34)
    neck = radius * rng.uniform(0.3, 0.5)
    profile = [[0, 0], [radius, 0], [radius, 0.6 * height], [neck, 0.78 * height], [neck, height], [0, height]]
    return lathe(np.array(profile), random_color(rng, (0.1, 0.8), (0.1, 0.9)))


def cup(rng: np.random.Generator, split: str) -> Mesh:
    """A cup without a handle, or a bowl-like mug."""
    radius, height = rng.uniform(0.035, 0.05), rng.uniform(0.08, 0.13)
    profile = [[0, 0], [0.8 * radius, 0], [radius, height], [0.9 * radius, height], [0.7 * radius, 0.01], [0, 0.01]]
    return lathe(np.array(profile), random_color(rng, (0, 0.8), (0.2, 0.95)))


def bowl(rng: np.random.Generator, split: str) -> Mesh:
    """A bowl."""
    radius, height = rng.uniform(0.08, 0.17), rng.uniform(0.05, 0.11)
    t = np.linspace(0, 1, 7)
    outer = np.stack([radius * np.sqrt(t), height * t**1.5], -1)
    inner = np.stack([0.93 * radius * np.sqrt(t), 0.008 + (height - 0.008) * t**1.5], -1)[::-1]
    return lathe(np.concatenate([outer, inner]), random_color(rng, (0, 0.7), (0.3, 0.95)))


def lamp(height: tuple[float, float]) -> Maker:
    """A lamp: foot, pole, shade."""

    def make(rng: np.random.Generator, split: str) -> Mesh:
        h = rng.uniform(*height)
        shade, foot = rng.uniform(0.1, 0.22), rng.uniform(0.08, 0.14)
        metal = np.full(3, rng.uniform(0.05, 0.7))
        pole = [[0, 0], [foot, 0], [foot, 0.015], [0.012, 0.025], [0.012, 0.8 * h], [0, 0.8 * h]]
        top = [[shade, 0.72 * h], [shade * rng.uniform(0.4, 1.0), h]]
        return merge([lathe(np.array(pole), metal), lathe(np.array(top), random_color(rng, (0, 0.5), (0.7, 1.0)))])

    return make


PRIMITIVES = (
    Primitive("door", AGAINST_WALL, door),
    Primitive("cabinet", AGAINST_WALL, cabinet((0.6, 1.6), (0.35, 0.55), (0.7, 1.3))),
    Primitive("wardrobe", AGAINST_WALL, cabinet((0.8, 2.0), (0.5, 0.65), (1.8, 2.2))),
    Primitive("nightstand", AGAINST_WALL, cabinet((0.35, 0.55), (0.35, 0.5), (0.4, 0.6))),
    Primitive("dresser", AGAINST_WALL, cabinet((0.8, 1.4), (0.4, 0.55), (0.7, 1.0))),
    Primitive("file cabinet", AGAINST_WALL, cabinet((0.38, 0.5), (0.5, 0.6), (0.6, 1.3))),
    Primitive("tv stand", AGAINST_WALL, cabinet((1.0, 1.8), (0.35, 0.5), (0.35, 0.6))),
    Primitive("bookshelf", AGAINST_WALL, shelves),
    Primitive("desk", AGAINST_WALL, table((1.0, 1.7), (0.55, 0.8), (0.7, 0.76))),
    Primitive("table", FREE, table((0.8, 1.8), (0.7, 1.0), (0.7, 0.77))),
    Primitive("coffee table", FREE, table((0.7, 1.3), (0.45, 0.7), (0.35, 0.5))),
    Primitive("end table", FREE, table((0.35, 0.55), (0.35, 0.55), (0.45, 0.6))),
    Primitive("trash can", FREE, bin_),
    Primitive("lamp", FREE, lamp((1.3, 1.8))),
    Primitive("mat", FREE, rug),
    Primitive("box", FREE, block("cardboard", (0.3, 0.25, 0.2), (0.6, 0.45, 0.5))),
    Primitive("box", ON_TOP, block("cardboard", (0.15, 0.12, 0.08), (0.38, 0.3, 0.28))),
    Primitive("book", ON_TOP, block("cover", (0.14, 0.2, 0.02), (0.22, 0.3, 0.06))),
    Primitive("book", ON_TOP, books),
    Primitive("pillow", ON_TOP, cushion),
    Primitive("monitor", ON_TOP, monitor),
    Primitive("keyboard", ON_TOP, keyboard),
    Primitive("decoration", ON_TOP, vase),
    Primitive("bottle", ON_TOP, bottle),
    Primitive("cup", ON_TOP, cup),
    Primitive("bowl", ON_TOP, bowl),
    Primitive("lamp", ON_TOP, lamp((0.3, 0.55))),
    Primitive("picture", WALL, panel("art", (0.3, 1.1), (0.3, 0.8), (0.015, 0.05)), (1.2, 1.5)),
    Primitive("poster", WALL, panel("poster", (0.35, 0.7), (0.45, 0.9), (0.0, 0.0)), (1.1, 1.4)),
    Primitive("whiteboard", WALL, panel("scribbles", (0.9, 1.8), (0.7, 1.1), (0.02, 0.03)), (0.8, 1.1)),
    Primitive("window", WALL, panel("outdoors", (0.7, 1.6), (0.8, 1.3), (0.04, 0.07)), (0.8, 1.0)),
    Primitive("curtain", WALL, drape((0.4, 1.0), (1.6, 2.1)), (0.1, 0.3)),
    Primitive("towel", WALL, drape((0.3, 0.6), (0.5, 0.9)), (0.7, 1.1)),
)  # fmt: skip
