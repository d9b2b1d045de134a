"""Programs in forks of this process, which has imported everything already: to import it takes a program seconds.

A fork has what earlier tests left in this process, so one program of each kind starts as users start it. Where CUDA
runs in this process, which a fork cannot use, all of them do.
"""

import importlib
import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

import huggingface_hub
import torch
import transformers


# Modules of constants that come from the environment, and packages that copy them.
CONSTANTS = ("huggingface_hub.constants", "datasets.config")
COPYING = ("huggingface_hub", "datasets", "transformers", "bifusion_hf")


def run_python(
    code: str, arguments: Sequence[str] = (), fresh: bool = False, **options
) -> subprocess.CompletedProcess:
    """`python -c code *arguments`, in a fork or, with `fresh`, in a new process; for `options` see `_run_fork`."""
    if fresh or torch.cuda.is_initialized():
        return _run_new([sys.executable, "-c", code, *arguments], **options)
    return _run_fork(
        lambda: exec(compile(code, "<string>", "exec"), {"__name__": "__main__"}), ["-c", *arguments], **options
    )


def run_command(words: Sequence[str], fresh: bool = False, **options) -> subprocess.CompletedProcess:
    """A command of the package, `bifusion-NAME` and its arguments; the rest as of `run_python`."""
    if fresh or torch.cuda.is_initialized():
        return _run_new([str(Path(sys.executable).parent / words[0]), *words[1:]], **options)
    (entry,) = entry_points(group="console_scripts", name=words[0])
    return _run_fork(entry.load(), words, **options)


def _run_new(
    command: Sequence[str], environment: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 600
) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=environment, cwd=cwd, timeout=timeout, capture_output=True, text=True)


def _run_fork(
    program: Callable[[], object],
    argv: Sequence[str],
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess:
    """Calls a program in a fork of this process, and tells what it printed and how it ended.

    Args:
        program: Called without arguments; a SystemExit ends it as it would end Python.
        argv: Its sys.argv.
        environment: None = that of this process. What packages have read from it is read once more.
        cwd: None = where this process is.
        timeout: Seconds.

    Raises:
        subprocess.TimeoutExpired: It took longer, and was killed.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = os.fork()
        if process == 0:
            status = 70
            try:
                _redirect(output.fileno(), errors.fileno())
                status = _run(program, argv, environment, cwd)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                # No test, fixture or handler of the parent goes on here.
                os._exit(status)
        status = _wait(process, argv, timeout)
        printed = []
        for file in (output, errors):
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess(list(argv), status, *printed)


def _redirect(output: int, errors: int) -> None:
    for source, target in ((output, 1), (errors, 2)):
        os.dup2(source, target)
    old = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8", write_through=True)
    for reference in logging._handlerList:
        handler = reference()
        if isinstance(handler, logging.StreamHandler) and handler.stream in old:
            handler.stream = sys.stderr


def _run(
    program: Callable[[], object], argv: Sequence[str], environment: Mapping[str, str] | None, cwd: Path | None
) -> int:
    torch.set_num_threads(1)
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
        _read_environment_again()
    if cwd is not None:
        os.chdir(cwd)
    # An earlier test may have switched them off, as the commands do.
    transformers.utils.logging.enable_progress_bar()
    sys.argv = list(argv)
    try:
        program()
    except SystemExit as stop:
        if isinstance(stop.code, int) or stop.code is None:
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _read_environment_again() -> None:
    """Gives constants that were read from the environment the values that it has now."""
    for name in CONSTANTS:
        constants = sys.modules.get(name)
        if constants is None:
            continue
        before = dict(vars(constants))
        importlib.reload(constants)
        changed = {key: value for key, value in vars(constants).items() if key.isupper() and before.get(key) != value}
        for module in [module for key, module in sys.modules.items() if key.split(".")[0] in COPYING]:
            for key, value in changed.items():
                if key in vars(module) and vars(module)[key] == before.get(key):
                    setattr(module, key, value)
    huggingface_hub.hf_api.api.endpoint = huggingface_hub.constants.ENDPOINT
    transformers.utils.hub.HF_MODULES_CACHE = os.path.join(huggingface_hub.constants.HF_HOME, "modules")


def _wait(process: int, argv: Sequence[str], timeout: float) -> int:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise subprocess.TimeoutExpired(list(argv), timeout)
