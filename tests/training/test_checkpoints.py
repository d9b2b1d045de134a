import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from training_standin import StandIn, StandInConfig, make_trainer, recipe

from bifusion_hf.training import checkpoints
from bifusion_hf.training.checkpoints import (
    CheckpointError,
    check_same_run,
    checkpoints_folder,
    list_checkpoints,
    network_to_keep,
    read_state,
    replace_folder,
    save_checkpoint,
    update_of,
)
from bifusion_hf.training.run_folder import find_checkpoint, recover_run


def write_file(folder):
    (folder / "weights").write_text("x")


def test_checkpoints_are_listed_in_order_and_limited(tmp_path):
    accelerator = Accelerator(cpu=True)
    root = checkpoints_folder(tmp_path)
    for update in (9, 10, 100):
        save_checkpoint(accelerator, root, update, write_file, {"update": update}, keep=2)
    assert [read_state(path)["update"] for path in list_checkpoints(root)] == [10, 100]
    assert find_checkpoint(tmp_path, "latest").name == find_checkpoint(tmp_path, "auto").name == "checkpoint-0000100"
    assert find_checkpoint(tmp_path / "nothing", "auto") is None
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        find_checkpoint(tmp_path / "nothing", "latest")
    assert find_checkpoint(tmp_path, None) is None
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        find_checkpoint(tmp_path, str(tmp_path))


def test_beyond_the_digits_of_a_name_checkpoints_are_in_order_of_updates(tmp_path):
    for name in ("checkpoint-10000000", "checkpoint-9999999", "checkpoint-0000001.partial"):
        (tmp_path / name).mkdir()
    assert [update_of(path) for path in list_checkpoints(tmp_path)] == [9_999_999, 10_000_000]
    assert update_of(tmp_path / "best") == 0


def test_a_run_of_another_length_or_other_updates_is_named():
    state = {"total_updates": 12, "frames_per_update": 4}
    check_same_run(Path("checkpoint-3"), state, 12, 4)
    with pytest.raises(ValueError, match="checkpoint-3 has total_updates 12, this run 10; keep it"):
        check_same_run(Path("checkpoint-3"), state, 10, 4)
    with pytest.raises(ValueError, match="checkpoint-3 has frames_per_update 4, this run 8; keep it"):
        check_same_run(Path("checkpoint-3"), state, 12, 8)


class OneNumber(torch.nn.Module):
    def __init__(self, weight, statistic):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.register_buffer("statistic", torch.tensor(statistic))

    def numbers(self):
        return self.weight.item(), self.statistic.item()


@pytest.mark.parametrize(("processes", "statistic"), [(1, 1.0), (2, 7.0)])
def test_weights_are_kept_averaged_and_statistics_as_the_first_process_has_them(processes, statistic, monkeypatch):
    monkeypatch.setattr(checkpoints, "broadcast", lambda buffer: torch.full_like(buffer, 7.0))
    accelerator = SimpleNamespace(num_processes=processes)
    network, average, whole = OneNumber(10.0, 1.0), SimpleNamespace(module=OneNumber(20.0, 2.0)), OneNumber(30.0, 3.0)
    assert network_to_keep(network, None, accelerator) is network and network.numbers() == (10, statistic)
    assert network_to_keep(network, average, accelerator) is average.module
    assert average.module.numbers() == (20, statistic)
    average.module.statistic.fill_(2.0)
    assert network_to_keep(network, average, accelerator, whole) is whole and whole.numbers() == (20, statistic)
    assert average.module.numbers() == (20, statistic)
    assert network_to_keep(network, None, accelerator, whole) is whole and whole.numbers() == (10, statistic)


