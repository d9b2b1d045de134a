from types import SimpleNamespace

import pytest
import torch

from bifusion_hf.training.guards import OutOfMemoryError
from bifusion_hf.training.sizing import fitting_batch_size, largest_batch_size, largest_samples


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
    assert fits(6) == 6 and type(fits(6)) is int
    # Only what divides the frames of an update is tried.
    assert fits(5) == 3 and fits(1) == 1
    assert fits(6, others=[2, 3]) == 2 and fits(3, others=[6]) == 3
    for largest, others in ((0, [6]), (6, [0])):
        with pytest.raises(OutOfMemoryError, match="not even one frame fits"):
            fits(largest, others)


@pytest.mark.parametrize(("processes", "copies"), [(1, 2), (2, 3)])
def test_a_size_is_tried_beside_moments_and_what_processes_add_up(processes, copies, monkeypatch):
    accelerator = SimpleNamespace(device="cpu", num_processes=processes, gather=lambda found: found)
    first, second = (torch.nn.Parameter(torch.zeros(size)) for size in (5, 7))
    optimizer = torch.optim.AdamW([{"params": [first]}, {"params": [second]}])
    held, tried, zeros_like = [], [], torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda tensor: held.append(len(tensor)) or zeros_like(tensor))

    def trial(samples):
        tried.append([len(sample["points"]) for sample in samples])
        if len(samples) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    rows = Rows({"points": torch.zeros(points, 3)} for points in (4, 9, 8, 2))
    assert fitting_batch_size(accelerator, trial, rows, optimizer, 4, 8) == 2
    assert held == [5] * copies + [7] * copies and tried == [[9, 8, 4, 2], [9, 8]]


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
