"""Runs of tests by the mutation run, on a small package."""

import gc
import json
import subprocess
import sys
import time

import pytest

from scripts.mutation import runner
from scripts.mutation.faults import Fault


PACKAGE = '''"""Doc."""
LIMIT = 3


def load(size=4):
    """Doc."""
    if size > LIMIT:
        values = [size
                  + 1]
    else:
        values = []

    def inner():
        return 1

    return values


class Loop:
    def run(self):
        try:
            for _ in range(2):
                load(0)
        except ValueError:
            return None
        return 5
'''
TESTS = """
import pytest
from package.part import Loop, load

@pytest.fixture(scope="module")
def loaded():
    return load()

def test_first(loaded):
    assert loaded

def test_second(loaded):
    assert loaded == [5]

def test_loop():
    assert Loop().run() == 5

def test_broken():
    raise RuntimeError
"""
RECORD = """
import json, sys
from pathlib import Path
import pytest
from scripts.mutation.reached import ReachedStatements
plugin = ReachedStatements("package", str(Path("package").resolve()))
sys.path.insert(0, ".")
pytest.main(["-q", "-p", "no:cacheprovider", "test_part.py"], plugins=[plugin])
Path("found.json").write_text(json.dumps([plugin.lines(), plugin.failed, plugin.seconds]))
"""


def test_statements_are_told_by_test_and_those_of_a_shared_fixture_for_all_that_use_it(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "part.py").write_text(PACKAGE)
    (tmp_path / "test_part.py").write_text(TESTS)
    environment = {"PYTHONPATH": str(runner.ROOT), "PATH": ""}
    subprocess.run([sys.executable, "-c", RECORD], cwd=tmp_path, env=environment, check=True)
    lines, failed, seconds = json.loads((tmp_path / "found.json").read_text())
    lines = {test.partition("::")[2]: by_file.get("part.py") for test, by_file in lines.items()}
    loaded = [5, 6, 7, 8, 9, 13, 16]
    # `return 1` of a function that nobody calls, and the other branch, are not reached.
    assert lines["test_first"] == lines["test_second"] == loaded
    assert lines["test_loop"] == [5, 6, 7, 11, 13, 16, 20, 21, 22, 23, 26]
    assert lines["test_broken"] is None and failed == ["test_part.py::test_broken"]
    assert len(seconds) == 4


@pytest.fixture
def few(tmp_path, monkeypatch):
    """A runner in a folder of tests that pass, fail, run in circles and wait."""
    for name, body in {"pass": "pass", "fail": "assert 0", "circles": "while True: pass", "wait": "sleep(60)"}.items():
        (tmp_path / f"test_{name}.py").write_text(f"from time import sleep\ndef test_it():\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(runner.TestRunner, "_import_others", lambda *_: None)
    yield runner.TestRunner(tmp_path, tmp_path / "log.txt", [])
    gc.unfreeze()


def test_outcomes(few, monkeypatch):
    assert few.outcome(["test_pass.py"], 60) == "survived"
    assert few.outcome(["test_pass.py", "test_fail.py"], 60) == "noticed"
    monkeypatch.setattr(runner, "PATIENCE", 100)
    assert few.outcome(["test_circles.py"], 1) == "noticed", "by seconds of the processor, on a busy machine too"
    monkeypatch.setattr(runner, "PATIENCE", 1)
    start = time.monotonic()
    assert few.outcome(["test_wait.py"], 1) == "waiting"
    assert time.monotonic() - start < 30


def test_a_fault_is_there_as_long_as_it_is_tried(few, tmp_path):
    source = b"VALUE = 1\n"
    (tmp_path / "some.py").write_bytes(source)
    (tmp_path / "test_value.py").write_text("import some\n\ndef test_it():\n    assert some.VALUE == 1\n")
    (fault,) = [Fault("some.py", 1, "constant", 8, 9, "2")]
    with few.fault(fault, source):
        assert (tmp_path / "some.py").read_text() == "VALUE = 2\n"
        assert few.outcome(["test_value.py"], 60) == "noticed"
    assert (tmp_path / "some.py").read_bytes() == source
    assert few.outcome(["test_value.py"], 60) == "survived"
