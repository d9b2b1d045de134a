"""A network that merges by its heads and remembers frames."""

import pytest
import torch

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor


@pytest.fixture(scope="module")
def online_network(small_config):
    torch.manual_seed(0)
    point_config = {"stem_channels": 8, "planes": [8, 8, 12, 12, 12, 12, 12, 12], "blocks": [1] * 8}
    point_config["use_frame_adapters"] = True
    config = small_config("none", point_config=point_config, use_box_head=True, use_merge_head="layer")
    model = BiFusionForInstanceSegmentation(config).eval()
    # The adapters of a new network change nothing.
    for adapter in model.model.encoder.point_encoder.frame_adapters:
        torch.nn.init.uniform_(adapter.norm_mix.weight, 0.5, 1.5)
    return model, BiFusionProcessor.from_config(config, num_points=600)
