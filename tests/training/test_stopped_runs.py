"""Ctrl-C and SIGTERM: a checkpoint, the command that goes on, the status; then the run goes on as if nothing were."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from processes import run_processes
from real_recipe import small_recipe
from training_standin import make_trainer, recipe

from bifusion_hf.cli import train
from bifusion_hf.stopping import Stopped
from bifusion_hf.training.checkpoints import list_checkpoints
from bifusion_hf.training.metrics import read_metrics


def arguments(folder, **sections):
    return recipe(folder, evaluation={"every_updates": 3}, checkpoints={"every_updates": 5}, **sections)


def at(trainer, update, action):
    """Does something in the middle of an update."""
    run = trainer._run_update

    def run_update(window):
        values = run(window)
        if trainer.update + 1 == update:
            action()
        return values

    trainer._run_update = run_update


def numbers(folder):
    timing = ("seconds", "fraction", "second", "gib")
    return [
        {name: value for name, value in line.items() if not any(part in name for part in timing)}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_run_goes_on_as_if_there_had_been_none(tmp_path, number, status):
    whole = make_trainer(arguments(tmp_path / "whole"), config={"dropout": 0.3})
    whole.train()
    # After the sixth update an evaluation is due, which is made up for.
    trainer = make_trainer(arguments(tmp_path / "run"), config={"dropout": 0.3})
    at(trainer, 6, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped) as stopped:
        trainer.train()
    assert stopped.value.code == status
    assert [path.name for path in list_checkpoints(trainer.checkpoint_dir)] == [
        "checkpoint-0000005",
        "checkpoint-0000006",
    ]
    assert "stopped after update 6 of 12; checkpoint" in (tmp_path / "run" / "train.log").read_text()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = make_trainer(arguments(tmp_path / "run", resume_from_checkpoint="latest"), config={"dropout": 0.3})
    resumed.train()
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    expected = whole.network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.network.state_dict().items())


def test_an_evaluation_is_interrupted_and_made_up_for(tmp_path):
    trainer = make_trainer(arguments(tmp_path))

    def interrupted(model):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the evaluation goes on")

    trainer.evaluate_model = interrupted
    with pytest.raises(Stopped):
        trainer.train()
    assert trainer.network.training
    resumed = make_trainer(arguments(tmp_path, resume_from_checkpoint="latest"))
    resumed.train()
    assert [line["update"] for line in read_metrics(tmp_path / "metrics.jsonl") if "all_ap" in line] == [3, 6, 9, 12]


def test_a_signal_in_the_first_evaluation(tmp_path):
    sections = {"evaluation": {"at_start": True}}
    trainer = make_trainer(recipe(tmp_path, **sections))
    trainer.evaluate_model = lambda model: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped):
        trainer.train()
    resumed = make_trainer(recipe(tmp_path, resume_from_checkpoint="latest", **sections))
    resumed.train()
    assert [line["update"] for line in read_metrics(tmp_path / "metrics.jsonl") if "all_ap" in line] == [0, 12]


def train_until_one_is_signalled(folder):
    trainer = make_trainer(recipe(folder, training={"batch_size": 2}, checkpoints={"every_updates": 50}))
    if trainer.accelerator.process_index == 1:
        at(trainer, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trainer.train()


def test_a_signal_to_one_process_stops_all(tmp_path):
    processes = run_processes(train_until_one_is_signalled, 2, tmp_path)
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [143, 143]
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["checkpoint-0000004"]


def test_the_command_that_goes_on(monkeypatch):
    words = ["tiny_demo", "--overwrite_output_dir", "--output_dir", "my runs/a", "--model.config={a: 1}"]
    expected = [
        "tiny_demo",
        "--output_dir",
        "my runs/a",
        "--model.config={a: 1}",
        "--resume_from_checkpoint",
        "latest",
    ]
    assert shlex.split(train.command_to_go_on(words)) == ["bifusion-train", *expected]
    again = shlex.split(train.command_to_go_on([*expected[:4], "--resume_from_checkpoint=some/folder"]))
    assert again == ["bifusion-train", *expected]
    assert train.command_to_go_on(["--seed", "3"]) == "bifusion-train --seed 3 --resume_from_checkpoint latest"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train.command_to_go_on([]) == "... -m bifusion_hf.cli.train --resume_from_checkpoint latest"


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(tmp_path):
    """The signal reaches all processes of the terminal, loader workers too."""
    recipe_file = tmp_path / "recipe.yaml"
    small_recipe(tmp_path, data={"num_workers": 1, "val": None}).save(recipe_file)
    words = [str(recipe_file), "--output_dir", str(tmp_path / "run"), "--training.epochs", "900"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bifusion_hf.cli.train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # With the policy set, the command does not start itself anew.
        env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_WAIT_POLICY": "PASSIVE"},
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "liveness audit of update 1" in line:
            break
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=300)
    text = "".join([*lines, rest])
    assert process.returncode == 130, text
    assert "Traceback" not in text, text
    command = text[text.index("It goes on with:\n") :].splitlines()[1]
    assert shlex.split(command) == ["bifusion-train", *words, "--resume_from_checkpoint", "latest"]
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) >= 1
