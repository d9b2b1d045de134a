"""Files and folders that are whole or not there: written under a private name beside the place, then renamed to it.

A reader never sees a part, a kill leaves what stood there before, and several processes may write the same thing: the
last one stays. What a killed process leaves has a hidden name that `remove_unfinished` knows.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


_UNFINISHED, _REPLACED, _DELETED = ".partial-", ".old-", ".deleted-"


class WriteError(OSError):
    """A disk has no room, or lets nothing be written; the message names the place. What stood there is intact."""


@contextlib.contextmanager
def new_file(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """A private path for the block to write; it becomes `path` when the block ends well, and vanishes otherwise.

    Args:
        path: The file; its folder is made, an earlier file is replaced.
        durable: Reach the disk before the rename, so that a power failure leaves a whole file too.

    Raises:
        WriteError: The disk is full or read-only; other errors pass as they are.
    """
    path = Path(path)
    partial = partial_path(path)
    with _named_failure(path, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if durable:
            flush(partial)
        partial.replace(path)
        if durable:
            flush(path.parent)


@contextlib.contextmanager
def new_folder(path: str | Path, *, replace: bool = False, durable: bool = False) -> Iterator[Path]:
    """`new_file` for a folder: an empty one for the block to fill.

    Args:
        path: The folder; its parents are made.
        replace: Replace an earlier one; `recover_folder` ends what a kill cut short.
        durable: See `new_file`.

    Raises:
        WriteError: See `new_file`.
        FileExistsError: `path` is there, or appeared meanwhile, without `replace`.
    """
    path = Path(path)
    partial = partial_path(path)
    with _named_failure(path, partial):
        partial.mkdir(parents=True)
        yield partial
        publish_folder(partial, path, replace=replace, durable=durable)


def write_text(path: str | Path, text: str, *, durable: bool = False) -> None:
    """Writes a UTF-8 text file with `new_file`."""
    with new_file(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8")


def partial_path(path: str | Path, *, shared: bool = False) -> Path:
    """The name beside `path` under which it is written.

    Args:
        path: The file or folder.
        shared: The same name in every process, for a folder that several write together; otherwise nobody else's.
    """
    path = Path(path).absolute()
    token = "" if shared else f"{secrets.token_hex(4)}-"
    # The end of the name stays: writers such as numpy's choose by the suffix, or add it.
    return path.with_name(f"{_UNFINISHED}{token}{path.name}")


def publish_folder(partial: Path, path: Path, *, replace: bool = False, durable: bool = False) -> None:
    """Gives a whole folder its name; see `new_folder` for the arguments and errors."""
    if durable:
        flush(partial)
    if replace:
        recover_folder(path)
        old = path.with_name(f"{_REPLACED}{path.name}")
        if path.exists():
            path.rename(old)
        try:
            partial.rename(path)
        finally:
            # Back, if the new one did not take its place; else away.
            recover_folder(path)
    elif path.exists():
        raise FileExistsError(f"{path} exists; nothing is overwritten")
    else:
        partial.rename(path)
    if durable:
        flush(path.parent)


def recover_folder(path: Path) -> None:
    """Ends a replacement of a folder that a kill cut short between its two renames."""
    old = path.with_name(f"{_REPLACED}{path.name}")
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def delete_folder(path: Path) -> None:
    """Deletes a folder so that a kill in the middle leaves nothing under its name."""
    doomed = path.with_name(f"{_DELETED}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Deletes what killed processes left in a folder. Only where nobody else is writing."""
    for path in [*folder.glob(f"{_UNFINISHED}*"), *folder.glob(f"{_DELETED}*")]:
        _remove(path)


def flush(path: Path) -> None:
    """Brings a file, or a folder with all that is in it, to the disk: a rename may get there before the content."""
    for part in [*(path.rglob("*") if path.is_dir() else ()), path]:
        # Not every system can open a folder.
        with contextlib.suppress(PermissionError):
            descriptor = os.open(part, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def disk_space(path: str | Path) -> str:
    """What the disk has to do with a failed write to a file or folder, in words."""
    path = Path(path).absolute()
    is_full, free = _room(path)
    return f"{'the disk is full, ' if is_full else ''}{free / 2**20:.1f} MiB are free on it"


def _room(path: Path) -> tuple[bool, int]:
    """Whether the disk of a path is full, and its free bytes."""
    parts = path.rglob("*") if path.is_dir() else [path]
    written = sum(part.stat().st_size for part in parts if part.is_file())
    free = shutil.disk_usage(next(place for place in [path, *path.parents] if place.exists())).free
    # Less than was written so far: the writer may have given back what it held.
    return free < max(written, 1 << 20), free


@contextlib.contextmanager
def _named_failure(path: Path, partial: Path) -> Iterator[None]:
    """Removes `partial` when the block fails, and names the disk where that is the reason."""
    try:
        yield
    except BaseException as error:
        message = f"could not write {path}: {disk_space(partial)} ({type(error).__name__}: {error})"
        is_full = _room(partial)[1] < 1 << 20
        _remove(partial)
        # Writers report a full disk in many ways, some of them as broken files.
        if isinstance(error, Exception) and (is_full or _blames_disk(error)):
            raise WriteError(message) from error
        raise


def _blames_disk(error: Exception) -> bool:
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
    return getattr(error, "errno", None) in codes or os.strerror(errno.ENOSPC) in str(error)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
