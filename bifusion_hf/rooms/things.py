"""Small things of a household, made from parameters: what lies on tables, on shelves and in bins.

A maker is as in `primitives`: (generator, split) -> mesh that stands on z = 0. Surfaces face outwards. What has no
class of its own in ScanNet200 is an "object".
"""

from dataclasses import replace

import numpy as np

from . import primitives
from .meshes import Mesh, box_mesh, face_normals, grid_mesh, merge, planar_uv
from .primitives import Maker, lathe
from .prints import label, pattern, photograph, surface, vivid
from .textures import pick_texture, random_color, to_image


_METAL = ((0, 0.12), (0.3, 0.85))


def moved(
    mesh: Mesh, offset: tuple[float, float, float] = (0, 0, 0), turn: np.ndarray | None = None, scale: float = 1.0
) -> Mesh:
    """The mesh scaled, turned by a rotation [3, 3], and shifted."""
    turn = np.eye(3) if turn is None else turn
    return replace(
        mesh,
        triangles=(scale * mesh.triangles @ turn.T + np.asarray(offset)).astype(np.float32),
        normals=(mesh.normals @ turn.T).astype(np.float32),
    )


def turn_about(axis: int, angle: float) -> np.ndarray:
    """Rotation [3, 3] about a coordinate axis."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.eye(3)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    turn[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return turn


def tube(path: np.ndarray, radius: float | np.ndarray, color: np.ndarray, sides: int = 8) -> Mesh:
    """A round bar along a path [n, 3], closed at both ends; the radius may change along it."""
    radius = np.broadcast_to(radius, len(path)).astype(np.float64)
    ends = path[[0, -1]]
    path, radius = np.concatenate([ends[:1], path, ends[1:]]), np.concatenate([[1e-5], radius, [1e-5]])
    along = np.gradient(path[1:-1], axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12)
    along = np.concatenate([along[:1], along, along[-1:]])
    first = np.empty_like(along)
    reference = np.eye(3)[np.abs(along[0]).argmin()]
    for index, direction in enumerate(along):
        reference = reference - (reference @ direction) * direction
        reference /= np.linalg.norm(reference)
        first[index] = reference
    second = np.cross(along, first)
    angle = np.linspace(0, 2 * np.pi, sides + 1)[None, :, None]
    ring = radius[:, None, None] * (np.cos(angle) * first[:, None] + np.sin(angle) * second[:, None])
    positions = path[:, None] + ring
    u, v = np.meshgrid(np.linspace(0, 1, sides + 1), np.linspace(0, 1, len(path)))
    return grid_mesh(positions, np.stack([u, v], -1), color)


def ellipsoid(center, half, color: np.ndarray, texture: np.ndarray | None = None) -> Mesh:
    """An ellipsoid from its middle and its half extents, all along the axes."""
    t = np.linspace(-np.pi / 2, np.pi / 2, 11)
    ball = lathe(np.stack([np.maximum(np.cos(t), 1e-6), np.sin(t)], -1), color, texture, sides=18)
    return replace(ball, triangles=(ball.triangles * np.asarray(half) + np.asarray(center)).astype(np.float32))


def slab(x: float, y: float, z: float, color: np.ndarray, at=(0.0, 0.0, 0.0), texture=None) -> Mesh:
    """A box of a size, the middle of its lower side at a place."""
    half = np.array([x / 2, y / 2, 0])
    return box_mesh(np.asarray(at) - half, np.asarray(at) + half + [0, 0, z], color, texture)


def _bent_box(corner: np.ndarray, color: np.ndarray, texture=None) -> Mesh:
    """A box of given corners [2, 2, 2, 3], by the three directions that it has inside itself."""
    mesh = slab(1, 1, 1, color, (0.5, 0.5, 0), texture)
    i, j, k = np.rint(mesh.triangles).astype(int).transpose(2, 0, 1)
    triangles = corner[i, j, k]
    if np.linalg.det(corner[[1, 0, 0], [0, 1, 0], [0, 0, 1]] - corner[0, 0, 0]) < 0:
        triangles, mesh.uv = triangles[:, ::-1], mesh.uv[:, ::-1]
    normals = np.repeat(face_normals(triangles)[:, None], 3, axis=1)
    return replace(mesh, triangles=triangles.astype(np.float32), normals=normals)


def _grounded(mesh: Mesh) -> Mesh:
    return moved(mesh, (0, 0, -float(mesh.bounds[0, 2])))


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
    lid = random_color(rng, *_METAL) if rng.random() < 0.6 else vivid(rng)
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


def _vessel(outer: np.ndarray, wall: float, color: np.ndarray, texture=None, sides: int = 28, **shape) -> list[Mesh]:
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
    parts = _vessel(outer, 0.004, color, texture)
    return merge([*parts, _handle(rng, radius, 0.2 * height, 0.85 * height, color)])


def bowl(rng: np.random.Generator, split: str) -> Mesh:
    """A bowl, a dish, or a plate."""
    radius, flatness = rng.uniform(0.05, 0.15), rng.uniform(0.08, 0.9)
    t = np.linspace(0.25, 1, 8)
    outer = np.stack([radius * t ** rng.uniform(0.5, 1), radius * flatness * (t - 0.25) ** rng.uniform(1, 2)], -1)
    texture = pattern(rng, 128, 32) if rng.random() < 0.25 else None
    return merge(_vessel(np.concatenate([[[1e-5, 0]], outer]), 0.004, vivid(rng), texture))


def pan(rng: np.random.Generator, split: str) -> Mesh:
    """A pan or a pot with a bar handle."""
    radius, height = rng.uniform(0.07, 0.15), rng.uniform(0.03, 0.14)
    color = random_color(rng, *_METAL) if rng.random() < 0.6 else vivid(rng)
    outer = np.array([[1e-5, 0], [0.9 * radius, 0], [radius, height]])
    path = np.array([[0.97, 0, height - 0.01], [1.6, 0, height], [2.2, 0, height + 0.005]]) * [radius, 1, 1]
    return merge([*_vessel(outer, 0.003, color), tube(path, rng.uniform(0.007, 0.012), vivid(rng))])


def tub(rng: np.random.Generator, split: str) -> Mesh:
    """A rounded container, open or with a lid."""
    radius, height = rng.uniform(0.04, 0.1), rng.uniform(0.03, 0.12)
    outer = np.array([[1e-5, 0], [0.85 * radius, 0], [radius, height]])
    shape = {"squareness": rng.uniform(0.25, 0.8), "aspect": rng.uniform(0.5, 1)}
    texture = label(rng, 160, 64) if rng.random() < 0.5 else None
    parts = _vessel(outer, 0.003, vivid(rng), texture, **shape)
    if rng.random() < 0.6:
        rim = 1.03 * radius
        lid = [[1e-5, height], [rim, height], [rim, height + 0.01], [1e-5, height + 0.01]]
        parts.append(lathe(np.array(lid), vivid(rng), sides=28, **shape))
    return merge(parts)


def screwdriver(rng: np.random.Generator, split: str) -> Mesh:
    """A screwdriver, brush, marker or knife: a thick grip and what it holds, lying down."""
    grip, shaft = rng.uniform(0.08, 0.13), rng.uniform(0.0, 0.18)
    radius, thin = rng.uniform(0.005, 0.018), rng.uniform(0.002, 0.006)
    x = np.array([0, 0.004, 0.5 * grip, grip - 0.004, grip])
    bars = [tube(np.stack([x, 0 * x, 0 * x], -1), radius * np.array([0.7, 1, 0.85, 1, 0.7]), vivid(rng), 10)]
    if shaft > 0.04:
        metal = random_color(rng, *_METAL)
        if rng.random() < 0.5:
            bars.append(tube(np.array([[grip, 0, 0], [grip + shaft, 0, 0]]), thin, metal))
        else:
            bars.append(slab(shaft, rng.uniform(0.01, 0.04), 0.004, metal, (grip + shaft / 2, 0, -0.002)))
    return _grounded(merge(bars))


def hammer(rng: np.random.Generator, split: str) -> Mesh:
    """A hammer or mallet, lying on its side."""
    length, radius = rng.uniform(0.2, 0.34), rng.uniform(0.011, 0.016)
    color = random_color(rng, (0.3, 0.6), (0.4, 0.8), 0.09) if rng.random() < 0.5 else vivid(rng)
    shaft = tube(
        np.array([[0, 0, 0], [0.35 * length, 0, 0], [length, 0, 0]]), radius * np.array([1.15, 1, 0.8]), color
    )
    head = rng.uniform(0.08, 0.12)
    metal = random_color(rng, *_METAL) * 0.7
    block = tube(
        np.array([[length, -head / 2, 0], [length, 0.2 * head, 0], [length, head / 2, 0]]),
        np.array([0.016, 0.013, 0.006]),
        metal,
    )
    return _grounded(merge([shaft, block]))


def pliers(rng: np.random.Generator, split: str) -> Mesh:
    """Pliers or scissors: two crossed bars, perhaps with rings at one end."""
    length, spread, radius = rng.uniform(0.12, 0.2), rng.uniform(0.02, 0.05), rng.uniform(0.004, 0.009)
    color, metal = vivid(rng), random_color(rng, *_METAL)
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
    return _grounded(merge(parts))


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
    return _grounded(moved(merge(parts), scale=size))


def cutlery(rng: np.random.Generator, split: str) -> Mesh:
    """A spoon, a fork or a spatula."""
    length = rng.uniform(0.13, 0.28)
    color = random_color(rng, *_METAL) if rng.random() < 0.6 else vivid(rng)
    x = np.linspace(0, length, 8)
    stem = tube(np.stack([x, 0 * x, 0.008 * np.sin(np.pi * x / length)], -1), rng.uniform(0.002, 0.005), color)
    head = ellipsoid((length, 0, 0), rng.uniform((0.018, 0.012, 0.003), (0.04, 0.03, 0.007)), color)
    return _grounded(merge([stem, head]))


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
    return _grounded(merge(parts))


def plant(rng: np.random.Generator, split: str) -> Mesh:
    """A pot with leaves, broad or like grass."""
    radius, height = rng.uniform(0.04, 0.12), rng.uniform(0.06, 0.16)
    pot = random_color(rng, (0.4, 0.7), (0.4, 0.8), 0.05) if rng.random() < 0.4 else vivid(rng)
    outer = np.array([[1e-5, 0], [0.7 * radius, 0], [radius, height]])
    parts = _vessel(outer, 0.005, pot)
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
    return _grounded(merge(parts))


def book(rng: np.random.Generator, split: str) -> Mesh:
    """A book or magazine: two printed covers, a spine, and pages between; lying."""
    x, y, z = rng.uniform((0.1, 0.14, 0.003), (0.24, 0.31, 0.05))
    cover, board = carton((x, y, z), (x, y, z))(rng, split), 0.0015
    texture = cover.textures[0]
    top = slab(x, y, board, np.ones(3), (0, 0, z - board), texture[:, :96])
    bottom = slab(x, y, board, np.ones(3), (0, 0, 0), texture[:, :96])
    spine = slab(board, y, z, np.median(texture[:, :96], axis=(0, 1)) / 255, (-x / 2, 0, 0))
    pages = slab(x - 0.006, y - 0.006, z - 2 * board, np.full(3, rng.uniform(0.75, 0.95)), (0, 0, board))
    return _grounded(merge([top, bottom, spine, pages]))


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
    return _grounded(merge(parts))


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


def fruit(rng: np.random.Generator, split: str) -> Mesh:
    """Fruit or vegetable: round, longish or curved."""
    hue = rng.choice([0.0, 0.03, 0.08, 0.14, 0.3])
    color = random_color(rng, (0.6, 0.95), (0.5, 0.95), hue)
    if rng.random() < 0.3:
        t, bend, thick = np.linspace(-1, 1, 11), rng.uniform(0.2, 0.8), rng.uniform(0.014, 0.022)
        length = rng.uniform(0.06, 0.1)
        path = np.stack([length * np.sin(t * bend) / bend, length * (1 - np.cos(t * bend)) / bend, 0 * t], -1)
        return _grounded(tube(path, thick * np.sqrt(np.clip(1.05 - t**4, 0.05, 1)), color, 10))
    half = rng.uniform(0.02, 0.05) * rng.uniform(0.8, 1.25, 3)
    t = np.linspace(-np.pi / 2, np.pi / 2, 11)
    radius = np.maximum(np.cos(t), 1e-5) * (1 + rng.uniform(-0.25, 0.25) * np.sin(t))
    texture = to_image(np.clip(color * (1 + 0.15 * rng.normal(size=(12, 16, 1))), 0, 1))
    body = lathe(np.stack([radius, np.sin(t)], -1), np.ones(3), texture, 18)
    return _grounded(replace(body, triangles=(body.triangles * half).astype(np.float32)))


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
    return _grounded(merge(halves))


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
    return _grounded(merge([ellipsoid((0, 0, 0), half, color), base]))


def laptop(rng: np.random.Generator, split: str) -> Mesh:
    """An open laptop."""
    w, d = rng.uniform(0.28, 0.38), rng.uniform(0.2, 0.26)
    color = np.full(3, rng.choice([0.08, 0.3, 0.7, 0.85]))
    screen = primitives.panel("screen", (w, w), (d, d), (0.008, 0.012))(rng, split)
    lid = moved(screen, (0, d / 2, 0.018), turn_about(0, -rng.uniform(0.0, 0.6)))
    keys = slab(0.85 * w, 0.45 * d, 0.002, np.full(3, 0.06), (0, 0.12 * d, 0.018))
    return _grounded(merge([slab(w, d, 0.018, color), keys, lid]))


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
        parts.append(_bent_box(corner, color, texture))
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


# (how often, ScanNet200 class, maker)
THINGS: tuple[tuple[float, str, Maker], ...] = (
    (3.0, "box", carton((0.05, 0.03, 0.08), (0.22, 0.09, 0.32))),
    (2.0, "box", carton((0.03, 0.02, 0.04), (0.12, 0.06, 0.14))),
    (1.5, "box", primitives.block("cardboard", (0.08, 0.06, 0.04), (0.38, 0.3, 0.28))),
    (0.5, "tissue box", carton((0.11, 0.11, 0.07), (0.24, 0.13, 0.13))),
    (3.0, "object", can),
    (3.5, "bottle", flask),
    (0.6, "bottle", primitives.bottle),
    (2.5, "cup", mug),
    (0.8, "cup", primitives.cup),
    (2.0, "bowl", bowl),
    (0.6, "plate", bowl),
    (0.8, "object", pan),
    (1.5, "container", tub),
    (1.2, "object", screwdriver),
    (0.8, "object", hammer),
    (1.2, "object", pliers),
    (0.8, "object", drill),
    (0.7, "object", cutlery),
    (0.7, "object", cable),
    (1.0, "potted plant", plant),
    (2.0, "book", book),
    (0.6, "book", stack_of_books),
    (1.2, "ball", ball),
    (1.0, "object", bricks),
    (1.5, "object", cube),
    (1.0, "object", figure),
    (0.8, "object", car),
    (1.5, "object", fruit),
    (2.0, "bag", pouch),
    (0.8, "clothes", cloth),
    (1.2, "object", device),
    (0.5, "mouse", mouse),
    (0.4, "laptop", laptop),
    (0.5, "keyboard", primitives.keyboard),
    (0.5, "monitor", primitives.monitor),
    (0.4, "lamp", primitives.lamp((0.25, 0.5))),
    (0.5, "decoration", primitives.vase),
    (0.8, "object", ring),
    (2.0, "object", lump),
)
