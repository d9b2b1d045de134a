"""The names of release 0.1: every file and call that has them gives what it gave."""

import copy
import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionModel, BiFusionProcessor
from bifusion_hf.old_names import MOVED_FIELDS, PROCESSOR_FIELDS, rename_key
from bifusion_hf.recipe.arguments import TrainArguments
from bifusion_hf.recipe.reading import load_arguments


WRITTEN_BY_0_1 = Path(__file__).parent / "fixtures" / "checkpoint_0_1"
# A `config.json` of release 0.1 in which every field that moved has a value of its own.
OLD_LOSSES = {
    "no_object_weight": 0.11,
    "class_weight": 0.51,
    "mask_weight": 1.1,
    "dice_weight": [0.1, 0.2, 0.3, 0.4],
    "semantic_weight": 0.52,
    "image_semantic_weight": 0.1,
    "spatial_loss_weight": 0.03,
    "noview_loss_weight": 0.02,
    "noview_similarity_threshold": 0.7,
    "balance_loss_weight": 0.01,
    "balance_target": 0.3,
    "stage_schedule": "original",
    "clip_loss_weight": 0.04,
    "clip_loss_mode": "positive",
    "clip_temperature": 0.08,
    "clip_gradient_flow_ratio": 0.09,
    "clip_negatives_across_batch": True,
    "clip_coverage_gate": "hard",
    "clip_coverage_threshold": 0.5,
    "clip_warmup": [0.1, 0.2],
}
OLD_NETWORK = {"freeze_clip_early_layers": False, "freeze_clip_patch_embedding": False}
OLD_PROCESSING = {
    "image_size": 352,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.1, 0.2, 0.3],
    "num_points": 5000,
    "mask_threshold": 0.45,
    "max_instances": 50,
}


def check(config):
    """The configuration has all of OLD_LOSSES and OLD_NETWORK, under both names."""
    for old, value in {**OLD_LOSSES, **OLD_NETWORK}.items():
        section, _, name = MOVED_FIELDS[old].rpartition(".")
        assert getattr(getattr(config, section) if section else config, name) == value, old
        assert getattr(config, old) == value, old


def test_every_field_that_moved_is_looked_at():
    assert {*OLD_LOSSES, *OLD_NETWORK} == set(MOVED_FIELDS) and set(OLD_PROCESSING) == set(PROCESSOR_FIELDS)


