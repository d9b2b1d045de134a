import os
from pathlib import Path

import pytest
import torch


TESTS = Path(__file__).parent
# Large reference outputs of the original networks; they are not part of the repository.
LARGE_REFERENCE = Path(os.environ.get("BIFUSION_REFERENCE", TESTS.parent.parent / "shared" / "reference"))
REAL_FRAMES = Path(os.environ.get("BIFUSION_REAL_FRAMES", TESTS.parent.parent / "shared" / "frames"))


def pytest_configure(config):
    # Two workers of pytest-xdist on a small machine would otherwise fight over the cores.
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Small reference files of the original code, kept in the repository."""
    return TESTS / "fixtures" / "reference"


@pytest.fixture(scope="session")
def large_reference() -> Path:
    if not LARGE_REFERENCE.is_dir():
        pytest.skip(f"large reference files are absent ({LARGE_REFERENCE}); set BIFUSION_REFERENCE")
    return LARGE_REFERENCE


@pytest.fixture(scope="session")
def real_frames() -> Path:
    if not REAL_FRAMES.is_dir():
        pytest.skip(f"the real Kinect frames are absent ({REAL_FRAMES}); set BIFUSION_REAL_FRAMES")
    return REAL_FRAMES
