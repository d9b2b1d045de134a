"""The whole experiment, two tiny cells: killed, resumed, skipped, reported."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bifusion_hf.evaluation.detections import load_detections, save_detections
from bifusion_hf.training.trainer import BiFusionTrainer
from scripts.experiments.cells import CONFIG_FOLDER
from scripts.experiments.comparison import load_draws, save_draws
from scripts.experiments.rooms_matrix import main
from scripts.experiments.running import liveness_summary


SHARED = (
    f"extends: {CONFIG_FOLDER / 'rooms_shared.yaml'}"
    + """
model:
  config:
    num_points: 600
    voxel_size: 0.1
    hidden_size: 16
    projection_dim: 16
    projection_hidden_size: 16
    decoder_size: 16
    decoder_intermediate_size: 32
    gate_warmup_steps: 0
    image_size: 240
    point_config:
      {stem_channels: 8, planes: [8, 8, 8, 8, 8, 8, 16, 16], blocks: [1, 1, 1, 1, 1, 1, 1, 1], stem_kernel_size: 3}
data: {num_workers: 0, max_val_frames: 2}
training: {epochs: 2, batch_size: 4, mixed_precision: "no"}
evaluation: {every_epochs: 1, num_workers: 0, batch_size: 2}
checkpoints: {every_updates: 1}
logging: {every_updates: 1}
"""
)
NONE = """
extends: tiny_shared
model:
  config:
    {fusion_type: none, vision_config: null, use_film: false, clip_loss_weight: 0.0, noview_loss_weight: 0.0}
"""
FUSED = """
extends: tiny_shared
model:
  config:
    fusion_type: lite_gate
    vision_config:
      {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2, patch_size: 40}
