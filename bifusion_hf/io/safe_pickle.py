"""Pickles and torch checkpoints of others, read without running anything in them.

A pickle is a program. `load_pickle` interprets the instructions that build plain containers, numbers, text and numpy
arrays, and no others: no class is looked up, nothing is imported or called. `load_checkpoint` leaves tensors to
torch's own `weights_only` loader, and puts an inert `IgnoredObject` where a checkpoint of the OpenMMLab family keeps
its log.
"""

import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .files import DataFileError, read_bytes
from .hub_files import refuse_lfs_pointer


# Roots of the modules whose objects a checkpoint may hold beside its tensors; they are not created.
IGNORED_MODULES = ("mmengine", "mmcv", "mmdet", "mmdet3d", "oneformer3d", "numpy", "argparse", "pathlib")


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
        return _without_pending(_PickleMachine().run(data), {})
    except DataFileError:
        raise
    # Damaged instructions fail in the tables, the stack, or the values that they build.
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise DataFileError(path, f"is no readable pickle of plain data ({type(error).__name__}: {error})") from error


class _PickleMachine:
    """The stack machine of the pickle format (documented in `pickletools`), reduced to plain data."""

    def __init__(self):
        self.stack: list[Any] = []
        # Stacks set aside by MARK: what follows a mark is collected on a stack of its own.
        self.outer_stacks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                break
            if opcode.name in _LITERALS:
                self.stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name]())
            elif opcode.name in _COLLECTED:
                self._collect(_COLLECTED[opcode.name])
            elif opcode.name in _TUPLE_LENGTHS:
                self._collect_last(_TUPLE_LENGTHS[opcode.name])
            elif opcode.name not in ("PROTO", "FRAME"):
                step = getattr(self, f"_{opcode.name.lower()}", None)
                if step is None:
                    raise ValueError(f"instruction {opcode.name}")
                step(argument)
        if self.outer_stacks or len(self.stack) != 1:
            raise ValueError("unfinished container")
        return self.stack[0]

    def _mark(self, _argument: None):
        self.outer_stacks.append(self.stack)
        self.stack = []

    def _pop_to_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.outer_stacks.pop()
        return items

    def _put(self, index: int):
        self.memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _argument: None):
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, index: int):
        self.stack.append(self.memo[index])

    _binget = _long_binget = _get

    def _pop(self, _argument: None):
        self.stack.pop()

    def _collect(self, kind: Callable):
        items = self._pop_to_mark()
        self.stack.append(kind(items))

    def _collect_last(self, count: int):
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise IndexError("stack underflow")
        del self.stack[-count:]
        self.stack.append(items)

    def _add(self, kind: type, items: Any):
        if type(self.stack[-1]) is not kind:
            raise TypeError(f"{type(self.stack[-1]).__name__} where a {kind.__name__} was expected")
        getattr(self.stack[-1], {list: "extend"}.get(kind, "update"))(items)

    def _append(self, _argument: None):
        self._add(list, [self.stack.pop()])

    def _appends(self, _argument: None):
        self._add(list, self._pop_to_mark())

    def _setitem(self, _argument: None):
        value, key = self.stack.pop(), self.stack.pop()
        self._add(dict, {key: value})

    def _setitems(self, _argument: None):
        self._add(dict, _pairs(self._pop_to_mark()))

    def _additems(self, _argument: None):
        self._add(set, self._pop_to_mark())

    def _global(self, name: str):
        module, name = name.split(" ", maxsplit=1)
        self._push_constructor(module, name)

    def _stack_global(self, _argument: None):
        name, module = self.stack.pop(), self.stack.pop()
        self._push_constructor(module, name)

    def _push_constructor(self, module: str, name: str):
        # numpy 2 moved its internals from numpy.core to numpy._core; Python 3 renamed __builtin__.
        module = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        constructor = _CONSTRUCTORS.get(f"{module}.{name}")
        if constructor is None:
            raise ValueError(f"object of {module}.{name}")
        self.stack.append(_Constructor(constructor))

    def _reduce(self, _argument: None):
        arguments = self.stack.pop()
        constructor = self.stack.pop()
        if type(constructor) is not _Constructor or type(arguments) is not tuple:
            raise TypeError("call of a value")
        self.stack.append(constructor.function(*arguments))

    def _build(self, _argument: None):
        state = self.stack.pop()
        if type(self.stack[-1]) not in (_PendingArray, _PendingDtype):
            raise TypeError(f"state for a {type(self.stack[-1]).__name__}")
        self.stack[-1].set_state(*state)


