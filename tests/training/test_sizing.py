from types import SimpleNamespace

import pytest
import torch

from bifusion_hf.training.guards import OutOfMemoryError
from bifusion_hf.training.sizing import largest_batch_size


def fits(largest, others=()):
    """What is found where `largest` frames fit here, and other processes found `others`."""
    accelerator = SimpleNamespace(
        device="cpu", gather=lambda found: torch.cat([found, torch.tensor(others, dtype=found.dtype)])
    )

    def trial(size):
        if size > largest:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    return largest_batch_size(accelerator, trial, 6, 6)


def test_the_process_with_the_least_memory_decides():
    assert fits(6) == 6
    # Only what divides the frames of an update is tried.
    assert fits(5) == 3
    assert fits(6, others=[2, 3]) == 2 and fits(3, others=[6]) == 3
    for largest, others in ((0, [6]), (6, [0])):
        with pytest.raises(OutOfMemoryError, match="not even one frame fits"):
            fits(largest, others)
