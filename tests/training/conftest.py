import os

import datasets
import pytest
import real_recipe
import torch


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="package")
def no_waiting(tmp_path_factory):
    """A cache of its own; nothing waits for the disk, nor, as datasets does, for its reader threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(real_recipe, "PLACE", tmp_path_factory.getbasetemp())
        yield
