"""The stages of the over-segmentation: in numpy and its like, or compiled, which is many times faster."""

from types import ModuleType

from . import compiled_backend, numpy_backend


def choose_backend() -> ModuleType:
    """The compiled stages where they can be built, else those of numpy.

    Whole numbers come out the same, and so do segments but where two values differ by less than float32's rounding.
    """
    return numpy_backend if compiled_backend.unavailable_reason() else compiled_backend
