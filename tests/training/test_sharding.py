"""Weights in parts (FSDP2), on the CPU, and runs that go on with other processes."""

import os
from pathlib import Path

import pytest
import torch
from node_run import IN_PARTS
from processes import error_of_both, join, run_processes
from real_recipe import ONE_LAYER, small_recipe
from safetensors.torch import load_file
from training_standin import StandInFrames, make_trainer, recipe

from bifusion_hf.modeling_bifusion import BiFusionForInstanceSegmentation
from bifusion_hf.training import checkpoints, run_folder, sharding
from bifusion_hf.training.checkpoints import checkpoint_folder, checkpoints_folder
from bifusion_hf.training.metrics import read_metrics
from bifusion_hf.training.run import build_trainer
from bifusion_hf.training.sharding import read_sharding


LAST = Path("checkpoints") / "checkpoint-0000012"
WEIGHTS = (LAST / "model.safetensors", LAST / "ema.safetensors", Path("final/model.safetensors"))


def run(folder, frames, parts=None, resume=None):
    """Twelve updates of four frames, of which one is poisoned; the gate is let go, and then a module."""
    os.environ.update(parts or {})
    batch_size, accumulation = frames
    training = {"batch_size": batch_size, "accumulation": accumulation, "unfreeze_at": {"inner": 0.5}}
    # In some of the updates whose loss terms are probed, one process alone has frames with a class.
    training["audit_window"] = 3
    arguments = recipe(
        folder,
        training={"ema_decay": 0.9, **training},
        deterministic=True,
        checkpoints={"every_updates": 3, "keep": 9},
        evaluation={"every_updates": 5},
        resume_from_checkpoint=None if resume is None else str(resume),
    )
    poisoned = StandInFrames(poison={(1, 5)})
    config = {"gate_warmup_steps": 3}
    trainer = make_trainer(arguments, dtype=torch.float64, freeze_norm=True, frames=poisoned, config=config)
    assert (trainer.sharding is None) == (parts is None)
    trainer.train()
    (folder / f"table_{trainer.accelerator.process_index}").write_text(trainer.audit.table())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by name: two whole ones, and a chain of which each goes on from a checkpoint of the one before."""
    root = tmp_path_factory.mktemp("runs")

    def of(name, update):
        return checkpoint_folder(checkpoints_folder(root / name), update)

    for name, world, frames, parts, resume in (
        ("one", 1, (4, 1), None, None),
        ("parts", 2, (1, 2), IN_PARTS, None),
        ("then_two", 2, (1, 2), None, of("one", 3)),
        ("then_parts", 2, (2, 1), IN_PARTS, of("then_two", 6)),
        ("then_one", 1, (2, 2), None, of("then_parts", 9)),
    ):
        join(run_processes(run, world, root / name, frames, parts, resume))
    return root


def worst_difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@pytest.mark.parametrize("name", ["parts", "then_two", "then_parts", "then_one"])
def test_other_processes_and_parts_give_the_same_weights(runs, name):
    """Of the network, its average and the moments; all is float64, and the statistics are frozen."""
    for file in WEIGHTS:
        assert worst_difference(load_file(runs / "one" / file), load_file(runs / name / file)) < 1e-12, file
    one, other = (torch.load(runs / run / LAST / "optimizer.bin") for run in ("one", name))
    assert one["param_groups"] == other["param_groups"] and one["state"].keys() == other["state"].keys()
    assert max(worst_difference(values, other["state"][key]) for key, values in one["state"].items()) < 1e-12
    states = [torch.load(runs / run / LAST / "scheduler.bin") for run in ("one", name)]
    assert states[0]["last_epoch"] == states[1]["last_epoch"] == 12


def test_in_parts_numbers_and_audit_are_those_of_one_process(runs):
    one, parts = (read_metrics(runs / name / "metrics.jsonl") for name in ("one", "parts"))
    assert len(one) == len(parts) == 12 + 3
    for first, second in zip(one, parts, strict=True):
        shown = {"loss", "loss_points", "loss_class", "grad_norm", "skipped", "points", "all_ap_50%"} & first.keys()
        assert shown
        for name in shown:
            # None is a number that is not finite.
            wanted = None if first[name] is None else pytest.approx(first[name], rel=1e-12)
            assert second[name] == wanted, (first["update"], name)
    tables = [(runs / "parts" / f"table_{rank}").read_text() for rank in range(2)]
    # A gradient of a loss term is of one batch, and the largest of the processes.
    tables.append((runs / "one" / "table_0").read_text())
    first, second, one = ([line for line in table.splitlines() if "loss" not in line] for table in tables)
    alpha = slice(0, -1)
    assert first[alpha] == second[alpha] == one[alpha] and "inner" in first[1]


def real(arguments, parts):
    if parts:
        os.environ.update({**IN_PARTS, "FSDP_TRANSFORMER_CLS_TO_WRAP": "ResidualBlock"})
        trainer = build_trainer(arguments)
        batch = next(trainer._batches())
        with pytest.raises(ValueError, match="names ResidualBlock, which returns SparseTensor; only a module that"):
            trainer.model(**trainer._inputs(batch))
        os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = "CLIPEncoderLayer,QueryDecoderLayer"
    build_trainer(arguments).train()


def test_the_real_network_in_parts_under_bf16_is_that_of_whole_weights(tmp_path):
    """Coordinates stay in float32: in bfloat16 points would fall into other voxels."""
    # Each tensor of another shape takes FSDP's operators tens of milliseconds in each process.
    training = {"batch_size": 1, "max_updates": 2, "mixed_precision": "bf16", "gradient_checkpointing": True}
    for name in ("whole", "parts"):
        arguments = small_recipe(tmp_path / name, config=ONE_LAYER, training=training)
        join(run_processes(real, 2, arguments, name == "parts"))
    whole, parts = (
        [line for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line]
        for name in ("whole", "parts")
    )
    assert len(whole) == len(parts) == 2
    assert whole[0]["loss"] == parts[0]["loss"]
    # Gradients of the points are added up in another order.
    assert whole[0]["grad_norm"] == pytest.approx(parts[0]["grad_norm"], rel=1e-4)
    assert whole[1]["loss"] == pytest.approx(parts[1]["loss"], rel=1e-3)
    model = BiFusionForInstanceSegmentation.from_pretrained(tmp_path / "parts" / "final")
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert model.config == BiFusionForInstanceSegmentation.from_pretrained(tmp_path / "whole" / "final").config


def dead(folder):
    os.environ.update(IN_PARTS)
    arguments = recipe(folder, training={"batch_size": 2, "audit_window": 4})
    make_trainer(arguments, config={"detach": "loss_class"}).train()


def test_in_parts_a_dead_tensor_is_found_by_all_processes(tmp_path):
    error = error_of_both(dead, tmp_path)
    assert error.startswith("LivenessError update 4: no gradient in 4 updates")
    assert "classes.weight, classes.bias" in error


def full_disk(folder):
    os.environ.update(IN_PARTS)
    trainer = make_trainer(recipe(folder, training={"batch_size": 2, "max_updates": 1}))
    trainer.evaluate_model = None

    def write_nothing(*_, **__):
        raise OSError(28, "No space left on device")

    checkpoints.save_file = write_nothing
    trainer.train()


def test_in_parts_a_full_disk_stops_all_processes(tmp_path):
    """The main process alone writes the weights; the others would wait for it to gather the optimizer's state."""
    error = error_of_both(full_disk, tmp_path)
    assert error.startswith("CheckpointError") and "No space left on device" in error
    assert not list((tmp_path / "checkpoints").glob("checkpoint-*"))


