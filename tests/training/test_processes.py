"""Several processes, and processes that are killed."""

import contextlib
import os
import random
import subprocess
import sys
import time
import weakref
from pathlib import Path

import psutil
import pytest
import torch
from processes import error_of_both, join, run_processes
from real_recipe import small_recipe
from safetensors.torch import load_file
from training_standin import (
    RecordingTrainer,
    StandInFrames,
    assert_same_updates,
    make_trainer,
    recipe,
)

from bifusion_hf.recipe.reading import load_arguments
from bifusion_hf.training import checkpoints
from bifusion_hf.training.checkpoints import list_checkpoints, read_state
from bifusion_hf.training.metrics import read_metrics
from bifusion_hf.training.run import build_trainer


# Two processes need no second GPU; with the policy set, the command does not start itself anew.
ON_CPU = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "ACCELERATE_USE_CPU": "true"}


def train_recording(folder, batch_size, accumulation):
    arguments = recipe(folder, training={"batch_size": batch_size, "accumulation": accumulation})
    trainer = make_trainer(arguments, dtype=torch.float64, freeze_norm=True, cls=RecordingTrainer)
    trainer.train()
    torch.save(trainer.seen, folder / f"seen_{trainer.accelerator.process_index}.pt")


def test_two_processes_equal_one_with_the_same_frames_per_update(tmp_path):
    for name, world, batch_size, accumulation in (("two", 2, 2, 1), ("one", 1, 4, 1), ("two_by_two", 2, 1, 2)):
        join(run_processes(train_recording, world, tmp_path / name, batch_size, accumulation))
    one = torch.load(tmp_path / "one" / "seen_0.pt")
    assert len(one) == 12
    for name in ("two", "two_by_two"):
        first, second = (torch.load(tmp_path / name / f"seen_{rank}.pt") for rank in range(2))
        assert_same_updates(first, second, tolerance=0)
        assert_same_updates(one, first)


def train_for_kill(folder, resume):
    arguments = recipe(
        folder,
        resume_from_checkpoint="auto" if resume else None,
        training={"epochs": 6, "batch_size": 2, "accumulation": 2},
        checkpoints={"every_updates": 1},
        evaluation={"every_updates": 5},
        data={"num_workers": 1},
    )
    trainer = make_trainer(arguments, config={"dropout": 0.3, "gate_warmup_steps": 9})
    # Updates of some length, so that kills fall everywhere between two checkpoints.
    trainer.network.inner.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    trainer.train()


def done(folder):
    """Finished updates of a run."""
    return max((line["update"] for line in read_metrics(folder / "metrics.jsonl")), default=0)


@pytest.mark.slow
def test_killed_five_times_at_random_moments_and_resumed_the_weights_are_identical(tmp_path):
    join(run_processes(train_for_kill, 1, tmp_path / "whole", False))
    draw = random.Random(1)
    killed = tmp_path / "killed"
    for kill in range(5):
        processes = run_processes(train_for_kill, 1, killed, True)
        while all(process.is_alive() for process in processes) and done(killed) < 1 + 4 * kill:
            time.sleep(0.005)
        # Somewhere in the next few updates, checkpoints and evaluations.
        time.sleep(draw.uniform(0, 0.15))
        assert all(process.is_alive() for process in processes)
        for process in processes:
            process.kill()
            process.join()
        assert not (killed / "final").exists()
    join(run_processes(train_for_kill, 1, killed, True))
    checkpoints = [list_checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("whole", "killed")]
    assert [path.name for path in checkpoints] == ["checkpoint-0000024"] * 2
    first, second = (load_file(path / "model.safetensors") for path in checkpoints)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for name in ("optimizer.bin", "random_states_0.pkl"):
        first, second = (torch.load(path / name, weights_only=False) for path in checkpoints)
        assert str(first) == str(second), name
    for name in ("best", "final"):
        first, second = (load_file(tmp_path / run / name / "model.safetensors") for run in ("whole", "killed"))
        assert all(torch.equal(first[key], second[key]) for key in first), name


def end_with_group(folder):
    trainer = make_trainer(recipe(folder, training={"batch_size": 2, "max_updates": 1}))
    wrapper = weakref.ref(trainer.model)
    assert isinstance(wrapper(), torch.nn.parallel.DistributedDataParallel)
    destroy = torch.distributed.destroy_process_group

    def checked(*args):
        (folder / f"wrapper_gone_{trainer.accelerator.process_index}").write_text(str(wrapper() is None))
        destroy(*args)

    torch.distributed.destroy_process_group = checked
    trainer.train()
    assert not torch.distributed.is_initialized()


def test_the_process_group_is_not_left_to_the_wrapper_that_hangs_at_its_end(tmp_path):
    join(run_processes(end_with_group, 2, tmp_path))
    assert [(tmp_path / f"wrapper_gone_{rank}").read_text() for rank in range(2)] == ["True"] * 2


def fail_on_one_process(folder):
    arguments = recipe(folder, training={"batch_size": 2, "max_nonfinite_updates": 1})
    # Row 5 is poisoned: one process has it, both must stop.
    make_trainer(arguments, frames=StandInFrames(poison={(0, 5)})).train()


def test_all_processes_stop_together_and_name_the_frames_of_all(tmp_path):
    error = error_of_both(fail_on_one_process, tmp_path)
    assert error.startswith("NonFiniteError") and "frame_5" in error and error.count("frame_") == 4


def unfreeze(folder):
    trainer = make_trainer(recipe(folder, training={"batch_size": 2, "unfreeze_at": {"inner": 0.5}}))
    trainer.train()
    torch.save(trainer.network.state_dict(), folder / f"weights_{trainer.accelerator.process_index}.pt")


