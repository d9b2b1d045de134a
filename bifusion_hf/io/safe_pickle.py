"""Pickles and torch checkpoints of others, read without running anything in them.

A pickle is a program. `load_pickle` carries out the instructions that build plain containers, numbers, text and numpy
arrays, and no others: nothing is imported, and what a pickle may call is written here. `load_checkpoint` leaves
tensors to torch's own `weights_only` loader, and puts an inert `IgnoredObject` where a checkpoint of the OpenMMLab
family keeps its log, or one of Lightning its configuration.
"""

import io
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .files import DataFileError, read_bytes
from .hub_files import refuse_lfs_pointer


# Roots of the modules whose objects a checkpoint may hold beside its tensors; they are not created.
IGNORED_MODULES = (
    *("mmengine", "mmcv", "mmdet", "mmdet3d", "oneformer3d", "omegaconf", "hydra", "lightning", "pytorch_lightning"),
    *("numpy", "argparse", "pathlib", "typing"),
)


class IgnoredObject:
    """Stands where a checkpoint held an object of another package. Keeps nothing."""

    def __new__(cls, *_args: Any):
        return super().__new__(cls)

    def __init__(self, *_args: Any):
        pass

    def __setstate__(self, _state: Any):
        pass


# What a defaultdict makes its values with; as a plain dict it needs none.
_DEFAULT_FACTORIES = ("builtins.dict", "builtins.list", "builtins.set", "builtins.int", "builtins.float")


def _plain_dict(*_factory: Any) -> dict:
    return {}


def load_checkpoint(
    path: str | Path, *, map_location: str = "cpu", ignored_modules: tuple[str, ...] = IGNORED_MODULES
) -> Any:
    """Content of a `torch.save` file: tensors, numbers, text and plain containers.

    Args:
        path: The file.
        map_location: Device of the tensors.
        ignored_modules: Packages whose objects become an `IgnoredObject`; numpy's arrays and numbers too, which the
            logs beside the tensors consist of.

    Returns:
        What was saved, mostly a dict.

    Raises:
        DataFileError: The file is missing, damaged, or holds an object of a package that is not listed.
    """
    path = Path(path)
    if not path.is_file():
        raise DataFileError(path, "no such file")
    refuse_lfs_pointer(path)
    try:
        with torch.serialization.safe_globals(_stand_ins(path, ignored_modules)):
            return torch.load(path, map_location=map_location, weights_only=True)
    except DataFileError:
        raise
    # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, ... on damaged files.
    except Exception as error:
        raise DataFileError(path, f"is no readable checkpoint ({type(error).__name__}: {error})") from error


def _stand_ins(path: Path, ignored_modules: tuple[str, ...]) -> list[tuple[Callable, str]]:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:
        # Not a zip file, so it was written before torch 1.6: tensors and plain containers alone are read from it.
        return []
    stand_ins: list[tuple[Callable, str]] = []
    for name in names:
        if name == "collections.defaultdict":
            stand_ins.append((_plain_dict, name))
        elif name in _DEFAULT_FACTORIES or name.split(".")[0] in ignored_modules:
            stand_ins.append((IgnoredObject, name))
        else:
            raise DataFileError(path, f"holds an object of {name}; only tensors and plain containers are read")
    return stand_ins


def load_pickle(path: str | Path) -> Any:
    """Value of a pickle of plain containers, numbers, text, bytes and numpy arrays (bool, integer, float).

    Args:
        path: The file; any pickle protocol.

    Raises:
        DataFileError: The file cannot be read, is damaged, or holds anything else.
    """
    data = read_bytes(path)
    try:
        value = _PlainUnpickler(data).load()
        _check_plain(value, {})
        return value
    # Damaged instructions fail in the tables, the stack, or the values that they build.
    except (
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
        struct.error,
    ) as error:
        raise DataFileError(path, f"is no readable pickle of plain data ({type(error).__name__}: {error})") from error


class _Dtype:
    """A numpy dtype under construction: a code such as "f8", then a state that tells the byte order."""

    def __init__(self, code: str, *_flags: Any):
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?[biuf][1248]", code):
            raise ValueError(f"numpy array of type {code!r}")
        self.value = np.dtype(code)

    def set_state(self, _version: int, byte_order: str, *_rest: Any):
        self.value = self.value.newbyteorder({"<": "<", ">": ">", "|": "="}[byte_order])


