"""The published variants: what each sets in the network's configuration and in the processor's.

`BiFusionConfig.from_preset` and `BiFusionProcessor.from_preset` build them; everything else has its default.
"""

from typing import Any


def clip_tower(num_hidden_layers: int) -> dict[str, Any]:
    """CLIP ViT-B/16, cut after `num_hidden_layers` blocks."""
    return {"model_type": "clip_vision_model", "patch_size": 16, "num_hidden_layers": num_hidden_layers}


# Name -> fields of `BiFusionConfig`.
PRESETS: dict[str, dict[str, Any]] = {
    "sv3d": {
        "fusion_type": "none",
        "use_film": False,
        "hidden_size": 96,
        "gate_warmup_steps": 0,
        "loss_config": {
            # The original's 4 on the last head and 4 / batch size on the others, at its batch size of 16.
            "dice_weight": [0.25, 0.25, 0.25, 4.0],
            "consistency_loss_weight": 0.0,
            "spatial_loss_weight": 0.0,
            "noview_loss_weight": 0.0,
            "stage_schedule": "none",
        },
    },
    "simple": {
        "fusion_type": "lite_gate",
        "vision_config": clip_tower(4),
        "loss_config": {"consistency_loss_weight": 0.02, "consistency_gradient_flow_ratio": 0.01},
    },
    "full": {
        "fusion_type": "enhanced_gate",
        "use_spatial_attention": True,
        "vision_config": clip_tower(6),
        "freeze_tower_embeddings": False,
        "loss_config": {"consistency_loss_weight": 0.1, "consistency_gradient_flow_ratio": 0.05},
    },
    "residual": {
        "fusion_type": "residual",
        "hidden_size": 96,
        "vision_config": clip_tower(6),
        "freeze_tower_embeddings": False,
        "loss_config": {"consistency_loss_weight": 0.02, "consistency_gradient_flow_ratio": 0.05},
    },
    "tiny": {
        "fusion_type": "residual",
        "voxel_size": 0.04,
        "hidden_size": 48,
        "projection_dim": 96,
        "projection_hidden_size": 96,
        "decoder_size": 96,
        "decoder_attention_heads": 4,
        "decoder_intermediate_size": 288,
        "point_config": {
            "stem_channels": 24,
            "planes": [24, 32, 48, 64, 48, 48, 48, 48],
            "blocks": [1, 1, 1, 1, 1, 1, 1, 1],
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 96,
            "intermediate_size": 288,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 320,
            "patch_size": 16,
            "hidden_act": "gelu",
        },
        "freeze_tower_early_layers": False,
        "freeze_tower_embeddings": False,
        "gate_warmup_steps": 100,
        "loss_config": {"consistency_loss_weight": 0.02, "consistency_gradient_flow_ratio": 0.05},
    },
}

# Name -> arguments of `BiFusionProcessor`.
PROCESSOR_PRESETS: dict[str, dict[str, Any]] = {
    # The original leaves masks whole.
    "sv3d": {"part_gap": 0.0},
    "simple": {},
    "full": {},
    "residual": {},
    "tiny": {"image_size": 240, "num_points": 8000},
}
