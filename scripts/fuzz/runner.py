"""Runs damaged inputs in a process of their own, within bounds of time and memory, and says how each ended."""

import itertools
import multiprocessing
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .targets import Target, all_targets


# An input is a few kilobytes: what takes longer, or more, was blown up.
SECONDS = 20
GIBIBYTES = 3
OK, REFUSED, LIBRARY, HANG, CRASH = "ok", "refused by name", "library's message", "hang", "crash"
OUTCOMES = (OK, REFUSED, LIBRARY, HANG, CRASH)
FAILURES = (LIBRARY, HANG, CRASH)
_OWN_TYPES = (ValueError, OSError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


@dataclass(frozen=True)
class Outcome:
    """How an input ended.

    Args:
        target: Name of its kind.
        number: With the kind and the seed it makes the input.
        outcome: One of `OUTCOMES`.
        error: Type and message, or where it crashed.
        seconds: That it took.
    """

    target: str
    number: int
    outcome: str
    error: str = ""
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def make_input(target: Target, seed: int, number: int, folder: Path) -> None:
    """Writes input `number` of a kind into an empty folder; the same one for the same seed."""
    target.write(folder)
    target.damage(folder, np.random.default_rng([seed, zlib.crc32(target.name.encode()), number]))


def try_input(target: Target, folder: Path) -> tuple[str, str]:
    """Reads an input in this process: the outcome, and the error's type and message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(folder)
    except MemoryError as error:
        return CRASH, f"MemoryError: {error}"
    except Exception as error:  # whatever it is, it is the result
        text = f"{type(error).__name__}: {error}"
        names = [folder.name, *target.words, *(path.stem for path in folder.rglob("*"))]
        own = type(error) in _OWN_TYPES or type(error).__module__.startswith(("bifusion_hf", "huggingface_hub"))
        if own and any(name in str(error) for name in names):
            return REFUSED, text
        where = traceback.extract_tb(error.__traceback__)[-1]
        return LIBRARY, f"{text} [{Path(where.filename).name}:{where.lineno}]"
    return OK, ""


def _serve(connection: Any, seed: int, make_targets: Callable[[], dict[str, Target]]) -> None:
    """A worker: takes (kind, number) and folders, and sends what `try_input` gave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    targets = make_targets()
    # Above what the libraries have taken by now.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + GIBIBYTES * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send(None)
    while True:
        name, number, folder = connection.recv()
        make_input(targets[name], seed, number, folder)
        connection.send("made")
        connection.send(try_input(targets[name], folder))


class Runner:
    """A worker process that is started anew after a hang or a crash; a context manager.

    Args:
        seed: Of all inputs.
        keep: Folder for the inputs that ended badly.
        seconds: Bound for an input.
        targets: Gives the kinds of inputs; called in the worker.
    """

    def __init__(
        self,
        seed: int,
        keep: Path | None = None,
        seconds: float = SECONDS,
        targets: Callable[[], dict[str, Target]] = all_targets,
    ):
        self.seed, self.keep, self.seconds, self.targets = seed, keep, seconds, targets
        self._process: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> "Runner":
        self._scratch = Path(tempfile.mkdtemp(prefix="bifusion_fuzz_"))
        return self

    def __exit__(self, *_error: Any) -> None:
        self._stop()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def run(self, target: str, number: int) -> Outcome:
        """Makes an input and reads it."""
        if self._process is None:
            self._start()
        # Of a name that no message holds by chance.
        folder = self._scratch / f"fuzzed_input_{number}"
        folder.mkdir()
        started = time.monotonic()
        try:
            self._connection.send((target, number, folder))
            self._receive(60)
            started = time.monotonic()
            outcome, error = self._receive(self.seconds)
        except TimeoutError:
            outcome, error = HANG, f"over {self.seconds:.0f} s"
        except (EOFError, OSError):
            self._process.join(5)
            outcome, error = CRASH, f"exit status {self._process.exitcode}"
        seconds = time.monotonic() - started
        if outcome in (HANG, CRASH):
            self._stop()
        if outcome in FAILURES and self.keep is not None:
            shutil.copytree(folder, self.keep / f"{target}-{number}", dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        return Outcome(target, number, outcome, error, round(seconds, 3))

    def _receive(self, seconds: float) -> Any:
        if not self._connection.poll(seconds):
            raise TimeoutError
        return self._connection.recv()

    def _start(self) -> None:
        # Imports take longer than most inputs: they are there once, in the server that workers are forks of.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["bifusion_hf", __name__])
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self.seed, self.targets), daemon=True)
        self._process.start()
        other.close()
        self._receive(300)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def run_inputs(
    names: list[str], runner: Runner, *, count: int | None = None, until: float | None = None, start: int = 0
) -> Iterator[Outcome]:
    """Inputs of all kinds in turn.

    Args:
        names: The kinds.
        runner: What runs them.
        count: So many in all.
        until: Stop at this time of `time.monotonic`.
        start: Number of the first input of each kind.
    """
    done = 0
    for number in itertools.count(start):
        for name in names:
            if (count is not None and done >= count) or (until is not None and time.monotonic() >= until):
                return
            yield runner.run(name, number)
            done += 1