def test_a_failed_write_leaves_the_earlier_checkpoint_and_no_rest(tmp_path):
    accelerator = Accelerator(cpu=True)
    save_checkpoint(accelerator, tmp_path, 1, write_file, {"update": 1}, keep=1)

    def fail(folder):
        write_file(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"update 2 .*last complete one is .*checkpoint-0000001.*No space left"):
        save_checkpoint(accelerator, tmp_path, 2, fail, {"update": 2}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0000001"]
    save_checkpoint(accelerator, tmp_path, 3, write_file, {"update": 3}, keep=2)
    with pytest.raises(CheckpointError, match=r"update 4 .*last complete one is .*checkpoint-0000003\. Make room"):
        save_checkpoint(accelerator, tmp_path, 4, fail, {"update": 4}, keep=2)
    with pytest.raises(CheckpointError, match="update 1 .*; there is no earlier one"):
        save_checkpoint(accelerator, tmp_path / "other", 1, fail, {"update": 1}, keep=1)


@pytest.mark.parametrize("what", ["checkpoint", "best"])
def test_a_folder_that_cannot_be_made_is_told_with_the_reason(tmp_path, what, monkeypatch):
    """On a full disk already `mkdir` fails; then there is no folder to ask for its space."""
    best, make = tmp_path / "best", Path.mkdir
    replace_folder(best, write_file)

    def full(self, *args, **kwargs):
        if ".partial" in self.name:
            raise OSError(28, "No space left on device", str(self))
        make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(CheckpointError, match=r"could not write .*MiB are free.*No space left on device"):
        if what == "best":
            replace_folder(best, write_file)
        else:
            save_checkpoint(Accelerator(cpu=True), tmp_path / "root", 2, write_file, {"update": 2}, keep=1)
    assert (best / "weights").read_text() == "x" and [path.name for path in tmp_path.glob("*est*")] == ["best"]


def test_a_process_of_another_node_makes_the_folders_that_it_needs(tmp_path):
    class OfSecondNode:
        process_index, is_main_process, is_local_main_process, num_processes = 1, False, True, 1

        def wait_for_everyone(self):
            pass

    root = tmp_path / "root"
    save_checkpoint(OfSecondNode(), root, 3, write_file, {}, keep=1)
    assert (root / ".partial-checkpoint-0000003" / "weights").is_file()


def test_a_swap_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    best, rename = tmp_path / "best", Path.rename
    replace_folder(best, write_file)

    def fail(self, target):
        if ".partial" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(CheckpointError, match=r"could not write .*best: .*Input/output error"):
        replace_folder(best, lambda folder: (folder / "weights").write_text("y"))
    assert (best / "weights").read_text() == "x" and [path.name for path in tmp_path.iterdir()] == ["best"]


def test_what_a_kill_leaves_is_no_checkpoint(tmp_path):
    (tmp_path / ".partial-checkpoint-0000007").mkdir()
    (tmp_path / ".deleted-checkpoint-0000003").mkdir()
    assert list_checkpoints(tmp_path) == []
    save_checkpoint(Accelerator(cpu=True), tmp_path, 8, write_file, {"update": 8}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0000008"]


def test_best_is_swapped_so_that_one_is_always_whole(tmp_path):
    best = tmp_path / "best"
    replace_folder(best, write_file)
    replace_folder(best, lambda folder: (folder / "weights").write_text("y"))
    assert (best / "weights").read_text() == "y" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(CheckpointError, match="could not write"):
        replace_folder(best, lambda folder: 1 / 0)
    assert (best / "weights").read_text() == "y"
    # A kill between the two renames.
    best.rename(tmp_path / ".old-best")
    (tmp_path / ".partial-00c0ffee-best").mkdir()
    recover_run(tmp_path)
    assert (best / "weights").read_text() == "y" and len(list(tmp_path.iterdir())) == 1


def test_checkpoint_is_complete_and_loads_with_from_pretrained(tmp_path):
    trainer = make_trainer(recipe(tmp_path, training={"ema_decay": 0.9}))
    trainer.train()
    folder = list_checkpoints(trainer.checkpoint_dir)[-1]
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json", "ema.safetensors", "model.safetensors", "optimizer.bin", "scheduler.bin",
        "random_states_0.pkl", "trainer_state.json",
    }  # fmt: skip
    # As transformers marks its own files.
    for name in ("ema.safetensors", "model.safetensors"):
        with safe_open(folder / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    loaded = StandIn.from_pretrained(folder)
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.progress.tolist() == [12, 12]
    assert json.loads((folder / "trainer_state.json").read_text())["update"] == 12
    # best and final are the averaged weights.
    final = StandIn.from_pretrained(trainer.output_dir / "final").state_dict()
    assert torch.equal(final["inner.weight"], trainer.ema.module.state_dict()["inner.weight"])
    assert not torch.equal(final["inner.weight"], loaded.inner.weight)


@pytest.mark.parametrize("is_main", [True, False])
@pytest.mark.parametrize("in_parts", [True, False])
def test_processes_wait_for_the_weights_alone_that_lie_in_parts(in_parts, is_main, tmp_path, monkeypatch):
    """They go on to gather the optimizer's state, which fails for all where the first one could not write."""
    network, hooks, met = StandIn(StandInConfig()), [], []
    accelerator = SimpleNamespace(
        is_main_process=is_main,
        process_index=1 - is_main,
        register_save_state_pre_hook=hooks.append,
        register_load_state_pre_hook=lambda hook: None,
    )
    monkeypatch.setattr(checkpoints, "has_parts", lambda parameter: in_parts and parameter is network.gate.weight)
    monkeypatch.setattr(checkpoints, "gather_object", lambda values: met.extend(values) or ["no space"] * len(values))
    checkpoints.register_weights(accelerator, network, None, None)
    weights = [network.state_dict()]
    if in_parts:
        with pytest.raises(CheckpointError, match="no space"):
            hooks[0]([network], weights, str(tmp_path))
    else:
        hooks[0]([network], weights, str(tmp_path))
    assert met == [None] * in_parts and weights == []
    names = {"config.json", "model.safetensors"} if is_main else set()
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_with_a_clear_error_and_the_last_checkpoint_intact(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        arguments = recipe(disk, checkpoints={"every_updates": 2, "keep": 50}, training={"epochs": 10})
        # About 250 kB a checkpoint.
        trainer = make_trainer(arguments, config={"width": 1500})
        with pytest.raises(CheckpointError, match=r"the disk is full.*MiB are free.*last complete one is"):
            trainer.train()
        present = list_checkpoints(trainer.checkpoint_dir)
        assert present and not list(trainer.checkpoint_dir.glob(".partial*"))
        for extra in present[:-1]:
            shutil.rmtree(extra)
        arguments.resume_from_checkpoint = "latest"
        arguments.checkpoints.keep = 1
        arguments.checkpoints.every_updates = 100
        resumed = make_trainer(arguments, config={"width": 1500})
        resumed.train()
        assert resumed.update == resumed.total_updates
    finally:
        subprocess.run(["umount", disk], check=True)
