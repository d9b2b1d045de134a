import math
import time

import pytest
import torch
from training_standin import (
    RecordingTrainer,
    StandIn,
    StandInFrames,
    assert_same_updates,
    collate,
    make_trainer,
    recipe,
    same,
    weights,
)

from bifusion_hf.training.checkpoints import list_checkpoints
from bifusion_hf.training.metrics import read_metrics


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
    # It learns, so the last evaluation is the best.
    assert {"update": 40, **results} == trainer.best
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