def test_a_configuration_file(tmp_path):
    old = {**OLD_LOSSES, **OLD_NETWORK, **OLD_PROCESSING, "score_threshold": 0.0, "bifusion_hf_version": "0.1.0"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bifusion", **old}))
    for config in (
        BiFusionConfig.from_pretrained(tmp_path),
        BiFusionConfig.from_json_file(tmp_path / "config.json"),
        BiFusionConfig.from_dict(copy.deepcopy(old)),
    ):
        check(config)
        processor = BiFusionProcessor.from_config(config)
        assert {name: getattr(processor, name) for name in OLD_PROCESSING} == OLD_PROCESSING
    config.save_pretrained(tmp_path / "new")
    assert not set(json.loads((tmp_path / "new" / "config.json").read_text())) & set(old) - {"bifusion_hf_version"}
    check(BiFusionConfig.from_pretrained(tmp_path / "new"))


def test_files_that_release_0_1_wrote():
    """Those of its sample checkpoint, of the preset `tiny`."""
    config = BiFusionConfig.from_pretrained(WRITTEN_BY_0_1)
    tiny = BiFusionConfig.from_preset("tiny")
    assert config.loss_config.to_dict() == {
        **tiny.loss_config.to_dict(),
        "dtype": config.loss_config.to_dict()["dtype"],
    }
    processors = [BiFusionProcessor.from_pretrained(WRITTEN_BY_0_1), BiFusionProcessor.from_config(config)]
    # Masks stayed whole then, and still do with these files.
    expected = BiFusionProcessor.from_preset("tiny", part_gap=0.0)
    assert [processor.to_dict() for processor in processors] == 2 * [expected.to_dict()]


@pytest.mark.parametrize("kind", [BiFusionForInstanceSegmentation, BiFusionModel])
def test_weights_in_which_the_progress_lay_in_the_base_model(kind, small_config, tmp_path):
    model = BiFusionForInstanceSegmentation(small_config("residual"))
    model.set_training_progress(5, 9)
    model.save_pretrained(tmp_path)
    state = model.state_dict()
    new = {f"model.training_progress.{name}": f"model.training_{name}" for name in ("update", "total")}
    old = {new.get(name, name): value for name, value in state.items()}
    assert set(old) - set(state) == {"model.training_update", "model.training_total"}
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert not [name for name in info["unexpected_keys"] if "training" in name]
    restored = kind(loaded.config)
    prefix = "" if kind is BiFusionForInstanceSegmentation else "model."
    # As checkpoints of a training run are read.
    restored.load_state_dict({k.removeprefix(prefix): v for k, v in old.items() if k.startswith(prefix)})
    for part in (loaded, restored):
        progress = part.base_model.training_progress
        assert (progress.update.item(), progress.total.item()) == (5, 9)


def test_arguments_and_attributes(tmp_path):
    check(BiFusionConfig(**OLD_LOSSES, **OLD_NETWORK))
    config = BiFusionConfig.from_preset("tiny", **OLD_LOSSES)
    for name, value in OLD_NETWORK.items():
        setattr(config, name, value)
    check(config)
    config.save_pretrained(tmp_path)
    loaded = BiFusionConfig.from_pretrained(tmp_path, dice_weight=2.0, clip_temperature=0.5)
    assert (loaded.loss_config.dice_weight, loaded.loss_config.consistency_temperature) == (2.0, 0.5)
    assert loaded.loss_config.class_weight == 0.51
    with pytest.raises(AttributeError, match="BiFusionConfig has no clip_temprature"):
        _ = config.clip_temprature


def test_a_value_under_both_names_is_refused():
    both = "dice_weight is the old name of loss_config.dice_weight, and both are given"
    with pytest.raises(ValueError, match=both):
        BiFusionConfig(dice_weight=2.0, loss_config={"dice_weight": 1.0})
    with pytest.raises(ValueError, match=both):
        BiFusionConfig.from_preset("tiny", dice_weight=2.0, loss_config={"dice_weight": 1.0})
    with pytest.raises(ValueError, match="freeze_clip_early_layers is the old name of freeze_tower_early_layers"):
        BiFusionConfig.from_preset("tiny", freeze_clip_early_layers=True, freeze_tower_early_layers=True)
    with pytest.raises(ValueError, match="freeze_tower_early_layers is given under its old name too"):
        BiFusionConfig(freeze_clip_early_layers=True, freeze_tower_early_layers=False)
    with pytest.raises(ValueError, match=r"model.config.num_points is the old name of model.processor.num_points"):
        TrainArguments.from_dict({"model": {"config": {"num_points": 5}, "processor": {"num_points": 5}}})


@pytest.mark.parametrize("name", PROCESSOR_FIELDS)
def test_a_field_of_the_processor_is_refused_by_the_configuration(name, tmp_path):
    config = BiFusionConfig.from_preset("tiny")
    config.save_pretrained(tmp_path)
    for give in (
        lambda: BiFusionConfig(**{name: OLD_PROCESSING[name]}),
        lambda: BiFusionConfig.from_preset("tiny", **{name: OLD_PROCESSING[name]}),
        lambda: BiFusionConfig.from_pretrained(tmp_path, **{name: OLD_PROCESSING[name]}),
        lambda: setattr(config, name, OLD_PROCESSING[name]),
    ):
        with pytest.raises(ValueError, match=f"{name}: no field of BiFusionConfig but of BiFusionProcessor"):
            give()


def test_recipes(tmp_path):
    old = {"model": {"preset": "tiny", "config": {**OLD_LOSSES, **OLD_NETWORK, **OLD_PROCESSING, "hidden_size": 48}}}
    arguments = TrainArguments.from_dict(old)
    assert arguments.model.processor == OLD_PROCESSING
    assert set(arguments.model.config) == {"loss_config", *(MOVED_FIELDS[name] for name in OLD_NETWORK), "hidden_size"}
    check(BiFusionConfig.from_preset("tiny", **arguments.model.config))
    arguments.save(tmp_path / "new.yaml")
    assert load_arguments(tmp_path / "new.yaml").to_dict() == arguments.to_dict()


def test_recipes_that_extend_others_and_overrides_may_mix_old_and_new_names(tmp_path):
    (tmp_path / "far.yaml").write_text("model: {config: {clip_loss_weight: 1.0, num_points: 5, class_weight: 3.0}}\n")
    near = "extends: far\nmodel: {config: {loss_config: {consistency_loss_weight: 2.0}}, processor: {num_points: 6}}\n"
    (tmp_path / "near.yaml").write_text(near)
    arguments = load_arguments(tmp_path / "near.yaml", ["--model.config.mask_weight", "4.0"])
    losses = {"consistency_loss_weight": 2.0, "class_weight": 3.0, "mask_weight": 4.0}
    assert arguments.model.config == {"loss_config": losses} and arguments.model.processor == {"num_points": 6}
    last = load_arguments(
        tmp_path / "near.yaml", ["--model.config.num_points=7", "--model.config.clip_loss_weight=5.0"]
    )
    assert last.model.processor == {"num_points": 7}
    assert last.model.config["loss_config"]["consistency_loss_weight"] == 5.0


def test_keys():
    assert rename_key("model.config.clip_warmup") == "model.config.loss_config.consistency_warmup"
    assert rename_key("model.config.image_mean") == "model.processor.image_mean"
    for same in ("model.config.vision_config.image_size", "model.processor.num_points", "training.dice_weight"):
        assert rename_key(same) == same
