"""Triangle meshes with materials: OBJ/MTL reader, boxes, and the npz cache of parsed models.

Mesh coordinates: metres, z up, the origin at the middle of the footprint on the ground, the front towards -y.
"""

import hashlib
import io
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..io.atomic import new_file
from .catalog import FurnitureLibrary, FurnitureModel, rotation_matrix


MAX_TRIANGLES = 60_000
MAX_TEXTURE = 256
# Bump it when the content of cached meshes changes.
CACHE_VERSION = 2
# Materials more transparent than this are left out: a structured-light sensor measures through them.
_MIN_OPACITY = 0.45
# OBJ has x right, y up, z to the viewer; ours x right, y away from the viewer, z up.
_OBJ_TO_ROOM = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])


@dataclass(eq=False)
class Mesh:
    """Triangles with one material each.

    Treat it as immutable: its bounds are computed once, and meshes of the catalogue are shared between rooms.

    Args:
        triangles: float32 [F, 3, 3] corner positions.
        normals: float32 [F, 3, 3] unit normals of the corners.
        uv: float32 [F, 3, 2] texture coordinates; v grows upwards, 1 = one repetition.
        material: int32 [F] index into `colors`.
        colors: float32 [M, 3] sRGB in [0, 1], multiplied with the texture.
        texture_index: int32 [M] index into `textures`, -1 = plain colour.
        textures: uint8 [h, w, 3] images.
    """

    triangles: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    material: np.ndarray
    colors: np.ndarray
    texture_index: np.ndarray
    textures: list[np.ndarray]

    @cached_property
    def bounds(self) -> np.ndarray:
        """float32 [2, 3]: smallest and largest corner."""
        corners = self.triangles.reshape(-1, 3)
        return np.stack([corners.min(axis=0), corners.max(axis=0)])

    @cached_property
    def size(self) -> np.ndarray:
        """float32 [3]: width, depth, height in metres."""
        low, high = self.bounds
        return high - low

    def save(self, path: Path) -> None:
        """Writes one npz."""
        textures = {f"image_{index}": texture for index, texture in enumerate(self.textures)}
        # The halves keep the cache small; half a millimetre at 1 m is finer than any sensor.
        np.savez_compressed(
            path,
            triangles=self.triangles,
            normals=self.normals.astype(np.float16),
            uv=self.uv,
            material=self.material,
            colors=self.colors,
            texture_index=self.texture_index,
            **textures,
        )

    @classmethod
    def load(cls, path: Path) -> "Mesh":
        """Reads an npz of `save`."""
        with np.load(path) as data:
            count = sum(key.startswith("image_") for key in data)
            textures = [data[f"image_{index}"] for index in range(count)]
            return cls(
                triangles=data["triangles"],
                normals=data["normals"].astype(np.float32),
                uv=data["uv"],
                material=data["material"],
                colors=data["colors"],
                texture_index=data["texture_index"],
                textures=textures,
            )


def face_normals(triangles: np.ndarray) -> np.ndarray:
    """Unit normals [F, 3] of triangles [F, 3, 3]; a degenerate triangle gets +z."""
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(length > 1e-12, normals / np.maximum(length, 1e-12), [0.0, 0.0, 1.0]).astype(np.float32)