def on_two_disks(folder):
    run_folder.SECONDS_TO_APPEAR = 0.5
    make_trainer(recipe(folder / os.environ["RANK"], training={"batch_size": 2})).train()


def test_nodes_without_a_common_folder_are_refused(tmp_path):
    error = error_of_both(on_two_disks, tmp_path)
    assert error.startswith("CheckpointError") and "output_dir must be one folder that all nodes share" in error
    assert f"process 1: FileNotFoundError: {tmp_path / '1'}" in error
    assert not list((tmp_path / "0").glob("*"))


@pytest.mark.parametrize(
    ("launcher", "sections", "reason"),
    [
        ({"FSDP_VERSION": "1"}, {}, "fsdp_version 1"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "fsdp_offload_params true"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, {}, "fsdp_cpu_ram_efficient_loading true"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "training.gradient_checkpointing"),
        ({"FSDP_IGNORED_MODULES": "decoder"}, {}, "fsdp_ignored_modules"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, {}, "SIZE_BASED_WRAP.*TRANSFORMER_BASED_WRAP"),
        ({}, {"training": {"mixed_precision": "fp16"}}, "mixed_precision fp16.*use bf16"),
        ({}, {"training": {"find_batch_size": True}}, "find_batch_size"),
        ({}, {"training": {"compile": True}}, "training.compile"),
        ({}, {"dry_run": True}, "dry_run.*without launcher"),
    ],
)
def test_what_does_not_go_with_parts_is_refused_by_name(tmp_path, monkeypatch, launcher, sections, reason):
    for name, value in {**IN_PARTS, **launcher}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"Accelerate's configuration has .*{reason}"):
        read_sharding(recipe(tmp_path, **sections), 2)


def test_parts_need_several_processes_and_a_torch_that_knows_them(tmp_path, monkeypatch):
    arguments = recipe(tmp_path)
    assert read_sharding(arguments, 1) is None
    for name, value in IN_PARTS.items():
        monkeypatch.setenv(name, value)
    assert read_sharding(arguments, 2) == sharding.Sharding(("Linear",), True)
    with pytest.raises(ValueError, match="there is one process"):
        make_trainer(arguments)
    monkeypatch.setattr(sharding, "is_torch_version", lambda *_: False)
    with pytest.raises(ValueError, match="needs torch 2.7; this is "):
        read_sharding(arguments, 2)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed makes the optimizer's step within the backward pass"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "MEGATRON_LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "parallelism_config"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend INDUCTOR.*training.compile"),
    ],
)
def test_what_the_launcher_asks_for_and_the_loop_cannot_do_is_refused(tmp_path, monkeypatch, variable, value, reason):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=reason):
        make_trainer(recipe(tmp_path))


def test_a_class_that_the_network_has_not_is_refused(tmp_path):
    trainer = make_trainer(recipe(tmp_path))
    wrong = sharding.Sharding(("Linear", "Conv9d"))
    with pytest.raises(
        ValueError, match=r"fsdp_transformer_layer_cls_to_wrap names \['Conv9d'\].* BatchNorm1d.*Linear"
    ):
        sharding.shard_network(trainer.network, wrong, trainer.accelerator)
