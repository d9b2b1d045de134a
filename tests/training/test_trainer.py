import gc
import math
import time

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from torch import nn
from training_standin import (
    RecordingTrainer,
    StandIn,
    StandInFrames,
    assert_same_updates,
    collate,
    make_trainer,
    recipe,
)

import bifusion_hf.training.metrics
import bifusion_hf.training.setup
import bifusion_hf.training.trainer
from bifusion_hf.training.checkpoints import list_checkpoints
from bifusion_hf.training.guards import NonFiniteError, OutOfMemoryError
from bifusion_hf.training.metrics import read_metrics
from bifusion_hf.training.trainer import BiFusionTrainer


def weights(trainer):
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


CADENCE = {"every_epochs": 5}


def test_a_run_learns_and_leaves_everything_behind(tmp_path, capsys):
    trainer = make_trainer(
        recipe(tmp_path, training={"epochs": 10}, **dict.fromkeys(("evaluation", "checkpoints"), CADENCE))
    )
    results = trainer.train()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    updates = [line for line in lines if "loss" in line]
    assert [line["update"] for line in updates] == list(range(1, 41))
    assert updates[-1]["loss_points"] < 0.75 * updates[0]["loss_points"]
    for key in ("loss_points", "loss_class", "grad_norm", "learning_rate_main", "data_fraction", "compute_fraction",
                "overhead_fraction", "points_per_second", "memory_gib", "alpha_mean", "epoch"):  # fmt: skip
        assert all(math.isfinite(line[key]) for line in updates), key
    log = (tmp_path / "train.log").read_text()
    assert "best_all_ap 0.1" in log and "liveness audit of update 1" in log and "liveness audit of update 40" in log
    assert log.count("evaluation of update") == 2
    assert results == trainer.best | {} or results.keys() <= trainer.best.keys()
    for name in ("best", "final", "recipe.yaml", "curves.png", "checkpoints"):
        assert (tmp_path / name).exists(), name
    assert len(list_checkpoints(trainer.checkpoint_dir)) == 2
    assert trainer.network.progress.tolist() == [40, 40]
    assert same(StandIn.from_pretrained(tmp_path / "final").state_dict(), weights(trainer))


def test_evaluation_before_the_first_update(tmp_path):
    make_trainer(recipe(tmp_path, evaluation={"at_start": True})).train()
    assert [line["update"] for line in read_metrics(tmp_path / "metrics.jsonl") if "all_ap" in line] == [0, 12]


def test_best_is_the_evaluation_with_the_highest_metric(tmp_path):
    trainer = make_trainer(recipe(tmp_path, evaluation={"every_updates": 3}))
    values = iter([float("nan"), 0.5, 0.5, 0.2])
    trainer.evaluate_model = lambda model: {"all_ap": 0.0, "all_ap_50%": next(values)}
    kept = {}
    write = trainer._write_model
    trainer._write_model = lambda folder: (kept.setdefault(folder.name, []).append(trainer.update), write(folder))
    trainer.train()
    assert kept == {"best": [3, 6, 9], "final": [12]}
    assert trainer.best["update"] == 9 and trainer.best["all_ap_50%"] == 0.5


def test_the_same_seed_gives_identical_losses(tmp_path):
    runs = []
    for name in ("a", "b"):
        trainer = make_trainer(recipe(tmp_path / name), config={"dropout": 0.3})
        trainer.train()
        runs.append([line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line])
    assert runs[0] == runs[1]


def test_a_resumed_run_is_identical_bit_for_bit(tmp_path):
    sections = {"training": {"ema_decay": 0.8}, "checkpoints": {"every_updates": 1, "keep": 99}}
    config = {"dropout": 0.3, "gate_warmup_steps": 5}

    def run(folder, checkpoint=None):
        arguments = recipe(folder, **sections)
        arguments.resume_from_checkpoint = checkpoint
        trainer = make_trainer(arguments, config=config)
        torch.rand(7)  # Whatever happens before the checkpoint is read must not matter.
        trainer.train()
        return trainer, [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]

    whole, losses = run(tmp_path / "whole")
    for stop in (1, 4, 6, 11):
        checkpoint = whole.checkpoint_dir / f"checkpoint-{stop:07d}"
        resumed, rest = run(tmp_path / f"from_{stop}", str(checkpoint))
        assert rest == losses[stop:]
        assert same(weights(whole), weights(resumed))
        assert same(dict(whole.ema.state_dict()), dict(resumed.ema.state_dict()))
        for parameter, other in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
            first, second = whole.optimizer.state[parameter], resumed.optimizer.state[other]
            assert same(first, second)


