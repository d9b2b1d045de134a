"""Ctrl-C and SIGTERM: long work ends where it can be gone on with, programs with 128 and the signal's number."""

import contextlib
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType


SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A terminal and a launcher may both pass one Ctrl-C on; only a later one is a second one.
_SECOND_AFTER = 1.0
# Seconds after which a signal comes again whose exception Python had to ignore.
_AGAIN_AFTER = 0.05


class Stopped(SystemExit):
    """A signal ended the program, which has put its work in order before.

    Args:
        number: Of the signal; the program's status is 128 more.
    """

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number


class StopRequested(BaseException):
    """A signal came while nothing needs to be finished; only `StopSignals.interruptible` lets it out."""


class StopSignals:
    """Notes SIGINT and SIGTERM instead of ending the program; a second Ctrl-C ends it at once.

    A context manager. Outside of the main thread, where Python takes no signals, it notes nothing.

    Args:
        what: What is finished first, for the line that the first signal prints.

    Attributes: `number` of the first signal, 0 before.
    """

    def __init__(self, what: str = "this step"):
        self.what = what
        self.number = 0
        self._since = 0.0
        self._may_raise = False
        self._process = os.getpid()
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self.number, self._process = 0, os.getpid()
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets a signal end the block with `StopRequested`."""
        self._may_raise = bool(self._before)
        try:
            if self._may_raise and self.number:
                raise StopRequested
            yield
        finally:
            self._may_raise = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            _leave_child(number)
        elif not self.number:
            self.number, self._since = number, time.monotonic()
            # Not print: a signal may come in the middle of one.
            os.write(sys.__stderr__.fileno(), f"\nstopping after {self.what}; Ctrl-C again stops at once\n".encode())
            if self._may_raise:
                self._may_raise = False
                raise StopRequested
        elif number == signal.SIGINT and time.monotonic() - self._since > _SECOND_AFTER:
            raise KeyboardInterrupt


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Turns SIGTERM in the block into `Stopped`, so that what is half written is taken away.

    For programs: after it or a Ctrl-C the ends of worker processes are no errors any more, as they are to torch's data
    loaders. Where Python ignores the exception of a signal, the signal comes again.
    """
    process = os.getpid()

    def stop(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != process:
            _leave_child(number)
            return
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        # A Ctrl-C may be none of a program's in the background.
        if number != signal.SIGINT or handler is signal.default_int_handler:
            signal.signal(number, stop)
    try:
        with _ignored_signals_again():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _ignored_signals_again() -> Iterator[None]:
    """Sends SIGINT or SIGTERM once more where their exception was raised in a place that lets none out.

    Those are `__del__`, callbacks of weak references, and what is done before and after a fork, where a signal is
    likely to be found: it waits while the process is copied.
    """
    process, before = os.getpid(), sys.unraisablehook
    timers: list[threading.Timer] = []

    def hook(ignored: "sys.UnraisableHookArgs") -> None:
        error = ignored.exc_value
        if os.getpid() != process or not isinstance(error, KeyboardInterrupt | Stopped):
            before(ignored)
            return
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        # Not at once, when it would be ignored again.
        timers.append(threading.Timer(_AGAIN_AFTER, os.kill, (process, number)))
        timers[-1].daemon = True
        timers[-1].start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()


def leave_interrupts_to_the_parent(*_arguments: object) -> None:
    """For worker processes: a Ctrl-C reaches all processes of a terminal, and the parent ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end_with_the_parent() -> None:
    """For worker processes that would wait for work for ever: they end when their parent has died, however it did."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="parent's end", daemon=True).start()


def _leave_child(number: int) -> None:
    """What a forked process, which has inherited the handler, does with a signal."""
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
