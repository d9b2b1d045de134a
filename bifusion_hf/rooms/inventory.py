"""What a room of one split may be furnished with: catalogue models and parametric objects, by class and placement."""

import colorsys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from .catalog import FurnitureLibrary, FurnitureModel, split_of
from .classes import classify
from .layout import centered
from .meshes import Mesh, load_model, planar_uv
from .photometric import FAMILIES, PHOTOMETRIC_CLASSES
from .primitives import PRIMITIVES, Primitive
from .textures import pick_texture


# Where a class has models and parametric shapes, this share is parametric.
_PARAMETRIC_SHARE = 0.35
_UPHOLSTERED = ("couch", "armchair", "chair", "bed", "office chair", "ottoman", "bench", "stool", "folded chair")


class Inventory:
    """Objects by class and placement.

    Args:
        libraries: Furniture libraries; none gives parametric objects alone.
        split: "train" or "val"; models and textures of the other split are never used.
        cache: Folder for parsed meshes.
        photometric: The classes of `photometric` come from their families alone; their other objects are left out.
    """

    def __init__(self, libraries: list[FurnitureLibrary], split: str, cache: Path, photometric: bool = False):
        self.split = split
        self.cache = cache
        self.photometric = photometric
        self.libraries = {library.name: library for library in libraries}
        self.models: dict[tuple[str, str], list[FurnitureModel]] = {}
        self.primitives: dict[tuple[str, str], list[Primitive]] = {}
        left_out = {name for names in PHOTOMETRIC_CLASSES.values() for name in names} if photometric else set()
        for library in libraries:
            for model in library.models:
                rule = classify(model)
                if rule is not None and rule[0] not in left_out and split_of(model.key) == split:
                    self.models.setdefault(rule, []).append(model)
        for primitive in PRIMITIVES:
            if primitive.class_name not in left_out:
                self.primitives.setdefault((primitive.class_name, primitive.placement), []).append(primitive)
        # What the programmes of rooms ask for is not there; only `pick_printed` gives it.
        self.families = FAMILIES if photometric else {}
        self._load = lru_cache(maxsize=200)(self._load_model)

    def _load_model(self, model: FurnitureModel) -> Mesh | None:
        return load_model(self.libraries[model.library], model, self.cache / model.library)

    def prepare(self, model: FurnitureModel) -> None:
        """Parses a model into the cache."""
        self._load_model(model)

    def all_models(self) -> list[FurnitureModel]:
        """The catalogue models that this inventory may use."""
        return [model for models in self.models.values() for model in models]

    def has(self, class_name: str, placement: str) -> bool:
        """Whether the split has an object of this class and placement."""
        return (class_name, placement) in self.models or (class_name, placement) in self.primitives

    def pick(self, rng: np.random.Generator, class_name: str, placement: str) -> tuple[Mesh, float] | None:
        """A random object of a class: its centred mesh and its elevation; None where the split has none."""
        models = self.models.get((class_name, placement), [])
        primitives = self.primitives.get((class_name, placement), [])
        if primitives and (not models or rng.random() < _PARAMETRIC_SHARE):
            primitive = primitives[rng.integers(len(primitives))]
            return centered(primitive.make(rng, self.split)), rng.uniform(*primitive.elevation)
        if not models:
            return None
        model = models[rng.integers(len(models))]
        mesh = self._load(model)
        if mesh is None:
            return None
        return centered(vary(mesh, rng, self.split, class_name in _UPHOLSTERED)), model.elevation

    def pick_printed(self, rng: np.random.Generator, family: str) -> tuple[str, Mesh, float]:
        """A random object of a photometric family, all classes alike often: class name, centred mesh, elevation."""
        primitives = self.families[family].primitives()
        primitive = primitives[rng.integers(len(primitives))]
        return primitive.class_name, centered(primitive.make(rng, self.split)), rng.uniform(*primitive.elevation)


def vary(mesh: Mesh, rng: np.random.Generator, split: str, upholstered: bool) -> Mesh:
    """A copy of a mesh in another size (a few percent) and often in other colours or materials."""
    scale = rng.uniform(0.94, 1.06, 3)
    varied = replace(mesh, triangles=(mesh.triangles * scale).astype(np.float32), colors=mesh.colors.copy())
    plain = np.flatnonzero(mesh.texture_index < 0)
    choice = rng.random()
    if choice < 0.45 and len(plain):
        shift, gain, value = rng.random(), rng.uniform(0.5, 1.4), rng.uniform(0.7, 1.25)
        for index in plain:
            hue, saturation, brightness = colorsys.rgb_to_hsv(*np.clip(mesh.colors[index], 0, 1).tolist())
            new = ((hue + shift) % 1, min(saturation * gain, 1), min(brightness * value + 0.02, 1))
            varied.colors[index] = colorsys.hsv_to_rgb(*new)
    elif choice < 0.75 and len(plain):
        kinds = ("fabric", "fabric", "carpet") if upholstered else ("wood", "wood", "concrete", "marble")
        _cover(varied, rng, split, plain, kinds)
    else:
        varied.colors *= rng.uniform(0.8, 1.1, 3).astype(np.float32)
    return varied


def _cover(mesh: Mesh, rng: np.random.Generator, split: str, plain: np.ndarray, kinds: tuple[str, ...]) -> None:
    """Covers the plain material with the largest area with a texture, projected along the axes."""
    edges = mesh.triangles[:, 1:] - mesh.triangles[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    total = np.bincount(mesh.material, weights=area, minlength=len(mesh.colors))
    material = plain[np.argmax(total[plain])]
    texture = pick_texture(rng, split, kinds)
    faces = mesh.material == material
    mesh.uv = mesh.uv.copy()
    mesh.uv[faces] = planar_uv(mesh.triangles[faces], mesh.normals[faces]) / texture.tile
    mesh.colors[material] = rng.uniform(0.85, 1.0)
    mesh.texture_index = mesh.texture_index.copy()
    mesh.texture_index[material] = len(mesh.textures)
    mesh.textures = [*mesh.textures, texture.image]
