"""Damage to valid inputs: to bytes, text, trees of JSON and YAML, headers that size an allocation, and archives."""

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


Generator = np.random.Generator

# What makes readers allocate, wrap around, or compare wrongly.
WHOLE_NUMBERS = (0, 1, -1, 127, 255, 65535, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, 10**13)
WORDS = (
    "",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-0.0",
    "abc",
    "1_000",
    "0x10",
    "\u0663",
    "\0",
    "null",
    "..",
    "/etc/passwd",
)
LINES = ("\ufeff", "\0", "{", "[" * 2000, "#", "\u2028", "- a: &a [*a]\n")
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "abc", "\0", "../../x", float("nan"), float("inf"), -0.5, 1e308, [], {}, [[]], {"a": {}}),
    *WHOLE_NUMBERS,
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def pick(options: Any, rng: Generator) -> Any:
    """One of a sequence, as it is."""
    return options[int(rng.integers(len(options)))]


def change_file(path: Path, rng: Generator) -> None:
    """Damages a file in place, by a way that fits its kind or, one time in three, byte by byte."""
    content = path.read_bytes()
    special = _BY_SUFFIX.get(path.suffix)
    changed = None
    if special is not None and rng.random() < 0.67:
        changed = special(content, rng)
    path.write_bytes(change_bytes(content, rng) if changed is None else changed)


def change_bytes(content: bytes, rng: Generator) -> bytes:
    """Bits turned, a number overwritten, or a stretch cut, repeated, blanked or put in."""
    # Headers are short and tell the most.
    end = min(len(content), 256) if rng.random() < 0.5 else len(content)
    place = int(rng.integers(max(end, 1)))
    length = int(2 ** rng.uniform(0, 10))
    way = pick(("bits", "number", "cut", "truncate", "repeat", "blank", "insert", "empty"), rng)
    if way == "bits":
        changed = bytearray(content)
        for position in rng.integers(max(end, 1), size=int(rng.integers(1, 9))):
            if position < len(changed):
                changed[position] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    if way == "number":
        width = pick((2, 4, 8), rng)
        number = pick(WHOLE_NUMBERS, rng) % 2 ** (8 * width)
        return content[:place] + number.to_bytes(width, pick(("little", "big"), rng)) + content[place + width :]
    return {
        "cut": content[:place] + content[place + length :],
        "truncate": content[:place],
        "repeat": content[:place] + content[place : place + length] * int(rng.integers(2, 9)) + content[place:],
        "blank": content[:place] + pick((b"\0", b"\xff", b" "), rng) * length + content[place + length :],
        "insert": content[:place] + rng.bytes(length) + content[place:],
        "empty": b"",
    }[way]


def change_text(content: bytes, rng: Generator) -> bytes | None:
    """Numbers, lines and encodings of a text."""
    text = content.decode("utf-8", "replace")
    way = pick(("number", "number", "line", "repeat", "junk", "utf-16", "latin-1", "long"), rng)
    if way == "number":
        found = list(_NUMBER.finditer(text))
        if not found:
            return None
        match = pick(found, rng)
        word = pick((*WORDS, *map(str, WHOLE_NUMBERS)), rng)
        return (text[: match.start()] + word + text[match.end() :]).encode()
    lines = text.splitlines(keepends=True) or [""]
    row = int(rng.integers(len(lines)))
    if way == "line":
        return "".join(lines[:row] + lines[row + 1 :]).encode()
    if way == "repeat":
        return "".join(lines[: row + 1] * int(rng.integers(2, 5)) + lines[row:]).encode()
    if way == "junk":
        return "".join([*lines[:row], pick(LINES, rng), *lines[row:]]).encode()
    if way == "long":
        return content + b" 1" * 200_000
    return text.encode(way, "replace")


