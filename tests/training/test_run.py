"""Recipes with the real network on the sample frames."""

import shutil

import numpy as np
import pytest
import torch
from processes import join, run_processes
from real_recipe import ONE_LAYER, assert_all_trained, prepared_frames, small_recipe, write_frames
from torch import nn
from training_standin import RecordingTrainer, assert_same_updates

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.recipe.arguments import TrainArguments
from bifusion_hf.superpoints import segmentation as superpoints
from bifusion_hf.training import run
from bifusion_hf.training.checkpoints import list_checkpoints
from bifusion_hf.training.metrics import read_metrics
from bifusion_hf.training.plan import saved_bytes
from bifusion_hf.training.run import build_model, build_processor, build_trainer, cache_superpoints


# Frames without superpoints, which take some time to find.
SAMPLE = {"train": "sample", "val": "sample", "max_train_frames": 2, "max_val_frames": 1}


def test_a_recipe_trains_evaluates_and_saves_what_from_pretrained_loads(tmp_path):
    trainer = build_trainer(small_recipe(tmp_path, data=SAMPLE, training={"batch_size": 1}))
    results = trainer.train()
    assert {"all_ap", "all_ap_50%", "all_ap_25%"} <= results.keys()
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    terms = {"loss_cls", "loss_mask", "loss_dice", "loss_sem", "loss_clip", "loss_spatial", "loss_noview"}
    assert len(lines) == 2 and terms <= lines[0].keys()
    log = (tmp_path / "train.log").read_text()
    assert "colour of points against their pixels: at most" in log and "alpha on visible points" in log
    for folder in (tmp_path / "final", tmp_path / "best", list_checkpoints(tmp_path / "checkpoints")[-1]):
        model, info = BiFusionForInstanceSegmentation.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values())
        assert BiFusionProcessor.from_pretrained(folder).num_points == 600
    state = trainer.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert int(model.model.training_progress.update) == 2


@pytest.mark.parametrize("fusion", ["residual", "lite_gate"])
def test_every_trainable_tensor_has_a_gradient_after_three_updates(tmp_path, fusion):
    width = {"hidden_size": 16} if fusion == "lite_gate" else {}
    arguments = small_recipe(
        tmp_path,
        config={"fusion_type": fusion, **width},
        data={"val": None},
        optimizer={"weight_decay": 0.0},
        training={"batch_size": 2, "max_updates": 3, "epochs": 2},
    )
    assert_all_trained(build_trainer(arguments))