class _Constructor:
    """What a pickle names as a global, one of `_CONSTRUCTORS`."""

    def __init__(self, function: Callable):
        self.function = function


class _PendingDtype:
    """A numpy dtype under construction: a code such as "f8", then a state that tells the byte order."""

    def __init__(self, code: str, *_flags: Any):
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?[biuf][1248]", code):
            raise ValueError(f"numpy array of type {code!r}")
        self.value = np.dtype(code)

    def set_state(self, _version: int, byte_order: str, *_rest: Any):
        self.value = self.value.newbyteorder({"<": "<", ">": ">", "|": "="}[byte_order])


class _PendingArray:
    """A numpy array under construction: an empty one first, then a state with shape, type and content."""

    def __init__(self, *_arguments: Any):
        self.value: np.ndarray | None = None

    def set_state(self, _version: int, shape: tuple[int, ...], dtype: _PendingDtype, fortran: bool, data: bytes):
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: bytes, dtype: _PendingDtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    if type(dtype) is not _PendingDtype or not isinstance(data, bytes | bytearray):
        raise TypeError("numpy array of another content than numbers")
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"numpy array of shape {shape}")
    # The native byte order spares every later step from thinking of it.
    return np.frombuffer(data, dtype.value).reshape(shape, order=order).astype(dtype.value.newbyteorder("="))


def _scalar(dtype: _PendingDtype, data: bytes) -> np.generic:
    return _array(data, dtype, (), "C")[()]


def _no_bytes() -> bytes:
    return b""


def _latin1_bytes(text: str, encoding: str) -> bytes:
    # Protocol 2 has no bytes: Python 3 writes them as a call of `_codecs.encode`, and no bytes as `bytes()`.
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"text encoding {encoding!r}")
    return text.encode("latin1")


def _pairs(items: list[Any]) -> dict:
    return dict(zip(items[::2], items[1::2], strict=True))


def _without_pending(value: Any, done: dict[int, Any]) -> Any:
    """The value with finished arrays. `done` keeps shared parts shared and the time linear."""
    if id(value) in done:
        return done[id(value)]
    if type(value) in (_PendingArray, _PendingDtype, _Constructor):
        if type(value) is not _PendingArray or value.value is None:
            raise ValueError("unfinished object")
        result = value.value
    elif type(value) is list:
        result = [_without_pending(item, done) for item in value]
    elif type(value) is tuple:
        result = tuple(_without_pending(item, done) for item in value)
    elif type(value) is dict:
        result = {_without_pending(key, done): _without_pending(item, done) for key, item in value.items()}
    elif type(value) in (set, frozenset):
        result = type(value)(_without_pending(item, done) for item in value)
    else:
        return value
    done[id(value)] = result
    return result


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_COLLECTED: dict[str, Callable] = {"TUPLE": tuple, "LIST": list, "DICT": _pairs, "FROZENSET": frozenset}
_TUPLE_LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CONSTRUCTORS: dict[str, Callable] = {
    "numpy.dtype": _PendingDtype,
    "numpy.ndarray": _PendingArray,
    "numpy.core.multiarray._reconstruct": _PendingArray,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array,
    "_codecs.encode": _latin1_bytes,
    "builtins.bytes": _no_bytes,
    "collections.OrderedDict": dict,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
}
