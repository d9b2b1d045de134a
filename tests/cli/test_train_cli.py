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
        "--data.max_val_frames", "1", "--data.num_workers", "0", "--model.config.num_points", "500",
    ]  # fmt: skip
    train.main(words)
    text = capsys.readouterr().out
    assert "16 updates, 2 in an epoch; 4 frames of sample" in text and "parameter group" in text
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_the_script_trains(tmp_path):
    words = [
        "tiny_demo", "--output_dir", tmp_path / "run", "--data.max_train_frames", "2", "--data.max_val_frames", "1",
        "--training.batch_size", "2", "--training.epochs", "1", "--data.num_workers", "0",
        "--model.config.num_points", "500",
    ]  # fmt: skip
    environment = {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "PATH": ""}
    command = [sys.executable, ROOT / "scripts" / "train.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert "best_all_ap" in (tmp_path / "run" / "train.log").read_text()
