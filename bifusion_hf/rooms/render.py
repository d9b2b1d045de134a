"""Ray-cast rendering of a furnished room: colour with light and shadow, z-depth, instances and classes."""

from dataclasses import dataclass

import numpy as np

from ..data.frames import NONE
from ..labels import SCANNET200_CLASS_NAMES
from .camera import Camera
from .layout import Room, rotation
from .lights import Lighting
from .meshes import (
    Mesh,
    box_mesh,
    grid_mesh,
    merge,
)
from .support import make_scene
from .texture_pack import TexturePack
from .textures import Texture, pick_texture
from .vectors import dot, length


_LEVELS = 6
_OFFSET = 2e-3
_MIRROR_FOCAL_LENGTH = 100.0
# Sub-pixel positions of the colour samples.
_SAMPLES = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
_CLASS_INDEX = {name: index for index, name in enumerate(SCANNET200_CLASS_NAMES)}
WALL, FLOOR, CEILING = (_CLASS_INDEX[name] for name in ("wall", "floor", "ceiling"))


@dataclass(eq=False)
class Hits:
    """What rays hit, one row a ray.

    Args:
        depth: float32 [N] ray parameter, inf where nothing was hit.
        triangle: int32 [N], -1 = nothing.
        barycentric: float32 [N, 3].
    """

    depth: np.ndarray
    triangle: np.ndarray
    barycentric: np.ndarray


