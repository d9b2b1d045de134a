"""What the demo page leaves on the disk, and what it takes in: bounded, and gone with the server however it ends."""

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ..io.locks import sole_use


# Colour and depth of the largest cameras are below; a file above is refused before it is on the disk.
UPLOAD_MEBIBYTES = 64
# Forms and headers around an upload.
_REST_MEBIBYTES = 1
# Visitors whose last frame can still be filtered and downloaded; each takes some megabytes of memory and of the disk.
KEPT_VISITORS = 100
FOLDER_PREFIX = "bifusion-demo-"
# Where Gradio puts uploads and what it serves.
FOLDER_VARIABLE = "GRADIO_TEMP_DIR"

_made_here: set[Path] = set()


def serve_from_own_folder() -> Path:
    """Makes the folder that everything of this server's visitors goes to, until the process ends.

    It lies in `GRADIO_TEMP_DIR` or the system's temporary folder; what killed servers left there is deleted.

    Returns:
        The folder of what is served, which `GRADIO_TEMP_DIR` names from now on.
    """
    before = os.environ.get(FOLDER_VARIABLE)
    parent = Path(before or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    _delete_abandoned(parent)
    stack = contextlib.ExitStack()
    # Not the folder itself: its lock tells how the server was called.
    folder = stack.enter_context(_own_folder(parent)) / "served"
    folder.mkdir()
    os.environ[FOLDER_VARIABLE] = str(folder)
    atexit.register(stack.close)
    return folder


@contextlib.contextmanager
def _own_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent)).resolve()
    _made_here.add(folder)
    try:
        with sole_use(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _delete_abandoned(parent: Path) -> None:
    """Deletes the folders of servers that are no more: nobody holds their locks."""
    if os.name != "posix":
        # No locks there: a server that lives would lose its folder.
        return
    for folder in parent.glob(f"{FOLDER_PREFIX}*"):
        # Locks are of processes: this one would get those of its own folders.
        if folder.resolve() in _made_here:
            continue
        # In use, or not ours.
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                with sole_use(folder):
                    shutil.rmtree(folder, ignore_errors=True)


def delete_old_files(seconds: float, keep: Collection[str] = ()) -> None:
    """Deletes what is so old in the server's folder, and the folders that are empty for so long.

    Gradio deletes old uploads and leaves their folders; what it made for a visitor alone (pictures, masks) it forgets.

    Args:
        seconds: Age.
        keep: Files that stay, as those of the page itself.
    """
    place = os.environ.get(FOLDER_VARIABLE)
    oldest = time.time() - seconds
    # From the inside: the folders of folders last. Unlike `Path.rglob`, the walk goes on where a folder has gone
    # meanwhile, as that of a visitor who is forgotten does.
    walk = os.walk(place, topdown=False) if place else ()
    for path in (Path(folder, name) for folder, folders, files in walk for name in (*files, *folders)):
        # Gone meanwhile, or not empty.
        with contextlib.suppress(OSError):
            if path.lstat().st_mtime >= oldest or str(path) in keep:
                continue
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()


class BodyLimit:
    """ASGI middleware that refuses requests whose body is too long, or of a length that they do not tell.

    Args:
        app: The next in line.
        mebibytes: The longest body.
    """

    def __init__(self, app: Any, mebibytes: int):
        self.app, self.limit = app, mebibytes << 20

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        refused = self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            await self.app(scope, receive, send)
            return
        status, text = refused
        headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})

    def _refusal(self, scope: dict) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        if b"transfer-encoding" in headers:
            return 411, "a request must tell the length of its body"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limit:
            return 413, f"a request takes at most {self.limit >> 20} MiB"
        return None


def serving_options() -> dict[str, Any]:
    """Arguments for `Blocks.launch` that bound what visitors send and what is kept of them."""
    from starlette.middleware import Middleware

    return {
        "max_file_size": UPLOAD_MEBIBYTES << 20,
        "state_session_capacity": KEPT_VISITORS,
        "app_kwargs": {"middleware": [Middleware(BodyLimit, mebibytes=UPLOAD_MEBIBYTES + _REST_MEBIBYTES)]},
    }
