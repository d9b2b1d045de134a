"""The recipes of the pretrained tower."""

import pytest
from transformers import Dinov2Model

from bifusion_hf import BiFusionConfig
from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.recipe.reading import load_arguments
from bifusion_hf.training.freezing import TOWER
from bifusion_hf.training.run import build_model, build_processor
from scripts.experiments.cells import changed_keys, check_comparable, content_of, recipe_file


# ImageNet's, as DINOv2 was trained.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.mark.parametrize("name", ["rooms_residual_dinov2", "rooms_lite_gate_dinov2"])
def test_the_recipes_describe_the_converted_tower(name):
    arguments = load_arguments(recipe_file(name))
    model = build_model(arguments.model, arguments.seed)
    tower, tiny = model.get_submodule(TOWER), BiFusionConfig.from_preset("tiny")
    assert type(tower) is Dinov2Model and len(tower.encoder.layer) == 8
    # As the converter writes them for that graph.
    config = tower.config
    assert (config.hidden_size, config.num_attention_heads, config.mlp_ratio) == (384, 6, 4)
    assert (config.image_size, config.patch_size, config.layer_norm_eps) == (518, 14, 1e-6)
    assert model.config.projection_dim == tiny.projection_dim
    assert arguments.training.freeze == [TOWER] and arguments.init.vision
    processor = build_processor(arguments.model, model.config)
    assert processor.image_mean == MEAN and processor.image_std == STD
    frame = frame_from_row(load_frames("sample", "val")[0])
    assert processor.resize(frame.image).shape == (280, 378, 3)


@pytest.mark.parametrize("name", ["rooms_residual", "rooms_lite_gate"])
def test_the_recipes_state_the_tower_alone(name):
    scratch, pretrained = (content_of(load_arguments(recipe_file(recipe))) for recipe in (name, f"{name}_dinov2"))
    check_comparable({"scratch": scratch, "pretrained": pretrained})
    changed = {key.removeprefix("model.config.").partition(".")[0] for key in changed_keys(scratch, pretrained)}
    assert changed == {"vision_config", "model", "init", "training"}
    of_processor = {key for key in changed_keys(scratch, pretrained) if key.startswith("model.processor.")}
    assert of_processor == {f"model.processor.{name}" for name in ("image_size", "image_mean", "image_std")}
