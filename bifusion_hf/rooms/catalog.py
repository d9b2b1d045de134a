"""Catalogues of furniture models: Sweet Home 3D libraries (`.sh3f`), read from a .deb, a folder or single files.

A library is a zip file with a `PluginFurnitureCatalog.properties`: one numbered record per model, sizes in
centimetres, plus OBJ, MTL and texture files.
"""

import hashlib
import io
import re
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np


LIBRARIES = {
    "BlendSwap-CC-0": "CC0 1.0",
    "BlendSwap-CC-BY": "CC-BY 3.0",
    "KatorLegaz": "CC-BY 3.0 US",
    "Scopia": "CC-BY 3.0",
    "Reallusion": "CC-BY 3.0 US",
}
# The share of models and textures that only validation rooms use, and the salt of the hash that picks them: with
# this salt the commonest classes of the CC0 library alone have models on both sides.
VAL_SHARE = 0.3
SPLIT_SALT = "rooms-3577"


@dataclass(frozen=True)
class FurnitureModel:
    """One record of a catalogue; sizes in metres."""

    library: str
    path: str
    name: str
    category: str
    size: tuple[float, float, float]
    elevation: float
    creator: str
    rotation: tuple[float, ...] | None

    @property
    def key(self) -> str:
        """A name that does not change with the selection of libraries."""
        return f"{self.library}/{self.path}"


@lru_cache(maxsize=8192)
def split_of(key: str) -> str:
    """`"train"` or `"val"`, from a model's or texture's name alone: the same for every seed and selection."""
    digest = hashlib.sha256(f"{SPLIT_SALT}/{key}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < VAL_SHARE * 2**64 else "train"


class FurnitureLibrary:
    """A furniture library, read from the bytes or the path of its `.sh3f` file.

    Args:
        name: Name of the library, e.g. `"BlendSwap-CC-0"`.
        source: The zip file.
    """

    def __init__(self, name: str, source: str | Path | io.BytesIO):
        self.name = name
        self.archive = zipfile.ZipFile(source)
        self._members = {member.lower(): member for member in self.archive.namelist()}

    def read(self, path: str) -> bytes | None:
        """Bytes of a member, or None; names are matched without case, as on the system the models come from."""
        member = self._members.get(path.lstrip("/").lower())
        return None if member is None else self.archive.read(member)

    @cached_property
    def models(self) -> list[FurnitureModel]:
        """The catalogue's models in the order of their paths."""
        text = self.read("PluginFurnitureCatalog.properties").decode("latin-1")
        records: dict[int, dict[str, str]] = {}
        for key, number, value in re.findall(r"^(\w+)#(\d+)\s*=[ \t]*(.*?)\s*$", text, flags=re.MULTILINE):
            records.setdefault(int(number), {})[key] = _unescape(value)
        models = [self._model(record) for record in records.values()]
        return sorted(models, key=lambda model: model.path)

    def _model(self, record: dict[str, str]) -> FurnitureModel:
        rotation = record.get("modelRotation")
        return FurnitureModel(
            library=self.name,
            path=record["model"].lstrip("/"),
            name=record["name"],
            category=record["category"],
            size=tuple(float(record[key]) / 100 for key in ("width", "depth", "height")),
            elevation=float(record.get("elevation", 0)) / 100,
            creator=record.get("creator", "unknown"),
            rotation=None if rotation is None else tuple(float(value) for value in rotation.split()),
        )


def _unescape(value: str) -> str:
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), value)


def open_libraries(source: str | Path | Iterable[str | Path], names: Iterable[str]) -> list[FurnitureLibrary]:
    """Opens furniture libraries by name.

    Args:
        source: The Debian package `sweethome3d-furniture_*.deb`, a folder with `.sh3f` files below it, or `.sh3f`
            files.
        names: Keys of `LIBRARIES`.

    Raises:
        ValueError: A name is unknown, or the source does not hold that library.
    """
    names = list(names)
    unknown = sorted(set(names) - set(LIBRARIES))
    if unknown:
        raise ValueError(f"libraries {unknown} are unknown; expected names out of {list(LIBRARIES)}")
    paths = [Path(source)] if isinstance(source, str | Path) else [Path(path) for path in source]
    found: dict[str, Path | io.BytesIO] = {}
    for path in paths:
        if path.is_dir():
            found.update({file.stem: file for file in sorted(path.rglob("*.sh3f"))})
        elif path.suffix == ".deb" and path.is_file():
            found.update(_libraries_of_deb(path, set(names)))
        elif path.suffix == ".sh3f" and path.is_file():
            found[path.stem] = path
        else:
            raise ValueError(f"{path} is no .deb, folder or .sh3f file with furniture")
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{[str(path) for path in paths]} do not hold {missing}; found {sorted(found)}")
    return [FurnitureLibrary(name, found[name]) for name in names]


def _libraries_of_deb(path: Path, names: set[str]) -> dict[str, io.BytesIO]:
    """The named `.sh3f` files of a Debian package: an `ar` archive whose member `data.tar.*` holds them."""
    with path.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise ValueError(f"{path} is no Debian package (its first bytes are not those of an ar archive)")
        while header := file.read(60):
            member, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
            if member.startswith("data.tar"):
                break
            file.seek(size + size % 2, io.SEEK_CUR)
        else:
            raise ValueError(f"{path} has no member data.tar.*")
        packed = io.BytesIO(file.read(size))
    try:
        with tarfile.open(fileobj=packed) as archive:
            return {
                Path(entry.name).stem: io.BytesIO(archive.extractfile(entry).read())
                for entry in archive
                if entry.name.endswith(".sh3f") and Path(entry.name).stem in names
            }
    except tarfile.ReadError as error:
        raise ValueError(f"{path}: Python cannot read its {member}; unpack the package first") from error


def attribution(models: Iterable[FurnitureModel]) -> str:
    """One line per model: name, creator, library, licence."""
    lines = [
        f"- {model.name} ({model.path}), by {model.creator}, {model.library}, {LIBRARIES[model.library]}"
        for model in sorted(models, key=lambda model: model.key)
    ]
    return "\n".join(lines)


def rotation_matrix(model: FurnitureModel) -> np.ndarray:
    """The catalogue's own rotation of a model's vertices, [3, 3] in OBJ axes (y up)."""
    return np.eye(3) if model.rotation is None else np.array(model.rotation).reshape(3, 3)
