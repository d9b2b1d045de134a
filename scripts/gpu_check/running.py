"""Steps that are bounded in time and cannot harm each other, and a file that is whole after every number.

Each step runs in a process of its own, forked, so that nothing is imported twice, and an error on a device, a crash or
a kill stays in its step. The parent computes nothing: a device that it had started would not work in its children.
"""

import json
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


PASSED, FAILED, TIMED_OUT, SKIPPED = "passed", "failed", "timed out", "skipped"
# Name of a number, and the number: what a step has found so far.
Note = Callable[[str, Any], None]
ERROR_LINES = 12
# A step that would get less is not begun.
SHORTEST_SECONDS = 3.0


@dataclass(frozen=True)
class Step:
    """One measurement.

    Args:
        name: In the file and on the command line.
        about: What it shows, in a line.
        seconds: The most it may take.
        run: (settings, note) -> None; raises where what it looks at is wrong.
        is_required: Whether without it nothing else is worth running.
    """

    name: str
    about: str
    seconds: float
    run: Callable[[Any, Note], None]
    is_required: bool = False


def run_steps(
    steps: Sequence[Step],
    settings: Any,
    output: Path,
    *,
    skipped: Mapping[str, str],
    seconds: float,
    header: Mapping[str, Any],
) -> dict[str, Any]:
    """Runs steps one after the other; `output` is written before the first and after every number.

    What steps print goes into a file of the same name with the ending `.log`.

    Args:
        steps: In their order.
        settings: For the steps.
        output: The JSON file.
        skipped: Name of a step -> why it is left out.
        seconds: For all of them together.
        header: What else the file holds.

    Returns:
        What the file holds: `header`, `seconds`, and for each step its `status`, `seconds`, `found` and `error`.
    """
    begin, log = time.monotonic(), output.with_suffix(".log")
    output.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    result: dict[str, Any] = {**header, "steps": {step.name: {"status": "waiting"} for step in steps}}
    reasons = dict(skipped)
    for step in steps:
        left = seconds - (time.monotonic() - begin)
        if left < SHORTEST_SECONDS:
            reasons.setdefault(step.name, "no time was left")
        entry = result["steps"][step.name]
        if step.name in reasons:
            entry.update(status=SKIPPED, error=reasons[step.name])
        else:
            _run_step(step, settings, min(step.seconds, left), entry, log, lambda: _write(result, output, begin))
            if step.is_required and entry["status"] != PASSED:
                reasons.update({other.name: f"{step.name} {entry['status']}" for other in steps})
        _write(result, output, begin)
        print(_describe(step, entry), flush=True)
    return result


def _run_step(
    step: Step, settings: Any, seconds: float, entry: dict[str, Any], log: Path, write: Callable[[], None]
) -> None:
    """One step in a process of its own; `entry` is filled as numbers come."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(step, settings, sender, receiver, log))
    begin = time.monotonic()
    entry.update(status="running", found={})
    write()
    process.start()
    sender.close()
    ended = False
    while not ended:
        left = begin + seconds - time.monotonic()
        if left <= 0 or not receiver.poll(left):
            entry.update(status=TIMED_OUT, error=f"took more than {seconds:.0f} s")
            break
        try:
            kind, *content = receiver.recv()
        except EOFError:
            process.join()
            entry.update(status=FAILED, error=f"its process ended with {_ending(process.exitcode)}")
            break
        if kind == "note":
            name, value = content
            entry["found"][name] = _plain(value)
            write()
        else:
            ended = True
            entry.update(status=kind)
            if kind == FAILED:
                entry["error"] = content[0]
    _end(process)
    receiver.close()
    entry["seconds"] = round(time.monotonic() - begin, 2)


def _work(step: Step, settings: Any, sender: Connection, receiver: Connection, log: Path) -> None:
    # What the step starts ends with it.
    os.setsid()
    receiver.close()
    # Python's own streams, and those of what the step starts or loads.
    sys.stdout = sys.stderr = open(log, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
    print(f"\n== {step.name}", flush=True)
    for stream in (1, 2):
        os.dup2(sys.stdout.fileno(), stream)
    try:
        step.run(settings, lambda name, value: sender.send(("note", name, value)))
    # Whatever goes wrong is what this is here to report.
    except BaseException as error:
        lines = "".join(traceback.format_exception(error)).strip().splitlines()
        sender.send((FAILED, "\n".join(lines[-ERROR_LINES:])))
    else:
        sender.send((PASSED,))
    finally:
        sys.stdout.flush()
        sender.close()
        # No farewell of a device or of threads, which may hang.
        os._exit(0)


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """Ends a step's process and all that it has started."""
    # A step that has only just begun may not have a group of its own yet.
    for kill, number in ((os.killpg, process.pid), (os.kill, process.pid)):
        try:
            kill(number, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    process.join(10)


def _ending(code: int | None) -> str:
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"


def _write(result: dict[str, Any], output: Path, begin: float) -> None:
    result["seconds"] = round(time.monotonic() - begin, 1)
    # Without the package's own writer: what the package lacks on this machine is for the steps to tell.
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(output)


def _plain(value: Any) -> Any:
    """As JSON has it: numbers that are none become words, fractions have four digits."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _describe(step: Step, entry: Mapping[str, Any]) -> str:
    line = f"{step.name:12} {entry['status']:10} {entry.get('seconds', 0):6.1f} s"
    error = entry.get("error")
    return f"{line}  {error.splitlines()[-1]}" if error else line
