from dataclasses import replace

import pytest

from bifusion_hf.configuration_bifusion import BiFusionConfig
from bifusion_hf.recipe.arguments import TrainArguments, check_names, valid_keys
from bifusion_hf.recipe.reading import describe_keys, load_arguments, recipe_names
from bifusion_hf.training.run import build_config


def test_defaults_round_trip_through_yaml(tmp_path):
    arguments = load_arguments(
        "tiny", ["--model.processor.num_points", "4000", "--training.unfreeze_at.model.x", "0.5"]
    )
    arguments.save(tmp_path / "recipe.yaml")
    assert load_arguments(tmp_path / "recipe.yaml") == arguments
    assert arguments.model.processor == {"num_points": 4000}


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load(name):
    arguments = load_arguments(name)
    assert arguments.optimizer.power == 0.9 and arguments.optimizer.max_grad_norm == 10
    # As it would be from the preset; what a recipe starts from is not here.
    config = build_config(replace(arguments.model, pretrained=None))
    assert config.use_box_head == config.point_config.use_frame_adapters == ("online" in name)


def test_the_online_recipe_has_the_values_of_the_original():
    online = load_arguments("sv3d_online")
    assert (online.data.window_frames, online.training.batch_size, online.training.epochs) == (8, 4, 128)
    assert (online.optimizer.learning_rate, online.optimizer.weight_decay, online.optimizer.power) == (1e-4, 0.05, 0.9)
    assert online.optimizer.max_grad_norm == 10 and online.model.pretrained == "outputs/sv3d/best"
    config = build_config(replace(online.model, pretrained=None))
    assert config.use_merge_head == "layer"
    losses = config.loss_config
    names = ("class_weight", "mask_weight", "box_weight", "semantic_weight", "no_object_weight", "merge_weight")
    assert [getattr(losses, name) for name in names] == [0.5, 1.0, 0.5, 0.5, 0.1, 2.0]
    assert losses.merge_temperature == 0.07 and list(losses.dice_weight) == [1.0, 1.0, 1.0, 4.0]


def test_recipes_have_the_published_values():
    names = ("sv3d", "bifusion_simple", "bifusion_full", "bifusion_residual")
    sv3d, simple, full, residual = (load_arguments(name) for name in names)
    assert (sv3d.training.epochs, sv3d.training.batch_size, sv3d.training.accumulation) == (128, 16, 1)
    assert (simple.training.epochs, simple.training.batch_size, simple.training.accumulation) == (64, 4, 2)
    assert (full.training.epochs, full.training.batch_size, full.training.accumulation) == (128, 6, 2)
    assert (residual.training.epochs, residual.training.batch_size, residual.training.accumulation) == (128, 6, 2)
    assert [recipe.model.preset for recipe in (sv3d, simple, full, residual)] == ["sv3d", "simple", "full", "residual"]
    for recipe in (sv3d, simple, full, residual):
        assert recipe.optimizer.learning_rate == 1e-4 and recipe.optimizer.weight_decay == 0.05
        assert recipe.optimizer.tower_learning_rate_scale == 0.1


def test_overrides_take_every_form():
    arguments = load_arguments(
        None,
        [
            "--optimizer.learning_rate", "1e-3", "--training.batch_size=2", "--deterministic", "--data.val", "null",
            "--optimizer.betas", "[0.9, 0.95]", "--logging.trackers", "tensorboard",
            "--training.mixed_precision", "no",
        ],
    )  # fmt: skip
    assert arguments.optimizer.learning_rate == 1e-3 and arguments.training.batch_size == 2
    assert arguments.deterministic and arguments.data.val is None
    assert arguments.optimizer.betas == (0.9, 0.95) and arguments.logging.trackers == ["tensorboard"]
    assert arguments.training.mixed_precision == "no"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.batchsize", "2"], "training.batch_size"),
        (["--learning_rate", "2"], "optimizer.learning_rate"),
        (["--trainings.epochs", "2"], "training.epochs"),
        (["--training.batch_size", "two"], "training.batch_size must be int"),
        (["--training.batch_size", "true"], "training.batch_size must be int"),
        (["--training.batch_size", "1.5"], "training.batch_size must be int"),
        (["--optimizer.learning_rate", "fast"], "optimizer.learning_rate must be float"),
        (["--deterministic", "2"], "deterministic must be bool"),
        (["--training.mixed_precision", "fp8"], "training.mixed_precision must be one of"),
        (["--optimizer.betas", "[1]"], "optimizer.betas"),
        (["--training.batch_size", "0"], "training.batch_size must be positive"),
        (["--training.ema_decay", "1"], "training.ema_decay"),
        (["--data.streaming"], "training.max_updates"),
        (["batch_size", "2"], "expected --section.key"),
        (["--training.unfreeze_at.model", "2"], "progress in"),
    ],
)
def test_wrong_keys_and_values_are_refused_by_name(words, message):
    with pytest.raises(ValueError, match=message):
        load_arguments(None, words)