@dataclass(eq=False)
class RenderedView:
    """A rendered view before the sensor model.

    Args:
        radiance: float32 [H, W, 3] linear RGB.
        depth: float32 [H, W] exact metres along the optical axis, 0 = nothing.
        cosine: float32 [H, W] between the surface normal and the viewing ray.
        albedo: float32 [H, W] brightness of the surface itself.
        instance: int32 [H, W], -1 = wall and floor.
        semantic: int32 [H, W] ScanNet200 index.
    """

    radiance: np.ndarray
    depth: np.ndarray
    cosine: np.ndarray
    albedo: np.ndarray
    instance: np.ndarray
    semantic: np.ndarray


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] to linear ones (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


_LINEAR = to_linear(np.arange(256) / 255)


class RoomScene:
    """The geometry and materials of one furnished room, ready for views.

    Args:
        room: The furnished room.
        rng: For the surfaces of the room and its light.
        split: Whose textures may be used.
        pack: More textures for walls, floor and ceiling.
    """

    def __init__(self, room: Room, rng: np.random.Generator, split: str, pack: TexturePack | None = None):
        shell = _shell(room, rng, split, pack)
        triangles = [mesh.triangles for mesh, _, _ in shell] + [item.triangles() for item in room.objects]
        turned = [mesh.normals for mesh, _, _ in shell]
        turned += [(item.mesh.normals @ rotation(item.yaw).T).astype(np.float32) for item in room.objects]
        merged = merge([mesh for mesh, _, _ in shell] + [item.mesh for item in room.objects])
        self.triangles, self.normals = np.concatenate(triangles), np.concatenate(turned)
        self.uv, self.material = merged.uv, merged.material
        self.colors, self.texture_index = to_linear(np.clip(merged.colors, 0, 1)), merged.texture_index
        counts = [len(part) for part in triangles]
        names = [class_name for _, class_name, _ in shell] + [item.class_name for item in room.objects]
        instances = [instance for _, _, instance in shell] + [1 + index for index in range(len(room.objects))]
        self.semantic = np.repeat([_CLASS_INDEX[name] for name in names], counts).astype(np.int32)
        self.instance = np.repeat(instances, counts).astype(np.int32)
        # By instance, from the stuff (-1) and the ceiling on.
        self.shine = np.array([(0, 1), (0, 1), *(item.shine for item in room.objects)], np.float64)
        self.emission = np.repeat([float(name == "window") for name in names], counts).astype(np.float32)
        self._pack_textures(merged.textures)
        self._measure_texels()
        self.embree = make_scene(self.triangles)
        self.lighting = Lighting(room, rng, self.embree)

    def _pack_textures(self, textures: list[np.ndarray]) -> None:
        """All textures with their coarser levels in one array, so that a frame is one gather."""
        pixels, offsets, sizes, start = [], [], [], 0
        for texture in textures:
            level = _LINEAR[texture]
            for index in range(_LEVELS):
                height, width = level.shape[:2]
                pixels.append(level.reshape(-1, 3))
                offsets.append(start)
                sizes.append((height, width))
                start += height * width
                if index + 1 < _LEVELS:
                    level = _halve(level)
        self.texels = np.concatenate(pixels) if pixels else np.ones((1, 3), np.float32)
        self.texture_offset = np.array(offsets, np.int64).reshape(-1, _LEVELS)
        self.texture_size = np.array(sizes, np.int64).reshape(-1, _LEVELS, 2)

    def _measure_texels(self) -> None:
        """Texels per metre of every triangle, for the choice of a level."""
        a, b = self.uv[:, 1] - self.uv[:, 0], self.uv[:, 2] - self.uv[:, 0]
        uv_area = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
        edges = self.triangles[:, 1:] - self.triangles[:, :1]
        area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
        texture = self.texture_index[self.material]
        pixels = np.ones(len(texture))
        if len(self.texture_size):
            pixels = np.where(texture >= 0, self.texture_size[np.maximum(texture, 0), 0].prod(axis=1), 1)
        self.texel_density = np.sqrt(np.maximum(uv_area * pixels, 1e-12) / np.maximum(area, 1e-12)).astype(np.float32)

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """First hits of rays [N, 3]."""
        hit = self.embree.run(origins, directions, output=True)
        u, v = hit["u"], hit["v"]
        found = hit["primID"] >= 0
        return Hits(np.where(found, hit["tfar"], np.inf), hit["primID"], np.stack([1 - u - v, u, v], axis=-1))

    def labels(self, hits: Hits) -> tuple[np.ndarray, np.ndarray]:
        """Instance and semantic index [N] of hits."""
        found = hits.triangle >= 0
        return np.where(found, self.instance[hits.triangle], NONE), np.where(found, self.semantic[hits.triangle], NONE)

    def albedo(self, hits: Hits, focal_length: float) -> np.ndarray:
        """Linear surface colour [N, 3] of hits, from the texture level that suits the distance."""
        triangle = np.maximum(hits.triangle, 0)
        material = self.material[triangle]
        color = self.colors[material].copy()
        texture = self.texture_index[material]
        rows = np.flatnonzero((texture >= 0) & (hits.triangle >= 0))
        texture, triangle = texture[rows], triangle[rows]
        footprint = hits.depth[rows] / focal_length * self.texel_density[triangle]
        level = np.clip(np.log2(np.maximum(footprint, 1)).astype(np.int64), 0, _LEVELS - 1)
        uv = np.einsum("nk,nkc->nc", hits.barycentric[rows], self.uv[triangle])
        height, width = self.texture_size[texture, level].T
        column = np.minimum((uv[:, 0] % 1 * width).astype(np.int64), width - 1)
        row = np.minimum(((1 - uv[:, 1] % 1) * height).astype(np.int64), height - 1)
        color[rows] *= self.texels[self.texture_offset[texture, level] + row * width + column]
        color[hits.triangle < 0] = 0
        return color

    def render(self, camera: Camera, samples: int = len(_SAMPLES)) -> RenderedView:
        """Colour, depth and labels of a view; depth and labels at the pixels' centres, colour from 2 or 4 samples."""
        shape = (camera.height, camera.width)
        focal_length = float(camera.intrinsics[0, 0])
        origins, directions = camera.rays()
        hits = self.cast(origins, directions)
        found = hits.triangle >= 0
        triangle = np.maximum(hits.triangle, 0)
        points = origins + directions * np.where(found, hits.depth, 0)[:, None]
        view = directions / length(directions)[:, None]
        corners = self.triangles[triangle]
        flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        flat /= np.maximum(length(flat)[:, None], 1e-12)
        normals = np.einsum("nk,nkc->nc", hits.barycentric, self.normals[triangle])
        normals /= np.maximum(length(normals)[:, None], 1e-12)
        # Catalogue meshes are wound either way: surfaces are lit on the side that is seen.
        flat *= np.where(dot(flat, view)[:, None] > 0, -1, 1)
        normals *= np.where(dot(flat, normals)[:, None] < 0, -1, 1)
        instance, semantic = self.labels(hits)
        light = self.lighting.irradiance(points + _OFFSET * flat, normals, flat, hits.depth, triangle, shape)
        light += self.emission[triangle][:, None] * self.lighting.window_glow
        albedo = np.zeros_like(points)
        for dx, dy in _SAMPLES[:: 1 if samples == len(_SAMPLES) else 3]:
            albedo += self.albedo(self.cast(*camera.rays(dx, dy)), focal_length) / samples
        radiance = albedo * light
        shiny = np.flatnonzero(self.shine[instance + 1, 0] > 0)
        if len(shiny):
            above = (points + _OFFSET * flat)[shiny]
            shine = self.shine[instance[shiny] + 1]
            radiance[shiny] += self._mirrored(above, normals[shiny], view[shiny], shine, light.mean(axis=0))
        return RenderedView(
            radiance=radiance.reshape(*shape, 3).astype(np.float32),
            depth=np.where(found, hits.depth, 0).reshape(shape).astype(np.float32),
            cosine=np.abs(dot(flat, view)).reshape(shape).astype(np.float32),
            albedo=albedo.mean(axis=1).reshape(shape).astype(np.float32),
            instance=instance.reshape(shape),
            semantic=semantic.reshape(shape),
        )

    def _mirrored(
        self, points: np.ndarray, normals: np.ndarray, view: np.ndarray, shine: np.ndarray, around: np.ndarray
    ) -> np.ndarray:
        """Light [N, 3] that points mirror: lamps, and what lies around as if it were lit like the mean of the view.

        Fresnel's law after C. Schlick, "An Inexpensive BRDF Model for Physically-based Rendering" (1994). Two shadings
        stand for a rough mirror: what it shows exactly, and a grey.
        """
        facing = dot(normals, view)[:, None]
        direction = view - 2 * facing * normals
        hits = self.cast(np.ascontiguousarray(points, np.float32), np.ascontiguousarray(direction, np.float32))
        glow = self.emission[np.maximum(hits.triangle, 0)] * (hits.triangle >= 0)
        # Mirrors are curved and rough: what they show takes a coarse level of its texture.
        image = self.albedo(hits, _MIRROR_FOCAL_LENGTH) * around + (glow * self.lighting.window_glow)[:, None]
        strength, rough = shine[:, :1], shine[:, 1:]
        sharp = np.exp(-((rough / 0.2) ** 2))
        image = sharp * image + (1 - sharp) * 0.4 * around + self.lighting.highlights(points, direction, rough[:, 0])
        return (strength + (1 - strength) * (1 - rough) * (1 - np.abs(facing)).clip(0, 1) ** 5) * image


def _halve(level: np.ndarray) -> np.ndarray:
    """Every 2 x 2 pixels averaged; a side of one pixel stays."""
    if level.shape[0] > 1:
        level = (level[0 : level.shape[0] // 2 * 2 : 2] + level[1::2]) / 2
    if level.shape[1] > 1:
        level = (level[:, 0 : level.shape[1] // 2 * 2 : 2] + level[:, 1::2]) / 2
    return level


def _quad(corner: np.ndarray, along: np.ndarray, up: np.ndarray, texture: Texture) -> Mesh:
    """A rectangle with texture coordinates in repetitions."""
    positions = np.array([[corner, corner + along], [corner + up, corner + along + up]])
    w, h = np.linalg.norm(along) / texture.tile, np.linalg.norm(up) / texture.tile
    return grid_mesh(positions, np.array([[(0, 0), (w, 0)], [(0, h), (w, h)]]), np.ones(3), texture.image)


# What covers a surface of the room, the likelier ones more than once.
_COVERINGS = {
    "floor": ("planks", "planks", "wood", "carpet", "carpet", "tiles", "concrete", "marble"),
    "wall": ("paint", "paint", "paint", "wallpaper", "brick", "concrete"),
    "accent": ("paint", "wallpaper", "brick", "tiles", "wood"),
    "ceiling": ("ceiling_panels",),
}


def _covering(rng: np.random.Generator, split: str, surface: str, pack: TexturePack | None) -> Texture:
    if pack is not None and rng.random() < 0.5:
        texture = pack.pick(rng, split, "wall" if surface == "accent" else surface)
        if texture is not None:
            return texture
    return pick_texture(rng, split, _COVERINGS[surface])


def _shell(room: Room, rng: np.random.Generator, split: str, pack: TexturePack | None) -> list[tuple[Mesh, str, int]]:
    """The room's own surfaces: mesh in world coordinates, class name, instance.

    Wall and floor are stuff; the ceiling is an instance, as in ScanNet200's instance task.
    """
    w, d, h = room.width, room.depth, room.height
    floor = _covering(rng, split, "floor", pack)
    wall = _covering(rng, split, "wall", pack)
    accent = _covering(rng, split, "accent", pack) if rng.random() < 0.3 else wall
    ceiling = _covering(rng, split, "ceiling", pack) if rng.random() < 0.3 else None
    x, y, z = np.eye(3)
    edge = 0.05  # surfaces overlap at the edges, so that no ray slips through
    base = np.array([-edge, -edge, 0.0])
    walls = [
        _quad(np.array([w + edge, 0, -edge]), -x * (w + 2 * edge), z * (h + 2 * edge), wall),
        _quad(np.array([-edge, d, -edge]), x * (w + 2 * edge), z * (h + 2 * edge), accent),
        _quad(np.array([0, -edge, -edge]), y * (d + 2 * edge), z * (h + 2 * edge), wall),
        _quad(np.array([w, d + edge, -edge]), -y * (d + 2 * edge), z * (h + 2 * edge), wall),
    ]
    for block in room.blocks:
        (x0, y0), (x1, y1) = block.center - block.half, block.center + block.half
        for a, b in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
            start = np.array([*a, 0.0])
            walls.append(_quad(start, np.array([*b, 0.0]) - start, z * h, wall))
    if rng.random() < 0.7:
        color, t, top = np.full(3, rng.uniform(0.25, 0.95)), 0.012, rng.uniform(0.06, 0.11)
        for low, high in (((0, 0), (w, t)), ((0, d - t), (w, d)), ((0, 0), (t, d)), ((w - t, 0), (w, d))):
            walls.append(box_mesh(np.array([*low, 0]), np.array([*high, top]), color))
    if ceiling is None:
        ceiling = Texture(np.full((4, 4, 3), int(rng.uniform(200, 250)), np.uint8), 1.0)
    return [
        (merge(walls), "wall", NONE),
        (_quad(base, x * (w + 2 * edge), y * (d + 2 * edge), floor), "floor", NONE),
        (_quad(base + z * h, x * (w + 2 * edge), y * (d + 2 * edge), ceiling), "ceiling", 0),
    ]
