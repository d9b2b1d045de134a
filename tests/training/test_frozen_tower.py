"""A recipe whose pretrained tower stays as it is: `init.vision`, `training.freeze` and its image statistics."""

import pytest
import torch
from real_recipe import small_recipe
from transformers import Dinov2Config, Dinov2Model

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.recipe.arguments import ModelArguments, TrainArguments
from bifusion_hf.training import run
from bifusion_hf.training.checkpoints import list_checkpoints
from bifusion_hf.training.freezing import TOWER
from bifusion_hf.training.run import build_model, build_trainer
from scripts.interrupts import NETWORK


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Patches of 14, as DINOv2's: 240 x 320 becomes 238 x 322.
TOWER_CONFIG = {
    "model_type": "dinov2",
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "mlp_ratio": 2,
    "image_size": 70,
    "patch_size": 14,
}

# Of the full depth: in a shallow one the audit's three updates may leave a last layer without a gradient.
POINT_CONFIG = {**NETWORK["point_config"], "blocks": [2, 3, 4, 6, 2, 2, 2, 2]}


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(8)
    model = Dinov2Model(Dinov2Config(**{**TOWER_CONFIG, "num_hidden_layers": 3}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tower")
    return model


@pytest.fixture
def recipe(tmp_path, checkpoint):
    def make(**training):
        return small_recipe(
            tmp_path / "run",
            config={"vision_config": TOWER_CONFIG, "point_config": POINT_CONFIG},
            processor={"image_mean": MEAN, "image_std": STD},
            init={"vision": str(tmp_path / "tower")},
            data={"val": None},
            training={"max_updates": 3, "epochs": 2, "freeze": [TOWER], **training},
        )

    return make


def tower_of(model):
    return model.model.encoder.image_encoder.vision_model


def test_the_tower_stays_what_was_loaded_and_the_projection_learns(tmp_path, recipe, checkpoint):
    trainer = build_trainer(recipe(max_updates=6, epochs=3, audit_window=3))
    network = trainer.network
    start = {name: value.clone() for name, value in network.state_dict().items()}
    loaded = {name: value for name, value in checkpoint.state_dict().items() if name in tower_of(network).state_dict()}
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert not held & {id(parameter) for parameter in tower_of(network).parameters()}
    trainer.train()

    tower = tower_of(network)
    assert all(torch.equal(tower.state_dict()[name], value) for name, value in loaded.items())
    assert all(parameter.grad is None for parameter in tower.parameters())
    assert not any(module.training for module in tower.modules())
    for name, parameter in network.model.encoder.image_encoder.projection.named_parameters():
        assert not torch.equal(parameter, start[f"model.encoder.image_encoder.projection.{name}"]), name
    # No graph is built in the tower, so it costs no backward pass and no activation is kept for one.
    with torch.enable_grad():
        assert tower(torch.zeros(1, 3, 28, 42)).last_hidden_state.grad_fn is None
    log = (tmp_path / "run" / "train.log").read_text()
    (row,) = [line for line in log.split("liveness audit of update 6")[1].splitlines() if line.startswith(TOWER)]
    assert " frozen " in row and "NO GRADIENT" not in row

    folder = tmp_path / "run" / "final"
    model, info = BiFusionForInstanceSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    processor = BiFusionProcessor.from_pretrained(folder)
    assert (processor.image_mean, processor.image_std, processor.size_divisor) == (MEAN, STD, 14)
    frame = frame_from_row(load_frames("sample", "val")[0])
    sample = processor.prepare_frame(frame)
    batch = processor.collate([sample])
    assert batch["pixel_values"].shape == (1, 3, 238, 322)
    black = processor.collate([{**sample, "image": 0 * sample["image"]}])["pixel_values"]
    expected = -torch.tensor(MEAN) / torch.tensor(STD)
    assert torch.allclose(black, expected[:, None, None].expand(3, 238, 322))
    inputs = {name: batch[name] for name in ("points", "point_colors", "point_mask", "superpoint_ids", "pixel_values")}
    inputs.update({name: batch[name] for name in ("point_pixels", "point_visible", "camera_rotations")})
    with torch.no_grad():
        found, expected = model.eval()(**inputs), network.eval()(**inputs)
    for name in ("masks_queries_logits", "class_queries_logits", "point_features"):
        assert torch.equal(found[name], expected[name]), name


def test_a_resumed_run_keeps_its_tower_and_does_not_load_again(tmp_path, recipe, monkeypatch):
    arguments = recipe(max_updates=2)
    arguments.checkpoints.every_updates = 1
    build_trainer(arguments).train()
    arguments.resume_from_checkpoint = str(list_checkpoints(tmp_path / "run" / "checkpoints")[0])
    monkeypatch.setattr(run, "load_initial_weights", lambda *_: pytest.fail("weights are loaded again on resume"))
    trainer = build_trainer(arguments)
    trainer.train()
    assert trainer.update == 2
    tower = Dinov2Model.from_pretrained(tmp_path / "tower").state_dict()
    assert all(torch.equal(tower[name], value) for name, value in tower_of(trainer.network).state_dict().items())
    assert not any(parameter.requires_grad for parameter in tower_of(trainer.network).parameters())


def test_what_is_frozen_may_start_later(recipe):
    trainer = build_trainer(recipe(unfreeze_at={f"{TOWER}.encoder.layer.1": 0.5}))
    trainer.train()
    state = {name: parameter.requires_grad for name, parameter in tower_of(trainer.network).named_parameters()}
    assert all(trains == name.startswith("encoder.layer.1.") for name, trains in state.items())


def test_a_name_that_does_not_exist_is_refused(recipe):
    with pytest.raises(ValueError, match="no parameter below 'model.tower'"):
        build_trainer(recipe(freeze=["model.tower"]))


def test_one_source_fills_the_tower():
    with pytest.raises(ValueError, match=r"init.clip and init.vision both"):
        TrainArguments.from_dict({"init": {"clip": "a", "vision": "b"}})


def test_a_tower_of_another_type_takes_nothing_of_the_presets():
    """`tiny` has a CLIP tower with an `intermediate_size`; what stands beside another type is that type's own."""
    arguments = ModelArguments(preset="tiny", config={"vision_config": TOWER_CONFIG})
    assert not hasattr(build_model(arguments, 0).config.vision_config, "intermediate_size")
    arguments.config["vision_config"] = {"num_hidden_layers": 1}
    config = build_model(arguments, 0).config.vision_config
    assert (config.num_hidden_layers, config.intermediate_size) == (1, 288)
