from types import SimpleNamespace

import pytest
import torch

from bifusion_hf.training.guards import OutOfMemoryError
from bifusion_hf.training.sizing import largest_batch_size, largest_samples


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


class Rows(list):
    """Indexed by (epoch, row), as a data set is."""

    def __getitem__(self, key):
        epoch, row = key
        assert epoch == 0 and type(row) is int
        return super().__getitem__(row)


def test_the_largest_of_frames_all_over_the_data_set_are_tried():
    def frame(points, superpoints=None):
        ids = {} if superpoints is None else {"superpoint_ids": torch.arange(superpoints)}
        return {"points": torch.zeros(points, 3), **ids}

    # Masks are of superpoints over points; a window's frames add up.
    few = [frame(50), None, frame(20, 4), {"frames": [frame(30), frame(10, 6)]}]
    rows = Rows([*few, *[frame(1)] * 996, frame(45)])
    assert [len(sample.get("points", ())) for sample in largest_samples(rows, 2)] == [50, 45]
    assert [len(sample.get("points", ())) for sample in largest_samples(Rows(few), 5)] == [0, 20, 50, 0, 20]
    with pytest.raises(ValueError, match="training.find_batch_size: all 3 frames that were looked at are broken"):
        largest_samples(Rows([None] * 3), 2)
