"""The fork server of multiprocessing: it imports once for all workers, and goes with a program that is stopped."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext


def fork_server_context(preload: Sequence[str]) -> BaseContext:
    """The way to start workers, with the fork server running.

    Args:
        preload: Modules that it imports; where it runs already, it has those it has.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    # Before the server, which would start it, and that lets SIGINT through again.
    resource_tracker.ensure_running()
    # A Ctrl-C reaches it too, and in the middle of its imports would be its traceback. What is blocked stays so in a
    # process that is started; it comes here when it is let through again.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextlib.contextmanager
def ended_when_stopped() -> Iterator[None]:
    """Ends the fork server where a Ctrl-C or a `SystemExit` leaves the block, if it was started within.

    Left alone, it sees that nobody needs it only after all its imports: many seconds on a machine that is busy.
    """
    before = _process()
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        if (process := _process()) not in (None, before):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        raise


def _process() -> int | None:
    """Its number, None before there is one; multiprocessing has no public name for it."""
    return forkserver._forkserver._forkserver_pid
