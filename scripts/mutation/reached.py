"""A pytest plugin that records which statements of the package each test reaches, and what it costs.

A trace function makes the tests ten times slower (Python 3.12 has a better way; 3.10 is supported). So the package is
imported with a mark before each statement of a function; files are left as they are, and so are tracebacks.
"""

import ast
import builtins
import importlib.abc
import importlib.machinery
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType

import pytest


# The built-in function that marks call.
MARK = "__reached_statement__"


class ReachedStatements:
    """Lines by test: of each statement that was reached, all lines, without those of the statements within.

    What runs at import, or in other processes, is not seen. What a fixture of a module or of the session reaches
    counts for every test that asks for it: they all look at what came of it.

    Args:
        package: Name of the package.
        folder: Where it lies.
    """

    def __init__(self, package: str, folder: str):
        self.package = package
        self.folder = Path(folder)
        self.tests: dict[str, set[int]] = {}
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self._spans: list[tuple[str, int, int]] = []
        self._current: set[int] = set()
        self._of_fixture: dict[object, set[int]] = defaultdict(set)
        setattr(builtins, MARK, self._current.add)
        sys.meta_path.insert(0, _Finder(self))

    def lines(self) -> dict[str, dict[str, list[int]]]:
        """Lines by test and file below the package."""
        found = {}
        for test, marks in self.tests.items():
            by_file = defaultdict(set)
            for name, first, last in map(self._spans.__getitem__, marks):
                by_file[name].update(range(first, last + 1))
            found[test] = {name: sorted(lines) for name, lines in by_file.items()}
        return found

    def compile(self, source: bytes, path: str) -> CodeType:
        """The code of a file with marks in it."""
        tree = ast.parse(source)
        name = Path(path).relative_to(self.folder).as_posix()
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                # With the arguments' defaults, and the documentation.
                documented = ast.get_docstring(node, clean=False) is not None
                start = node.body[1 if documented else 0] if len(node.body) > documented else node.body[-1]
                entry = self._mark(name, first, start.lineno - 1, node.body[0])
                body = self._marked(name, node.body[documented:])
                node.body = [*node.body[:documented], entry, *body]
        return compile(tree, path, "exec", dont_inherit=True)

    def _marked(self, name: str, body: list[ast.stmt]) -> list[ast.stmt]:
        """Statements, each behind its mark, and those within them; functions within get theirs as functions."""
        found = []
        for node in body:
            inner = []
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                holders = [node, *getattr(node, "handlers", []), *getattr(node, "cases", [])]
                for holder in holders:
                    for field in ("body", "orelse", "finalbody"):
                        block = getattr(holder, field, None)
                        if isinstance(block, list) and block:
                            inner.append(block[0].lineno)
                            setattr(holder, field, self._marked(name, block))
            else:
                inner.append(node.body[0].lineno)
            last = min(inner) - 1 if inner else node.end_lineno
            found += [self._mark(name, node.lineno, max(last, node.lineno), node), node]
        return found

    def _mark(self, name: str, first: int, last: int, node: ast.stmt) -> ast.stmt:
        self._spans.append((name, first, last))
        mark = ast.parse(f"{MARK}({len(self._spans) - 1})").body[0]
        for part in ast.walk(mark):
            ast.copy_location(part, node)
        return mark

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """A test with its fixtures."""
        self._current.clear()
        start = _processor_seconds()
        yield
        self.seconds[item.nodeid] = _processor_seconds() - start
        self.tests[item.nodeid] = set(self._current)
        for definitions in getattr(item, "_fixtureinfo").name2fixturedefs.values():  # noqa: B009
            for definition in definitions:
                self.tests[item.nodeid] |= self._of_fixture.get(definition, set())

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef) -> Iterator[None]:
        """A fixture that several tests may share."""
        if fixturedef.scope == "function":
            yield
            return
        before = set(self._current)
        self._current.clear()
        yield
        self._of_fixture[fixturedef] |= self._current
        self._current |= before

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tests that fail without any fault can notice none."""
        if report.failed:
            self.failed.append(report.nodeid)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, reached: ReachedStatements):
        self.reached = reached

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] != self.reached.package:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path, self.reached)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, reached: ReachedStatements):
        super().__init__(name, path)
        self.reached = reached

    def get_code(self, fullname: str) -> CodeType:
        # Never from, or to, a compiled file.
        return self.reached.compile(self.get_data(self.path), self.path)


def _processor_seconds() -> float:
    """Of this process and of those it waited for: a busy machine changes nothing."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