def test_other_runs_are_not_overwritten_and_mismatches_are_refused(tmp_path):
    arguments = recipe(tmp_path)
    make_trainer(arguments).train()
    with pytest.raises(ValueError, match="--resume_from_checkpoint latest"):
        make_trainer(arguments).train()
    arguments.resume_from_checkpoint = "latest"
    arguments.training.batch_size = 8
    with pytest.raises(ValueError, match="total_updates 12, this run 6"):
        make_trainer(arguments).train()
    arguments.resume_from_checkpoint = None
    arguments.overwrite_output_dir = True
    trainer = make_trainer(arguments)
    trainer.train()
    assert trainer.update == 6 and len(read_metrics(tmp_path / "metrics.jsonl")) == 6 + 1


def test_lines_of_updates_that_are_run_again_are_dropped(tmp_path):
    arguments = recipe(tmp_path, checkpoints={"every_updates": 4})
    trainer = make_trainer(arguments)

    class Stop(Exception):
        pass

    def stop(window, values, finish=trainer._finish_update):
        finish(window, values)
        if trainer.update == 6:
            raise Stop

    trainer._finish_update = stop
    with pytest.raises(Stop):
        trainer.train()
    arguments.resume_from_checkpoint = "latest"
    make_trainer(arguments).train()
    assert [line["update"] for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line] == [*range(1, 13)]


def test_accumulation_equals_the_big_batch(tmp_path):
    runs = {}
    for name, batch, accumulation in (("big", 4, 1), ("half", 2, 2), ("single", 1, 4)):
        arguments = recipe(tmp_path / name, training={"batch_size": batch, "accumulation": accumulation})
        trainer = make_trainer(arguments, dtype=torch.float64, freeze_norm=True, cls=RecordingTrainer)
        trainer.train()
        runs[name] = trainer.seen
    assert_same_updates(runs["big"], runs["half"])
    assert_same_updates(runs["big"], runs["single"])


def test_means_of_means_would_have_been_wrong(tmp_path):
    """The test above can tell: with each batch's own counts the accumulated gradient is another."""
    trainer = make_trainer(
        recipe(tmp_path, training={"batch_size": 2, "accumulation": 2}), dtype=torch.float64, freeze_norm=True
    )
    frames = [StandInFrames()[0, row] for row in (0, 3, 1, 2)]
    whole = trainer.network(**trainer._inputs(collate(frames))).loss
    halves = [trainer.network(**trainer._inputs(collate(frames[part : part + 2]))).loss for part in (0, 2)]
    assert abs((whole - sum(halves) / 2).item()) > 0.1


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


def test_ema_is_the_average_and_what_is_evaluated(tmp_path):
    arguments = recipe(tmp_path, training={"ema_decay": 0.5, "max_updates": 2})
    evaluated = []
    trainer = make_trainer(arguments, cls=RecordingTrainer)
    trainer.evaluate_model = lambda model: evaluated.append(model) or {"all_ap_50%": 0.0}
    trainer.train()
    first, second = trainer.weights
    expected = 0.5 * first["inner.weight"] + 0.5 * second["inner.weight"]
    assert torch.allclose(trainer.ema.module.inner.weight, expected)
    # Running statistics are not averaged, they are the network's.
    assert torch.equal(trainer.ema.module.norm.running_mean, trainer.network.norm.running_mean)
    assert all(model is trainer.ema.module for model in evaluated)


def test_staged_unfreezing_survives_a_resume(tmp_path):
    sections = {"training": {"unfreeze_at": {"inner": 0.5}}, "checkpoints": {"every_updates": 4, "keep": 9}}
    whole = make_trainer(recipe(tmp_path / "a", **sections), cls=RecordingTrainer)
    before = whole.network.inner.weight.clone()
    whole.train()
    moved = [not torch.equal(state["inner.weight"], before) for state in whole.weights]
    assert moved == [False] * 6 + [True] * 6
    for update in (4, 8):
        arguments = recipe(tmp_path / f"b{update}", **sections)
        arguments.resume_from_checkpoint = str(whole.checkpoint_dir / f"checkpoint-{update:07d}")
        resumed = make_trainer(arguments)
        resumed.train()
        assert same(weights(whole), weights(resumed))


def test_frozen_parameters_have_no_gradient_and_no_state(tmp_path):
    trainer = make_trainer(recipe(tmp_path), freeze_norm=True)
    trainer.train()
    norm = trainer.network.norm
    assert norm.weight.grad is None and norm.weight not in trainer.optimizer.state
    assert norm.num_batches_tracked == 0 and torch.equal(norm.running_mean, torch.zeros(8))


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
    monkeypatch.setattr(bifusion_hf.training.setup, "bfloat16_slowdown", lambda: slowdown)
    make_trainer(recipe(tmp_path, training={"mixed_precision": "bf16"}))
    told = "takes 80 times as long as one of float32; --training.mixed_precision no trains faster" in caplog.text
    assert told == (slowdown > 3)


