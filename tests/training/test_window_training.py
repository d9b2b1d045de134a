"""The online stage with the real network: windows train, resume bit by bit, and the audit watches all their parts."""

from types import SimpleNamespace

import pytest
import torch
from real_recipe import assert_all_trained, small_recipe
from walk_rows import write_walks

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor, SceneSession
from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.recipe.reading import load_arguments
from bifusion_hf.training import run
from bifusion_hf.training.audit import LivenessError
from bifusion_hf.training.metrics import read_metrics
from bifusion_hf.training.plan import describe_plan
from bifusion_hf.training.run import build_trainer
from scripts.interrupts import NETWORK


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    return str(write_walks(tmp_path_factory.mktemp("walks") / "walks"))


def online_recipe(folder, walks, *, losses=None, **sections):
    data = {"train": walks, "val": walks, "window_frames": 3, "max_train_frames": None, "max_val_frames": 4}
    config = {
        "use_box_head": True,
        "use_merge_head": "layer",
        "point_config": {**NETWORK["point_config"], "use_frame_adapters": True},
        "loss_config": {"box_weight": 0.5, "merge_weight": 2.0, **(losses or {})},
    }
    sections["data"] = {**data, **sections.get("data", {})}
    sections["training"] = {"batch_size": 2, "max_updates": 3, "epochs": 3, **sections.get("training", {})}
    return small_recipe(folder, config=config, **sections)


def test_windows_train_and_scenes_are_evaluated(tmp_path, walks):
    trainer = build_trainer(online_recipe(tmp_path, walks, evaluation={"every_epochs": 0}))
    plan = describe_plan(trainer)
    assert "3 updates" in plan and "2 scenes of" in plan and "windows of 3 frames of an update: 2" in plan
    results = trainer.train()
    assert {"all_ap", "all_ap_50%", "all_ap_25%"} <= results.keys()
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 3 and all(line["loss_box"] > 0 and line["loss_merge"] > 0 for line in lines)
    # The points of all frames of both windows.
    assert lines[0]["points"] == 2 * 3 * 600
    log = (tmp_path / "train.log").read_text()
    assert "3 updates of 2 windows of 3 frames (2 x 1 accumulated" in log
    assert "frame_adapters" in log and "merge_head" in log
    model = BiFusionForInstanceSegmentation.from_pretrained(tmp_path / "final").eval()
    session = SceneSession(model, BiFusionProcessor.from_pretrained(tmp_path / "final"), threshold=0.0)
    assert session.merging.name == "learned"
    for row in load_frames(walks, "val").select(range(2)):
        session.update(frame_from_row(row))
    assert len(session.frame_memory.levels) == 4


def test_every_trainable_tensor_has_a_gradient(tmp_path, walks):
    arguments = online_recipe(tmp_path, walks, data={"val": None}, optimizer={"weight_decay": 0.0})
    assert_all_trained(build_trainer(arguments))


@pytest.mark.parametrize(
    ("losses", "prefix"), [({"merge_weight": 0.0}, "merge_head."), ({"box_weight": 0.0}, "decoder.box_head.")]
)
def test_the_audit_names_a_head_that_nothing_trains(losses, prefix, tmp_path, walks):
    training = {"audit_window": 2, "batch_size": 1}
    trainer = build_trainer(online_recipe(tmp_path, walks, losses=losses, data={"val": None}, training=training))
    with pytest.raises(LivenessError, match=rf"no gradient in 2 updates for \d+ trainable tensors: {prefix}"):
        trainer.train()


def test_the_audit_names_adapters_that_are_never_asked(tmp_path, walks):
    # They have none in the first update, being behind a norm that starts at zero.
    training = {"audit_window": 2, "batch_size": 1, "max_updates": 4}
    trainer = build_trainer(online_recipe(tmp_path, walks, data={"val": None}, training=training))
    adapter = trainer.network.model.encoder.point_encoder.frame_adapters[1]
    adapter.forward = lambda x, around=None: x
    with pytest.raises(
        LivenessError, match=r"no gradient in 2 updates for 9 trainable tensors: .*frame_adapters\.1\."
    ):
        trainer.train()


def test_a_resumed_run_is_identical_bit_for_bit(tmp_path, walks):
    sections = {
        "data": {"val": None},
        "training": {"batch_size": 1, "ema_decay": 0.8},
        "checkpoints": {"every_updates": 1, "keep": 9},
    }

    def train(folder, checkpoint=None):
        arguments = online_recipe(folder, walks, **sections)
        arguments.resume_from_checkpoint = checkpoint
        trainer = build_trainer(arguments)
        trainer.train()
        lines = read_metrics(folder / "metrics.jsonl")
        return trainer, [(line["loss"], line["loss_merge"]) for line in lines if "loss" in line]

    whole, losses = train(tmp_path / "whole")
    resumed, rest = train(tmp_path / "resumed", str(whole.checkpoint_dir / "checkpoint-0000001"))
    assert rest == losses[1:] and len(set(losses)) == 3
    for one, other in ((whole.network, resumed.network), (whole.ema, resumed.ema)):
        state = other.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_two_windows_at_once_are_the_two_one_after_the_other(tmp_path, walks):
    """But for batch statistics, which are frozen here, accumulation gives the big batch's losses."""

    def losses(folder, batch_size):
        training = {"batch_size": batch_size, "accumulation": 2 // batch_size, "max_updates": 1}
        trainer = build_trainer(online_recipe(tmp_path / folder, walks, data={"val": None}, training=training))
        for module in trainer.network.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
                module.train = lambda mode=True, module=module: module
        trainer.train()
        line = next(line for line in read_metrics(tmp_path / folder / "metrics.jsonl") if "loss" in line)
        return {name: value for name, value in line.items() if name.startswith("loss")}

    one, two = losses("together", 2), losses("in turn", 1)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name


def test_scenes_are_shared_out_over_the_processes(monkeypatch):
    for name in ("load_frames", "_select", "RowScenes"):
        monkeypatch.setattr(run, name, lambda *_: "rows")
    monkeypatch.setattr(run, "headline", lambda results: results)
    monkeypatch.setattr(run, "evaluate_scenes", lambda *given, **options: (given, options))
    data = SimpleNamespace(val="folder", val_split="val", max_val_frames=None, window_frames=2)
    found = run.build_evaluation(data, None, "processor", "accelerator")("model")
    assert found == (("model", "processor", "rows"), {"accelerator": "accelerator"})


def test_windows_of_enlarged_frames_are_refused_before_the_training(tmp_path, walks):
    arguments = online_recipe(tmp_path, walks)
    arguments.model.processor["reference_depth"] = 1.5
    with pytest.raises(ValueError, match=r"reference_depth is 1\.5; .* must be 0"):
        build_trainer(arguments)
    assert load_arguments("tiny_online").model.processor["reference_depth"] == 0
