"""The house holds: no circle of imports between files, and imports run one way between folders.

Every import counts, at run time, inside functions and for types alone.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = "bifusion_hf"
# A file imports from its own folder and from those of earlier lines.
LEVELS = (
    {"assets"},
    {"import_utils", "io", "labels", "old_names", "stopping", "version"},
    {"batch", "boxes", "mask_parts", "presets", "recipe", "sparse", "superpoints"},
    {"configuration_bifusion", "data"},
    {"labeling", "layers", "postprocessing", "rooms", "visualization"},
    {"losses", "results"},
    {"modeling_bifusion", "processing_bifusion"},
    {"pipeline_bifusion", "weights"},
    {"scenes"},
    {"evaluation"},
    {"demo", "hub", "training"},
    {"prediction"},
    {"cli"},
)
# Goes with a release, where it stands alone; nothing in the package imports it as code.
STANDS_ALONE = {"bifusion_hf.hub.remote_code_shim"}


class Import(NamedTuple):
    """One import of the file `source`."""

    source: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_modules(root: Path, folder: str) -> dict[str, Path]:
    return {module_name(path, root): path for path in sorted((root / folder).rglob("*.py"))}


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> Iterator[Import]:
    """The imports of a file: of modules by their whole names, of what they hold by the module's."""
    folder = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            above = folder.split(".")[: len(folder.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield Import(name, whole if whole in modules else base, node.lineno)


def read_imports(root: Path, folder: str) -> list[Import]:
    modules = find_modules(root, folder)
    return [found for name, path in modules.items() for found in imports_of(name, path, modules)]


def find_circle(imports: list[Import]) -> list[Import]:
    """The imports of a shortest circle between files; empty where there is none."""
    edges: dict[str, list[Import]] = {}
    for found in imports:
        if found.source != found.target:
            edges.setdefault(found.source, []).append(found)
    best: list[Import] = []
    for start in edges:
        # Breadth first, so that the first way back is a shortest one.
        ways, seen = [[found] for found in edges[start]], set()
        for way in ways:
            target = way[-1].target
            if target == start:
                best = way if not best or len(way) < len(best) else best
                break
            if target not in seen:
                seen.add(target)
                ways += [[*way, found] for found in edges.get(target, [])]
    return best


def level_of(name: str) -> int | None:
    part = name.split(".")[1] if "." in name else ""
    return next((level for level, names in enumerate(LEVELS) if part in names), None)


def against_the_direction(imports: list[Import]) -> list[Import]:
    """Imports of a folder that is not below the file's own."""
    wrong = []
    for found in imports:
        if found.source == PACKAGE or not found.target.startswith(PACKAGE) or found.source in STANDS_ALONE:
            continue
        is_own = found.source.split(".")[:2] == found.target.split(".")[:2]
        target, source = level_of(found.target), level_of(found.source)
        if not is_own and (target is None or source is None or target >= source):
            wrong.append(found)
    return wrong


@pytest.fixture(scope="module")
def package_imports():
    return read_imports(ROOT, PACKAGE)


def test_no_circle_of_imports_between_files(package_imports):
    circle = find_circle(package_imports)
    assert not circle, "\n".join(map(str, circle))


def test_imports_run_one_way_between_folders(package_imports):
    wrong = against_the_direction(package_imports)
    assert not wrong, "\n".join(map(str, wrong))


def test_every_folder_has_a_level(package_imports):
    found = {name.split(".")[1] for name in find_modules(ROOT, PACKAGE) if "." in name}
    assert found == set().union(*LEVELS)


def test_the_package_imports_neither_scripts_nor_tests(package_imports):
    tests = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    wrong = [found for found in package_imports if found.target.split(".")[0] in {"scripts", "tests", *tests}]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize(
    ("text", "circle"),
    [
        ("from .b import x", ["p.a:1 imports p.b", "p.b:1 imports p.a"]),
        ("def f():\n    from p import b", ["p.a:2 imports p.b", "p.b:1 imports p.a"]),
        ("import typing\nif typing.TYPE_CHECKING:\n    import p.b", ["p.a:3 imports p.b", "p.b:1 imports p.a"]),
        ("import p", []),
        ("from .c import x", ["p.a:1 imports p.c", "p.c:1 imports p.b", "p.b:1 imports p.a"]),
    ],
)
def test_a_circle_is_found_wherever_the_import_stands(tmp_path, text, circle):
    (tmp_path / "p").mkdir()
    for name, content in (("__init__", ""), ("a", text), ("b", "from . import a"), ("c", "from .b import y")):
        (tmp_path / "p" / f"{name}.py").write_text(content)
    assert [str(found) for found in find_circle(read_imports(tmp_path, "p"))] == circle


def test_an_import_against_the_direction_is_found():
    def check(source, target):
        return against_the_direction([Import(f"{PACKAGE}.{source}", f"{PACKAGE}.{target}", 1)])

    assert check("sparse.voxels", "layers.fusion") and check("data.frames", "processing_bifusion")
    assert check("recipe.arguments", "training.run") and check("training.run", "hub.release")
    assert check("layers.fusion", "nowhere") and check("io.files", "labels")
    assert not check("layers.fusion", "sparse.voxels") and not check("data.frames", "data.mixture")
    assert against_the_direction([Import(f"{PACKAGE}.cli.train", PACKAGE, 1)])
