"""The controls of the image branch: exchanged and hidden images."""

import copy

import numpy as np
import pytest
import torch
from frame_factory import make_frame

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.data.dataset import FrameDataset
from scripts.experiments.controls import HiddenImages, ShuffledImages, derangement


SMALL = {
    "voxel_size": 0.1,
    "hidden_size": 16,
    "projection_dim": 16,
    "projection_hidden_size": 16,
    "decoder_size": 16,
    "decoder_intermediate_size": 32,
    "decoder_attention_heads": 2,
    "point_config": {"stem_channels": 8, "planes": [16] * 8, "blocks": [1] * 8, "stem_kernel_size": 3},
}
TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 20,
    "image_size": 80,
}


def network(fusion_type, **overrides):
    torch.manual_seed(2)
    image = {"vision_config": TOWER} if fusion_type != "none" else {"vision_config": None, "use_film": False}
    model = BiFusionForInstanceSegmentation(BiFusionConfig(fusion_type=fusion_type, **{**SMALL, **image, **overrides}))
    with torch.no_grad():
        # What starts at zero shall matter.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def outputs_of(model, frames):
    processor = BiFusionProcessor.from_config(model.config, num_points=500)
    batch = processor.collate([frames[index] for index in range(len(frames))])
    names = ("points", "point_colors", "point_mask", "superpoint_ids", "pixel_values", "point_pixels", "point_visible")
    with torch.no_grad():
        found = model(**{name: batch[name] for name in names}, camera_rotations=batch["camera_rotations"])
    return [found.class_queries_logits, found.masks_queries_logits, found.point_features]


@pytest.fixture(scope="module")
def dataset():
    frames = [
        make_frame(60, 80, seed=seed, image=make_frame(60, 80, seed=seed).image // (seed + 1)) for seed in (0, 1, 2)
    ]
    return FrameDataset(frames, BiFusionProcessor.from_config(network("lite_gate").config, num_points=500))


@pytest.fixture(scope="module")
def shuffled(dataset):
    return ShuffledImages(dataset, derangement(len(dataset), seed=0))


@pytest.mark.parametrize("count", [2, 3, 4, 17, 300])
def test_a_derangement_leaves_nothing_in_its_place_and_is_seeded(count):
    for seed in range(20):
        order = derangement(count, seed)
        assert sorted(order) == list(range(count))
        assert (order != np.arange(count)).all()
        np.testing.assert_array_equal(order, derangement(count, seed))
    assert count < 4 or len({tuple(derangement(count, seed)) for seed in range(20)}) > 1


def test_one_frame_has_no_other_image():
    with pytest.raises(ValueError, match="count is 1; expected at least 2"):
        derangement(1, 0)


def test_only_the_image_is_another_frames(dataset, shuffled):
    order = derangement(len(dataset), seed=0)
    for index in range(len(shuffled)):
        sample, own = shuffled[index], dataset[index]
        np.testing.assert_array_equal(sample.pop("image"), dataset[int(order[index])]["image"])
        assert (own.pop("image") != dataset[int(order[index])]["image"]).any()
        for name, value in own.items():
            np.testing.assert_array_equal(sample[name], value)


def test_a_network_without_image_does_not_notice_and_a_fused_one_does(dataset, shuffled):
    for fusion_type, notices in (("none", False), ("lite_gate", True), ("residual", True)):
        model = network(fusion_type)
        pairs = zip(outputs_of(model, dataset), outputs_of(model, shuffled), strict=True)
        assert [not torch.equal(normal, other) for normal, other in pairs] == [notices] * 3


def test_a_hidden_image_leaves_a_residual_network_its_point_branch(dataset):
    model, plain = network("residual"), network("none")
    missing, _ = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    for found, expected in zip(outputs_of(model, HiddenImages(dataset)), outputs_of(plain, dataset), strict=True):
        torch.testing.assert_close(found, expected)
    assert not torch.allclose(outputs_of(model, dataset)[2], outputs_of(plain, dataset)[2])


@pytest.mark.parametrize("fusion_type", ["lite_gate", "enhanced_gate"])
def test_a_hidden_image_closes_the_gate(dataset, fusion_type):
    model = network(fusion_type)
    closed = copy.deepcopy(model)
    gate = closed.model.encoder.fusion.gate
    last = gate.out if fusion_type == "lite_gate" else gate.mix
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(-1e4)
    for found, expected in zip(outputs_of(model, HiddenImages(dataset)), outputs_of(closed, dataset), strict=True):
        torch.testing.assert_close(found, expected)
    assert not torch.allclose(outputs_of(model, dataset)[2], outputs_of(closed, dataset)[2])
