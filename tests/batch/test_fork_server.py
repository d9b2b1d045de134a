import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from bifusion_hf import batch
from bifusion_hf.batch import fork_server
from bifusion_hf.batch.fork_server import fork_server_context
from scripts.interrupts import members


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
# In place of the package's: the fork server alone, which has no program, takes long to import it.
SLOW = """
import sys, time
__path__ = [{package!r}]
if sys.argv == ["-c"]:
    open({mark!r}, "w").close()
    time.sleep(60)
"""
PROGRAM = """
from bifusion_hf.batch import LocalEngine
from bifusion_hf.stopping import terminable

if __name__ == "__main__":
    with terminable():
        dict(LocalEngine(2).run(dict, {"a": 1, "b": 2}))
"""


def test_the_fork_server_is_given_its_modules_and_interrupts_come_through_again(monkeypatch):
    done = []
    monkeypatch.setattr(ForkServerContext, "set_forkserver_preload", lambda _, names: done.append(names))
    for module in (resource_tracker, forkserver):
        monkeypatch.setattr(
            module,
            "ensure_running",
            lambda: done.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    context = fork_server_context(("json", "csv"))
    assert context.get_start_method() == "forkserver"
    # The tracker of resources first, and the server while a Ctrl-C is held back.
    assert done == [["json", "csv"], False, True]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.parametrize(("ends", "killed"), [([7, 7], []), ([None, None], []), ([None, 8], [8]), ([7, 8], [8])])
def test_only_a_fork_server_that_was_started_within_is_ended(monkeypatch, ends, killed):
    found = []
    monkeypatch.setattr(fork_server, "_process", iter(ends).__next__)
    monkeypatch.setattr(os, "kill", lambda process, number: found.append((process, number)))
    with pytest.raises(KeyboardInterrupt), fork_server.ended_when_stopped():
        raise KeyboardInterrupt
    assert found == [(process, signal.SIGKILL) for process in killed]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_the_fork_server_imports_leaves_no_process(number, tmp_path):
    (tmp_path / "bifusion_hf").mkdir()
    package, mark = Path(batch.__file__).parents[1], tmp_path / "importing"
    (tmp_path / "bifusion_hf/__init__.py").write_text(SLOW.format(package=str(package), mark=str(mark)))
    (tmp_path / "program.py").write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        # The fork server looks for modules where it is started, first of all.
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            end = time.monotonic() + 60
            while not mark.exists() and time.monotonic() < end:
                time.sleep(0.05)
            # Itself, the tracker of resources and the fork server; a Ctrl-C comes to all, SIGTERM to the program.
            assert len(members(process.pid)) == 3
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            status, end = process.wait(20), time.monotonic() + 10
            while (left := members(process.pid)) and time.monotonic() < end:
                time.sleep(0.05)
            assert left == []
            assert status == {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 128 + signal.SIGTERM}[number]
            assert process.stderr.read().count("Traceback") == (number == signal.SIGINT)
        finally:
            for each in members(process.pid):
                os.kill(each, signal.SIGKILL)
