"""Arrays that map a file (`np.load(..., mmap_mode="r")`, `np.memmap`): taken into memory where they come in."""

import mmap

import numpy as np

from .files import DataFileError


def in_memory(array: np.ndarray, name: str) -> np.ndarray:
    """A copy of an array that maps a file, in memory of its own; any other array as it is.

    Where the file is cut after it was mapped, a look at what is gone ends the process (SIGBUS): it is told here, and
    a cut that comes later no longer matters.

    Args:
        array: Of any shape, also a part of a mapped array.
        name: Of what it holds, for the message where the file has no name.

    Raises:
        DataFileError: The file ends before the array does.
    """
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    if not (isinstance(root, np.memmap) and isinstance(root.base, mmap.mmap)):
        return array
    start, first = (part.__array_interface__["data"][0] for part in (root, array))
    last = first + sum((size - 1) * step for size, step in zip(array.shape, array.strides, strict=True) if step > 0)
    needed, found = root.offset + last - start + array.itemsize, root.base.size()
    if found < needed:
        raise DataFileError(root.filename or name, f"was cut: it has {found} bytes, and {name} ends at {needed}")
    return np.array(array)
