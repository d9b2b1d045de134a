"""One place for every optional package: which extra brings it, and the error that says so."""

import importlib
import importlib.util
from types import ModuleType


# import name -> extra of setup.cfg
OPTIONAL_PACKAGES = {
    "open_clip": "openclip",
    "spconv": "spconv",
    "embreex": "rooms",
    "imageio": "scannet",
    "gradio": "demo",
    "rerun": "rerun",
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
    extra = OPTIONAL_PACKAGES[package.split(".")[0]]
    if not is_available(package.split(".")[0]):
        raise ImportError(
            f"This needs the optional package {package.split('.')[0]!r}. "
            f'Install it with: pip install "bifusion_hf[{extra}]"'
        )
    return importlib.import_module(package)
