"""What a recipe builds, part by part, without a run."""

import contextlib
from types import SimpleNamespace

import datasets
import pytest
import torch

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation
from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.recipe.arguments import TrainArguments
from bifusion_hf.training import run
from bifusion_hf.training.data_loading import StreamedFrames
from scripts.interrupts import NETWORK


def model_arguments(**values):
    return TrainArguments.from_dict({"model": {"preset": "tiny", **values}}).model


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A small network saved in half precision, and its folder."""
    model = BiFusionForInstanceSegmentation(BiFusionConfig.from_preset("tiny", **NETWORK)).half()
    folder = tmp_path_factory.mktemp("half")
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("labels", [None, {"seat": "chair", "table": "table"}])
def test_a_network_trains_in_single_precision_whatever_was_saved(half, labels, caplog):
    model, folder = half
    caplog.set_level("INFO", "bifusion_hf.training.run")
    network = run.build_model(model_arguments(pretrained=str(folder), labels=labels), 0)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    expected = model.model.encoder.image_encoder.projection.state_dict()
    for name, value in network.model.encoder.image_encoder.projection.state_dict().items():
        assert torch.equal(value, expected[name].float()), name
    # Of two classes and none, and of one and none.
    new = [message for message in caplog.messages if message.startswith("model.labels: decoder.class_head.")]
    assert bool(new) == (labels is not None) and all(message.endswith(" starts new") for message in new)
    assert network.config.num_labels == (1 if labels is None else 2)


def test_a_new_network_trains_in_single_precision_whatever_its_tower_was_saved_in():
    network = run.build_model(model_arguments(config={**NETWORK, "vision_config": {"dtype": "bfloat16"}}), 0)
    assert network.config.vision_config.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_the_configuration_of_a_checkpoint_with_what_the_recipe_changes(half):
    _, folder = half
    arguments = model_arguments(pretrained=str(folder), labels={"a": 2, "b": 3}, config={"mask_threshold": 0.4})
    arguments.config = {"decoder_layers": 2, "decoder_mask_levels": ["superpoint", "superpoint", "point"]}
    config = run.build_config(arguments)
    assert (config.hidden_size, config.decoder_layers, config.id2label) == (8, 2, {0: "a", 1: "b"})


@pytest.mark.parametrize("named", [True, False])
def test_a_part_of_the_tower_changes_that_part(named):
    vision = {"num_hidden_layers": 1, **({"model_type": "clip_vision_model"} if named else {})}
    tower = run.build_config(model_arguments(config={"vision_config": vision})).vision_config
    assert (tower.num_hidden_layers, tower.intermediate_size) == (1, 288)


def test_a_run_goes_on_with_the_configuration_that_it_began_with(tmp_path):
    """What JSON makes of tuples and numbered names, and what a tower sets itself, is no difference."""
    config = {**NETWORK, "id2label": {0: "thing"}, "loss_config": {"consistency_warmup": (0.1, 0.2)}}
    arguments = model_arguments(config=config)
    saved = run.build_config(arguments)
    saved.vision_config.hidden_act = "quick_gelu"
    saved.save_pretrained(tmp_path)
    assert run._resumed_config(arguments, tmp_path).vision_config.hidden_act == "quick_gelu"
    changes = {
        "decoder_size": {"decoder_size": 32},
        "vision_config": {"vision_config": {**NETWORK["vision_config"], "num_hidden_layers": 3}},
        "id2label": {"id2label": {0: "another"}},
        "loss_config.mask_weight, loss_config.consistency_warmup": {
            "loss_config": {"consistency_warmup": (0.1, 0.3), "mask_weight": 3.0}
        },
    }
    for names, change in changes.items():
        arguments.config = {**config, **change}
        with pytest.raises(
            ValueError, match=f"the recipe and {tmp_path} differ in {names}; a run goes on as it began"
        ):
            run._resumed_config(arguments, tmp_path)


def test_a_plan_names_the_weights_that_a_run_would_load():
    init = TrainArguments.from_dict({"init": {"sv3d": "a.pth", "vision": "b"}}).init
    assert run.name_initial_weights(init) == [
        "init.sv3d a.pth: loaded when the run starts",
        "init.vision b: loaded when the run starts",
    ]
    assert run.name_initial_weights(TrainArguments.from_dict({}).init) == []


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("checkpoint", [None, "checkpoint-1"])
def test_what_a_trainer_is_built_of(monkeypatch, dry_run, checkpoint):
    """A plan refuses no folder and loads no weights; nor does a run that goes on load any."""
    said, seen = [], {}
    accelerator = SimpleNamespace(num_processes=3, print=said.append)
    processor = SimpleNamespace(reference_depth=0.0)

    def stub(name, answer):
        monkeypatch.setattr(run, name, lambda *given, **options: seen.update({name: (given, options)}) or answer)

    for name, answer in {
        "build_accelerator": accelerator,
        "read_sharding": None,
        "find_checkpoint": checkpoint,
        "choose_start": checkpoint,
        "build_model": SimpleNamespace(config="config"),
        "build_processor": processor,
        "load_initial_weights": ["loaded"],
        "name_initial_weights": ["named"],
        "build_train_dataset": "frames",
        "build_evaluation": "evaluate",
        "BiFusionCollator": "single",
        "WindowCollator": "windows",
        "BiFusionTrainer": "trainer",
    }.items():
        stub(name, answer)
    arguments = TrainArguments.from_dict(
        {
            "output_dir": "runs/a",
            "seed": 5,
            "dry_run": dry_run,
            "deterministic": True,
            "training": {"batch_size": 3},
            "logging": {"trackers": ["wandb"]},
        }
    )
    assert run.build_trainer(arguments) == "trainer"
    assert seen["build_accelerator"][0] == (arguments.training, "runs/a", ["wandb"], True)
    assert seen["read_sharding"][0] == (arguments, 3)
    found = {"find_checkpoint": ("runs/a", None)} if dry_run else {"choose_start": ("runs/a", None, False)}
    assert {name: seen[name][0] for name in ("find_checkpoint", "choose_start") if name in seen} == found
    assert seen["build_model"][0] == (arguments.model, 5, checkpoint)
    assert seen["build_processor"][0] == (arguments.model, "config", checkpoint)
    assert said == ([] if checkpoint else ["named" if dry_run else "loaded"])
    assert seen["build_train_dataset"] == ((arguments.data, processor, accelerator), {"batch_size": 3, "seed": 5})
    assert seen["build_evaluation"][0] == (arguments.data, arguments.evaluation, processor, accelerator)
    given, options = seen["BiFusionTrainer"]
    assert given[0] is arguments and given[2:] == (processor, "frames", "single")
    assert options == {"evaluate": "evaluate", "accelerator": accelerator}
    arguments.data.window_frames = 2
    run.build_trainer(arguments)
    assert seen["BiFusionTrainer"][0][4] == "windows"


class Rows:
    """As the rows of `datasets`, of as many frames; remembers what is asked of it."""

    def __init__(self, count, asked=None):
        self.count, self.asked = count, [] if asked is None else asked
        self.column_names = ["depth", "superpoints"]

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return {"superpoints": None}

    def take(self, count):
        return Rows(count)

    select = take

    def map(self, function, **options):
        self.asked.append(options)
        return "superpoints"

    def remove_columns(self, name):
        return f"all but {name}"


def test_a_stream_is_shared_among_processes_and_ends_where_the_recipe_says(monkeypatch):
    monkeypatch.setattr(run, "load_frames", lambda source, split, streaming: Rows(9) if streaming else None)
    accelerator = SimpleNamespace(num_processes=3, process_index=2)
    processor = SimpleNamespace()
    for limit, count in ((None, 9), (4, 4)):
        data = {"streaming": True, "max_train_frames": limit, "shuffle_buffer": 7}
        sections = dict.fromkeys(("evaluation", "checkpoints"), {"every_updates": 1})
        data = TrainArguments.from_dict({"data": data, "training": {"max_updates": 1}, **sections}).data
        frames = run.build_train_dataset(data, processor, accelerator, batch_size=6, seed=5)
        assert isinstance(frames, StreamedFrames) and len(frames.rows) == count
        assert (frames.batch_size, frames.seed, frames.shuffle_buffer) == (6, 5, 7)
        assert (frames.num_processes, frames.process_index) == (3, 2)


@pytest.mark.parametrize(("limit", "count"), [(None, 3), (2, 2), (3, 3), (99, 3)])
def test_rows_are_limited_and_segmented_by_one_process_first(monkeypatch, limit, count):
    inside, found = [], []

    @contextlib.contextmanager
    def first():
        inside.append(True)
        yield
        inside.clear()

    def cache(rows, processor, workers):
        found.append((bool(inside), len(rows), processor, workers))
        return "cached"

    monkeypatch.setattr(run, "cache_superpoints", cache)
    rows = datasets.Dataset.from_dict({"frame_id": ["a", "b", "c"]})
    data = TrainArguments.from_dict({"data": {"cache_superpoints": True, "num_workers": 5}}).data
    accelerator = SimpleNamespace(main_process_first=first)
    assert run._select(rows, limit, data, "processor", accelerator) == "cached"
    assert found == [(True, count, "processor", 5)]
    data.cache_superpoints = False
    assert list(run._select(rows, limit, data, "processor", accelerator)["frame_id"]) == ["a", "b", "c"][:count]


@pytest.mark.parametrize(
    ("workers", "frames", "processes"), [(1, 65, None), (2, 64, None), (2, 65, 2), (3, 65, 3), (0, 65, None)]
)
def test_many_frames_are_segmented_by_several_workers(monkeypatch, workers, frames, processes):
    monkeypatch.setattr(datasets, "concatenate_datasets", lambda tables, axis: (tables, axis))
    rows = Rows(frames)
    processor = SimpleNamespace(num_superpoints=40, superpoint_color_blur=0.5)
    assert run.cache_superpoints(rows, processor, workers) == (["all but superpoints", "superpoints"], 1)
    ((options),) = rows.asked
    assert options["num_proc"] == processes and options["remove_columns"] == rows.column_names
    assert not options["features"]["superpoints"].decode


def test_frames_of_a_table_without_superpoints_get_them_too(monkeypatch):
    """In their order, beside all that they have."""
    rows = load_frames("sample", "train").select(range(2))
    monkeypatch.setattr(
        run.superpoints, "segment_superpoints", lambda image, depth, *_, **__: (depth > depth.mean()).astype(int)
    )
    processor = SimpleNamespace(num_superpoints=2, superpoint_color_blur=0.0)
    cached = run.cache_superpoints(rows.remove_columns("superpoints"), processor, 1)
    assert sorted(cached.column_names) == sorted(rows.column_names)
    for row, original in zip(cached, rows, strict=True):
        frame = frame_from_row(row)
        assert row["frame_id"] == original["frame_id"]
        assert (frame.superpoints == (frame.depth > frame.depth.mean())).all()
