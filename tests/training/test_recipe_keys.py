"""Every key of a recipe changes what it names: in a run of a stand-in, in what a recipe builds, or in a test named."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from real_recipe import prepared_frames, small_recipe
from safetensors.torch import load_file
from training_standin import RecordingTrainer, StandInFrames, make_trainer, recipe

from bifusion_hf import weights
from bifusion_hf.recipe.arguments import valid_keys
from bifusion_hf.training import data_loading, optimization, run
from bifusion_hf.training.audit import LivenessError
from bifusion_hf.training.checkpoints import list_checkpoints
from bifusion_hf.training.guards import NonFiniteError
from bifusion_hf.training.metrics import read_metrics
from bifusion_hf.training.setup import build_accelerator, shares_batch_statistics


# Key -> another value, where it shows in a run (an entry of `trace`), and what both runs have beside it.
RUNS = {
    "optimizer.learning_rate": (3e-3, "weights", {}),
    "optimizer.weight_decay": (0.4, "weights", {}),
    "optimizer.betas": ([0.5, 0.9], "weights", {}),
    "optimizer.epsilon": (0.1, "weights", {}),
    "optimizer.max_grad_norm": (0.1, "weights", {}),
    "optimizer.schedule": ("constant", "rates", {}),
    "optimizer.power": (2.0, "rates", {}),
    "optimizer.warmup_updates": (3, "rates", {}),
    "training.epochs": (2, "updates", {"training.max_updates": None}),
    "training.max_updates": (2, "updates", {}),
    "training.batch_size": (2, "points", {}),
    "training.accumulation": (2, "points", {}),
    "training.ema_decay": (0.9, "final", {}),
    "training.max_nonfinite_updates": (2, "stopped", {"poison": True}),
    "training.freeze": (["gate"], "weights", {}),
    "training.unfreeze_at": ({"gate": 0.5}, "weights", {}),
    "training.audit_window": (2, "stopped", {"detached": True}),
    "training.audit_exempt": (["classes"], "stopped", {"detached": True, "training.audit_window": 2}),
    "evaluation.every_epochs": (1, "evaluated", {"training.max_updates": 5}),
    "evaluation.every_updates": (2, "evaluated", {}),
    "evaluation.at_start": (True, "evaluated", {}),
    "evaluation.metric": ("all_ap", "best", {"evaluation.every_updates": 1}),
    "checkpoints.every_epochs": (1, "checkpoints", {"training.max_updates": 5}),
    "checkpoints.every_updates": (2, "checkpoints", {}),
    "checkpoints.keep": (1, "checkpoints", {"checkpoints.every_updates": 2}),
    "logging.every_updates": (5, "logged", {}),
    "logging.progress_bar": (True, "bar", {}),
    "output_dir": ("elsewhere", "folder", {}),
    "seed": (7, "weights", {}),
}
# Keys whose tests need more than one value: the test, which has to name the key's last part.
ELSEWHERE = {
    "model.preset": "test_run.py::test_config_overrides_are_checked_and_merged",
    "model.config": "test_run.py::test_config_overrides_are_checked_and_merged",
    "model.processor": "test_run.py::test_the_recipe_sets_the_processor",
    "model.labels": "test_label_set.py::test_only_the_heads_of_the_labels_start_new",
    "model.pretrained": "test_run.py::test_pretrained_and_overrides_both_take_effect",
    "init.sv3d": "test_recipe_keys.py::test_init_names_the_weights",
    "init.clip": "test_recipe_keys.py::test_init_names_the_weights",
    "init.clip_activation": "test_recipe_keys.py::test_init_names_the_weights",
    "init.vision": "test_recipe_keys.py::test_init_names_the_weights",
    "data.train": "test_recipe_keys.py::test_data_says_which_frames",
    "data.val": "test_recipe_keys.py::test_data_says_which_frames",
    "data.train_split": "test_recipe_keys.py::test_data_says_which_frames",
    "data.val_split": "test_recipe_keys.py::test_data_says_which_frames",
    "data.max_train_frames": "test_recipe_keys.py::test_data_says_which_frames",
    "data.max_val_frames": "test_recipe_keys.py::test_data_says_which_frames",
    "data.augment": "test_recipe_keys.py::test_augmentation_is_the_recipes",
    "data.augmentation": "test_recipe_keys.py::test_augmentation_is_the_recipes",
    "data.num_workers": "test_recipe_keys.py::test_loaders_have_the_workers_of_the_recipe",
    "data.prefetch_factor": "test_recipe_keys.py::test_loaders_have_the_workers_of_the_recipe",
    "data.cache_superpoints": "test_recipe_keys.py::test_superpoints_are_kept_if_the_recipe_says_so",
    "data.streaming": "test_recipe_keys.py::test_a_stream_is_shuffled_by_its_buffer",
    "data.shuffle_buffer": "test_recipe_keys.py::test_a_stream_is_shuffled_by_its_buffer",
    "data.skip_broken_rows": "test_run.py::test_broken_rows_are_named_and_skipped_only_if_asked",
    "data.window_frames": "test_window_training.py::test_windows_train_and_scenes_are_evaluated",
    "optimizer.tower_learning_rate_scale": "test_recipe_keys.py::test_the_tower_has_its_own_rate",
    "training.find_batch_size": "test_trainer_machine.py::test_batch_size_finder_keeps_the_frames_of_an_update",
    "training.mixed_precision": "test_trainer_machine.py::test_bf16_trains_and_fp16_on_a_cpu_is_refused",
    "training.gradient_checkpointing": "test_run.py::test_gradient_checkpointing_keeps_less_and_changes_no_gradient",
    "training.compile": "test_run.py::test_a_compiled_run_has_the_same_gradients",
    "training.sync_batch_norm": "test_recipe_keys.py::test_statistics_are_shared_by_gpus_unless_the_recipe_says_no",
    "training.empty_cache_every": "test_trainer_machine.py::test_cached_memory_is_released_every_n_updates",
    "evaluation.batch_size": "test_recipe_keys.py::test_evaluation_runs_as_the_recipe_says",
    "evaluation.num_workers": "test_recipe_keys.py::test_evaluation_runs_as_the_recipe_says",
    "logging.trackers": "test_trackers.py::test_a_tracker_gets_the_recipe_and_every_line",
    "logging.project": "test_trackers.py::test_a_tracker_gets_the_recipe_and_every_line",
    "overwrite_output_dir": "test_trainer.py::test_other_runs_are_not_overwritten_and_mismatches_are_refused",
    "resume_from_checkpoint": "test_trainer.py::test_a_resumed_run_is_identical_bit_for_bit",
    "deterministic": "test_trainer_machine.py::test_deterministic_is_passed_on",
    "dry_run": "../cli/test_train_cli.py::test_dry_run_prints_the_plan_and_trains_nothing",
}


def sections_of(values):
    """{"section.key": value} as sections."""
    sections = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        if section:
            sections.setdefault(section, {})[key] = value
        else:
            sections[name] = value
    return sections


def trace(folder, values):
    """What can be seen of a run of four updates (one epoch) of the stand-in, and what it leaves behind."""
    values = {"training.max_updates": 4, "output_dir": "run", **values}
    output = folder / values.pop("output_dir")
    poison = {(0, row) for row in range(16)} if values.pop("poison", False) else ()
    detached = "loss_class" if values.pop("detached", False) else None
    trainer = make_trainer(
        recipe(output, **sections_of(values)),
        frames=StandInFrames(poison=poison),
        config={"dropout": 0.5, "detach": detached},
    )
    evaluated = []
    # By one number the first evaluation is the best, by the other one the second.
    numbers = iter([{"all_ap": 0.1, "all_ap_50%": 0.9}, {"all_ap": 0.5, "all_ap_50%": 0.2}])
    nothing = {"all_ap": 0.0, "all_ap_50%": 0.0}
    trainer.evaluate_model = lambda model: evaluated.append(trainer.update) or next(numbers, nothing)
    stopped = None
    try:
        trainer.train()
    except (NonFiniteError, LivenessError) as error:
        stopped = (trainer.update, str(error)[:40])
    lines = [line for line in read_metrics(output / "metrics.jsonl") if "loss" in line]
    final = output / "final" / "model.safetensors"
    return {
        "weights": trainer.network.state_dict(),
        "final": load_file(final) if final.exists() else None,
        "updates": trainer.update,
        "points": [line["points"] for line in lines],
        "rates": [line["learning_rate_main"] for line in lines],
        "logged": [line["update"] for line in lines],
        "evaluated": evaluated,
        "best": trainer.best.get("update"),
        "checkpoints": [path.name for path in list_checkpoints(trainer.checkpoint_dir)],
        "stopped": stopped,
        # A bar that is not shown does not count.
        "bar": trainer.recorder.bar.n,
        "folder": sorted(path.name for path in folder.iterdir()),
    }


def same(first, second):
    if isinstance(first, dict):
        return all(torch.equal(first[name], second[name]) for name in first)
    return first == second


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """Factory of `trace`; what several keys start from is run once."""
    known = {}

    def make(values):
        key = str(sorted(values.items()))
        if key not in known:
            known[key] = trace(tmp_path_factory.mktemp("run"), values)
        return known[key]

    return make


def test_every_key_is_looked_at():
    assert set(valid_keys()) == set(RUNS) | set(ELSEWHERE) and not set(RUNS) & set(ELSEWHERE)
    for key, place in ELSEWHERE.items():
        file, name = place.split("::")
        source = (Path(__file__).parent / file).read_text()
        assert f"def {name}(" in source and key.rpartition(".")[2] in source, f"{key}: {place}"


@pytest.mark.parametrize("key", RUNS)
def test_key_changes_the_run(traces, key):
    value, seen_in, beside = RUNS[key]
    assert not same(traces(beside)[seen_in], traces({**beside, key: value})[seen_in])


def test_all_that_is_random_follows_the_seed(tmp_path):
    draws = []
    for seed in (7, 7, 8):
        make_trainer(recipe(tmp_path, seed=seed))
        draws.append((torch.rand(()).item(), random.random(), np.random.random()))  # noqa: NPY002
    assert draws[0] == draws[1] and all(a != b for a, b in zip(draws[0], draws[2], strict=True))


def test_updates_are_those_of_adamw_by_hand(tmp_path):
    """Betas, epsilon, clipping, decay of matrices alone, schedule and warm-up, from the gradients of each update."""
    optimizer = {
        "learning_rate": 0.02,
        "betas": [0.6, 0.95],
        "epsilon": 1e-3,
        "weight_decay": 0.3,
        "max_grad_norm": 0.4,
        "power": 2.0,
        "warmup_updates": 2,
    }
    arguments = recipe(tmp_path, optimizer=optimizer, training={"max_updates": 5, "ema_decay": 0.9})
    trainer = make_trainer(arguments, dtype=torch.float64, cls=RecordingTrainer)
    names = [name for name, _ in trainer.network.named_parameters()]
    weights = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    trainer.train()
    average, clipped = None, 0
    for update, (_, gradients) in enumerate(trainer.seen):
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        clipped += bool(norm > 0.4)
        rate = 0.02 * (1 - update / 5) ** 2 * min(1, (update + 1) / 3)
        for index, gradient in enumerate(gradients):
            gradient = gradient * min(1, 0.4 / float(norm + 1e-6))
            first[index] = 0.6 * first[index] + 0.4 * gradient
            second[index] = 0.95 * second[index] + 0.05 * gradient.square()
            mean, square = first[index] / (1 - 0.6 ** (update + 1)), second[index] / (1 - 0.95 ** (update + 1))
            decay = 0.3 if weights[index].ndim > 1 else 0.0
            weights[index] = weights[index] * (1 - rate * decay) - rate * mean / (square.sqrt() + 1e-3)
        for name, weight in zip(names, weights, strict=True):
            torch.testing.assert_close(trainer.weights[update][name], weight, rtol=1e-7, atol=1e-9)
        average = (
            list(weights) if average is None else [0.9 * a + 0.1 * w for a, w in zip(average, weights, strict=True)]
        )
    assert clipped > 0
    for parameter, expected in zip(trainer.ema.module.parameters(), average, strict=True):
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-7, atol=1e-9)


def test_a_resumed_run_remembers_what_happened(tmp_path):
    """The best result and the skipped updates; checkpoints beyond the one that it goes back to are gone at once."""
    sections = {
        "training": {"max_updates": 6},
        "evaluation": {"every_updates": 1},
        "checkpoints": {"every_updates": 1, "keep": 9},
    }
    frames = StandInFrames(poison={(0, row) for row in range(3)})
    trainer = make_trainer(recipe(tmp_path, **sections), frames=frames)
    numbers = iter([0.3, 0.8, 0.1, 0.1, 0.1, 0.1])
    trainer.evaluate_model = lambda model: {"all_ap_50%": next(numbers)}
    trainer.train()
    skipped = trainer.guard.skipped
    assert skipped > 0 and trainer.best["update"] == 2
    checkpoints = list_checkpoints(trainer.checkpoint_dir)
    assert len(checkpoints) == 6
    resumed = make_trainer(recipe(tmp_path, **sections, resume_from_checkpoint=str(checkpoints[3])), frames=frames)
    resumed._start()
    assert resumed.update == 4 and resumed.best["update"] == 2 and resumed.best["all_ap_50%"] == 0.8
    assert resumed.guard.skipped == skipped
    assert list_checkpoints(resumed.checkpoint_dir) == checkpoints[:4]
    # A worse result does not take the place of the best one.
    kept = (tmp_path / "best" / "model.safetensors").read_bytes()
    resumed.evaluate_model = lambda model: {"all_ap_50%": 0.5}
    resumed.train()
    assert resumed.best["update"] == 2 and (tmp_path / "best" / "model.safetensors").read_bytes() == kept


# What a recipe builds


def test_init_names_the_weights(monkeypatch):
    loaded = []

    def record(kind):
        return lambda model, source, **options: loaded.append((kind, source, options)) or f"report of {kind}"

    for kind in ("sv3d", "clip", "vision"):
        monkeypatch.setattr(weights, f"load_{kind}_weights", record(kind))
    init = recipe("unused", init={"sv3d": "a", "clip": "b", "clip_activation": "gelu"}).init
    assert len(run.load_initial_weights(None, init)) == 2
    assert loaded == [("sv3d", "a", {}), ("clip", "b", {"activation": "gelu"})]
    run.load_initial_weights(None, recipe("unused", init={"vision": "c"}).init)
    assert loaded[2] == ("vision", "c", {}) and len(loaded) == 3


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    model = small_recipe(tmp_path_factory.mktemp("unused"), processor={"num_points": 100}).model
    return run.build_processor(model, run.build_model(model, 0).config)


@pytest.fixture
def built(tmp_path, processor):
    """Factory: training frames of a small recipe with other values in its section `data`, and what made them."""

    def make(**data):
        sections = {}
        if data.get("streaming"):
            # It has no length of its own.
            sections = {"training": {"max_updates": 3}}
            sections |= dict.fromkeys(("evaluation", "checkpoints"), {"every_updates": 1})
        arguments = small_recipe(tmp_path, data=data, **sections)
        accelerator = build_accelerator(arguments.training, tmp_path, [], False)
        options = {"batch_size": 2, "seed": arguments.seed}
        return arguments, processor, accelerator, run.build_train_dataset(
            arguments.data, processor, accelerator, **options
        )  # fmt: skip

    return make


def evaluated_frames(monkeypatch, arguments, processor, accelerator):
    """(frames, options) that an evaluation is run with."""
    seen = []
    monkeypatch.setattr(
        run, "evaluate_model", lambda model, processor, dataset, **options: seen.append((dataset, options)) or {}
    )
    monkeypatch.setattr(run, "headline", lambda results: results)
    run.build_evaluation(arguments.data, arguments.evaluation, processor, accelerator)(None)
    return seen[0]


def names_of(dataset):
    return [dataset.rows[index]["frame_id"] for index in range(len(dataset.rows))]


def test_data_says_which_frames(built, monkeypatch):
    everything = {"max_train_frames": None, "max_val_frames": None}
    arguments, processor, accelerator, frames = built(**everything)
    train = names_of(frames)
    val = names_of(evaluated_frames(monkeypatch, arguments, processor, accelerator)[0])
    assert (len(train), len(val)) == (6, 3) and not set(train) & set(val)
    arguments, *others, frames = built(train_split="val", val_split="train", **everything)
    assert names_of(frames) == val
    assert names_of(evaluated_frames(monkeypatch, arguments, *others)[0]) == train
    arguments, *others, frames = built(max_train_frames=2, max_val_frames=1)
    assert names_of(frames) == train[:2]
    assert names_of(evaluated_frames(monkeypatch, arguments, *others)[0]) == val[:1]
    folder = str(prepared_frames())
    assert len(built(train={folder: 1}, **everything)[3]) == 6
    arguments, *others, _ = built(val=None)
    assert run.build_evaluation(arguments.data, arguments.evaluation, *others) is None


def test_evaluation_runs_as_the_recipe_says(built, monkeypatch):
    arguments, processor, accelerator, _ = built()
    arguments.evaluation.batch_size, arguments.evaluation.num_workers = 3, 5
    _, options = evaluated_frames(monkeypatch, arguments, processor, accelerator)
    assert options["batch_size"] == 3 and options["num_workers"] == 5 and options["accelerator"] is accelerator


def test_augmentation_is_the_recipes(built):
    plain = built(augment=False)[3][0, 0]["points"]
    again = built(augment=False)[3][0, 0]["points"]
    turned = built()[3][0, 0]["points"]
    smaller = built(augmentation={"scale_range": [0.1, 0.1]})[3][0, 0]["points"]
    assert (plain == again).all() and plain.shape == turned.shape and (plain != turned).any()
    assert abs(smaller).max() < 0.5 * abs(turned).max()


def test_superpoints_are_kept_if_the_recipe_says_so(built, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "cache_superpoints", lambda rows, *_: asked.append(len(rows)) or rows)
    built(cache_superpoints=False)
    assert asked == []
    built(cache_superpoints=True)
    assert asked == [4]


def test_a_stream_is_shuffled_by_its_buffer(built):
    """A buffer of one row leaves the shards' rows as they lie."""
    orders = []
    for buffer in (1, 6):
        *_, frames = built(streaming=True, shuffle_buffer=buffer, max_train_frames=None)
        assert isinstance(frames, data_loading.StreamedFrames)
        frames.prepare = lambda row, epoch, position: row["frame_id"]
        stream = iter(frames)
        orders.append([next(stream) for _ in range(6)])
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_loaders_have_the_workers_of_the_recipe(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(data_loading, "build_loader", lambda *args, **options: made.append(options) or [])
    accelerator = build_accelerator(recipe(tmp_path).training, tmp_path, [], False)
    for workers in (3, 0):
        data = recipe(tmp_path, data={"num_workers": workers, "prefetch_factor": 7}).data
        data_loading.train_batches(None, None, 4, None, data, accelerator)
    assert [(options["num_workers"], options["prefetch_factor"]) for options in made] == [(3, 7), (0, None)]


def test_the_tower_has_its_own_rate(tmp_path):
    arguments = small_recipe(tmp_path, optimizer={"learning_rate": 1e-3, "tower_learning_rate_scale": 0.25})
    model = run.build_model(arguments.model, 0)
    rates = {group["name"]: group["lr"] for group in optimization.parameter_groups(model, arguments.optimizer)}
    assert rates["main"] == pytest.approx(1e-3) and rates["tower"] == rates["tower_no_decay"] == pytest.approx(2.5e-4)


def test_statistics_are_shared_by_gpus_unless_the_recipe_says_no(tmp_path):
    def shares(sync_batch_norm, num_processes, device):
        training = recipe(tmp_path, training={"sync_batch_norm": sync_batch_norm}).training
        accelerator = SimpleNamespace(num_processes=num_processes, device=torch.device(device))
        return shares_batch_statistics(training, accelerator)

    assert shares(True, 2, "cuda")
    assert not shares(False, 2, "cuda") and not shares(True, 1, "cuda") and not shares(True, 2, "cpu")
