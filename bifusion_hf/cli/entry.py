"""How the commands end: a line on stderr and a status, not a traceback."""

import contextlib
import functools
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence

from safetensors import SafetensorError

from ..io.memory import keep_freed_memory
from ..stopping import Stopped, terminable


# What goes wrong with files, settings, packages and memory; anything else is a fault of the program.
EXPECTED = (ValueError, OSError, ImportError, RuntimeError, MemoryError, SafetensorError)
INTERRUPTED = 130
TRACEBACK_VARIABLE = "BIFUSION_TRACEBACK"

Main = Callable[[Sequence[str] | None], None]


def command(name: str) -> Callable[[Main], Main]:
    """Makes a command's `main(argv)` end as a command should.

    An expected error is told in a line, with status 1; `BIFUSION_TRACEBACK=1` leaves its traceback. An interruption
    (Ctrl-C) ends with status 130, SIGTERM with 143. A reader that has closed the output (`--help | head`) ends it
    silently, with status 1. What argparse says stays, with status 2. The process keeps the memory that it frees.

    Args:
        name: Of the command, which the line begins with.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> None:
            keep_freed_memory()
            try:
                try:
                    with terminable():
                        main(argv)
                finally:
                    # Now, where it can be caught, and not when Python ends.
                    sys.stdout.flush()
            except KeyboardInterrupt as error:
                print(f"{name}: interrupted", file=sys.stderr)
                raise SystemExit(INTERRUPTED) from error
            except Stopped as error:
                print(f"{name}: stopped by {signal.Signals(error.number).name}", file=sys.stderr)
                raise
            except EXPECTED as error:
                if isinstance(error, BrokenPipeError) and _output_is_closed():
                    raise SystemExit(1) from error
                if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
                    raise
                raise SystemExit(f"{name}: error: {str(error) or type(error).__name__}") from error

        return run

    return decorate


def _output_is_closed() -> bool:
    """Whether nobody reads the output; if so, what is still to be written goes nowhere."""
    # Not every stdout is a file, and not every system can ask.
    with contextlib.suppress(OSError, AttributeError):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if poll.poll(0):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return True
    return False
