"""Runs tests on a copy of the repository that has a fault in it.

Importing torch and transformers takes longer than most tests, so this process imports what the package needs from
elsewhere once, and every run is a fork of it that imports the package anew.
"""

import contextlib
import gc
import math
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .faults import Fault


ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "bifusion_hf"
# First folders or files below the package -> tests that belong to them beside the mirrored ones.
NETWORK = ["tests/test_slow_network.py", "tests/test_initialisation.py"]
PROCESSING = [
    *("tests/test_processing_bifusion.py", "tests/test_processing_inputs.py"),
    *("tests/test_processing_results.py", "tests/test_processing_settings.py"),
]
NEIGHBOURS = {
    "layers": [
        *("tests/test_modeling_bifusion.py", "tests/test_configuration_fields.py", *NETWORK),
        *("tests/losses/test_window_losses.py", "tests/test_device_map.py", "tests/test_old_names.py"),
    ],
    "losses": ["tests/test_modeling_bifusion.py", "tests/test_configuration_fields.py"],
    "sparse": NETWORK,
    "training": ["tests/recipe", "tests/cli/test_check_cli.py"],
    "evaluation": ["tests/cli/test_options_network.py"],
    "weights": ["tests/hub/test_revisions.py"],
    "data": [
        *("tests/data/test_importing.py", "tests/training/test_recipe_keys.py", *PROCESSING[:2]),
        *("tests/cli/test_options_data.py", "tests/data/scannet/test_scannet_recordings.py"),
    ],
    "postprocessing.py": [*PROCESSING[2:], "tests/test_processing_fields.py"],
    "processing_bifusion.py": [
        *("tests/data/test_image_size.py", "tests/data/test_point_labels.py", "tests/test_configuration_fields.py"),
        *(*PROCESSING, "tests/test_processing_fields.py"),
    ],
    "mask_parts": ["tests/test_postprocessing.py", "tests/test_processing_fields.py"],
    "boxes.py": [*PROCESSING[2:], "tests/test_results_of_frames.py", "tests/visualization"],
    "results.py": [*PROCESSING[2:3], "tests/test_results_of_frames.py", "tests/test_pipeline_bifusion.py"],
    "scenes": ["tests/cli/test_scan_cli.py", "tests/evaluation/test_scene_evaluator.py"],
    "superpoints": PROCESSING[:2],
    "batch": ["tests/prediction", "tests/rooms/test_rooms_dataset.py"],
    "prediction": ["tests/cli/test_predict_cli.py"],
}
# Seconds of a busy machine for one of the processor.
PATIENCE = 5
# Memory of a run: a fault must not take the machine's. Python's threads and torch's pools need about one.
MEMORY = 8 << 30


# Which test files are asked about a fault, the nearest first.
BREADTHS = ("name", "folder", "neighbours")


def tests_of(path: str, root: Path) -> dict[str, list[str]]:
    """Test files of a source file by `BREADTHS`, each once.

    Those that have its name, the others of its mirrored folder, and its neighbours.
    """
    parts = Path(path).relative_to(PACKAGE).parts
    neighbours = NEIGHBOURS.get(parts[0], ())
    mirrored = "/".join(("tests", *parts[:-1])) if len(parts) > 1 else f"tests/test_{parts[0]}"
    while not (root / mirrored).exists() and mirrored != "tests":
        mirrored = str(Path(mirrored).parent)
    # A file at the top has no folder of its own.
    folder = _test_files(root, [] if mirrored == "tests" and neighbours else [mirrored])
    beside = _test_files(root, neighbours)
    missing = [test for test in folder + beside if not (root / test).exists()]
    if missing:
        raise FileNotFoundError(f"{path}: no tests {missing}; NEIGHBOURS of {Path(__file__).name} names them")
    name = parts[-2] if parts[-1] == "__init__.py" else Path(path).stem
    near = [test for test in folder if name in Path(test).stem]
    folder = [test for test in folder if test not in near]
    return {"name": near, "folder": folder, "neighbours": [test for test in beside if test not in near + folder]}


def _test_files(root: Path, names: Sequence[str]) -> list[str]:
    found = []
    for test in names:
        found += sorted((root / test).rglob("test_*.py")) if (root / test).is_dir() else [root / test]
    return list(dict.fromkeys(test.relative_to(root).as_posix() for test in found))


