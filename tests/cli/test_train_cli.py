import os
import subprocess
import sys

import datasets
import pytest

from bifusion_hf.cli import openmp, train


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


def test_a_dry_run_needs_no_weights(tmp_path, capsys, monkeypatch):
    """The recipe names weights that are not here, and a package that reads them which need not be."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    words = [
        "tiny_demo", "--dry_run", "--output_dir", str(tmp_path / "run"), "--data.max_train_frames", "2",
        "--data.max_val_frames", "1", "--data.num_workers", "0", "--model.processor.num_points", "500",
        "--init.clip", "ViT-B-16/openai", "--init.sv3d", str(tmp_path / "baseline.pth"),
    ]  # fmt: skip
    train.main(words)
    text = capsys.readouterr().out
    assert "init.clip ViT-B-16/openai: loaded when the run starts" in text and "parameter group" in text
    assert f"init.sv3d {tmp_path / 'baseline.pth'}: loaded" in text
    with pytest.raises(SystemExit, match="baseline.pth"):
        train.main([word for word in words if word != "--dry_run"])


WAITING = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("openmp", sys.argv[1])
openmp = importlib.util.module_from_spec(spec)
spec.loader.exec_module(openmp)
print(os.getpid(), os.environ.get("OMP_WAIT_POLICY"), sys.argv[2:])
openmp.restart_with_passive_threads()
sys.exit(3)
"""


@pytest.mark.parametrize("policy", [None, "ACTIVE"])
def test_threads_wait_without_spinning_unless_told_otherwise(policy):
    """OpenMP reads the variable when torch is loaded, so that the command starts itself anew, as the same process."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if policy is None else {"OMP_WAIT_POLICY": policy}
    # Without the package around it the module loads at once.
    command = [sys.executable, "-c", WAITING, openmp.__file__, "tiny", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 3, done.stderr
    lines = done.stdout.splitlines()
    pid = lines[0].split()[0]
    policies = [None, "PASSIVE"] if policy is None else [policy]
    assert lines == [f"{pid} {policy} ['tiny', '--seed', '7']" for policy in policies]


def test_the_command_restarts_when_its_recipe_is_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bifusion-train", "tiny", "--seed", "7"])
    restarted = []

    def restart():
        restarted.append(list(sys.argv))
        raise SystemExit(3)

    monkeypatch.setattr(train, "restart_with_passive_threads", restart)
    with pytest.raises(SystemExit, match="3"):
        train.main()
    assert restarted == [["bifusion-train", "tiny", "--seed", "7"]]
    monkeypatch.setattr(sys, "argv", ["bifusion-train", "nothing"])
    with pytest.raises(SystemExit, match="no recipe 'nothing'"):
        train.main()
    assert len(restarted) == 1
