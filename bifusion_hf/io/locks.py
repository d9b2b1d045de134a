"""One process at a time in a folder: the second is refused, and told who is there.

The locks are those of POSIX (`lockf`), which belong to a process: children that it forks do not hold them, and when it
dies, however it dies, they are gone. So there is no stale lock. Where there is no such thing (Windows, file systems
without locks) nothing is locked.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path


LOCK_FILE = ".in-use"


class FolderInUseError(OSError):
    """Another process works in the folder; the message names both."""


@contextlib.contextmanager
def sole_use(folder: str | Path) -> Iterator[None]:
    """Holds a folder for the block.

    Args:
        folder: It is made where it is not there.

    Raises:
        FolderInUseError: Another process holds it.
        OSError: The folder cannot be written to.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = Path(folder, LOCK_FILE)
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(file)
            raise FolderInUseError(
                f"{folder} is in use by {_holder(path)}; wait for it, or take another folder"
            ) from error
        except OSError:
            # No locks here.
            os.close(file)
            yield
            return
        if _is_still(path, file):
            break
        # Its holder took it away between our opening and our locking.
        os.close(file)
    try:
        os.ftruncate(file, 0)
        os.write(file, json.dumps(_this_process()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)
        if made:
            # Where nothing was written: of a call that was refused no folder stays.
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def _is_still(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _this_process() -> dict[str, str | int]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
    }


def _holder(path: Path) -> str:
    """Who holds a folder, in words."""
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['process']} on {holder['host']} since {holder['since']} ({holder['command']})"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