def copy_tree(target: Path) -> None:
    """A copy of the repository as git sees it, uncommitted files included; nothing lies beside it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


class TestRunner:
    """Runs tests in a copy of the repository, each time in a fork.

    Args:
        root: The copy.
        log: Where the last run's output goes.
        tests: Files of tests; what they and the package import from elsewhere is imported once for all forks.
    """

    def __init__(self, root: Path, log: Path, tests: Sequence[str]):
        self.root = root
        self.log = log
        os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=str(root))
        os.chdir(root)
        sys.path[:0] = [str(root)]
        # What does not change is compiled once for all forks.
        sys.dont_write_bytecode = False
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        self._context = multiprocessing.get_context("fork")
        self._stamp = time.time()
        self._import_others(tests)
        # Half of a fork's time would go into looking through all these modules for garbage.
        gc.freeze()

    def _import_others(self, tests: Sequence[str]) -> None:
        for name in self.call(_imported_names, 600, list(tests)) or ():
            with contextlib.suppress(Exception):
                __import__(name)

    def call(self, function: Callable, seconds: float, *arguments: object) -> object:
        """`function(*arguments)` in a fork; None where it takes too long or the process ends early.

        Args:
            function: What to call; its answer is pickled.
            seconds: Of the processor; a fork that waits for something is ended after `PATIENCE` times as long.
            arguments: Of the function.
        """
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_answer, args=(sender, str(self.log), seconds, function, arguments))
        process.start()
        sender.close()
        answer = None
        try:
            if receiver.poll(PATIENCE * seconds):
                with contextlib.suppress(EOFError):
                    answer = receiver.recv()
                process.join(5)
        finally:
            # The tests' own processes are in the group of the fork.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
        return answer

    def reached(self, test_file: str, seconds: float) -> dict | None:
        """What the tests of a file reach, and the seconds of the processor that they take; None for no end.

        {"lines": {test: {file: [line, ...]}}, "seconds": {test: float}, "failed": [test, ...]}
        """
        return self.call(_run_recorded, seconds, test_file, str(self.root / PACKAGE))

    @contextlib.contextmanager
    def fault(self, fault: Fault, source: bytes) -> Iterator[None]:
        """The fault is in the copy's file within the context."""
        path = self.root / fault.path
        try:
            self._write(path, fault.apply(source))
            yield
        finally:
            self._write(path, source)

    def _write(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        # Compiled files are found by time and size: no two contents may share a time.
        self._stamp += 2
        os.utime(path, (self._stamp, self._stamp))

    def outcome(self, tests: Sequence[str], seconds: float) -> str:
        """`"survived"` where all tests pass, `"noticed"` where one does not, `"waiting"` where they come to no end.

        A crash of the interpreter is noticed, and so is an endless loop: more seconds of the processor than `seconds`.
        """
        start = time.monotonic()
        status = self.call(_run, seconds, list(tests))
        if status is None:
            return "waiting" if time.monotonic() - start >= PATIENCE * seconds else "noticed"
        return "survived" if status == 0 else "noticed"

    def tail(self) -> str:
        """The end of the last run's output."""
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""


def _answer(sender, log: str, seconds: float, function: Callable, arguments: Sequence[object]) -> None:
    os.setsid()
    # A shell's job in the background ignores it, and what tests start would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 10))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    # On Linux each session has a niceness of its own among the others.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(os.nice(0)))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sender.send(function(*arguments))
    sender.close()
    sys.stdout.flush()
    os._exit(0)


def _imported_names(tests: list[str]) -> list[str]:
    """What tests, and what they import of the repository, import from elsewhere, in its order."""
    import pytest

    before = set(sys.modules)
    pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *tests])
    own = (PACKAGE, "scripts", "tests", "conftest", "test_")
    files = {name: getattr(sys.modules[name], "__file__", None) or "" for name in sys.modules if name not in before}
    here = str(Path.cwd())
    return [name for name, file in files.items() if not name.startswith(own) and not file.startswith(here)]


def _run(tests: list[str]) -> int:
    import pytest

    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def _run_recorded(test_file: str, folder: str) -> dict:
    import pytest

    from .reached import ReachedStatements

    plugin = ReachedStatements(PACKAGE, folder)
    import bifusion_hf

    if not Path(bifusion_hf.__file__).is_relative_to(folder):
        raise RuntimeError(f"the tests would import {bifusion_hf.__file__}; expected the copy in {folder}")
    pytest.main(["-q", "-p", "no:cacheprovider", test_file], plugins=[plugin])
    return {"lines": plugin.lines(), "seconds": plugin.seconds, "failed": plugin.failed}