def test_the_slowdown_of_bfloat16_is_that_of_the_clock(monkeypatch):
    class Clock:
        """A second for a product of float32, seven for one of bfloat16; the first round is slower."""

        now, readings = 0.0, 0

        def perf_counter(self):
            self.readings += 1
            if self.readings % 2 == 0:
                self.now += (7 if self.readings % 4 == 0 else 1) * (10 if self.readings <= 4 else 1)
            return self.now

    monkeypatch.setattr(bifusion_hf.training.setup, "time", Clock())
    assert bifusion_hf.training.setup.bfloat16_slowdown(size=8) == 7


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


class NotebookTracker(GeneralTracker):
    """Stands in for one of Accelerate's trackers."""

    name = "tensorboard"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, run_name, **kwargs):
        super().__init__()
        self.run_name, self.config, self.lines, self.ended = run_name, None, [], False

    @property
    def tracker(self):
        return self.lines

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.lines.append((step, values))

    def finish(self):
        self.ended = True


def test_a_tracker_gets_the_recipe_and_every_line(tmp_path, monkeypatch):
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", NotebookTracker)
    for module in (accelerate.tracking, bifusion_hf.training.setup):
        monkeypatch.setattr(module, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    arguments = recipe(tmp_path, logging={"trackers": ["tensorboard"], "project": "mine"}, training={"max_updates": 4})
    trainer = make_trainer(arguments)
    trainer.train()
    (tracker,) = trainer.accelerator.trackers
    assert tracker.run_name == "mine" and tracker.ended
    assert tracker.config["optimizer.learning_rate"] == 1e-2 and tracker.config["training.max_updates"] == 4
    written = read_metrics(tmp_path / "metrics.jsonl")
    assert [step for step, _ in tracker.lines] == [line["update"] for line in written]
    assert {"loss", "loss_points", "learning_rate_main"} <= tracker.lines[0][1].keys()
    assert "all_ap_50%" in tracker.lines[-1][1]
    for (_, values), line in zip(tracker.lines, written, strict=True):
        assert all(math.isfinite(value) for value in values.values())
        assert values == {name: value for name, value in line.items() if name != "update" and value is not None}


def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    arguments = recipe(tmp_path, logging={"trackers": ["tensorboard"]}, training={"max_updates": 2})
    make_trainer(arguments).train()
    # Hyperparameters lie in a folder below.
    (file,) = (tmp_path / "bifusion").glob("events.out.tfevents*")
    events = accumulator.EventAccumulator(str(file))
    events.Reload()
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (step, pytest.approx(loss, rel=1e-6)) for step, loss in enumerate(losses, start=1)
    ]


@pytest.mark.parametrize(("name", "package"), [("clearml", "clearml"), ("comet_ml", "comet_ml")])
def test_a_tracker_that_is_not_installed_is_named(tmp_path, name, package):
    with pytest.raises(ImportError, match=f"logging.trackers: {name} not installed; pip install {package}"):
        make_trainer(recipe(tmp_path, logging={"trackers": [name]}))
    with pytest.raises(ValueError, match=r"logging.trackers has no paper; Accelerate knows \[.*'tensorboard'"):
        make_trainer(recipe(tmp_path / "b", logging={"trackers": ["paper"]}))


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
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched on a machine with 1 GPUs.*ACCELERATE_USE_CPU"):
        make_trainer(recipe(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert make_trainer(recipe(tmp_path)).accelerator.device.type == "cpu"


def test_deterministic_is_passed_on(tmp_path):
    try:
        make_trainer(recipe(tmp_path, deterministic=True)).train()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_loader_workers_change_nothing(tmp_path):
    trained = []
    for workers in (0, 2):
        trainer = make_trainer(recipe(tmp_path / str(workers), data={"num_workers": workers}))
        trainer.train()
        trained.append(weights(trainer))
    assert same(*trained)


def test_every_line_says_where_the_time_went(tmp_path):
    """How little the loop itself takes is for the log of a real run, not for a test on a shared machine."""
    trainer = make_trainer(recipe(tmp_path, training={"max_updates": 4}))
    trainer.network.inner.register_forward_hook(lambda *_: time.sleep(0.05))
    trainer.train()
    updates = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert len(updates) == 4
    for line in updates:
        parts = [line[f"{name}_fraction"] for name in ("data", "compute", "overhead")]
        assert min(parts) >= 0 and sum(parts) == pytest.approx(1, abs=1e-6)
        assert line["compute_fraction"] * line["seconds"] >= 0.05


def test_a_checkpoint_after_the_end_is_whole(tmp_path):
    trainer = make_trainer(recipe(tmp_path, training={"max_updates": 2}))
    trainer.train()
    files = {path.name for path in trainer.save_checkpoint().iterdir()}
    assert {"model.safetensors", "optimizer.bin", "scheduler.bin"} <= files
