"""The steps in their order, the most telling first: what has no time left is left out."""

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

from .running import Note, Step


MODULES = ("machine_steps", "sparse_steps", "model_steps")


def _late(module: str, name: str) -> Callable[[Any, Note], None]:
    """A step whose module is imported in the step's own process: one that cannot be imported fails alone."""

    def run(settings: Any, note: Note) -> None:
        getattr(importlib.import_module(f".{module}", __package__), name)(settings, note)

    return run


STEPS = (
    Step("versions", "the machine and its packages", 30, _late("machine_steps", "versions"), is_required=True),
    Step("backends", "sparse backends that pass their test", 75, _late("machine_steps", "backends")),
    Step("eigen", "75,000 symmetric 3x3 matrices", 20, _late("machine_steps", "eigen")),
    Step("determinism", "the same bits twice, by backend", 40, _late("sparse_steps", "determinism")),
    Step("unet", "a Res16UNet34C by voxels, dtype and backend", 100, _late("sparse_steps", "unet")),
    Step("latency", "a frame by stage", 50, _late("model_steps", "latency")),
    Step("updates", "short trainings, resumed in the middle", 75, _late("model_steps", "updates")),
    Step("launches", "kernels launched and waits, profiled and counted", 30, _late("model_steps", "launches")),
    Step("tests", "pytest -m gpu", 90, _late("machine_steps", "gpu_tests")),
    Step("large", "half a million voxels", 25, _late("sparse_steps", "large")),
    Step("tiles", "other tiles of the Triton kernels", 60, _late("sparse_steps", "tiles")),
)


def import_all() -> None:
    """Imports what the steps need, once for all their processes, as far as it can be imported."""
    for module in MODULES:
        # The step whose module it is tells why.
        with contextlib.suppress(Exception):
            importlib.import_module(f".{module}", __package__)