def test_initial_weights_are_loaded_at_the_start_and_not_on_resume(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(run, "load_initial_weights", lambda model, init: loaded.append(init) or [])
    arguments = small_recipe(tmp_path, init={"sv3d": "somewhere.pth"}, data={"val": None})
    build_trainer(arguments).train()
    assert len(loaded) == 1
    arguments.resume_from_checkpoint = "latest"
    build_trainer(arguments)
    assert len(loaded) == 1


def test_a_resumed_run_keeps_the_activation_that_init_clip_set(tmp_path, monkeypatch):
    def set_activation(model, init):
        model.config.vision_config.hidden_act = "quick_gelu"
        return []

    monkeypatch.setattr(run, "load_initial_weights", set_activation)
    arguments = small_recipe(tmp_path, data={"val": None}, training={"max_updates": 1})
    build_trainer(arguments).train()
    arguments.resume_from_checkpoint = "latest"
    assert build_trainer(arguments).network.config.vision_config.hidden_act == "quick_gelu"
    arguments.model.config["loss_config"] = {"consistency_loss_weight": 0.5}
    with pytest.raises(ValueError, match="differ in loss_config.consistency_loss_weight;"):
        build_trainer(arguments)


def test_a_run_that_resumes_with_another_processor_is_refused(tmp_path):
    arguments = small_recipe(tmp_path, data={"val": None}, training={"max_updates": 1})
    build_trainer(arguments).train()
    arguments.resume_from_checkpoint = "latest"
    build_trainer(arguments)
    arguments.model.processor.update(num_points=500, superpoint_color_blur=0.01)
    with pytest.raises(ValueError, match="model.processor: .* differ in num_points, superpoint_color_blur;"):
        build_trainer(arguments)


@pytest.fixture
def pretrained(tmp_path):
    """A checkpoint whose processor and losses are those of no preset."""
    config = {"loss_config": {"class_weight": 3.0, "mask_weight": 2.0}}
    processor = {"num_points": 500, "mask_threshold": 0.3, "max_instances": 20, "superpoint_color_blur": 0.01}
    arguments = small_recipe(tmp_path, config=config, processor=processor).model
    model = build_model(arguments, 0)
    model.save_pretrained(tmp_path / "pretrained")
    build_processor(arguments, model.config).save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


@pytest.mark.parametrize("section", ["processor", "config"])  # release 0.1 had them in the configuration
def test_pretrained_and_overrides_both_take_effect(section, pretrained):
    asked = {"num_points": 400, "image_size": 120, "mask_threshold": 0.45}
    sections = {"config": {"loss_config": {"class_weight": 4.0}, "num_semantic_labels": 200}}
    sections.setdefault(section, {}).update(asked)
    recipe = TrainArguments.from_dict({"model": {"pretrained": str(pretrained), **sections}})
    model = build_model(recipe.model, 0)
    processor = build_processor(recipe.model, model.config)
    saved = BiFusionProcessor.from_pretrained(pretrained).to_dict()
    assert processor.to_dict() == {**saved, **asked}
    losses = model.config.loss_config
    assert (losses.class_weight, losses.mask_weight, model.criterion.weights["loss_cls"]) == (4.0, 2.0, 4.0)


def test_pretrained_with_other_names_of_its_labels_gives_them_to_both(pretrained):
    values = {"pretrained": str(pretrained), "config": {"id2label": {0: "thing"}}}
    arguments = TrainArguments.from_dict({"model": values}).model
    config = build_model(arguments, 0).config
    assert build_processor(arguments, config).label_names == [config.id2label[0]] == ["thing"]


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("processor", {"num_point": 5}, "unknown key 'model.processor.num_point'; did you mean 'num_points'"),
        ("config", {"loss_weights": 5}, "unknown key 'model.config.loss_weights'"),
        ("config", {"loss_config": {"clas_weight": 1.0}}, "loss_config has no clas_weight"),
        ("config", {"dice_weight": [1.0, 1.0]}, "loss_config.dice_weight needs one number or 4"),
    ],
)
def test_pretrained_with_an_override_that_cannot_take_effect_is_refused_by_name(section, values, message, pretrained):
    arguments = TrainArguments.from_dict({"model": {"pretrained": str(pretrained), section: values}}).model
    with pytest.raises(Exception, match=message):
        build_processor(arguments, build_model(arguments, 0).config)


def test_config_overrides_are_checked_and_merged(tmp_path):
    model = small_recipe(tmp_path).model
    assert build_model(model, 0).config.vision_config.image_size == 320
    model.config["fusion_typ"] = "none"
    with pytest.raises(ValueError, match="did you mean 'fusion_type'"):
        build_model(model, 0)
    arguments = small_recipe(tmp_path, data={"augmentation": {"flip": 1}})
    with pytest.raises(ValueError, match=r"unknown key 'data.augmentation.flip'"):
        build_trainer(arguments)


