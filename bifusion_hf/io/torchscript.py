"""The tensors of a TorchScript archive, as OpenAI publishes CLIP, read without running or compiling what it holds.

Such an archive is a zip file: `data.pkl` pickles the tree of modules, `data/N` are the tensors' storages. Only the
instructions that build this tree are carried out: modules become plain dicts, tensors are read from their storages.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from .files import DataFileError


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    # No archive, or one whose table of contents is damaged: no TorchScript either way.
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeDecodeError):
        return False
    return {"data.pkl", "constants.pkl"} <= names


def read_torchscript(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a TorchScript archive by their dotted names, on the CPU.

    Raises:
        DataFileError: It is damaged, or holds something else than modules of tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (place,) = [name for name in archive.namelist() if name.partition("/")[2] == "data.pkl"]
            with archive.open(place) as file:
                tree = _Reader(file, archive, place.partition("/")[0]).load()
            return dict(_tensors(tree, ""))
    # Damaged instructions and archives fail in the tables, the stack, or the values that they build.
    except Exception as error:
        raise DataFileError(path, f"is no readable TorchScript file ({type(error).__name__}: {error})") from error


class _Module:
    """A module of the tree: its attributes, and nothing that can be called."""

    def __init__(self):
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any):
        if isinstance(state, dict):
            self.attributes = state


class _Reader(pickle._Unpickler):
    """Builds modules, numbers, text, containers and tensors; everything else is refused."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self.archive, self.root = archive, root
        self.storages: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Callable | torch.dtype:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        found = {
            "torch._utils._rebuild_tensor_v2": _tensor,
            "collections.OrderedDict": dict,
            "torch.jit._pickle.restore_type_tag": _untagged,
            **dict.fromkeys((f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool")), list),
            "torch.jit._pickle.build_tensorlist": list,
        }.get(f"{module}.{name}")
        if found is None:
            raise ValueError(f"object of {module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> torch.Tensor:
        kind, dtype, key, _location, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"a storage of {pid}")
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.root}/data/{key}"))
            values = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            if len(values) < count:
                raise ValueError(f"storage {key} has {len(values)} of {count} values")
            self.storages[key] = values
        return self.storages[key]


def _tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_rest: Any) -> torch.Tensor:
    # Cloned: views of a file's storages would be saved, and freed, together.
    return storage.as_strided(size, stride, offset).clone()


def _untagged(value: Any, _tag: Any) -> Any:
    return value


def _tensors(tree: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(tree, torch.Tensor):
        yield prefix, tree
    elif isinstance(tree, _Module):
        for name, value in tree.attributes.items():
            yield from _tensors(value, f"{prefix}.{name}" if prefix else str(name))
