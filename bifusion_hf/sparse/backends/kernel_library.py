"""The compiled kernels: `kernels.c`, built on first use with the machine's C compiler, and called through ctypes.

The library is kept in the user's cache folder under a name that holds a hash of its source, the compiler's options and
the processor, so that each machine builds it once, and a changed source or processor builds its own.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import subprocess
from functools import cache
from pathlib import Path

import torch

from ...io.atomic import new_file


logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
# Products and sums become one instruction; a unit is read as float or as two bfloat16.
FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=fast", "-fno-strict-aliasing")
SWITCH = "BIFUSION_SPARSE_KERNEL"
BUILD_SECONDS = 300

_POINTER, _SIZE, _FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
# Function -> result and arguments, as in kernels.c.
_SIGNATURES = {
    "has_bfloat16": (_FLAG, []),
    "count_pairs": (_SIZE, [_POINTER] * 2 + [_SIZE] * 4 + [_FLAG]),
    "fill_pairs": (None, [_POINTER] * 4 + [_SIZE] * 4 + [_FLAG]),
    "is_packed": (_FLAG, [_SIZE]),
    "packed_units": (_SIZE, [_SIZE] * 3 + [_FLAG]),
    "pack_weights": (None, [_POINTER] * 2 + [_SIZE] * 3 + [_FLAG] * 4),
    "convolve": (None, [_POINTER] * 9 + [_SIZE] * 5 + [_FLAG] * 4),
    "kernel_gradient": (_FLAG, [_POINTER] * 6 + [_SIZE] * 5 + [_FLAG] * 2),
}


class KernelError(RuntimeError):
    """The kernels cannot be built, or do not work, on this machine."""


@cache
def kernel_library() -> ctypes.CDLL:
    """The library, built if need be.

    Raises:
        KernelError: It is switched off (`BIFUSION_SPARSE_KERNEL=0`), there is no C compiler, or what it makes is no
            library.
    """
    if os.environ.get(SWITCH) == "0":
        raise KernelError(f"the compiled kernels are switched off by {SWITCH}=0")
    path = library_path()
    try:
        if not path.exists():
            build_library(path)
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        raise KernelError(f"the sparse kernels cannot be built in {path.parent}: {error}") from error
    return library


def library_path() -> Path:
    """Where the library of this source, these options and this processor belongs."""
    hashed = hashlib.sha256(SOURCE.read_bytes())
    for part in (*_command(), _processor()):
        hashed.update(b"\0" + part.encode())
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache_folder / "bifusion_hf" / f"sparse_kernels_{hashed.hexdigest()[:16]}.so"


def build_library(path: Path) -> None:
    """Compiles `kernels.c` to `path`; several processes may do so at once.

    Raises:
        KernelError: The compiler fails, or makes what cannot be loaded; the message holds what it says.
        OSError: There is no compiler, or no permission.
        subprocess.TimeoutExpired: The compiler takes too long.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    logger.info("building the sparse kernels in %s", path)
    with new_file(path) as made:
        command = [*_command(), "-o", str(made)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
        if result.returncode:
            raise KernelError(f"{shlex.join(command)} failed: {result.stderr.strip() or result.stdout.strip()}")
        ctypes.CDLL(str(made))


def _command() -> list[str]:
    # The OpenMP runtime that torch has loaded comes first and satisfies all: one pool of threads, not two.
    runtime = _loaded_openmp()
    return [
        *shlex.split(os.environ.get("CC") or "cc"),
        *FLAGS,
        str(SOURCE),
        "-Wl,--as-needed",
        *([runtime] if runtime else []),
    ]


def _loaded_openmp() -> str | None:
    """Path of GNU's OpenMP runtime in this process, which `import torch` brought."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    paths = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "/libgomp" in line}
    return sorted(paths)[0] if paths else None


def _processor() -> str:
    """What `-march=native` depends on."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("vendor_id", "model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in information.read_text().splitlines() if line.startswith(wanted)}))


def call(name: str, *arguments: torch.Tensor | int | None) -> int | None:
    """Calls a function of the library; tensors are passed as pointers to their first element, None as NULL."""
    passed = [argument.data_ptr() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
    return getattr(kernel_library(), name)(*passed)
