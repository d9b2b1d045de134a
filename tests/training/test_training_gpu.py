"""What only a GPU can show; skipped elsewhere."""

import pytest
import torch
from processes import join, run_processes
from torch import nn
from training_standin import make_trainer, recipe

from bifusion_hf.training.checkpoints import list_checkpoints
from bifusion_hf.training.metrics import read_metrics


pytestmark = pytest.mark.gpu


def test_fp16_scales_the_loss_and_keeps_the_scaler_in_checkpoints(tmp_path):
    arguments = recipe(tmp_path, training={"mixed_precision": "fp16", "epochs": 10})
    trainer = make_trainer(arguments)
    trainer.train()
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line.get("loss_points")]
    assert lines[-1]["loss_points"] < 0.75 * lines[0]["loss_points"]
    assert (list_checkpoints(trainer.checkpoint_dir)[-1] / "scaler.pt").is_file()
    # Overflows while the scale settles are skipped, not fatal.
    assert trainer.guard.skipped < 10 and trainer.network.inner.weight.dtype == torch.float32


def train_on_two(folder):
    trainer = make_trainer(recipe(folder, training={"batch_size": 2}))
    assert isinstance(trainer.network.norm, nn.SyncBatchNorm)
    trainer.train()
    torch.save(trainer.network.state_dict(), folder / f"weights_{trainer.accelerator.process_index}.pt")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_batch_statistics_are_those_of_all_processes(tmp_path):
    join(run_processes(train_on_two, 2, tmp_path, gpus=True))
    first, second = (torch.load(tmp_path / f"weights_{rank}.pt", map_location="cpu") for rank in range(2))
    one = make_trainer(recipe(tmp_path / "one"))
    one.train()
    for name, value in one.network.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name].float(), value.cpu().float(), atol=1e-4), name
