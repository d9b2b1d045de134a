"""When a test of compiled kernels has to be skipped, and when not."""

import os
import shlex
import shutil
import sys

import pytest

from bifusion_hf.io.compiled_library import SWITCH, KernelError


def skip_where_not_built(library, unavailable_reason):
    """Skips a test where the library cannot be built; where it can be, it has to be, and to pass its trial.

    Skipped, a fault in what calls the kernels would be seen by no test: they are not used where their trial fails.
    """
    try:
        library.load()
    except KernelError as error:
        compiler = shutil.which(shlex.split(os.environ.get("CC") or "cc")[0])
        if sys.platform == "linux" and compiler and os.environ.get(SWITCH) != "0":
            raise
        pytest.skip(str(error))
    assert unavailable_reason() is None
