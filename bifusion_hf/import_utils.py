"""One place for every optional package: which extra brings it, and the error that says so."""

import gc
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


# import name -> extra of setup.cfg
OPTIONAL_PACKAGES = {
    "open_clip": "openclip",
    "spconv": "spconv",
    "spconv_triton": "spconv",
    "triton": "triton",
    "embreex": "rooms",
    "gradio": "demo",
    "rerun": "rerun",
    "open3d": "open3d",
    "lzfse": "record3d",
    "ray": "ray",
}


def is_available(package: str) -> bool:
    """Whether an optional package is installed, without importing it."""
    return importlib.util.find_spec(package) is not None


def require_package(package: str) -> ModuleType:
    """Imports an optional package.

    Args:
        package: Import name, a key of `OPTIONAL_PACKAGES`; a submodule such as `"embreex.rtcore_scene"` counts
            under its first part.

    Returns:
        The imported module.

    Raises:
        ImportError: The package is missing; the message names the extra that brings it.
    """
    if not is_available(package.split(".")[0]):
        raise ImportError(
            f"This needs the optional package {package.split('.')[0]!r}. {how_to_install(package.split('.')[0])}"
        )
    return importlib.import_module(package)


def how_to_install(package: str) -> str:
    """What to tell a user who lacks an optional package, a key of `OPTIONAL_PACKAGES`."""
    advice = f'Install it with: pip install "bifusion_hf[{OPTIONAL_PACKAGES[package]}]"'
    if OPTIONAL_PACKAGES[package] != "spconv":
        return advice
    version, machine = sys.version_info[:2], platform.machine()
    here = f"Python {version[0]}.{version[1]} on {sys.platform} {machine}"
    if sys.platform != "linux":
        return f"There is no package of it for {here}: the extra spconv is for Linux"
    # As setup.cfg has it.
    brought = "spconv-triton, which has spconv's interface"
    if machine == "x86_64" and version < (3, 14):
        brought = "spconv-cu120" if version < (3, 12) else "spconv-cu126"
    return f"{advice}; for {here} that is {brought}"


def torchvision_misfit() -> str | None:
    """What to tell a user whose torchvision was built for another torch; None where it works or is absent.

    transformers imports torchvision wherever it finds one, so a broken one breaks every transformers model.
    """
    if not is_available("torchvision"):
        return None
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # A mismatched extension fails in many ways; all of them end here with their reason.
        versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision")}
        return (
            f"torchvision {versions['torchvision']} does not work with torch {versions['torch']} ({error}), and "
            "transformers imports torchvision wherever it is installed. Either remove it (pip uninstall torchvision; "
            "bifusion_hf needs it only for open_clip), or install the torchvision that belongs to this torch from the "
            "same package index (0.28.0 for torch 2.13.0, 0.27.1 for 2.12.1, 0.26.0 for 2.11.0)."
        )
    return None


@contextmanager
def explain_torchvision_misfit() -> Iterator[None]:
    """Turns an import that failed because of a misfitting torchvision into an error that says so.

    Raises:
        ImportError: torchvision does not fit torch; the message names both versions and the remedy.
    """
    try:
        yield
    # Operators that do not exist, symbols that a library lacks, attributes of a half-loaded module, ...
    except Exception as error:
        misfit = torchvision_misfit()
        if misfit is None:
            raise
        raise ImportError(misfit) from error


# Times that a thread looks whether the others are done before it sleeps. libgomp takes this number by itself where it
# has more threads than there are processors, and 300 times as many otherwise: it does not know of other processes.
BUSY_SPINS = 1000


def share_processors() -> None:
    """Lets the threads of this process sleep soon while they wait for each other, unless the user has said otherwise.

    Waiting in a loop, as they do by default, a thread takes the time of its processor from whom it waits for, wherever
    something else runs there: workers that load frames, another process. Only what is set before torch is imported
    counts; processes that this one starts inherit it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(BUSY_SPINS))


def wait_passively() -> None:
    """Lets the threads of this process sleep at once, unless the user has said otherwise or torch is there already.

    `restart_with_passive_threads` has the reason; set in time, it spares the restart, which imports everything again.
    """
    if "torch" not in sys.modules and os.name == "posix":
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Lets an import run through: what it makes stays; looking it through time and again takes a seventh longer."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def import_for_command() -> Iterator[None]:
    """Makes one of the package's commands share the processors, and ends it in a line where its import fails.

    The same where it is interrupted, before its `main` can. Any other program gets the error as it is. What a command
    has imported stays until it ends, so the garbage collector is not to look through it, then least of all.

    Raises:
        SystemExit: The process is a command of the package: with status 1 and the reason, or 130 after Ctrl-C.
    """
    name = running_command()
    if name is not None:
        share_processors()
    if name == "bifusion-train":
        wait_passively()
    try:
        yield
        if name is not None:
            gc.freeze()
    except KeyboardInterrupt as error:
        if name is None:
            raise
        print(f"{name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from error
    except ImportError as error:
        if name is None or os.environ.get("BIFUSION_TRACEBACK", "0") not in ("", "0"):
            raise
        raise SystemExit(f"{name}: error: {error}") from error


def running_command() -> str | None:
    """The command of the package that this process is: `bifusion-NAME`, or `python -m bifusion_hf.cli.MODULE`."""
    program = Path(sys.argv[0]).stem if sys.argv else ""
    if program.startswith("bifusion-"):
        return program
    words = list(sys.orig_argv)
    # While a package is imported on the way to one of its modules, argv has "-m" in the place of the module.
    module = words[words.index("-m") + 1] if program == "-m" and "-m" in words[:-1] else ""
    prefix = f"{__package__}.cli."
    return f"bifusion-{module.removeprefix(prefix)}".replace("_", "-") if module.startswith(prefix) else None
