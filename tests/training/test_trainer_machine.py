import gc
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from training_standin import (
    StandInFrames,
    make_trainer,
    recipe,
)

import bifusion_hf.training.metrics
import bifusion_hf.training.setup
import bifusion_hf.training.trainer
from bifusion_hf.training.metrics import read_metrics
from bifusion_hf.training.trainer import BiFusionTrainer


def test_batch_size_finder_keeps_the_frames_of_an_update(tmp_path):
    tried = []

    class Limited(BiFusionTrainer):
        def trial(self, samples):
            tried.append(len(samples))
            if len(samples) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().trial(samples)

    arguments = recipe(tmp_path, training={"batch_size": 12, "find_batch_size": True, "epochs": 2})
    trainer = make_trainer(arguments, frames=StandInFrames(24), cls=Limited)
    # Only divisors of 12 are tried, so that an update keeps its 12 frames.
    assert tried == [12, 6, 4]
    assert (trainer.batch_size, trainer.accumulation, trainer.frames_per_update) == (4, 3, 12)
    assert trainer.network.norm.num_batches_tracked == 0
    trainer.train()
    assert trainer.update == 4


def test_the_batch_size_is_found_beside_all_that_training_holds(tmp_path, monkeypatch):
    """Average, moments and shared statistics of another process all came later, and the largest frames by chance."""
    monkeypatch.setattr(bifusion_hf.training.trainer, "shares_batch_statistics", lambda *_: True)
    found = {}

    class Watched(BiFusionTrainer):
        def trial(self, samples):
            held = [item for item in gc.get_objects() if torch.is_tensor(item) and item.shape == (777, 3)]
            found["tensors"] = len({tensor.data_ptr() for tensor in held})
            found["points"] = [len(sample["points"]) for sample in samples]
            assert not any(isinstance(module, nn.SyncBatchNorm) for module in self.network.modules())
            return super().trial(samples)

    arguments = recipe(tmp_path, training={"find_batch_size": True, "ema_decay": 0.9})
    trainer = make_trainer(arguments, frames=StandInFrames(100), config={"width": 777}, cls=Watched)
    assert isinstance(trainer.network.norm, nn.SyncBatchNorm) and trainer.batch_size == 4
    # The weight, its average, and the two moments of AdamW.
    assert found["tensors"] == 4
    # The largest clouds have 12 points; the first four are smaller.
    assert found["points"] == [12] * 4
    assert min(len(StandInFrames()[0, row]["points"]) for row in range(4)) < 12
    assert {id(p) for p in trainer.network.parameters()} == {
        id(p) for group in trainer.optimizer.param_groups for p in group["params"]
    }


def test_a_device_without_float64_trains(tmp_path, monkeypatch):
    def refuse(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")

    def losses(folder):
        make_trainer(recipe(folder, training={"max_updates": 2})).train()
        return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]

    expected = losses(tmp_path / "cpu")
    monkeypatch.setattr(bifusion_hf.training.metrics, "DEVICES_WITHOUT_FLOAT64", ("cpu",))
    monkeypatch.setattr(torch.Tensor, "double", refuse)
    assert losses(tmp_path / "mps") == pytest.approx(expected, rel=1e-6) and len(expected) == 2


def test_bf16_trains_and_fp16_on_a_cpu_is_refused(tmp_path):
    trainer = make_trainer(recipe(tmp_path / "a", training={"mixed_precision": "bf16", "epochs": 10}))
    trainer.train()
    lines = [line["loss_points"] for line in read_metrics(tmp_path / "a" / "metrics.jsonl") if "loss" in line]
    assert lines[-1] < 0.75 * lines[0]
    assert trainer.network.inner.weight.dtype == torch.float32
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        make_trainer(recipe(tmp_path / "b", training={"mixed_precision": "fp16"}))


@pytest.mark.parametrize("slowdown", [1.2, 80.0])
def test_bf16_on_a_cpu_without_its_instructions_is_told(tmp_path, caplog, monkeypatch, slowdown):
    monkeypatch.setattr("bifusion_hf.layers.bfloat16.bfloat16_slowdown", lambda: slowdown)
    make_trainer(recipe(tmp_path, training={"mixed_precision": "bf16"}))
    told = "takes 80 times as long as one of float32; --training.mixed_precision no trains faster" in caplog.text
    assert told == (slowdown > 3)


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "training.mixed_precision"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "training.accumulation"),
    ],
)
def test_a_launcher_that_contradicts_the_recipe_is_refused(tmp_path, monkeypatch, variable, value, key):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=key):
        make_trainer(recipe(tmp_path))


def test_cached_memory_is_released_every_n_updates(tmp_path, monkeypatch):
    released = []
    monkeypatch.setattr(bifusion_hf.training.trainer, "clear_device_cache", lambda: released.append(trainer.update))
    for every, expected in ((0, []), (2, [2, 4]), (1, [1, 2, 3, 4, 5])):
        released.clear()
        training = {"empty_cache_every": every, "max_updates": 5}
        trainer = make_trainer(recipe(tmp_path / str(every), training=training))
        trainer.train()
        assert released == expected


def test_more_processes_than_gpus_are_refused_and_the_cpu_can_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    bifusion_hf.training.setup._check_devices()  # one process that nothing launched
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched on a machine with 1 GPUs.*ACCELERATE_USE_CPU"):
        make_trainer(recipe(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert make_trainer(recipe(tmp_path)).accelerator.device.type == "cpu"


def test_an_accelerator_that_does_not_run_what_was_launched_is_refused(monkeypatch):
    """N processes that each do everything alone would write one folder."""
    given, device = {}, torch.device("cpu")

    def make(**options):
        given.update(options)
        return SimpleNamespace(num_processes=2, mixed_precision=options["mixed_precision"], device=device)

    monkeypatch.setattr(bifusion_hf.training.setup, "Accelerator", make)
    launched = bifusion_hf.training.setup.launched_accelerator
    for world in ("1", "3"):
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(ValueError, match=f"{world} processes were launched, but Accelerate runs 2"):
            launched("no", cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched("bf16", cpu=True, log_with=None).num_processes == 2
    assert given == {"mixed_precision": "bf16", "cpu": True, "log_with": None}
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        launched("fp16", cpu=True)
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ValueError, match="1 processes were launched"):
        launched(None, cpu=True)


def test_deterministic_is_passed_on(tmp_path):
    try:
        make_trainer(recipe(tmp_path, deterministic=True)).train()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
