"""Every field of the configuration reaches what it is for: another value, and something that it names is different."""

import functools
from dataclasses import dataclass, field, fields

import pytest
import torch
from random_weights import random_weights
from transformers import PreTrainedConfig

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation
from bifusion_hf.configuration_bifusion import BiFusionLossConfig, BiFusionPointConfig
from bifusion_hf.recipe.arguments import TrainingArguments
from bifusion_hf.training.freezing import freeze_for_training


@dataclass
class Change:
    """A field's other value.

    Args:
        value: The value.
        seen_in: What has to be different: names of methods of `Observed`.
        fusion_type: Of both networks.
        beside: Other fields of both networks.
        along: Fields that have to change with it.
    """

    value: object
    seen_in: str
    fusion_type: str = "none"
    beside: dict = field(default_factory=dict)
    along: dict = field(default_factory=dict)


POINT_CONFIG = {"stem_channels": 4, "planes": [4, 4, 8, 8, 8, 8, 8, 12], "blocks": [1] * 8, "stem_kernel_size": 3}
VISION_CONFIG = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
LEVELS = ["superpoint", "superpoint", "point", "point"]
CHANGES = {
    "vision_config": Change({**VISION_CONFIG, "hidden_size": 8}, "structure", "residual"),
    "point_config": Change({**POINT_CONFIG, "stem_channels": 6}, "structure"),
    "voxel_size": Change(0.2, "predictions"),
    "sparse_backend": Change("torch", "backends"),
    "hidden_size": Change(24, "structure", "lite_gate", along={"projection_dim": 24}),
    "projection_dim": Change(24, "structure", "residual"),
    "projection_hidden_size": Change(24, "structure", "residual"),
    "decoder_size": Change(24, "structure"),
    "decoder_layers": Change(2, "structure", along={"decoder_mask_levels": LEVELS[1:]}),
    "decoder_attention_heads": Change(4, "predictions"),
    "decoder_intermediate_size": Change(24, "structure"),
    "decoder_mask_levels": Change(["superpoint", "point", "point", "point"], "predictions"),
    "fusion_type": Change("lite_gate", "structure", "residual", along={"hidden_size": 16}),
    "use_film": Change(False, "structure", "residual"),
    "use_spatial_attention": Change(True, "structure", "enhanced_gate"),
    "spatial_k": Change(3, "predictions", "enhanced_gate", beside={"spatial_radius": 0.3}),
    "spatial_radius": Change(0.2, "predictions", "enhanced_gate", beside={"spatial_k": 100}),
    "use_tiny_sa_2d": Change(True, "structure", "residual"),
    "use_tiny_sa_3d": Change(True, "structure"),
    "tiny_sa_radius": Change(0.6, "predictions", beside={"use_tiny_sa_3d": True}),
    "gate_warmup_steps": Change(61, "predictions", "residual"),
    "freeze_tower_early_layers": Change(False, "frozen", "residual"),
    "freeze_tower_embeddings": Change(False, "frozen", "residual"),
    "num_semantic_labels": Change(7, "structure", along={"semantic_id2label": None}),
    "semantic_id2label": Change({index: f"class {index}" for index in range(200)}, "class_names"),
    "min_query_fraction": Change(1.0, "queries"),
    "loss_config": Change({"class_weight": 0.7}, "losses", "residual"),
    "use_box_head": Change(True, "structure"),
    "use_merge_head": Change("layer", "structure"),
}
POINT_CHANGES = {
    "in_channels": Change(5, "structure"),
    "stem_channels": Change(6, "structure"),
    "planes": Change([4, 4, 4, 8, 8, 8, 8, 12], "structure"),
    "blocks": Change([1, 1, 1, 2, 1, 1, 1, 1], "structure"),
    "stem_kernel_size": Change(5, "structure"),
    "use_frame_adapters": Change(True, "structure"),
    "batch_norm_eps": Change(0.1, "predictions"),
    "batch_norm_momentum": Change(0.5, "statistics"),
}
MERGING = {"use_merge_head": "layer"}
LOSS_CHANGES = {
    "no_object_weight": Change(0.4, "losses", "residual"),
    "class_weight": Change(0.7, "losses", "residual"),
    "mask_weight": Change(2.0, "losses", "residual"),
    "dice_weight": Change([1.0, 1.0, 1.0, 3.0], "losses", "residual"),
    "semantic_weight": Change(0.7, "losses", "residual"),
    "consistency_loss_weight": Change(0.3, "losses", "residual"),
    "consistency_loss_mode": Change("positive", "losses", "residual"),
    "consistency_temperature": Change(0.2, "losses", "residual"),
    "consistency_gradient_flow_ratio": Change(0.5, "gradients", "residual"),
    "consistency_negatives_across_batch": Change(True, "losses", "residual"),
    "consistency_coverage_gate": Change("none", "losses", "residual"),
    "consistency_coverage_threshold": Change(0.9, "losses", "residual"),
    "consistency_warmup": Change([0.4, 0.4], "losses", "residual"),
    "noview_similarity_threshold": Change(0.97, "losses", "residual"),
    "balance_target": Change(0.9, "losses", "residual", beside={"balance_loss_weight": 1.0}),
    "spatial_loss_weight": Change(0.5, "losses", "residual"),
    "noview_loss_weight": Change(0.5, "losses", "residual"),
    "balance_loss_weight": Change(0.5, "losses", "residual"),
    "image_semantic_weight": Change(0.5, "losses", "residual"),
    "stage_schedule": Change("none", "losses", "residual"),
    "box_weight": Change(0.5, "losses", "residual", along={"use_box_head": True}),
    "merge_weight": Change(2.0, "losses", "residual", along=MERGING),
    "merge_temperature": Change(0.5, "losses", "residual", beside={"merge_weight": 1.0}, along=MERGING),
}
# Fields that nothing reads.
OTHERS = {
    "initializer_range": "transformers wants it of every configuration; no layer here is initialised by it",
    "old_processor_fields": "no setting: what a config.json of release 0.1 held for the processor",
}
# Fields that nothing reads.
OTHERS = {"initializer_range": "transformers wants it of every configuration; no layer here is initialised by it"}


