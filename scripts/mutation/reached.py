"""A pytest plugin that records which lines of the package each test reaches, and how long it takes."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from types import CodeType, FrameType

import pytest


class ReachedLines:
    """Lines by test.

    What runs in other processes is not seen.

    Args:
        folder: Only files below it are recorded.
    """

    def __init__(self, folder: str):
        self.folder = folder.rstrip(os.sep) + os.sep
        self.lines: dict[str, set[tuple[str, int]]] = {}
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self._current: set[tuple[str, int]] = set()
        self._names: dict[CodeType, str | None] = {}

    def _trace_call(self, frame: FrameType, event: str, argument: object):
        code = frame.f_code
        if code not in self._names:
            inside = code.co_filename.startswith(self.folder)
            self._names[code] = code.co_filename.removeprefix(self.folder) if inside else None
        name = self._names[code]
        if name is None:
            return None
        seen = self._current

        def trace_line(frame: FrameType, event: str, argument: object):
            seen.add((name, frame.f_lineno))
            return trace_line

        return trace_line(frame, event, argument)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """A test with its fixtures."""
        self._current = self.lines[item.nodeid] = set()
        start = time.perf_counter()
        threading.settrace(self._trace_call)
        sys.settrace(self._trace_call)
        yield
        sys.settrace(None)
        threading.settrace(None)
        self.seconds[item.nodeid] = time.perf_counter() - start

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tests that fail without any fault can notice none."""
        if report.failed:
            self.failed.append(report.nodeid)