def planar_uv(triangles: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Texture coordinates in metres, [F, 3, 2], of triangles projected along the axis that they face most.

    Args:
        triangles: [F, 3, 3].
        normals: [F, 3, 3], of the corners.
    """
    axis = np.abs(normals.mean(axis=1)).argmax(axis=1)
    axes = np.array([[1, 2], [0, 2], [0, 1]])[axis]
    return np.take_along_axis(triangles, axes[:, None], axis=2)


def merge(meshes: list[Mesh]) -> Mesh:
    """One mesh of several; materials and textures are kept apart."""
    materials = np.cumsum([0] + [len(mesh.colors) for mesh in meshes])
    textures = np.cumsum([0] + [len(mesh.textures) for mesh in meshes])
    return Mesh(
        triangles=np.concatenate([mesh.triangles for mesh in meshes]),
        normals=np.concatenate([mesh.normals for mesh in meshes]),
        uv=np.concatenate([mesh.uv for mesh in meshes]),
        material=np.concatenate([mesh.material + offset for mesh, offset in zip(meshes, materials, strict=False)]),
        colors=np.concatenate([mesh.colors for mesh in meshes]),
        texture_index=np.concatenate(
            [
                np.where(mesh.texture_index < 0, -1, mesh.texture_index + offset)
                for mesh, offset in zip(meshes, textures, strict=False)
            ]
        ),
        textures=[texture for mesh in meshes for texture in mesh.textures],
    )


def grid_mesh(positions: np.ndarray, uv: np.ndarray, color: np.ndarray, texture: np.ndarray | None = None) -> Mesh:
    """A surface from a grid of vertices, or several surfaces of one material.

    Args:
        positions: [..., h, w, 3].
        uv: [..., h, w, 2].
        color: [3] sRGB in [0, 1].
        texture: uint8 [th, tw, 3] or None.
    """

    def corners(values: np.ndarray) -> np.ndarray:
        before, after = values[..., :-1, :, :], values[..., 1:, :, :]
        a, b, c, d = before[..., :-1, :], before[..., 1:, :], after[..., 1:, :], after[..., :-1, :]
        faces = np.stack([np.stack([a, b, c], -2), np.stack([a, c, d], -2)], -5)
        return faces.reshape(-1, 3, values.shape[-1]).astype(np.float32)

    along, across = np.gradient(positions, axis=-2), np.gradient(positions, axis=-3)
    normals = np.cross(along, across)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    triangles = corners(positions)
    return Mesh(
        triangles=triangles,
        normals=corners(normals),
        uv=corners(uv),
        material=np.zeros(len(triangles), np.int32),
        colors=np.asarray(color, np.float32).reshape(1, 3),
        texture_index=np.array([-1 if texture is None else 0], np.int32),
        textures=[] if texture is None else [texture],
    )


def box_mesh(low: np.ndarray, high: np.ndarray, color: np.ndarray, texture: np.ndarray | None = None) -> Mesh:
    """An axis-aligned box; the texture covers each side once, with u to the right for a viewer in front of it."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    sides = [
        [(x0, y0), (x1, y0)],
        [(x1, y0), (x1, y1)],
        [(x1, y1), (x0, y1)],
        [(x0, y1), (x0, y0)],
    ]
    quads = [[[(*a, z0), (*b, z0)], [(*a, z1), (*b, z1)]] for a, b in sides]
    quads += [[[(x0, y, z), (x1, y, z)], [(x0, v, z), (x1, v, z)]] for z, y, v in ((z1, y0, y1), (z0, y1, y0))]
    uv = np.array([[(0, 0), (1, 0)], [(0, 1), (1, 1)]], dtype=np.float32)
    return grid_mesh(np.array(quads), np.broadcast_to(uv, (len(quads), *uv.shape)), color, texture)


def read_model(library: FurnitureLibrary, model: FurnitureModel) -> Mesh | None:
    """Reads a catalogue's OBJ file and fits it to the catalogue's size.

    Returns:
        The mesh, or None where it has no opaque triangles or more than `MAX_TRIANGLES`.

    Raises:
        ValueError: The library does not hold the file.
    """
    content = library.read(model.path)
    if content is None:
        raise ValueError(f"library {library.name} has no {model.path}")
    mesh = _parse_obj(content.decode("latin-1"), PurePosixPath(model.path).parent, library)
    if mesh is None:
        return None
    rotation = _OBJ_TO_ROOM @ rotation_matrix(model)
    triangles = mesh.triangles.astype(np.float64) @ rotation.T
    low, high = triangles.reshape(-1, 3).min(axis=0), triangles.reshape(-1, 3).max(axis=0)
    scale = np.array(model.size) / np.maximum(high - low, 1e-9)
    origin = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    fitted = ((triangles - origin) * scale).astype(np.float32)
    normals = (mesh.normals.astype(np.float64) @ rotation.T) / scale
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    flat = face_normals(fitted)[:, None]
    normals = np.where(length > 1e-9, normals / np.maximum(length, 1e-9), flat).astype(np.float32)
    return replace(mesh, triangles=fitted, normals=normals)