def test_training_frames_come_from_one_source_or_a_mixture(tmp_path):
    assert load_arguments(None, ["--data.train", "rooms"]).data.train == "rooms"
    mixed = load_arguments(None, ["--data.train", "{rooms: 1, org/name@main: 2.5}"])
    assert mixed.data.train == {"rooms": 1.0, "org/name@main": 2.5}
    mixed.save(tmp_path / "mixed.yaml")
    assert load_arguments(tmp_path / "mixed.yaml") == mixed
    # Another mixture takes the place of the first: its sources are not added.
    (tmp_path / "other.yaml").write_text("extends: mixed\ndata: {train: {tabletop: 1}}\n")
    assert load_arguments(tmp_path / "other.yaml").data.train == {"tabletop": 1.0}
    for words, message in (
        (["--data.train", "3"], "data.train must be str"),
        (["--data.train", "{rooms: many}"], "data.train.rooms must be float"),
        (["--data.train", "{rooms: 0}"], "data.train.rooms must be positive"),
        (["--data.train", "{}"], "expected sources to mix"),
        (["--data.train", "{rooms: 1}", "--data.streaming", "--training.max_updates", "3"], "no data.streaming"),
    ):
        with pytest.raises(ValueError, match=message):
            load_arguments(None, words)


def test_windows_need_rows_by_index():
    stream = {"streaming": True, "window_frames": 2}
    with pytest.raises(ValueError, match=r"data.window_frames needs rows by index, data.streaming has none"):
        TrainArguments.from_dict({"data": stream, "training": {"max_updates": 5}})
    with pytest.raises(ValueError, match=r"data.window_frames must be positive, got 0"):
        TrainArguments.from_dict({"data": {"window_frames": 0}})


def test_a_stream_has_a_cadence_in_updates():
    """It has no epochs: with the default cadence nothing would be evaluated or saved before the last update."""
    words = ["--data.streaming", "--training.max_updates", "1000000"]
    for name in ("checkpoints", "evaluation"):
        with pytest.raises(ValueError, match=rf"{name}.every_epochs is 1.*set {name}.every_updates"):
            load_arguments(None, words)
        words += [f"--{name}.every_updates", "100"]
    assert load_arguments(None, words).evaluation.every_updates == 100
    # Both ways of saying that it is wanted so.
    quiet = ["--checkpoints.every_epochs", "0", "--data.val", "null"]
    assert load_arguments(None, [*words[:3], *quiet]).checkpoints.every_updates is None


def test_unknown_keys_of_a_file_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("training:\n  epoch: 3\n")
    with pytest.raises(ValueError, match=r"unknown key 'training.epoch'; did you mean 'training.epochs'"):
        load_arguments(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("training: 3\n")
    with pytest.raises(ValueError, match="training: expected a mapping"):
        load_arguments(tmp_path / "b.yaml")
    with pytest.raises(ValueError, match="no recipe 'nothing'"):
        load_arguments("nothing")
    with pytest.raises(ValueError, match=r"model.config.fusion_typ'; did you mean 'fusion_type'"):
        check_names("model.config", {"fusion_typ": 1}, list(BiFusionConfig.__dataclass_fields__))


def test_help_explains_every_key():
    lines = describe_keys().splitlines()
    explained = {
        line.split()[0]: text for line, text in zip(lines, lines[1:], strict=False) if line.startswith("  --")
    }
    assert explained.keys() == {f"--{key}" for key in valid_keys()}
    assert all(text.startswith(" " * 8) and text.strip() for text in explained.values())
    assert explained["--optimizer.epsilon"].strip() == "Of Adam."
    assert "  --init.clip_activation  one of quick_gelu, gelu or null (default null)" in lines
    assert load_arguments(None, ["--data.val", "null"]).data.val is None
    assert TrainArguments().flat()["optimizer.learning_rate"] == 1e-4


def test_a_recipe_states_only_its_differences_from_the_one_it_extends(tmp_path):
    (tmp_path / "far.yaml").write_text("extends: tiny\nmodel: {config: {hidden_size: 48}}\ntraining: {epochs: 7}\n")
    near = "extends: far\nmodel: {config: {vision_config: null, decoder_size: 64}}\nseed: 3\n"
    (tmp_path / "near.yaml").write_text(near)
    arguments = load_arguments(tmp_path / "near.yaml", ["--training.batch_size", "2"])
    assert arguments.model.config == {"hidden_size": 48, "vision_config": None, "decoder_size": 64}
    assert (arguments.training.epochs, arguments.training.batch_size, arguments.seed) == (7, 2, 3)
    assert arguments.optimizer == load_arguments("tiny").optimizer
    (tmp_path / "far.yaml").write_text("extends: near\n")
    with pytest.raises(ValueError, match=r"near.yaml extends itself, by way of .*far.yaml"):
        load_arguments(tmp_path / "near.yaml")
    (tmp_path / "far.yaml").write_text("extends: nowhere\n")
    with pytest.raises(ValueError, match="no recipe 'nowhere'"):
        load_arguments(tmp_path / "near.yaml")
