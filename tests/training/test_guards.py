import math
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bifusion_hf.recipe.arguments import TrainingArguments
from bifusion_hf.stopping import SIGNALS
from bifusion_hf.training.guards import (
    NonFiniteError,
    NonFiniteGuard,
    OutOfMemoryError,
    explain_out_of_memory,
    preserved_buffers,
    signal_of_any,
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        torch.OutOfMemoryError("no such words"),
        MemoryError(),
        # What allocators other than PyTorch's of CUDA raise.
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_says_how_large_the_batch_was(error):
    batch = {
        "points": torch.zeros(2, 9, 3),
        "superpoint_ids": torch.tensor([[0, 1, 1], [0, 4, -1]]),
        "frame_ids": ["desk", "chair"],
    }
    expected = r"a batch of {'points': \[2, 9, 3\]}, up to 5 superpoints, frames desk, chair\. .*batch_size 6 -> 3"
    with pytest.raises(OutOfMemoryError, match=expected) as raised:
        explain_out_of_memory(error, batch, TrainingArguments(batch_size=6))
    assert raised.value.__cause__ is error
    # Without superpoints, names and tensors of this name.
    expected = r"a batch of \{\}, up to \? superpoints, frames \. .*batch_size 1 -> 1 "
    with pytest.raises(OutOfMemoryError, match=expected):
        explain_out_of_memory(error, {"points": None}, TrainingArguments(batch_size=1))


def test_other_errors_are_for_others_to_tell():
    for error in (RuntimeError("shapes differ"), ValueError("CUDA out of memory.")):
        assert explain_out_of_memory(error, {}, TrainingArguments()) is None


@pytest.mark.parametrize(("scale", "in_a_row"), [(2.0, 0), (1.0, 1), (None, 1)])
def test_an_overflow_stops_no_run_while_the_scale_can_be_halved(scale, in_a_row):
    guard = NonFiniteGuard(nn.Linear(1, 1), limit=3)
    assert not guard.accept({"grad_norm": math.inf}, scale and SimpleNamespace(get_scale=lambda: scale))
    assert (guard.skipped, guard.in_a_row) == (1, in_a_row)


def test_skipped_updates_are_counted_and_buffers_put_back():
    network = nn.BatchNorm1d(2)
    guard = NonFiniteGuard(network, limit=3)
    guard.remember()
    network.running_mean.fill_(math.nan)
    scaler = SimpleNamespace(get_scale=lambda: 4.0)
    # While fp16 looks for its scale, updates count, but not as those that stop a run.
    assert not guard.accept({"loss": 1.0, "grad_norm": math.inf}, scaler)
    assert (guard.skipped, guard.in_a_row) == (1, 0) and network.running_mean.tolist() == [0, 0]
    for skipped in (2, 3):
        assert not guard.accept({"loss": math.nan, "grad_norm": math.inf}, scaler)
        assert guard.report(7, []).endswith(f"Update skipped, {skipped} so far")
    guard.pass_over()
    with pytest.raises(NonFiniteError, match="update 8: none of its frames can be read; frames a, b. That is 3 up"):
        guard.report(8, ["a", "b"])
    assert guard.accept({"loss": 1.0, "grad_norm": 2.0}) and (guard.skipped, guard.in_a_row) == (4, 0)


def test_a_trial_pass_leaves_no_trace_even_where_it_fails():
    network = nn.BatchNorm1d(2)
    with pytest.raises(RuntimeError, match="out of memory"), preserved_buffers(network):
        network(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
        assert network.running_mean.tolist() != [0, 0] and network.num_batches_tracked == 1
        raise RuntimeError("out of memory")
    assert network.running_mean.tolist() == [0, 0] and network.running_var.tolist() == [1, 1]
    assert network.num_batches_tracked == 0


def test_a_signal_that_any_process_got_is_known_to_all():
    def of_both(here, there):
        other = torch.tensor([there == number for number in SIGNALS]).long()
        totals = {"sum": lambda noted: noted + other}
        accelerator = SimpleNamespace(device="cpu", reduce=lambda noted, how: totals[how](noted))
        return signal_of_any(here, accelerator)

    assert of_both(0, 0) is None
    assert of_both(signal.SIGTERM, 0) == of_both(0, signal.SIGTERM) == signal.SIGTERM
    # Of two the first that is known.
    assert of_both(signal.SIGTERM, signal.SIGINT) == of_both(signal.SIGINT, signal.SIGTERM) == SIGNALS[0]
