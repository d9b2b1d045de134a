"""Reads what `write_ply` wrote, from the format alone."""

from pathlib import Path

import numpy as np


TYPES = {"float": "<f4", "uchar": "u1", "int": "<i4"}


def read_ply(path: str | Path) -> dict[str, np.ndarray]:
    """Property of the vertices -> values [N]."""
    head, body = Path(path).read_bytes().split(b"end_header\n", 1)
    lines = [line for line in head.decode("ascii").splitlines() if not line.startswith("comment ")]
    start, encoding, vertices, *properties = lines
    assert (start, encoding) == ("ply", "format binary_little_endian 1.0")
    dtype = np.dtype([(name, TYPES[kind]) for _, kind, name in map(str.split, properties)])
    rows = np.frombuffer(body, dtype)
    assert vertices == f"element vertex {len(rows)}"
    return {name: rows[name] for name in dtype.names}


def read_comments(path) -> list[str]:
    """The comments of the header."""
    header = path.read_bytes().split(b"end_header\n")[0].decode("ascii")
    return [line.removeprefix("comment ") for line in header.splitlines() if line.startswith("comment ")]