def test_what_is_unfrozen_later_is_averaged_over_processes(tmp_path):
    join(run_processes(unfreeze, 2, tmp_path))
    first, second = (torch.load(tmp_path / f"weights_{rank}.pt") for rank in range(2))
    assert torch.equal(first["inner.weight"], second["inner.weight"])


def skip_broken(folder):
    sections = {"data": {"skip_broken_rows": True}, "training": {"batch_size": 1, "accumulation": 2, "epochs": 2}}
    trainer = make_trainer(recipe(folder, **sections), frames=StandInFrames(broken={2, 5}), cls=RecordingTrainer)
    trainer.train()
    torch.save([trainer.seen, trainer.skipped_batches], folder / f"seen_{trainer.accelerator.process_index}.pt")


def test_a_process_without_a_whole_frame_keeps_step_with_the_others(tmp_path, capfd):
    """At batch size 1 a broken frame is a batch that one process has not."""
    join(run_processes(skip_broken, 2, tmp_path), timeout=60)
    (first, skipped), (second, other) = (torch.load(tmp_path / f"seen_{rank}.pt") for rank in range(2))
    assert skipped == other == 2 * 2
    assert_same_updates(first, second, tolerance=0)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 8 + 1
    told = capfd.readouterr().out
    assert "so that all processes keep step, whole frames too: frame_" in told and "4 so far" in told


def fail_to_write(folder, name):
    trainer = make_trainer(recipe(folder, training={"batch_size": 2, "max_updates": 1}))
    if trainer.accelerator.is_main_process:
        replace = checkpoints.replace_folder

        def full(target, write):
            replace(target, write if target.name != name else lambda partial: write_nothing())

        checkpoints.replace_folder = full
    trainer.train()


def write_nothing():
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["best", "final"])
def test_where_the_main_process_cannot_write_all_stop(tmp_path, name):
    error = error_of_both(fail_to_write, tmp_path, name)
    assert error.startswith("CheckpointError") and f"could not write {tmp_path / name}" in error
    assert "No space left on device" in error


AVERAGED = {"batch_size": 2, "ema_decay": 0.5, "max_updates": 6}


def average(folder):
    arguments = recipe(folder, evaluation={"every_updates": 4}, training=AVERAGED)
    trainer = make_trainer(arguments, config={"gate_warmup_steps": 6})
    evaluated = []

    def evaluate(model):
        evaluated.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"all_ap_50%": float(trainer.update)}

    trainer.evaluate_model = evaluate
    trainer.train()
    torch.save(evaluated, folder / f"evaluated_{trainer.accelerator.process_index}.pt")


def test_all_processes_evaluate_the_same_average_with_the_gate_of_now(tmp_path):
    """Each process has statistics of its own frames; at the end of the warm-up the gate is let go."""
    join(run_processes(average, 2, tmp_path))
    evaluated = [torch.load(tmp_path / f"evaluated_{rank}.pt") for rank in range(2)]
    assert len(evaluated[0]) == 2
    for first, second in zip(*evaluated, strict=True):
        for name, value in first.items():
            assert torch.equal(value, second[name]), name
    assert [state["progress"].tolist() for state in evaluated[0]] == [[4, 6], [6, 6]]
    for folder in ("best", "final"):
        state = load_file(tmp_path / folder / "model.safetensors")
        assert state["progress"].tolist() == [6, 6]
        assert all(torch.equal(value, evaluated[0][-1][name]) for name, value in state.items()), folder


def train_real(folder, recipe_file):
    arguments = load_arguments(recipe_file, ["--output_dir", str(folder), "--resume_from_checkpoint", "auto"])
    build_trainer(arguments).train()


@pytest.mark.slow
def test_the_real_network_survives_kills_and_torchrun_starts_it(tmp_path):
    """Twice `kill -9` at random moments, each resumed: the weights and losses of a whole run by the launcher."""
    recipe_file = tmp_path / "recipe.yaml"
    small_recipe(
        tmp_path,
        config={"gate_warmup_steps": 5},
        data={"num_workers": 1},
        training={"batch_size": 1, "epochs": 4},
        evaluation={"every_updates": 4},
        checkpoints={"every_updates": 1},
    ).save(recipe_file)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    script = Path(__file__).parents[2] / "scripts" / "train.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    command += [recipe_file, "--output_dir", whole]
    environment = {**os.environ, **ON_CPU, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    launcher = subprocess.Popen([str(word) for word in command], env=environment)
    draw = random.Random(0)
    for kill in range(2):
        processes = run_processes(train_real, 2, killed, recipe_file)
        while done(killed) < 1 + 3 * kill:
            assert all(process.is_alive() for process in processes)
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        # Without any warning: SIGKILL, to both processes and their loader workers.
        doomed = [psutil.Process(process.pid) for process in processes]
        doomed += [child for process in doomed for child in process.children(recursive=True)]
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in processes:
            process.join(60)
        assert not psutil.wait_procs(doomed, timeout=60)[1]
        assert not (killed / "final").exists()
    join(run_processes(train_real, 2, killed, recipe_file))
    assert launcher.wait(600) == 0
    for name in ("best", "final"):
        first, second = (load_file(run / name / "model.safetensors") for run in (whole, killed))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    losses = [
        [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line] for run in (whole, killed)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 8
    states = [read_state(list_checkpoints(run / "checkpoints")[-1]) for run in (whole, killed)]
    assert [state["num_processes"] for state in states] == [2, 2]
