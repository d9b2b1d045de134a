import pytest
import torch
from transformers import CLIPVisionConfig, Dinov2Config, DINOv3ViTConfig, SiglipVisionConfig

from bifusion_hf import BiFusionConfig
from bifusion_hf.layers.image_encoder import ImageEncoder


COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
TOWERS = {
    "clip": CLIPVisionConfig(intermediate_size=32, **COMMON),
    "siglip": SiglipVisionConfig(intermediate_size=32, **COMMON),
    "dinov2": Dinov2Config(mlp_ratio=2, **COMMON),
    "dinov3": DINOv3ViTConfig(intermediate_size=32, num_register_tokens=3, **COMMON),
}


@pytest.mark.parametrize("name", TOWERS)
def test_any_tower_gives_a_map_over_the_whole_image(name):
    torch.manual_seed(0)
    config = BiFusionConfig(vision_config=TOWERS[name], hidden_size=12, projection_dim=12, projection_hidden_size=16)
    encoder = ImageEncoder(config)
    images = torch.randn(2, 3, 24, 40)
    tokens, _, _ = encoder(images)
    assert tokens.shape == (2, 12, 3, 5)
    tokens.pow(3).sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{parameter_name} has no consumer"


@pytest.mark.parametrize("name", TOWERS)
def test_tokens_lie_where_their_patch_lies(name):
    """A change in one patch of the image moves that patch's token more than any other."""
    torch.manual_seed(0)
    config = BiFusionConfig(vision_config=TOWERS[name], hidden_size=12, projection_dim=12, projection_hidden_size=16)
    encoder = ImageEncoder(config).eval()
    encoder.projection = torch.nn.Identity()
    images = torch.randn(1, 3, 24, 40)
    changed = images.clone()
    changed[..., 8:16, 24:32] += 3
    with torch.no_grad():
        moved = (encoder(changed)[0] - encoder(images)[0]).norm(dim=1)[0]
    assert divmod(int(moved.argmax()), 5) == (1, 3)


def test_sizes_that_patches_do_not_cover_are_refused():
    config = BiFusionConfig(vision_config=TOWERS["clip"])
    with pytest.raises(ValueError, match="24x36.*patch size"):
        ImageEncoder(config)(torch.randn(1, 3, 24, 36))