class Observed:
    """What can be seen of the network of a configuration, with weights that depend on their names alone."""

    def __init__(self, config, batch):
        torch.manual_seed(0)
        self.config, self.batch = config, batch
        self.model = BiFusionForInstanceSegmentation(config)
        self.model.load_state_dict(random_weights(self.model))
        # Beyond half: a stage of its own, and a held gate where the warm-up is as long.
        self.model.set_training_progress(60, 100)

    def structure(self):
        return {name: tuple(value.shape) for name, value in self.model.state_dict().items()}

    def backends(self):
        return {module.backend for module in self.model.modules() if hasattr(module, "backend")}

    def class_names(self):
        return self.config.semantic_id2label

    @torch.no_grad()
    def predictions(self):
        outputs = self.model.eval()(**self.batch)
        return [outputs.class_queries_logits, outputs.masks_queries_logits, outputs.semantic_queries_logits]

    def frozen(self):
        freeze_for_training(self.model, TrainingArguments())
        return {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}

    @functools.cached_property
    def trained(self):
        boxes = torch.tensor([-1.0, -1, -1, 1, 1, 1]).expand(3, 6)
        window = {"window_frames": 2, "instance_ids": [torch.arange(3)] * 2, "object_boxes": [boxes] * 2}
        return self.model.train()(**self.batch, **window, query_seeds=torch.tensor([1, 2]))

    def queries(self):
        return self.trained.query_superpoints

    def losses(self):
        return {name: value.item() for name, value in self.trained.weighted_loss_dict.items()}

    def gradients(self):
        weight = self.model.model.encoder.image_encoder.projection.out.weight
        return torch.autograd.grad(self.trained.loss_dict["loss_clip"], weight)[0]

    def statistics(self):
        assert self.trained is not None
        return self.model.model.encoder.point_encoder.stem_norm.running_mean


def same(first, second):
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, torch.Tensor):
        return first.shape == second.shape and torch.allclose(first, second, rtol=1e-4)
    return first == second


@pytest.fixture(scope="module")
def observe(small_config, make_batch):
    """Factory of `Observed`; what two fields start from is made once."""
    batch = make_batch((160, 120), visible=0.5)
    known = {}

    def make(fusion_type, overrides, seen_in):
        key = f"{fusion_type} {overrides} {seen_in}"
        if key not in known:
            values = {"point_config": POINT_CONFIG, "voxel_size": 0.1, "spatial_radius": 0.1, **overrides}
            if fusion_type != "none":
                values = {"vision_config": VISION_CONFIG, **values}
            known[key] = getattr(Observed(small_config(fusion_type, **values), batch), seen_in)()
        return known[key]

    return make


def own_fields(config_class):
    inherited = {own.name for own in fields(PreTrainedConfig)}
    return {own.name for own in fields(config_class)} - inherited


def test_every_field_is_looked_at():
    assert own_fields(BiFusionConfig) == set(CHANGES) | set(OTHERS)
    assert own_fields(BiFusionPointConfig) == set(POINT_CHANGES)
    assert own_fields(BiFusionLossConfig) == set(LOSS_CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_field_reaches_its_consumer(observe, name):
    change = CHANGES[name]
    before = observe(change.fusion_type, change.beside, change.seen_in)
    fusion_type = change.value if name == "fusion_type" else change.fusion_type
    own = {} if name == "fusion_type" else {name: change.value}
    assert not same(before, observe(fusion_type, {**change.beside, **change.along, **own}, change.seen_in))


@pytest.mark.parametrize("name", POINT_CHANGES)
def test_field_of_the_point_branch_reaches_its_consumer(observe, name):
    change = POINT_CHANGES[name]
    before = observe("none", {}, change.seen_in)
    changed = {"point_config": {**POINT_CONFIG, name: change.value}}
    assert not same(before, observe("none", changed, change.seen_in))


@pytest.mark.parametrize("name", LOSS_CHANGES)
def test_field_of_the_losses_reaches_its_consumer(observe, name):
    change = LOSS_CHANGES[name]
    beside = {**change.along, **({"loss_config": change.beside} if change.beside else {})}
    before = observe(change.fusion_type, beside, change.seen_in)
    changed = {**change.along, "loss_config": {**change.beside, name: change.value}}
    assert not same(before, observe(change.fusion_type, changed, change.seen_in))
