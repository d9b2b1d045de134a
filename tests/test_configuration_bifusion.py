import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, CLIPVisionConfig, Dinov2Config

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.configuration_bifusion import BiFusionLossConfig
from bifusion_hf.presets import PRESETS


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_saving(name, tmp_path):
    config = BiFusionConfig.from_preset(name)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is BiFusionConfig
    assert loaded.to_diff_dict() | {"_name_or_path": ""} == config.to_diff_dict() | {"_name_or_path": ""}
    assert config.num_labels == 1 and config.id2label == {0: "object"}


def test_sv3d_has_the_size_of_the_original():
    with torch.device("meta"):
        model = BiFusionForInstanceSegmentation(BiFusionConfig.from_preset("sv3d"))
    assert parameters(model.model.encoder.point_encoder) == 37_854_112
    assert parameters(model.model.superpoint_pooling) == 28_896
    assert parameters(model.decoder) == 3_576_779
    assert parameters(model) == 41_459_787


@pytest.mark.parametrize(
    ("name", "fusion", "blocks", "widths", "warmup", "clip"),
    [
        ("sv3d", "none", 0, (96, 256), 0, 0.0),
        ("simple", "lite_gate", 4, (256, 256), 3000, (0.02, 0.01)),
        ("full", "enhanced_gate", 6, (256, 256), 3000, (0.1, 0.05)),
        ("residual", "residual", 6, (96, 256), 3000, (0.02, 0.05)),
        ("tiny", "residual", 4, (48, 96), 100, (0.02, 0.05)),
    ],
)
def test_presets_have_the_designed_values(name, fusion, blocks, widths, warmup, clip):
    config = BiFusionConfig.from_preset(name)
    assert config.fusion_type == fusion and config.tower_num_layers == blocks
    assert (config.hidden_size, config.decoder_size) == widths and config.gate_warmup_steps == warmup
    losses = config.loss_config
    consistency = (losses.consistency_loss_weight, losses.consistency_gradient_flow_ratio)
    assert clip in (consistency[0], consistency)
    assert config.use_film == (fusion != "none") and config.use_spatial_attention == (fusion == "enhanced_gate")
    frozen = (config.freeze_tower_early_layers, config.freeze_tower_embeddings)
    assert blocks == 0 or frozen == {"simple": (True, True), "tiny": (False, False)}.get(name, (True, False))
    assert losses.dice_weight == ([0.25, 0.25, 0.25, 4.0] if name == "sv3d" else 1.0)
    processor = BiFusionProcessor.from_preset(name)
    assert (processor.num_points, processor.image_size) == ((8000, 240) if name == "tiny" else (20000, None))


def test_tiny_is_tiny():
    with torch.device("meta"):
        model = BiFusionForInstanceSegmentation(BiFusionConfig.from_preset("tiny"))
    assert parameters(model) <= 2_300_000


