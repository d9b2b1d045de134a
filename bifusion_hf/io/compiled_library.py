"""C files of the package: built on first use with the machine's C compiler, and called through ctypes.

A library is kept in the user's cache folder under a name that holds a hash of its sources, the compiler's options and
the processor, so that each machine builds it once, and a changed source or processor builds its own.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .atomic import new_file


logger = logging.getLogger(__name__)

# 0 in this variable of the environment switches all of them off.
SWITCH = "BIFUSION_SPARSE_KERNEL"
BUILD_SECONDS = 300

POINTER, SIZE, FLAG, REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
# Result and arguments of a function.
Signature = tuple[Any, Sequence[Any]]


class KernelError(RuntimeError):
    """The kernels cannot be built, or do not work, on this machine."""


# A forked child has no pool of threads, and would wait for one for ever.
_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def usable_threads() -> int:
    """Number of threads for the kernels of this process: torch's; one in a forked child."""
    return 1 if _forked else torch.get_num_threads()


class CompiledLibrary:
    """Functions of C files.

    Args:
        name: Of the library's file.
        sources: The C files; headers that they include lie beside them.
        flags: Of the compiler.
        signatures: Name of each function that is called -> its result and arguments.
    """

    def __init__(self, name: str, sources: Sequence[Path], flags: Sequence[str], signatures: Mapping[str, Signature]):
        self.name, self.sources, self.flags, self.signatures = name, list(sources), list(flags), dict(signatures)
        self._library: ctypes.CDLL | None = None
        # Why it could not be loaded: a compiler that fails is not asked again by the next kernel.
        self._failure: KernelError | None = None

    @property
    def path(self) -> Path:
        """Where the library of these sources, these options and this processor belongs."""
        hashed = hashlib.sha256()
        headers = sorted({header for source in self.sources for header in source.parent.glob("*.h")})
        for source in (*self.sources, *headers):
            hashed.update(source.read_bytes())
        for part in (*self._command(), processor()):
            hashed.update(b"\0" + part.encode())
        cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache_folder / "bifusion_hf" / f"{self.name}_{hashed.hexdigest()[:16]}.so"

    def load(self) -> ctypes.CDLL:
        """The library, built if need be; tried once.

        Raises:
            KernelError: It is switched off (`BIFUSION_SPARSE_KERNEL=0`), there is no C compiler, what it makes is no
                library, or what is there could be another user's.
        """
        if self._failure is not None:
            raise self._failure
        if self._library is None:
            try:
                self._library = self._load()
            except KernelError as error:
                self._failure = error
                raise
        return self._library

    def _load(self) -> ctypes.CDLL:
        if os.environ.get(SWITCH) == "0":
            raise KernelError(f"the compiled kernels are switched off by {SWITCH}=0")
        path = self.path
        try:
            if not path.exists():
                self.build(path)
            _check_owner(path)
            library = ctypes.CDLL(str(path))
            for name, (result, arguments) in self.signatures.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, list(arguments)
        except (OSError, AttributeError, subprocess.SubprocessError) as error:
            raise KernelError(f"the {self.name} cannot be built in {path.parent}: {error}") from error
        return library

    def failure(self, test: Callable[[], None], otherwise: str) -> str | None:
        """Why the library is not to be used here; None where it is built and passes its test.

        That it cannot be loaded is logged once, whichever of its kernels is asked for first.

        Args:
            test: Raises KernelError where results are wrong.
            otherwise: What happens without it, for the log.
        """
        if self._failure is not None:
            return str(self._failure)
        try:
            self.load()
            test()
        except KernelError as error:
            logger.warning("%s, which is slower: %s", otherwise, error)
            return str(error)
        return None

    def forget(self) -> None:
        """Loads the library anew at the next call."""
        self._library = self._failure = None

    def build(self, path: Path) -> None:
        """Compiles the sources to `path`; several processes may do so at once.

        Raises:
            KernelError: The compiler fails, or makes what cannot be loaded; the message holds what it says.
            OSError: There is no compiler, or no permission.
            subprocess.TimeoutExpired: The compiler takes too long.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        logger.info("building the %s in %s", self.name, path)
        with new_file(path) as made:
            command = [*self._command(), "-o", str(made)]
            result = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
            if result.returncode:
                raise KernelError(f"{shlex.join(command)} failed: {result.stderr.strip() or result.stdout.strip()}")
            ctypes.CDLL(str(made))

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a function; tensors and arrays are passed as pointers to their first element, None as NULL."""
        library = self._library or self.load()
        return getattr(library, name)(*map(_passed, arguments))

    def _command(self) -> list[str]:
        # The OpenMP runtime that torch has loaded comes first and satisfies all: one pool of threads, not two.
        runtime = _loaded_openmp()
        return [
            *shlex.split(os.environ.get("CC") or "cc"),
            *self.flags,
            *map(str, self.sources),
            "-Wl,--as-needed",
            *([runtime] if runtime else []),
            "-lm",
        ]


def _check_owner(path: Path) -> None:
    """Raises KernelError where someone else could have put the library there: it would run as this user."""
    if not hasattr(os, "getuid"):
        return
    for place, is_right in ((path.parent, stat.S_ISDIR), (path, stat.S_ISREG)):
        found = place.lstat()
        if not is_right(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise KernelError(
                f"{place} is not loaded: owner {found.st_uid}, mode {stat.filemode(found.st_mode)}; expected "
                f"owner {os.getuid()}, no link, and nobody else who may write. Remove it, or set XDG_CACHE_HOME"
            )


def _passed(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr()
    return argument.ctypes.data if isinstance(argument, np.ndarray) else argument


def _loaded_openmp() -> str | None:
    """Path of GNU's OpenMP runtime in this process, which `import torch` brought."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    paths = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "/libgomp" in line}
    return sorted(paths)[0] if paths else None


def processor() -> str:
    """What `-march=native` depends on."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("vendor_id", "model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in information.read_text().splitlines() if line.startswith(wanted)}))
