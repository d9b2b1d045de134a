"""Reader of ScanNet's meshes (`_vh_clean_2.ply`): vertices and triangles of a binary PLY file."""

from pathlib import Path

import numpy as np

from ...io.files import DataFileError, read_bytes


_SCALARS = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
MAX_HEADER_BYTES = 65536


def read_mesh(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles of a binary PLY file.

    Args:
        path: The file. Other properties of its vertices and faces are passed over.

    Returns:
        float64 [V, 3] in the file's unit and frame (ScanNet: metres, z up, before axis alignment) and int64 [F, 3].

    Raises:
        DataFileError: The file is missing, damaged, in ASCII, or has faces with more than three corners.
    """
    data = read_bytes(path)
    order, elements, place = _read_header(data, path)
    tables = {}
    for name, count, properties in elements:
        tables[name], place = _read_table(data, place, name, count, _dtype(properties, order, path), path)
    return _vertices(tables, path), _faces(tables, path)


def _dtype(properties: list[tuple[str, str, str | None]], order: str, path: str | Path) -> np.dtype:
    fields: list[tuple] = []
    for index, (name, kind, length_kind) in enumerate(properties):
        if length_kind is None:
            fields.append((name, order + kind))
        else:
            # A list is read as one of three values; the length that stands before it has to confirm that.
            fields += [(f"length {index}", order + length_kind), (name, order + kind, 3)]
    try:
        return np.dtype(fields)
    except ValueError as error:
        raise DataFileError(path, f"has an element of properties {properties}: {error}") from error


def _read_table(
    data: bytes, place: int, name: str, count: int, dtype: np.dtype, path: str | Path
) -> tuple[np.ndarray, int]:
    """The rows of an element, and where the next one begins."""
    end = place + count * dtype.itemsize
    if end > len(data):
        raise DataFileError(path, f"element {name} ends at byte {end}, the file at {len(data)}: it is cut short")
    if end == place:
        return np.empty(0, dtype), end
    table = np.frombuffer(data, dtype, count=count, offset=place)
    for label in dtype.names:
        if label.startswith("length ") and (table[label] != 3).any():
            raise DataFileError(path, f"element {name} has lists of other lengths than 3; expected triangles")
    return table, end


def _read_header(data: bytes, path: str | Path) -> tuple[str, list[tuple[str, int, list]], int]:
    """Byte order; per element its name, count and properties (name, type, type of the length or None); its end."""
    start = data.find(b"end_header", 0, MAX_HEADER_BYTES)
    line_end = data.find(b"\n", start)
    if not data.startswith(b"ply") or start < 0 or line_end < 0:
        raise DataFileError(path, "is no PLY file")
    order = None
    elements: list[tuple[str, int, list]] = []
    for line in data[:start].decode("latin1").splitlines()[1:]:
        words = line.split()
        match words:
            case [] | ["comment" | "obj_info", *_]:
                continue
            case ["format", name, _] if name in _BYTE_ORDERS:
                order = _BYTE_ORDERS[name]
            case ["element", name, count] if count.isascii() and count.isdigit() and len(count) < 12:
                elements.append((name, int(count), []))
            case ["property", kind, name] if elements and kind in _SCALARS:
                elements[-1][2].append((name, _SCALARS[kind], None))
            case ["property", "list", length_kind, kind, name] if (
                elements and kind in _SCALARS and _SCALARS.get(length_kind, "f")[0] in "iu"
            ):
                elements[-1][2].append((name, _SCALARS[kind], _SCALARS[length_kind]))
            case _:
                raise DataFileError(path, f"has the header line {line!r}; expected a binary PLY mesh")
    if order is None:
        raise DataFileError(path, "has no format line")
    return order, elements, line_end + 1


def _vertices(tables: dict[str, np.ndarray], path: str | Path) -> np.ndarray:
    table = tables.get("vertex")
    if table is None or not {"x", "y", "z"} <= set(table.dtype.names or ()):
        raise DataFileError(path, "has no element vertex with x, y, z")
    vertices = np.stack([table[axis] for axis in "xyz"], axis=1).astype(np.float64)
    if vertices.ndim != 2 or not np.isfinite(vertices).all():
        raise DataFileError(path, "has vertices that are not finite")
    return vertices


def _faces(tables: dict[str, np.ndarray], path: str | Path) -> np.ndarray:
    table = tables.get("face")
    names = [] if table is None else [name for name in table.dtype.names or () if name.startswith("vertex_ind")]
    if not names or table[names[0]].ndim != 2 or table[names[0]].dtype.kind not in "iu":
        raise DataFileError(path, "has no element face with a list of integers vertex_indices")
    faces = table[names[0]].astype(np.int64)
    if faces.size and (faces.min() < 0 or faces.max() >= len(tables["vertex"])):
        raise DataFileError(path, f"has faces of vertex {faces.max()}; there are {len(tables['vertex'])} vertices")
    return faces