def test_superpoints_are_computed_once_and_are_those_of_the_processor(monkeypatch, tmp_path):
    rows = load_frames("sample", "train").select(range(2))
    assert rows[0]["superpoints"] is None
    processor = BiFusionProcessor()
    cached = cache_superpoints(rows, processor, num_workers=1)
    for row, original in zip(cached, rows, strict=True):
        expected = processor.prepare_frame(frame_from_row(original))["superpoint_map"]
        assert np.array_equal(processor.prepare_frame(frame_from_row(row))["superpoint_map"], expected)

    def forbidden(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(superpoints, "segment_superpoints", forbidden)
    again = cache_superpoints(load_frames("sample", "train").select(range(2)), processor, num_workers=1)
    assert again[1]["superpoints"] == cached[1]["superpoints"]
    assert cache_superpoints(again, processor, num_workers=1) is again
    with pytest.raises(AssertionError, match="computed again"):
        cache_superpoints(load_frames("sample", "train").select(range(2)), BiFusionProcessor(num_superpoints=50), 1)
    # Nor are they found where any of the code is another, C files too.
    copy = tmp_path / "superpoints"
    shutil.copytree(run.SUPERPOINTS, copy)
    monkeypatch.setattr(run, "SUPERPOINTS", copy)
    cache_superpoints(load_frames("sample", "train").select(range(2)), processor, num_workers=1)
    with (copy / "backends" / "pixels.c").open("a") as file:
        file.write("\n")
    with pytest.raises(AssertionError, match="computed again"):
        cache_superpoints(load_frames("sample", "train").select(range(2)), processor, num_workers=1)


def test_superpoints_are_kept_as_they_were_found(monkeypatch):
    """With the pixels of none, which are 0 in the file."""
    row = load_frames("sample", "train")[0]
    shape = frame_from_row(row).depth.shape
    found = np.arange(shape[0] * shape[1]).reshape(shape) % 300 - 1
    asked = []
    monkeypatch.setattr(superpoints, "segment_superpoints", lambda *args, **options: asked.append(options) or found)
    kept = {**row, **run._segment_row(row, 40, 0.5, "")}
    assert asked == [{"num_segments": 40, "color_blur": 0.5}]
    np.testing.assert_array_equal(frame_from_row(kept).superpoints, found)
    # Those that a frame brings stay.
    assert run._segment_row(kept, 40, 0.5, "") == {"superpoints": kept["superpoints"]} and len(asked) == 1
    assert run._segment_row({}, 40, 0.5, "") == {"superpoints": None}


def test_samples_depend_on_epoch_and_row_only(tmp_path):
    arguments = small_recipe(tmp_path)
    data = build_trainer(arguments).train_dataset
    first, second = data[0, 1], data[3, 1]
    again = data[0, 1]
    assert np.array_equal(first["points"], again["points"]) and first["query_seed"] == again["query_seed"]
    assert not np.array_equal(first["points"], second["points"])
    # Workers that run ahead into the next epoch do not disturb one another.
    keys = [(epoch, row) for epoch in (0, 1) for row in range(4)]
    loader = torch.utils.data.DataLoader(data, batch_size=1, sampler=keys, num_workers=2, collate_fn=list)
    for key, (sample,) in zip(keys, loader, strict=True):
        assert np.array_equal(sample["points"], data[key]["points"]), key


def test_compile_takes_the_dense_parts_and_keeps_the_names_of_the_weights(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled.append((self, options["dynamic"])))
    network = build_trainer(small_recipe(tmp_path, training={"compile": True})).network
    names = {module: name for name, module in network.named_modules()}
    assert {names[module]: dynamic for module, dynamic in compiled} == {
        "model.encoder.image_encoder.vision_model": False,
        **{f"decoder.layers.{layer}": True for layer in range(3)},
    }
    assert not any("_orig_mod" in name for name in network.state_dict())


def updates_of(folder, config=None, **training):
    """Loss terms and gradients of a run, and the bytes that a forward pass keeps for its backward pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "BiFusionTrainer", RecordingTrainer)
        # With Adam's own epsilon a gradient that is rounding alone makes a step as large as any other.
        sections = {"training": training, "data": {"val": None}, "optimizer": {"epsilon": 1e-3}}
        trainer = build_trainer(small_recipe(folder, config=config or {}, **sections))
        kept = saved_bytes(trainer)
        trainer.train()
    return trainer.seen, kept


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    torch.set_num_threads(1)
    return updates_of(tmp_path_factory.mktemp("plain"))


def test_the_same_seed_gives_identical_updates(tmp_path, plain):
    assert_same_updates(plain[0], updates_of(tmp_path)[0], tolerance=0)


def test_gradient_checkpointing_keeps_less_and_changes_no_gradient(tmp_path, plain):
    checkpointed, kept_less = updates_of(tmp_path, gradient_checkpointing=True)
    assert_same_updates(plain[0], checkpointed, tolerance=1e-5)
    assert kept_less < 0.8 * plain[1]


@pytest.mark.slow
def test_a_compiled_run_has_the_same_gradients(tmp_path, monkeypatch):
    """Traced and differentiated as for a compiler, which itself is left out: it takes minutes."""
    plain, _ = updates_of(tmp_path / "plain", ONE_LAYER)
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda *args, **kw: compile_module(*args, backend="aot_eager", **kw))
    torch._dynamo.reset()
    compiled, _ = updates_of(tmp_path / "compiled", ONE_LAYER, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()
    assert_same_updates(plain, compiled, tolerance=1e-5)


def test_a_streamed_recipe_trains_and_resumes_identically(tmp_path):
    sections = {
        "data": {"val": None, "streaming": True, "max_train_frames": None, "shuffle_buffer": 4},
        "training": {"max_updates": 3},
        "checkpoints": {"every_updates": 1, "keep": 9},
    }
    whole = build_trainer(small_recipe(tmp_path / "whole", **sections))
    whole.train()
    assert len(list_checkpoints(whole.checkpoint_dir)) == 3
    arguments = small_recipe(tmp_path / "resumed", **sections)
    arguments.resume_from_checkpoint = str(tmp_path / "whole" / "checkpoints" / "checkpoint-0000001")
    resumed = build_trainer(arguments)
    resumed.train()
    state = resumed.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in whole.network.state_dict().items())
    # Other readers would give rows twice and others never.
    for key, value in (("num_workers", 2), ("shuffle_buffer", 5), ("streaming", False)):
        setattr(arguments.data, key, value)
        arguments.output_dir = str(tmp_path / f"other {key}")
        key = "num_workers" if key == "streaming" else key
        with pytest.raises(ValueError, match=rf"checkpoint-0000001 has data.{key} \d, this run"):
            build_trainer(arguments).train()
        arguments.data.num_workers, arguments.data.shuffle_buffer = 0, 4


@pytest.mark.parametrize("streaming", [False, True])
def test_broken_rows_are_named_and_skipped_only_if_asked(tmp_path, caplog, capsys, streaming):
    """Alone in its batch, in training and in evaluation, a broken row leaves no batch at all."""
    rows = [dict(row) for row in load_frames(prepared_frames(), "train").select(range(3))]
    rows[2]["depth"] = {"bytes": b"no image", "path": None}
    for split in ("train", "val"):
        folder = str(write_frames(tmp_path / "data", split, rows))
    sections = {
        "training": {"max_updates": 3, "batch_size": 1},
        "data": {"train": folder, "val": folder, "streaming": streaming, "max_train_frames": None},
        "evaluation": {"every_epochs": 0, "batch_size": 2},
        "checkpoints": {"every_epochs": 0},
    }
    sections["data"]["max_val_frames"] = None
    place = r"row \d of the stream" if streaming else "row 2"
    with pytest.raises(ValueError, match=rf"{place} \(frame '{rows[2]['frame_id']}'\) is broken"):
        build_trainer(small_recipe(tmp_path / "a", **sections)).train()
    sections["data"]["skip_broken_rows"] = True
    trainer = build_trainer(small_recipe(tmp_path / "b", **sections))
    caplog.clear()
    capsys.readouterr()
    trainer.train()
    assert trainer.update == 3 and f"'{rows[2]['frame_id']}') is broken" in caplog.text
    assert "1 of 3 frames are broken and left out of the evaluation" in caplog.text
    told = capsys.readouterr().out
    assert "batches of broken frames alone are left out, 1 so far" in told
    assert "none of its frames can be read. Update skipped, 1 so far" in told
    lines = [line for line in read_metrics(tmp_path / "b" / "metrics.jsonl") if "points" in line]
    assert sorted(line["points"] for line in lines) == [0, 600, 600]
    assert (lines[-1]["skipped_updates"], lines[-1]["skipped_batches"]) == (1, 1)


def test_a_stream_of_several_shards_and_workers_trains_the_real_network(tmp_path):
    data = {"val": None, "streaming": True, "max_train_frames": None}
    losses = []
    for _ in range(2):
        folder = tmp_path / str(len(losses))
        sections = {"training": {"max_updates": 3}, "checkpoints": {"every_epochs": 0}}
        arguments = small_recipe(folder, data={**data, "num_workers": 2}, **sections)
        trainer = build_trainer(arguments)
        seen = []
        step = trainer._finish_update
        trainer._finish_update = lambda window, values, step=step, seen=seen: (
            seen.extend(name for batch in window for name in batch["frame_ids"]),
            step(window, values),
        )
        trainer.train()
        losses.append([line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line])
        # Two readers begin their shards of three anew after the fourth row.
        assert len(seen) == 6 and len(set(seen[:4])) == 4
    assert losses[0] == losses[1]


def test_a_mixture_trains_and_a_resumed_run_sees_the_same_frames(tmp_path):
    shared = str(prepared_frames())
    rows = [dict(row) for row in load_frames(shared, "train").select(range(4, 6))]
    own = {"frame_id": [f"own {row}" for row in range(3)]}
    rows = [{**rows[row % 2], "frame_id": name} for row, name in enumerate(own["frame_id"])]
    folder = str(write_frames(tmp_path / "data", "train", rows))
    sections = {
        "data": {"train": {shared: 1, folder: 2}, "val": None},
        "training": {"epochs": 2},
        "checkpoints": {"every_updates": 2, "keep": 9},
    }

    def train(folder, resume=None):
        arguments = small_recipe(tmp_path / folder, **sections)
        arguments.resume_from_checkpoint = resume
        trainer = build_trainer(arguments)
        seen = []
        step = trainer._finish_update
        trainer._finish_update = lambda window, values: (
            seen.extend(name for batch in window for name in batch["frame_ids"]),
            step(window, values),
        )
        trainer.train()
        return seen, trainer

    seen, trainer = train("whole")
    # Four frames of the sample and three of its own fill three updates of two an epoch; five of seven are its own.
    assert len(trainer.train_dataset) == 7 and trainer.total_updates == 6
    assert trainer.train_dataset.mixture.shares() == {shared: 2, folder: 5}
    assert set(seen) <= set(load_frames(shared, "train")["frame_id"][:4]) | set(own["frame_id"])
    assert sum(name in own["frame_id"] for name in seen) >= 8
    checkpoint = tmp_path / "whole" / "checkpoints" / "checkpoint-0000002"
    assert train("resumed", str(checkpoint))[0] == seen[4:]


def train_real(folder, arguments):
    class Double(RecordingTrainer):
        def __init__(self, arguments, model, *args, **kwargs):
            model.double()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.requires_grad_(False)
            super().__init__(arguments, model, *args, **kwargs)

    run.BiFusionTrainer = Double
    trainer = build_trainer(arguments)
    trainer.train()
    torch.save(trainer.seen, folder / f"seen_{trainer.accelerator.process_index}.pt")


@pytest.mark.slow
def test_the_real_network_gives_the_same_update_however_its_frames_are_shared(tmp_path):
    for name, world, batch_size, accumulation in (("one", 1, 4, 1), ("two", 2, 2, 1), ("accumulated", 1, 2, 2)):
        training = {"batch_size": batch_size, "accumulation": accumulation}
        # Here, so that the frames are written once.
        arguments = small_recipe(tmp_path / name, data={"val": None}, training=training)
        join(run_processes(train_real, world, tmp_path / name, arguments))
    one = torch.load(tmp_path / "one" / "seen_0.pt")
    for name in ("two", "accumulated"):
        assert_same_updates(one, torch.load(tmp_path / name / "seen_0.pt"))


def test_the_recipe_sets_the_processor(tmp_path):
    model = small_recipe(tmp_path, model={"processor": {"superpoint_color_blur": 0.016}}).model
    config = build_model(model, 0).config
    processor = build_processor(model, config)
    assert processor.superpoint_color_blur == 0.016
    processor.save_pretrained(tmp_path / "saved")
    assert BiFusionProcessor.from_pretrained(tmp_path / "saved").superpoint_color_blur == 0.016
    model.processor = {"superpoint_colour_blur": 0.016}
    with pytest.raises(ValueError, match=r"'model.processor.superpoint_colour_blur'.*superpoint_color_blur"):
        build_processor(model, config)
