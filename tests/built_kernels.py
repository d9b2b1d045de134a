"""When a test of compiled kernels has to be skipped, and when not."""

import pytest

from bifusion_hf.io.compiled_library import KernelError


def skip_where_not_built(library, unavailable_reason):
    """Skips a test where the library cannot be built; what is built and fails its trial fails the test.

    Skipped, a fault in what calls the kernels would be seen by no test: they are not used where their trial fails.
    """
    try:
        library.load()
    except KernelError as error:
        pytest.skip(str(error))
    assert unavailable_reason() is None
