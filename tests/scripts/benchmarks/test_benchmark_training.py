import json
import sys
from types import SimpleNamespace

import pytest
import yaml
from forks import run_command

from bifusion_hf.training.metrics import OWN_PARTS
from scripts.benchmarks import training
from scripts.benchmarks.__main__ import main
from scripts.benchmarks.training import PARTS, summarize


def line(update, seconds, data, compute):
    fractions = {"data_fraction": data, "compute_fraction": compute, "overhead_fraction": 1 - data - compute}
    own = {f"{part}_fraction": (1 - data - compute) / 4 for part in OWN_PARTS}
    return {"update": update, "seconds": seconds, **fractions, **own}


def test_fractions_are_weighted_by_time_and_leave_out_the_start():
    lines = [line(1, 100.0, 0.9, 0.1), line(5, 8.0, 0.0, 1.0), {"update": 5, "all_ap": 0.1}, line(6, 2.0, 0.25, 0.5)]
    result = summarize(lines)
    assert result["data_fraction"] == pytest.approx(0.05)
    assert result["compute_fraction"] == pytest.approx(0.9)
    assert result["overhead_fraction"] == pytest.approx(0.05)
    assert all(result[f"{part}_fraction"] == pytest.approx(0.0125) for part in OWN_PARTS)
    assert result["updates"] == 5 and result["seconds_per_update"] == pytest.approx(2.0)


def test_too_short_a_run_is_refused():
    with pytest.raises(ValueError, match="1 lines of metrics.jsonl tell times"):
        summarize([line(1, 1.0, 0.5, 0.5)])


@pytest.mark.slow
def test_a_recipe_is_trained_and_measured(tmp_path, monkeypatch):
    """With the program in a fork; that of a stopped run is started as it is here, and stays a new process."""

    def in_a_fork(command, env):
        assert command[:3] == [sys.executable, "-m", "bifusion_hf.cli.train"]
        # With the policy set, the command does not start itself anew.
        return run_command(["bifusion-train", *command[3:]], environment={**env, "OMP_WAIT_POLICY": "PASSIVE"})

    monkeypatch.setattr(training, "subprocess", SimpleNamespace(run=in_a_fork))
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "new" / "training.json"
    data = {"max_train_frames": 2, "val": None}
    model = {"preset": "tiny", "config": {"num_points": 600, "voxel_size": 0.1}}
    recipe.write_text(yaml.safe_dump({"model": model, "data": data, "training": {"batch_size": 1}}))
    main(["training", "--recipe", str(recipe), "--updates", "6", "--num_workers", "1", "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["updates"] == 5 and sum(result[f"{part}_fraction"] for part in PARTS) == pytest.approx(1, abs=1e-6)
    recipe.write_text(yaml.safe_dump({"training": {"batch": 1}}))
    with pytest.raises(SystemExit, match="the training failed"):
        main(["training", "--recipe", str(recipe)])
