import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from bifusion_hf.cli import train


ROOT = Path(__file__).parents[2]


def test_help_lists_recipes_and_keys(capsys):
    train.main(["--help"])
    text = capsys.readouterr().out
    for part in ("bifusion_simple", "--training.batch_size  int (default 4)", "--init.sv3d", "torchrun"):
        assert part in text, part


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "no recipe 'nothing'"),
        (["tiny", "--training.epoch", "3"], "did you mean 'training.epochs'"),
        (["tiny", "--training.batch_size", "many"], "training.batch_size must be int"),
    ],
)
def test_mistakes_end_with_the_reason(words, message):
    with pytest.raises(SystemExit, match=message):
        train.main(words)


def test_dry_run_prints_the_plan_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    words = [
        "tiny_demo", "--dry_run", "--output_dir", str(tmp_path / "run"), "--data.max_train_frames", "4",
        "--data.max_val_frames", "1", "--data.num_workers", "0", "--model.processor.num_points", "500",
    ]  # fmt: skip
    train.main(words)
    text = capsys.readouterr().out
    assert "16 updates, 2 in an epoch; 4 frames of sample" in text and "parameter group" in text
    assert not (tmp_path / "run" / "checkpoints").exists()


WAITING = """
import os, sys
from bifusion_hf.cli import train
from bifusion_hf.training import run
def build_trainer(arguments):
    print(os.getpid(), os.environ["OMP_WAIT_POLICY"], sys.argv[1:], arguments.seed)
    raise SystemExit(3)
run.build_trainer = build_trainer
if "OMP_WAIT_POLICY" not in os.environ:
    print(os.getpid())
train.main()
"""


@pytest.mark.parametrize("policy", [None, "ACTIVE"])
def test_threads_wait_without_spinning_unless_told_otherwise(policy):
    """OpenMP reads the variable when torch is loaded, so that the command starts itself anew, as the same process."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if policy is None else {"OMP_WAIT_POLICY": policy}
    command = [sys.executable, "-c", WAITING, "tiny", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 3, done.stderr
    lines = done.stdout.splitlines()
    pid = lines[0].split()[0]
    expected = [f"{pid} {policy or 'PASSIVE'} ['tiny', '--seed', '7'] 7"]
    assert lines == ([pid] if policy is None else []) + expected


@pytest.mark.slow
def test_the_script_trains(tmp_path):
    words = [
        "tiny_demo", "--output_dir", tmp_path / "run", "--data.max_train_frames", "2", "--data.max_val_frames", "1",
        "--training.batch_size", "2", "--training.epochs", "1", "--data.num_workers", "0",
        "--model.processor.num_points", "500",
    ]  # fmt: skip
    environment = {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "PATH": ""}
    command = [sys.executable, ROOT / "scripts" / "train.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert "best_all_ap" in (tmp_path / "run" / "train.log").read_text()
