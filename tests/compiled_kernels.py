"""Compiled kernels in tests."""

import os
import shlex
import shutil

import pytest

from bifusion_hf.io.compiled_library import SWITCH


def need_kernels(reason: str | None) -> None:
    """Skips a test where there is no C compiler, or kernels are switched off; else they have to work.

    A kernel that is wrong is not used, and its tests would be skipped like those of one that cannot be built.
    """
    if reason is None:
        return
    compiler = shlex.split(os.environ.get("CC") or "cc")[0]
    if os.environ.get(SWITCH) == "0" or shutil.which(compiler) is None:
        pytest.skip(reason)
    pytest.fail(reason)
