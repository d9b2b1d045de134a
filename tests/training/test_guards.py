import pytest
import torch

from bifusion_hf.recipe.arguments import TrainingArguments
from bifusion_hf.training.guards import OutOfMemoryError, explain_out_of_memory


def test_out_of_memory_says_how_large_the_batch_was():
    batch = {
        "points": torch.zeros(2, 9, 3),
        "superpoint_ids": torch.tensor([[0, 1, 1], [0, 4, -1]]),
        "frame_ids": ["desk", "chair"],
    }
    error = torch.OutOfMemoryError("CUDA out of memory.")
    expected = r"a batch of {'points': \[2, 9, 3\]}, up to 5 superpoints, frames desk, chair\. .*batch_size 6 -> 3"
    with pytest.raises(OutOfMemoryError, match=expected):
        explain_out_of_memory(error, batch, TrainingArguments(batch_size=6))
    # Any other error is for others to tell.
    assert explain_out_of_memory(RuntimeError("shapes differ"), batch, TrainingArguments()) is None
