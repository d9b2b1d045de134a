import functools

import pytest
import torch
from random_weights import random_weights
from slow_network import SlowNetwork, Voxels

from bifusion_hf import BiFusionForInstanceSegmentation


RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}
POINTS = (170, 120)
# What is compared -> configuration. Together they have every kind of fusion and every option.
CASES = {
    "points alone": ("none", {}),
    "frame adapters, wide stem": ("none", {"adapters": True}),
    "attention of voxels": ("none", {"use_tiny_sa_3d": True, "tiny_sa_radius": 0.6}),
    "two layers, three labels": (
        "none",
        {
            "decoder_layers": 2,
            "decoder_mask_levels": ["point", "superpoint", "point"],
            "num_labels": 3,
            "blocks": [2, 1, 1, 1, 1, 1, 2, 1],
        },
    ),
    "point masks alone": ("none", {"decoder_layers": 1, "decoder_mask_levels": ["point", "point"]}),
    "residual, both attentions": (
        "residual",
        {"use_tiny_sa_2d": True, "use_tiny_sa_3d": True, "tiny_sa_radius": 0.3},
    ),
    "residual, gate held": ("residual", {"use_film": False, "gate_warmup_steps": 10}),
    "lite gate": ("lite_gate", {}),
    "lite gate, convolutional tower": ("lite_gate", {"use_film": False, "vision_config": RESNET}),
    "enhanced gate": ("enhanced_gate", {"use_film": False}),
    "enhanced gate, neighbours": ("enhanced_gate", {"use_spatial_attention": True, "spatial_k": 5}),
}


def make_config(small_config, fusion_type, overrides):
    overrides = dict(overrides)
    point_config = {
        "stem_channels": 4,
        "planes": [4, 8, 8, 12, 12, 8, 8, 12],
        "blocks": overrides.pop("blocks", [1] * 8),
        "use_frame_adapters": overrides.pop("adapters", False),
        "stem_kernel_size": 5 if "use_tiny_sa_3d" not in overrides else 3,
        "batch_norm_eps": 1e-3,
    }
    return small_config(fusion_type, point_config=point_config, voxel_size=0.1, spatial_radius=0.2, **overrides)


@functools.cache
def make_inputs(seed=0, image_size=(24, 40)):
    """Two frames of another number of points: tilted planes that meet, so that every surface has a normal."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    longest, frames = max(POINTS), []
    for count in POINTS:
        points = torch.rand(count, 3, generator=generator)
        points[torch.arange(count), torch.randint(3, (count,), generator=generator)] *= 0.03
        ids = (3 * points).long() @ torch.tensor([1, 3, 9])
        frames.append(((1.2 * points - 0.7) @ turn.T, ids.unique(return_inverse=True)[1]))
    pad = torch.nn.utils.rnn.pad_sequence
    mask = torch.arange(longest) < torch.tensor(POINTS)[:, None]
    size = (len(POINTS), longest)
    return {
        "points": pad([points for points, _ in frames], batch_first=True),
        "point_colors": torch.randn(*size, 3, generator=generator),
        "point_mask": mask,
        "superpoint_ids": pad([ids for _, ids in frames], batch_first=True, padding_value=-1),
        "pixel_values": torch.randn(len(POINTS), 3, *image_size, generator=generator),
        "point_pixels": torch.rand(*size, 2, generator=generator),
        "point_visible": (torch.rand(size, generator=generator) < 0.8) & mask,
        "camera_rotations": torch.linalg.qr(torch.randn(len(POINTS), 3, 3, generator=generator))[0],
    }


@pytest.fixture(scope="module")
def unets():
    """What the slow U-Net made of the frames: many of the cases have the same one, and it takes most of the time."""
    return {}


def slow_outputs(slow, inputs, unets):
    """What the slow network says of each frame, without its padding."""
    for index, count in enumerate(POINTS):
        points, colors, ids, pixels, visible = (
            inputs[name][index, :count]
            for name in ("points", "point_colors", "superpoint_ids", "point_pixels", "point_visible")
        )
        voxels = Voxels(points, slow.config.voxel_size)
        key = (index, slow.config.point_config.to_json_string())
        if key not in unets:
            unets[key] = slow.unet(voxels, colors)
        image, rotation = inputs["pixel_values"][index], inputs["camera_rotations"][index]
        yield slow(voxels, unets[key], points, ids, image, pixels, visible, rotation)


def largest_difference(outputs, expected):
    """The largest difference in anything that the network gives, by each one's largest value."""
    largest = 0.0
    for index, (frame, count) in enumerate(zip(expected, POINTS, strict=True)):
        found = [*outputs.auxiliary_logits, outputs]
        number = len(frame["pooled"])
        pairs = [
            (outputs.point_features[index, :count], frame["features"]),
            (outputs.superpoint_features[index, :number], frame["pooled"]),
            (outputs.semantic_queries_logits[index, :number], frame["semantic"]),
        ]
        for head, (classes, masks) in zip(found, frame["heads"], strict=True):
            pairs.append((head["class_queries_logits"][index, :number], classes))
            pairs.append((head["masks_queries_logits"][index, :number, : masks.shape[1]], masks))
        if frame["alpha"] is not None:
            pairs.append((outputs.fusion_weights[index, :count], frame["alpha"]))
        for ours, slow in pairs:
            assert ours.shape == slow.shape
            largest = max(largest, float((ours - slow).abs().max() / slow.abs().max()))
    return largest


@pytest.mark.parametrize("case", CASES)
def test_network_equals_the_slow_one(small_config, unets, case):
    config = make_config(small_config, *CASES[case])
    model = BiFusionForInstanceSegmentation(config).eval()
    weights = random_weights(model)
    model.load_state_dict(weights)
    held = "held" in case
    if held:
        model.set_training_progress(9, 20)
    inputs = make_inputs()
    expected = list(slow_outputs(SlowNetwork(config, weights, held), inputs, unets))
    with torch.no_grad():
        assert largest_difference(model(**inputs), expected) < 1e-5
        model.set_attn_implementation("eager")
        assert largest_difference(model.double()(**inputs), expected) < 1e-9
