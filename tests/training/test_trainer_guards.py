import math

import pytest
import torch
from training_standin import (
    StandInFrames,
    make_trainer,
    recipe,
)

from bifusion_hf.training.guards import NonFiniteError, OutOfMemoryError
from bifusion_hf.training.metrics import read_metrics


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_poisoned_frame_is_skipped_named_and_leaves_no_trace(tmp_path, precision, capsys):
    arguments = recipe(tmp_path, training={"mixed_precision": precision})
    frames = StandInFrames(poison={(1, 5)})
    trainer = make_trainer(arguments, frames=frames)
    trainer.train()
    assert trainer.guard.skipped == 1 and trainer.guard.in_a_row == 0
    assert all(torch.isfinite(value).all() for value in trainer.network.state_dict().values())
    assert "frame_5" in capsys.readouterr().out
    (line,) = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line.get("skipped")]
    assert 5 <= line["update"] <= 8 and line["loss"] is None


def test_too_many_skipped_updates_stop_the_run(tmp_path):
    arguments = recipe(tmp_path, training={"max_nonfinite_updates": 3})
    trainer = make_trainer(arguments, frames=StandInFrames(poison={(1, row) for row in range(16)}))
    with pytest.raises(NonFiniteError, match="3 updates in a row"):
        trainer.train()
    assert trainer.update == 7


def test_an_epoch_of_broken_frames_stops_the_run_and_a_few_of_them_do_not(tmp_path):
    sections = {"data": {"skip_broken_rows": True}, "training": {"batch_size": 1, "accumulation": 2}}
    few = make_trainer(recipe(tmp_path / "few", **sections), frames=StandInFrames(broken={3, 4, 5, 6}))
    few.train()
    lines = [line for line in read_metrics(tmp_path / "few" / "metrics.jsonl") if "points" in line]
    assert len(lines) == few.total_updates == 24 and lines[-1]["skipped_batches"] == 3 * 4
    # Two of the broken frames fell into one update; beside each of the others there was one to learn from.
    assert [line["points"] for line in lines].count(0) == lines[-1]["skipped_updates"] == 1
    arguments = recipe(tmp_path / "all", **sections)
    with pytest.raises(
        NonFiniteError, match=r"update 10: none of its frames can be read. That is 10 updates in a row"
    ):
        make_trainer(arguments, frames=StandInFrames(broken=range(16))).train()


class Scaler:
    """As `GradScaler`, of gradients that overflow while its scale is above `largest`."""

    def __init__(self, now, largest):
        self.now, self.largest = now, largest

    def scale(self, loss):
        return loss

    def get_scale(self):
        return self.now

    def update(self):
        self.now /= 2

    def norm(self, *_):
        return torch.tensor(math.inf if self.now > self.largest else 1.0)

    def state_dict(self):
        return {}


@pytest.mark.parametrize("largest", [16, 0])
def test_updates_in_which_fp16_finds_its_scale_stop_nothing(tmp_path, largest, monkeypatch, capsys):
    trainer = make_trainer(recipe(tmp_path, training={"max_nonfinite_updates": 2}))
    scaler = Scaler(2.0**8, largest)
    monkeypatch.setattr(trainer.accelerator, "scaler", scaler)
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", scaler.norm)
    if largest:
        trainer.train()
        assert trainer.guard.skipped == 4 and scaler.now == largest
        assert "update 4: the gradients overflow float16 at a scale of 32, which is halved" in capsys.readouterr().out
    else:
        # At a scale of 1 it is not the scale.
        with pytest.raises(NonFiniteError, match="update 10: grad_norm inf, not finite.*2 updates in a row"):
            trainer.train()


def test_out_of_memory_names_the_batch_and_the_settings(tmp_path):
    trainer = make_trainer(recipe(tmp_path))

    def forward(**inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    trainer.model = forward
    with pytest.raises(OutOfMemoryError, match=r"frames frame_\d.*training.batch_size 4 -> 2.*accumulation 1 -> 2"):
        trainer.train()

    def broken(**inputs):
        raise RuntimeError("something else")

    trainer = make_trainer(recipe(tmp_path / "b"))
    trainer.model = broken
    with pytest.raises(RuntimeError, match="something else"):
        trainer.train()