def change_json(content: bytes, rng: Generator) -> bytes | None:
    """A value of a JSON tree exchanged, renamed, taken out, or buried deep; or its text damaged."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if rng.random() < 0.25:
        return change_text(content, rng)
    if rng.random() < 0.05:
        depth = int(rng.integers(100, 100_000))
        return b"[" * depth + b"]" * depth
    return json.dumps(change_tree(tree, rng)).encode()


def change_yaml(content: bytes, rng: Generator) -> bytes | None:
    """As `change_json`; or aliases of aliases, which a few letters unfold to billions of values."""
    import yaml

    if rng.random() < 0.1:
        levels = int(rng.integers(2, 12))
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, levels)]
        return content + b"\n" + "\n".join(lines).encode() + b"\n"
    # Of aliases, put in by an earlier damage, a changed copy would be all that they unfold to.
    if rng.random() < 0.3 or b"&a0" in content:
        return change_text(content, rng)
    try:
        return yaml.safe_dump(change_tree(yaml.safe_load(content), rng)).encode()
    except (yaml.YAMLError, RecursionError):
        return None


def change_tree(tree: Any, rng: Generator) -> Any:
    """A tree of lists and mappings with one place changed."""
    children: list[tuple[Any, Any]] = []
    _collect(tree, children)
    if not children:
        return pick(VALUES, rng)
    parent, key = pick(children, rng)
    way = pick(("value", "value", "value", "delete", "rename", "wrap", "same"), rng)
    if way == "delete":
        del parent[key]
    elif way == "rename" and isinstance(parent, dict):
        parent[pick(("x", "", f"{key}_", str(key).upper()), rng)] = parent.pop(key)
    elif way == "wrap":
        parent[key] = [parent[key]] * int(rng.integers(1, 4))
    elif way == "same":
        other, name = pick(children, rng)
        # As text and back, so that no value holds itself.
        parent[key] = json.loads(json.dumps(other[name]))
    else:
        parent[key] = pick(VALUES, rng)
    return tree


def _collect(tree: Any, children: list[tuple[Any, Any]]) -> None:
    places = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in places:
        children.append((tree, key))
        _collect(value, children)


def change_npy(content: bytes, rng: Generator) -> bytes | None:
    """Another shape, type or order in the header than the file has values for; now and then other values."""
    if rng.random() < 0.3:
        shape = pick(((3, 3), (4, 4), (24, 32), (24, 32, 3), (0,), (), (1, 1, 1)), rng)
        dtype = pick(("f8", "f4", "f2", "i8", "u2", "u1", "b1", "c8", "U4", "M8[s]"), rng)
        buffer = io.BytesIO()
        np.save(buffer, rng.integers(0, 3, shape).astype(dtype))
        return buffer.getvalue()
    shape = pick(
        ("(10000000000000,)", "(24, 32, 1000000)", "(-1, 4)", "(4,", "()", "(24.5, 2)", "(2147483648, 2147483648)"),
        rng,
    )
    dtype = pick(("'<f8'", "'<f4'", "'|O'", "'<U1000000000'", "'V8'", "[('a', '<f4')]", "'nonsense'"), rng)
    header = f"{{'descr': {dtype}, 'fortran_order': {pick((False, True, 7), rng)}, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content[128:]


def change_png(content: bytes, rng: Generator) -> bytes | None:
    """A header with sides, depth or colour type of its own and the right checksum."""
    if not content.startswith(b"\x89PNG") or len(content) < 33:
        return None
    width, height, *rest = struct.unpack(">IIBBBBB", content[16:29])
    sides = (0, 1, 7, 300, 5000, 65_535, 5_000_000, 2**31 - 1, 2**32 - 1)
    way = pick(("width", "height", "both", "kind"), rng)
    width = pick(sides, rng) if way in ("width", "both") else width
    height = pick(sides, rng) if way in ("height", "both") else height
    if way == "kind":
        rest[int(rng.integers(5))] = int(rng.integers(20))
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, *rest)
    return content[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]


def change_zip(content: bytes, rng: Generator) -> bytes | None:
    """A member damaged, renamed, missing, or made of a great many zeros; the archive itself is whole."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
    except Exception:  # damaged before: there is no telling what zipfile says
        return None
    if not members:
        return None
    name = pick(sorted(members), rng)
    way = pick(("damage", "damage", "rename", "missing", "zeros"), rng)
    member = members.pop(name)
    if way == "damage":
        change = _BY_SUFFIX.get(Path(name).suffix, change_bytes)
        if member[:1] in b"{[":
            change = change_json
        members[name] = change(member, rng) or change_bytes(member, rng)
    elif way == "rename":
        members[pick(("../x", "/x", "x", name.upper(), ""), rng)] = member
    elif way == "zeros":
        members[name] = bytes(50_000_000)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member_name, data in members.items():
            archive.writestr(member_name or "empty", data)
    return buffer.getvalue()


def change_safetensors(content: bytes, rng: Generator) -> bytes | None:
    """Another header: names, types, shapes and places of tensors, or its metadata."""
    if len(content) < 8:
        return None
    (length,) = struct.unpack("<Q", content[:8])
    changed = change_json(content[8 : 8 + length], rng)
    if changed is None:
        return None
    size = len(changed) if rng.random() < 0.8 else pick(WHOLE_NUMBERS, rng) % 2**63
    return struct.pack("<Q", size) + changed + content[8 + length :]


_BY_SUFFIX: dict[str, Callable[[bytes, Generator], bytes | None]] = {
    ".json": change_json,
    ".yaml": change_yaml,
    ".txt": change_text,
    ".log": change_text,
    ".npy": change_npy,
    ".npz": change_zip,
    ".r3d": change_zip,
    ".pt": change_zip,
    ".png": change_png,
    ".safetensors": change_safetensors,
}
