"""Folders by address: a path of this machine, `file://`, or what fsspec knows: `s3://`, `hf://`, `gs://`, `memory://`.

A file is whole or not there, on a disk (see `atomic`) and in a store, where it appears when it is all sent. Keys,
endpoints and the like come from where fsspec and the package behind it look for them: their configuration files and
environment variables.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

from .atomic import new_file, remove_unfinished
from .files import DataFileError, read_text
from .locks import sole_use


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_remote(address: str | Path) -> bool:
    """Whether an address names a store, and no path of this machine."""
    found = _SCHEME.match(str(address))
    return found is not None and found[1].lower() not in ("file", "local")


def local_path(address: str | Path) -> Path:
    """The path of an address of this machine, `file:///data/frames` or `/data/frames`."""
    return Path(_SCHEME.sub("", str(address)))


def same_kind(address: str | Path) -> str | Path:
    """An address as a path where it is one of this machine, else as it is."""
    return str(address) if is_remote(address) else local_path(address)


@dataclass(frozen=True)
class Folder:
    """A folder, by its address. It goes to other processes, each of which connects to the store itself.

    Args:
        address: Of the folder; it need not be there.
    """

    address: str | Path

    def __str__(self) -> str:
        return str(self.address)

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address}

    @cached_property
    def path(self) -> Path | None:
        """The path of a folder of this machine; None in a store."""
        return None if is_remote(self.address) else local_path(self.address)

    @cached_property
    def _store(self) -> tuple[Any, str]:
        """The file system, and the folder's path in it.

        Raises:
            ImportError: The package for such addresses is missing; the message names it.
            ValueError: fsspec knows no such addresses.
        """
        import fsspec

        system, root = fsspec.url_to_fs(str(self.address))
        return system, root.rstrip("/")

    def place(self, name: str) -> str | Path:
        """Address of a file or folder in it."""
        return f"{str(self.address).rstrip('/')}/{name}" if self.path is None else self.path / name

    def names(self, pattern: str, *, folders: bool = False) -> list[str]:
        """Names of the files that match, in order; what is hidden does not.

        Args:
            pattern: Of `Path.glob`, with stars in the last part alone: `"data/val-*.parquet"`.
            folders: Of folders too.
        """
        if self.path is not None:
            paths = [path for path in self.path.glob(pattern) if folders or path.is_file()]
            found = [path.relative_to(self.path).as_posix() for path in paths]
        else:
            system, root = self._store
            with self._asked(pattern):
                entries = system.glob(f"{root}/{pattern}", detail=True)
            found = [path[len(root) + 1 :] for path, entry in entries.items() if folders or entry["type"] == "file"]
        return sorted(name for name in found if not PurePosixPath(name).name.startswith("."))

    def is_file(self, name: str) -> bool:
        """Whether there is such a file."""
        if self.path is not None:
            return (self.path / name).is_file()
        system, root = self._store
        with self._asked(name):
            return bool(system.isfile(f"{root}/{name}"))

    def read_text(self, name: str) -> str:
        """Text of a UTF-8 file.

        Raises:
            DataFileError: It cannot be read, or is not UTF-8.
        """
        if self.path is not None:
            return read_text(self.path / name)
        with self.open(name) as file:
            try:
                return file.read().decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise DataFileError(self.place(name), f"is not UTF-8 text ({error})") from error

    def open(self, name: str) -> IO[bytes]:
        """A file to read, at any place in it.

        Raises:
            DataFileError: It cannot be opened.
        """
        if self.path is None:
            system, root = self._store
            with self._asked(name):
                return system.open(f"{root}/{name}", "rb")
        try:
            return (self.path / name).open("rb")
        except OSError as error:
            raise DataFileError(self.path / name, error.strerror or str(error)) from error

    @contextlib.contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """A private path of this machine for the block to write; it becomes the file when the block ends well."""
        if self.path is not None:
            with new_file(self.path / name) as partial:
                yield partial
            return
        system, root = self._store
        with tempfile.TemporaryDirectory(prefix="bifusion-") as folder:
            path = Path(folder, PurePosixPath(name).name)
            yield path
            with self._asked(name):
                system.makedirs(str(PurePosixPath(f"{root}/{name}").parent), exist_ok=True)
                system.put_file(str(path), f"{root}/{name}")

    def write_text(self, name: str, text: str) -> None:
        """Writes a UTF-8 text file with `new_file`."""
        with self.new_file(name) as partial:
            partial.write_text(text, encoding="utf-8")

    def delete(self, name: str) -> None:
        """Deletes a file, if it is there."""
        if self.path is not None:
            (self.path / name).unlink(missing_ok=True)
            return
        system, root = self._store
        with self._asked(name), contextlib.suppress(FileNotFoundError):
            system.rm_file(f"{root}/{name}")

    def remove_unfinished(self, name: str) -> None:
        """Deletes what killed processes left in a folder of it; a store has nothing of the kind."""
        if self.path is not None:
            remove_unfinished(self.path / name)

    def sole_use(self) -> contextlib.AbstractContextManager[None]:
        """`locks.sole_use` of it. A store has no locks: two runs there do the same work twice, and the last stays."""
        return contextlib.nullcontext() if self.path is None else sole_use(self.path)

    @contextlib.contextmanager
    def copy(self, name: str = "") -> Iterator[Path]:
        """A file or folder of it as a path of this machine; what was copied from a store goes with the block.

        Raises:
            DataFileError: There is no such thing.
        """
        if self.path is not None:
            yield self.path / name
            return
        system, root = self._store
        source = f"{root}/{name}".rstrip("/")
        with tempfile.TemporaryDirectory(prefix="bifusion-") as folder:
            path = Path(folder, PurePosixPath(source).name)
            with self._asked(name):
                system.get(source, str(path), recursive=True)
            yield path

    @contextlib.contextmanager
    def _asked(self, name: str) -> Iterator[None]:
        """Within, the store is asked afresh, and whatever goes wrong is an OSError that begins with the address."""
        try:
            # Stores answer from the listings that they keep; another process may have written since.
            self._store[0].invalidate_cache()
            yield
        except FileNotFoundError as error:
            raise DataFileError(self.place(name), "no such file or folder") from error
        # Each store has errors of its own.
        except Exception as error:
            raise OSError(f"{self.place(name)}: {error or type(error).__name__}") from error