def _array(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    if type(dtype) is not _Dtype or not isinstance(data, bytes | bytearray):
        raise TypeError("numpy array of another content than numbers")
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"numpy array of shape {shape}")
    # The native byte order spares every later step from thinking of it.
    return np.frombuffer(data, dtype.value).reshape(shape, order=order).astype(dtype.value.newbyteorder("="))


def _empty_array(*_arguments: Any) -> np.ndarray:
    # A state with shape, type and content follows.
    return np.empty(0, np.uint8)


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    return _array(data, dtype, (), "C")[()]


def _no_bytes() -> bytes:
    return b""


def _latin1_bytes(text: str, encoding: str) -> bytes:
    # Protocol 2 has no bytes: Python 3 writes them as a call of `_codecs.encode`, and no bytes as `bytes()`.
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"text encoding {encoding!r}")
    return text.encode("latin1")


# What a pickle may name, and what stands for it.
_CONSTRUCTORS: dict[str, Callable] = {
    "numpy.dtype": _Dtype,
    # Only named, as the first argument of the next.
    "numpy.ndarray": _empty_array,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array,
    "_codecs.encode": _latin1_bytes,
    "builtins.bytes": _no_bytes,
    "collections.OrderedDict": dict,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
}
_INSTRUCTIONS = (
    *("PROTO", "FRAME", "MARK", "POP"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET"),
    *("GLOBAL", "STACK_GLOBAL"),
)


# Python's own unpickler written in Python: the one in C gives memory to whatever length an instruction claims.
class _PlainUnpickler(pickle._Unpickler):
    """Carries out the instructions of plain data; all others, and all other names, are refused."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data), encoding="latin1")
        # Calls copy what they are given, and may be repeated: what they give is a few times the file at most.
        self.left = 4 * len(data)

    def find_class(self, module: str, name: str) -> Callable:
        # numpy 2 moved its internals from numpy.core to numpy._core; Python 3 renamed __builtin__.
        module = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        constructor = _CONSTRUCTORS.get(f"{module}.{name}")
        if constructor is None:
            raise ValueError(f"object of {module}.{name}")
        return constructor

    def count(self, value: Any) -> None:
        self.left -= value.nbytes if isinstance(value, np.ndarray) else len(value) if hasattr(value, "__len__") else 0
        if self.left < 0:
            raise ValueError("values that hold far more than the file")

    def reduce(self) -> None:
        arguments, constructor = self.stack.pop(), self.stack[-1]
        if not any(constructor is known for known in _CONSTRUCTORS.values()) or type(arguments) is not tuple:
            raise TypeError("call of a value")
        self.stack[-1] = constructor(*arguments)
        self.count(self.stack[-1])

    def build(self) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if type(value) is _Dtype:
            value.set_state(*state)
        elif type(value) is np.ndarray:
            _version, shape, dtype, is_fortran, data = state
            array = _array(data, dtype, shape, "F" if is_fortran else "C")
            self.count(array)
            # In place: other parts of the value may hold this array already.
            value.__setstate__((1, array.shape, array.dtype, False, array.tobytes()))
        else:
            raise TypeError(f"state for a {type(value).__name__}")

    def read_bytearray(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def stop(self) -> None:
        if self.metastack or len(self.stack) != 1:
            raise ValueError("unfinished container")
        self.load_stop()

    def refuse(self) -> None:
        raise ValueError("an instruction that plain data does not need")

    dispatch = {
        **dict.fromkeys(range(256), refuse),
        **{getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _INSTRUCTIONS},
        pickle.REDUCE[0]: reduce,
        pickle.BUILD[0]: build,
        pickle.BYTEARRAY8[0]: read_bytearray,
        pickle.STOP[0]: stop,
    }


_PLAIN = (type(None), bool, int, float, str, bytes, bytearray, np.ndarray)


def _check_plain(value: Any, done: dict[int, Any]) -> None:
    """Refuses what is left of an unfinished construction. `done` keeps the time linear where parts are shared."""
    if id(value) in done:
        return
    if type(value) is dict:
        parts = [*value, *value.values()]
    elif type(value) in (list, tuple, set, frozenset):
        parts = value
    elif type(value) in _PLAIN or isinstance(value, np.generic):
        return
    else:
        raise ValueError("unfinished object")
    for part in parts:
        _check_plain(part, done)
    done[id(value)] = value
