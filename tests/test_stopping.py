import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from light_package import light_package

from bifusion_hf import stopping
from bifusion_hf.cli.entry import command
from bifusion_hf.import_utils import running_command
from bifusion_hf.stopping import Stopped, StopRequested, StopSignals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_noted(number, status, capfd):
    with StopSignals("this frame") as signals:
        os.kill(os.getpid(), number)
        assert signals.number == number
        # A launcher passes on what the terminal has sent already.
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.number == number and Stopped(number).code == status
    assert capfd.readouterr().err.count("stopping after this frame") == 1


def test_a_second_interruption_ends_at_once(monkeypatch):
    monkeypatch.setattr(stopping, "_SECOND_AFTER", 0.0)
    with pytest.raises(KeyboardInterrupt), StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_only_what_needs_no_end_is_interrupted():
    with StopSignals() as signals:
        with signals.interruptible():
            pass
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StopRequested), signals.interruptible():
            raise AssertionError("a signal that came before")
    with StopSignals() as signals, pytest.raises(StopRequested), signals.interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
    # Without handlers there is nothing to let through.
    with StopSignals().interruptible():
        pass


def test_another_thread_leaves_the_signals_alone():
    seen = []

    def work():
        with StopSignals() as signals, stopping.terminable():
            seen.append((signal.getsignal(signal.SIGTERM), signals.number))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(signal.SIG_DFL, 0)]


def test_a_command_that_is_terminated_takes_half_written_files_away(tmp_path, capsys):
    from bifusion_hf.io.atomic import new_file

    @command("do-it")
    def main(argv=None):
        with new_file(tmp_path / "result") as partial:
            partial.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 143 and capsys.readouterr().err == "do-it: stopped by SIGTERM\n"
    assert not list(tmp_path.iterdir()) and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("argv", "original", "name"),
    [
        (["/usr/bin/bifusion-check", "tiny"], ["python", "/usr/bin/bifusion-check", "tiny"], "bifusion-check"),
        (["-m", "x"], ["python", "-m", "bifusion_hf.cli.convert_sv3d", "x"], "bifusion-convert-sv3d"),
        (["-m"], ["python", "-m", "pytest"], None),
        (["-c"], ["python", "-c", "import bifusion_hf"], None),
        (["train.py"], ["python", "-u", "train.py"], None),
    ],
)
def test_which_command_a_process_is(argv, original, name, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert running_command() == name


def test_a_command_that_is_interrupted_while_it_is_imported_leaves_no_traceback(tmp_path):
    # What the package imports first.
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), str(Path(stopping.__file__).parents[1])])
    found = subprocess.run(
        [sys.executable, "-m", "bifusion_hf.cli.predict"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (found.returncode, found.stderr) == (130, "bifusion-predict: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_whose_exception_is_ignored_comes_again(number):
    class Dies:
        def __del__(self):
            signal.raise_signal(number)

    hook = sys.unraisablehook
    with pytest.raises((KeyboardInterrupt, Stopped)), stopping.terminable():
        dies = Dies()
        del dies
        time.sleep(20)
        pytest.fail("nothing came")
    assert sys.unraisablehook is hook


def test_other_exceptions_that_are_ignored_are_told_as_before(monkeypatch):
    class Dies:
        def __del__(self):
            raise LookupError("its own")

    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda ignored: seen.append(str(ignored.exc_value)))
    with stopping.terminable():
        dies = Dies()
        del dies
    assert seen == ["its own"]


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="needs signals of children")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_stop_the_end_of_a_worker_is_no_error(number):
    def complain(*_arguments):
        raise RuntimeError("a worker died, as torch would say")

    before = signal.signal(signal.SIGCHLD, complain)
    try:
        with pytest.raises((KeyboardInterrupt, Stopped)), stopping.terminable():
            worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            try:
                os.kill(os.getpid(), number)
            finally:
                worker.kill()
                worker.wait()
    finally:
        signal.signal(signal.SIGCHLD, before)


POOL = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor

from bifusion_hf.stopping import end_with_the_parent


def work(_):
    time.sleep(0.3)
    return os.getpid()


if __name__ == "__main__":
    initializer = end_with_the_parent if sys.argv[1] == "watched" else None
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(2, mp_context=context, initializer=initializer) as pool:
        print(*set(pool.map(work, range(4))), flush=True)
        time.sleep(600)
"""


def _lives(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
@pytest.mark.parametrize("kind", ["watched", "plain"])
def test_workers_of_a_killed_pool_end(kind, tmp_path):
    """Those of a plain pool wait for ever; else this test would show nothing."""
    (tmp_path / "pool.py").write_text(POOL)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "pool.py"), kind],
        env=light_package(tmp_path),
        # The fork server looks for modules where it is started, first of all.
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    workers = [int(word) for word in process.stdout.readline().split()]
    process.kill()
    process.wait(30)
    end = time.monotonic() + (60 if kind == "watched" else 2)
    try:
        while (left := [worker for worker in workers if _lives(worker)]) and time.monotonic() < end:
            time.sleep(0.1)
        assert workers and (left == [] if kind == "watched" else left == workers)
    finally:
        for worker in filter(_lives, workers):
            os.kill(worker, signal.SIGKILL)
