"""Access to transformers' own tests; see `make conformance`."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import transformers


def import_common(name: str) -> ModuleType:
    """A module of transformers' tests; skips the importing test module where they were not downloaded.

    Raises:
        RuntimeError: They are those of another version.
    """
    folder = os.environ.get("TRANSFORMERS_TESTS")
    if folder is None:
        pytest.skip("transformers' own tests are absent; run `make conformance`", allow_module_level=True)
    version = (Path(folder) / "VERSION").read_text()
    if version != transformers.__version__:
        raise RuntimeError(
            f"{folder} has the tests of transformers {version}; {transformers.__version__} is installed"
        )
    path = str(Path(folder).resolve())
    if path not in sys.path:
        # Before this project's own root, whose folder `tests` would otherwise stand for the package of that name.
        sys.path.insert(0, path)
    return importlib.import_module(f"tests.{name}")