def _parse_obj(text: str, folder: PurePosixPath, library: FurnitureLibrary) -> Mesh | None:
    vertices, normals, uv = [], [], []
    faces: list[tuple[int, int, int, int]] = []  # vertex, uv, normal of a corner, material of its face
    names: dict[str, int] = {}
    materials: dict[str, dict[str, str]] = {}
    current = names.setdefault("", 0)
    for line in text.splitlines():
        key, _, rest = line.strip().partition(" ")
        if key == "v":
            vertices.append(rest.split()[:3])
        elif key == "vn":
            normals.append(rest.split()[:3])
        elif key == "vt":
            uv.append(rest.split()[:2])
        elif key == "f":
            corners = [_corner(token, len(vertices), len(uv), len(normals)) for token in rest.split()]
            for index in range(1, len(corners) - 1):
                faces += [(*corners[i], current) for i in (0, index, index + 1)]
        elif key == "usemtl":
            current = names.setdefault(rest.strip(), len(names))
        elif key == "mtllib":
            materials |= _parse_mtl(library.read(str(folder / rest.strip())) or b"")
    if not faces:
        return None
    corner = np.array(faces, dtype=np.int64).reshape(-1, 3, 4)
    opacity = np.array([float(materials.get(name, {}).get("d", 1)) for name in names])
    opaque = opacity[corner[:, 0, 3]] >= _MIN_OPACITY
    corner = corner[opaque]
    if not 4 <= len(corner) <= MAX_TRIANGLES:
        return None
    triangles = np.array(vertices, dtype=np.float32)[corner[..., 0]]
    flat = np.repeat(face_normals(triangles)[:, None], 3, axis=1)
    textures, texture_index = _read_textures(names, materials, folder, library)
    return Mesh(
        triangles=triangles,
        normals=_gather(normals, corner[..., 2], flat),
        uv=_gather(uv, corner[..., 1], np.zeros((*corner.shape[:2], 2), np.float32)),
        material=corner[:, 0, 3].astype(np.int32),
        colors=np.array([_diffuse(materials.get(name, {})) for name in names], dtype=np.float32),
        texture_index=texture_index,
        textures=textures,
    )


def _corner(token: str, vertices: int, uvs: int, normals: int) -> tuple[int, int, int]:
    """Zero-based (vertex, uv, normal) of `v/vt/vn`, -1 where absent; negative numbers count from the end."""
    parts = (token.split("/") + ["", ""])[:3]
    counts = (vertices, uvs, normals)
    index = [
        -1 if not part else int(part) - 1 if int(part) > 0 else n + int(part)
        for part, n in zip(parts, counts, strict=True)
    ]
    return tuple(index)


def _gather(values: list, index: np.ndarray, missing: np.ndarray) -> np.ndarray:
    if not values:
        return missing
    found = np.array(values, dtype=np.float32)[np.clip(index, 0, len(values) - 1)]
    return np.where((index >= 0)[..., None], found, missing)


def _parse_mtl(content: bytes) -> dict[str, dict[str, str]]:
    materials: dict[str, dict[str, str]] = {}
    for line in content.decode("latin-1").splitlines():
        key, _, rest = line.strip().partition(" ")
        if key == "newmtl":
            current = materials.setdefault(rest.strip(), {})
        elif rest and materials:
            current[key] = rest.strip()
    return materials


def _diffuse(material: dict[str, str]) -> list[float]:
    # A texture replaces the diffuse colour in most viewers, and many of these files leave it black there.
    if "map_Kd" in material:
        return [1.0, 1.0, 1.0]
    return [min(max(float(value), 0.02), 1.0) for value in material.get("Kd", "0.7 0.7 0.7").split()[:3]]


def _read_textures(
    names: dict[str, int], materials: dict[str, dict[str, str]], folder: PurePosixPath, library: FurnitureLibrary
) -> tuple[list[np.ndarray], np.ndarray]:
    textures: list[np.ndarray] = []
    index = np.full(len(names), -1, np.int32)
    seen: dict[str, int] = {}
    for name, material in names.items():
        file = materials.get(name, {}).get("map_Kd", "")
        # Options such as "-o 0 0" come before the file name.
        file = re.sub(r"^(-\w+\s+(-?[\d.]+\s+)*)+", "", file)
        if not file:
            continue
        if file not in seen:
            content = library.read(str(folder / file))
            if content is None:
                continue
            image = Image.open(io.BytesIO(content)).convert("RGB")
            image.thumbnail((MAX_TEXTURE, MAX_TEXTURE))
            seen[file] = len(textures)
            textures.append(np.asarray(image))
        index[material] = seen[file]
    return textures, index


def load_model(library: FurnitureLibrary, model: FurnitureModel, cache: Path) -> Mesh | None:
    """`read_model` through a folder of npz files; a model without a usable mesh leaves an empty file there."""
    digest = hashlib.sha256(f"{CACHE_VERSION}/{model}".encode()).hexdigest()[:12]
    path = cache / f"{PurePosixPath(model.path).stem}-{digest}.npz"
    if not path.exists():
        mesh = read_model(library, model)
        with new_file(path) as partial:
            if mesh is None:
                partial.write_bytes(b"")
            else:
                mesh.save(partial)
    return Mesh.load(path) if path.stat().st_size else None