def test_light_fusion_block_has_the_size_the_guide_states():
    with torch.device("meta"):
        encoder = BiFusionForInstanceSegmentation(BiFusionConfig.from_preset("simple")).model.encoder
    block = [encoder.fusion, encoder.film, encoder.geometric_encoding]
    # Gate 32,897, squeeze-excite 8,464, FiLM 74,368, 8 frequencies, the scale.
    assert sum(parameters(part) for part in block) == 115_738


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion_type": "none", "vision_config": CLIPVisionConfig()}, "vision_config"),
        ({"fusion_type": "residual"}, "hidden_size"),
        ({"projection_dim": 128}, "projection_dim"),
        ({"use_spatial_attention": True}, "use_spatial_attention"),
        (
            {
                "fusion_type": "none",
                "hidden_size": 96,
                "use_film": False,
                "loss_config": {"image_semantic_weight": 0.5},
            },
            "image_semantic_weight needs an image branch",
        ),
        ({"decoder_attention_heads": 7}, "decoder_attention_heads"),
        ({"decoder_mask_levels": ["point", "point"]}, "decoder_mask_levels"),
        ({"decoder_mask_levels": ["point", "point", "point", "superpoint"]}, "decoder_mask_levels"),
        ({"loss_config": {"dice_weight": [1.0, 2.0]}}, "dice_weight"),
        ({"loss_config": {"mask_weight": -1}}, "mask_weight must be 0 or more, got -1"),
        ({"loss_config": {"dice_weight": [1.0, 1.0, 1.0, -1.0]}}, "dice_weight must be 0 or more"),
        ({"loss_config": {"stage_schedule": "late"}}, "stage_schedule"),
        ({"loss_config": {"consistency_temperature": 0.0}}, "consistency_temperature must be positive"),
        ({"loss_config": {"consistency_gradient_flow_ratio": 1.5}}, "consistency_gradient_flow_ratio must lie"),
        ({"loss_config": {"consistency_loss_mode": "negative"}}, "consistency_loss_mode"),
        ({"loss_config": {"consistency_coverage_gate": "open"}}, "consistency_coverage_gate"),
        ({"loss_config": {"consistency_coverage_threshold": 0.0}}, "consistency_coverage_threshold must lie"),
        ({"loss_config": {"consistency_warmup": [0.5]}}, "consistency_warmup must be a start and a length"),
        ({"min_query_fraction": 0.0}, "min_query_fraction"),
        ({"voxel_size": 0.0}, "voxel_size"),
        ({"fusion_type": "gate"}, "fusion_type"),
        ({"hidden_size": "256"}, "hidden_size"),
        ({"point_config": {"planes": [8] * 7}}, "planes"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(Exception, match=message):
        BiFusionConfig(**changes)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="hiden_size"):
        BiFusionConfig.from_preset("simple", hiden_size=3)
    with pytest.raises(ValueError, match="loss_config has no dice_wieght; there are"):
        BiFusionConfig(loss_config={"dice_wieght": 2.0})
    with pytest.raises(ValueError, match="no preset 'huge'"):
        BiFusionConfig.from_preset("huge")


def test_any_vision_backbone_can_be_the_tower():
    config = BiFusionConfig(vision_config=Dinov2Config(num_hidden_layers=2))
    assert config.tower_num_layers == config.clip_num_layers == 2
    assert BiFusionConfig.from_dict(config.to_dict()).vision_config.model_type == "dinov2"


def test_labels():
    config = BiFusionConfig(num_labels=198)
    assert config.num_labels == 198 and config.id2label[0] == "chair" and config.label2id["table"] == 1
    assert BiFusionConfig(num_labels=3).id2label[2] == "LABEL_2"
    assert config.semantic_id2label[0] == "wall" and config.semantic_id2label[2] == "chair"
    assert BiFusionConfig(id2label={0: "cup", 1: "box"}).num_labels == 2


def test_changing_a_configuration_changes_no_preset():
    changed = BiFusionConfig.from_preset("sv3d")
    changed.loss_config.dice_weight[0] = 9.0
    BiFusionConfig.from_preset("tiny").point_config.planes[0] = 9
    assert BiFusionConfig.from_preset("sv3d").loss_config.dice_weight[0] == 0.25
    assert BiFusionConfig.from_preset("tiny").point_config.planes[0] == 24


def test_a_part_of_the_losses_changes_only_that_part():
    config = BiFusionConfig.from_preset("sv3d", loss_config={"class_weight": 2.0})
    assert (config.loss_config.class_weight, config.loss_config.dice_weight[3]) == (2.0, 4.0)
    whole = BiFusionConfig.from_preset("sv3d", loss_config=BiFusionLossConfig(class_weight=2.0))
    assert (whole.loss_config.class_weight, whole.loss_config.dice_weight) == (2.0, 1.0)


TOWER = {"model_type": "clip_vision_model"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_intermediate_size": 10**9}, "decoder_intermediate_size is 1000000000; expected at most 8192"),
        ({"decoder_layers": 10**6, "decoder_mask_levels": ["point"]}, "decoder_layers|decoder_mask_levels"),
        ({"point_config": {"planes": [96, 96, 96, 96, 96, 96, 96, 10**8]}}, "planes is .*expected at most 8192"),
        ({"point_config": {"stem_kernel_size": 999}}, "stem_kernel_size must be 3 or 5, got 999"),
        ({"vision_config": {**TOWER, "hidden_size": 12 * 10**6}}, "vision_config.hidden_size is 12000000; expected"),
        ({"vision_config": {**TOWER, "intermediate_size": 10**9}}, "vision_config.intermediate_size is 1000000000"),
        ({"vision_config": {**TOWER, "num_hidden_layers": 10**6}}, "vision_config.num_hidden_layers is 1000000"),
    ],
)
def test_sizes_that_no_network_has_are_refused_before_anything_is_allocated(changes, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        BiFusionConfig.from_preset("simple", **changes)
