"""The tests of this folder need open_clip; `make test-openclip` runs them in an environment of their own.

open_clip imports torchvision, and so does transformers where it finds one. The torchvision of PyPI is built for CUDA:
beside a CPU build of torch its compiled operators don't load, and its import fails at the two that it only describes.
Declaring these two is enough for everything open_clip does with a tower; none of its operators is ever called.
"""

import importlib.util
from pathlib import Path

import pytest
import torch


collect_ignore_glob = [] if importlib.util.find_spec("open_clip") else ["test_*.py"]

DESCRIBED_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _compiled_operators_load() -> bool:
    folder = Path(importlib.util.find_spec("torchvision").origin).parent
    try:
        torch.ops.load_library(str(next(folder.glob("_C*"))))
    except (OSError, StopIteration):
        return False
    return True


TORCHVISION_FITS = importlib.util.find_spec("torchvision") is not None and _compiled_operators_load()
if importlib.util.find_spec("open_clip") and not TORCHVISION_FITS:
    # The declarations last as long as the object.
    _LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for operator in DESCRIBED_OPERATORS:
        _LIBRARY.define(operator)


@pytest.fixture(scope="session")
def torchvision_fits() -> bool:
    """Whether the compiled operators of the installed torchvision load with the installed torch."""
    return TORCHVISION_FITS
