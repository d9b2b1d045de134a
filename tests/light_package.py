"""The package without what its `__init__` imports, for programs of tests that need a few of its files alone.

To import all of it takes seconds, and several times as long as such a program.
"""

import os
from pathlib import Path

import bifusion_hf


def light_package(folder: Path) -> dict[str, str]:
    """The environment of a program that starts in `folder`, where the files of the package are found one by one."""
    (folder / "bifusion_hf").mkdir()
    (folder / "bifusion_hf" / "__init__.py").write_text(f"__path__ = {list(bifusion_hf.__path__)!r}\n")
    return {**os.environ, "PYTHONPATH": str(folder)}
