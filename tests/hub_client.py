"""Clients of `hub_server`, each in a process of its own, for huggingface_hub reads the address when it is imported.

Importing everything takes seconds, a fork of this process hundredths: so a client is a fork, in which what was read
from the environment is read once more.
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
from collections.abc import Mapping, Sequence
from pathlib import Path

import huggingface_hub
import torch
import transformers
from hub_server import TOKEN, HubServer


# Modules of constants that come from the environment, and packages that copy them.
CONSTANTS = ("huggingface_hub.constants", "datasets.config")
COPYING = ("huggingface_hub", "datasets", "transformers", "bifusion_hf")
# The client waits up to 24 seconds before it believes that the network is down.
IMPATIENCE = "import time; _sleep = time.sleep; time.sleep = lambda seconds: _sleep(min(seconds, 0.02))"


def run_python(
    code: str,
    hub: HubServer,
    home: Path,
    *arguments: str,
    token: str | None = TOKEN,
    fresh: bool = False,
    **environment: str,
) -> subprocess.CompletedProcess:
    """Runs code in a process of its own whose Hub is the stand-in and whose caches lie in `home`.

    Args:
        code: Python source; `arguments` are its sys.argv[1:].
        hub: The server (running or stopped).
        home: HF_HOME; the same folder again means the same cache.
        arguments: Strings.
        token: Of the client; None = not logged in.
        fresh: A new process that has imported nothing, in place of a fork.
        environment: Further variables, such as HF_HUB_OFFLINE="1".
    """
    variables = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    variables |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "30"}
    variables |= {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        variables.pop(name, None)
    if token is not None:
        variables["HF_TOKEN"] = token
    variables |= environment
    code = f"{IMPATIENCE}\n{code}"
    # CUDA that an earlier test has started does not work in a fork.
    if not fresh and not torch.cuda.is_initialized():
        return _run_fork(code, arguments, variables)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)


def _run_fork(
    code: str, arguments: Sequence[str], environment: Mapping[str, str], timeout: float = 600
) -> subprocess.CompletedProcess:
    """`python -c code *arguments` with this environment, and what it printed."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = os.fork()
        if process == 0:
            status = 70
            try:
                _redirect(output.fileno(), errors.fileno())
                status = _run(code, arguments, environment)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                # No test, fixture or handler of the parent goes on here.
                os._exit(status)
        status = _wait(process, timeout)
        printed = []
        for file in (output, errors):
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess(["python", "-c", code, *arguments], status, *printed)


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


def _run(code: str, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(environment)
    read_environment_again()
    # An earlier test may have switched them off, as the commands do.
    transformers.utils.logging.enable_progress_bar()
    sys.argv = ["-c", *arguments]
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        if isinstance(stop.code, int) or stop.code is None:
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def read_environment_again() -> None:
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


def _wait(process: int, timeout: float) -> int:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise subprocess.TimeoutExpired("python -c", timeout)