"""


@pytest.fixture
def run(tmp_path, rooms):
    for name, text in (("tiny_shared", SHARED), ("plain", NONE), ("fused", FUSED)):
        (tmp_path / f"{name}.yaml").write_text(text)
    words = ["run", "--data", str(rooms), "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    words += ["--recipes", str(tmp_path / "plain.yaml"), str(tmp_path / "fused.yaml"), "--seeds", "3"]

    def call(*more):
        main([*words, *more])

    return call


def test_cells_are_killed_resumed_skipped_and_reported(tmp_path, run, monkeypatch, capsys):
    save, saved = BiFusionTrainer.save_checkpoint, []

    def save_and_die(trainer):
        save(trainer)
        saved.append(trainer.update)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(BiFusionTrainer, "save_checkpoint", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not (tmp_path / "results").exists()
    run()
    log = (tmp_path / "work" / "plain-s3" / "train.log").read_text()
    assert "resumed from" in log and "at update 1 of 2" in log
    assert saved == [1, 2, 1, 2]

    results = {name: json.loads((tmp_path / "results" / f"{name}-s3.json").read_text()) for name in ("plain", "fused")}
    plain, fused = results.values()
    assert plain["metrics"].keys() == {"normal", "shuffled"} and plain["alpha"] is None
    assert plain["metrics"]["normal"] == plain["metrics"]["shuffled"]
    assert fused["metrics"].keys() == {"normal", "shuffled", "zeroed"}
    assert 0 < fused["alpha"]["mean"] < 1 and fused["alpha"]["num_points"] == 1800
    for name, result in results.items():
        assert (result["recipe"], result["seed"], result["training"]["updates"]) == (name, 3, 2)
        assert result["metrics"]["normal"]["protocol"]["num_frames"] == 3
        assert result["metrics"]["normal"]["groups"].keys() == {"photometric", "shape_distinct"}
        assert [line["update"] for line in result["learning_curve"]] == [1, 2]
        assert result["liveness"]["audited_updates"] == [1, 2] and not result["liveness"]["alarms"]
        assert str(tmp_path) not in json.dumps(result)
    assert fused["parameters"]["all"] > plain["parameters"]["all"] == plain["parameters"]["trainable"]

    # Finished cells are not touched, whatever the number of workers; other arguments are another run.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    run("--evaluation.batch_size", "3")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    assert capsys.readouterr().out.count("is complete") == 2
    with pytest.raises(SystemExit, match="failed: plain-s3, fused-s3"):
        run("--optimizer.power", "0.5")
    assert "holds a run that differs in optimizer.power" in capsys.readouterr().err

    report = ["report", "--results", str(tmp_path / "results")]
    with pytest.raises(SystemExit, match="comparison.json is missing"):
        main(report)
    main([*report, "--work", str(tmp_path / "work")])
    page = (tmp_path / "results" / "README.md").read_text()
    texts = ("| `plain` | 1 |", "| `fused` | class-aware |", "image of another frame", "rooms_matrix report")
    for text in (*texts, "| float32 |"):
        assert text in page
    for name in ("ap50_by_group.png", "learning_curves.png"):
        assert Image.open(tmp_path / "results" / name).size[0] > 700
    pictures = ["pictures", "--data", str(tmp_path / "rooms"), "--work", str(tmp_path / "work"), "--count", "1"]
    main([*pictures, "--results", str(tmp_path / "results"), "--cells", "fused-s3", "--limit", "2"])
    names = {"fused-s3-failures-0.png", "fused-s3-alpha-0.png"}
    assert {path.name for path in (tmp_path / "results").glob("fused-*.png")} == names
    main(report)
    assert all(f"]({name})" in (tmp_path / "results" / "README.md").read_text() for name in names)
    page = (tmp_path / "results" / "README.md").read_text()
    # The JSON files alone give the same page.
    main([*report, "--output", str(tmp_path / "elsewhere" / "card.md")])
    assert (tmp_path / "elsewhere" / "card.md").read_text() == page

    # Draws that were kept stand for a run's folder that is gone, so that cells can be added later.
    kept = tmp_path / "results" / "fused-s3.draws.npz"
    before, comparison = kept.read_bytes(), tmp_path / "results" / "comparison.json"
    numbers = json.loads(comparison.read_text())
    (tmp_path / "later").mkdir()
    (tmp_path / "work" / "plain-s3").rename(tmp_path / "later" / "plain-s3")
    main([*report, "--work", str(tmp_path / "later")])
    again = json.loads(comparison.read_text())
    assert again["units"] == numbers["units"] and kept.read_bytes() == before
    for name in ("from_baseline", "from_shuffled", "from_zeroed"):
        for unit in ("value", "frames", "rooms"):
            expected = numbers["differences"]["fused"][name]["class_agnostic"]["all"][unit]
            assert again["differences"]["fused"][name]["class_agnostic"]["all"][unit] == pytest.approx(
                expected, abs=1e-6
            )
    kept.write_bytes(before[:500])
    with pytest.raises(SystemExit, match=r"fused-s3.draws.npz: not a file of draws"):
        main([*report, "--work", str(tmp_path / "later")])
    kept.write_bytes(before)
    cell = load_draws(kept)
    save_draws(kept, replace(cell, frame_ids=cell.frame_ids[::-1]))
    with pytest.raises(SystemExit, match=r"fused-s3: its draws are of other frames than those of plain-s3"):
        main([*report, "--work", str(tmp_path / "later")])

    # Detections of another run are noticed.
    path = tmp_path / "work" / "fused-s3" / "detections.npz"
    parts = load_detections(path)
    part = parts["normal/class_agnostic"]
    one = {name: np.ones_like(getattr(part, name), shape=1) for name in ("scores", "correct", "bits")}
    none = {name: np.zeros_like(getattr(part, name), shape=1) for name in ("frames", "classes")}
    parts["normal/class_agnostic"] = replace(part, **one, **none)
    save_detections(path, parts)
    with pytest.raises(SystemExit, match=r"fused-s3: its detections give AP50 .* they are not of one run"):
        main([*report, "--work", str(tmp_path / "work")])


@pytest.mark.parametrize(("words", "restarts"), [(["run", "--recipes", "rooms_none", "--data", "rooms"], 1), ([], 0)])
def test_training_threads_wait_without_spinning(tmp_path, monkeypatch, words, restarts):
    """A command on its own starts itself anew before it trains; one that Python calls cannot."""
    calls = []
    monkeypatch.setattr("scripts.experiments.rooms_matrix.restart_with_passive_threads", lambda: calls.append(1))
    monkeypatch.chdir(tmp_path)
    words = [*words, "--work", "work"] if words else ["report", "--results", "results"]
    for argv, expected in ((None, restarts), (words, restarts)):
        monkeypatch.setattr("sys.argv", ["python -m scripts.experiments.rooms_matrix", *words])
        with pytest.raises(SystemExit, match=r"has no (rooms\.json|result)"):
            main(argv)
        assert len(calls) == expected


def test_the_audit_is_read_from_the_log():
    day = "2030-01-02 03:04:05,678 INFO"
    log = f"""{day} 4 updates
{day} liveness audit of update 1
module  parameters
a       3  1 without gradient: NO GRADIENT
{day} evaluation of update 1
{day} liveness audit of update 2
module  parameters
b       4
"""
    found = liveness_summary(log)
    assert found["audited_updates"] == [1, 2]
    assert found["alarms"] == ["update 1: a       3  1 without gradient: NO GRADIENT"]
    assert found["last_table"] == ["module  parameters", "b       4"]
    # An update that a kill made to be run again counts once, as it was the last time.
    again = liveness_summary(log + f"{day} liveness audit of update 1\nmodule  parameters\n")
    assert again["audited_updates"] == [1, 2] and again["alarms"] == []
