"""Solid shapes that things are put together from; surfaces face outwards."""

from dataclasses import replace

import numpy as np

from .meshes import Mesh, box_mesh, face_normals, grid_mesh
from .primitives import lathe


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


def mean_color(mesh: Mesh) -> np.ndarray:
    """Mean sRGB colour [3] of the sides that face up."""
    edges = mesh.triangles[:, 1:] - mesh.triangles[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    weight = np.bincount(mesh.material, area * (mesh.normals[..., 2].mean(axis=1) > 0.5), len(mesh.colors)) + 1e-12
    pictures = np.array([texture.mean(axis=(0, 1)) / 255 for texture in mesh.textures] + [np.ones(3)])
    return weight @ (mesh.colors * pictures[mesh.texture_index]) / weight.sum()


def tinted(mesh: Mesh, color: np.ndarray, share: float) -> Mesh:
    """The mesh with its colours and pictures drawn towards a colour [3] by a share."""
    plain = (mesh.texture_index < 0)[:, None]
    return replace(
        mesh,
        colors=np.where(plain, share * color + (1 - share) * mesh.colors, mesh.colors).astype(np.float32),
        textures=[np.uint8(255 * share * color + (1 - share) * texture) for texture in mesh.textures],
    )


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


def bent_box(corner: np.ndarray, color: np.ndarray, texture=None) -> Mesh:
    """A box of given corners [2, 2, 2, 3], by the three directions that it has inside itself."""
    mesh = slab(1, 1, 1, color, (0.5, 0.5, 0), texture)
    i, j, k = np.rint(mesh.triangles).astype(int).transpose(2, 0, 1)
    triangles = corner[i, j, k]
    if np.linalg.det(corner[[1, 0, 0], [0, 1, 0], [0, 0, 1]] - corner[0, 0, 0]) < 0:
        triangles, mesh.uv = triangles[:, ::-1], mesh.uv[:, ::-1]
    normals = np.repeat(face_normals(triangles)[:, None], 3, axis=1)
    return replace(mesh, triangles=triangles.astype(np.float32), normals=normals)


def grounded(mesh: Mesh) -> Mesh:
    """The mesh lifted or lowered until it stands on z = 0."""
    return moved(mesh, (0, 0, -float(mesh.bounds[0, 2])))
