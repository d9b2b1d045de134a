import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextV2Config,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    ResNetConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
)

from bifusion_hf import BiFusionConfig
from bifusion_hf.layers import image_encoder
from bifusion_hf.layers.geometry import sample_tokens
from bifusion_hf.layers.image_encoder import ImageEncoder, _resizing, _ResizingByProducts, resize_by_products


COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
TOWERS = {
    "clip": CLIPVisionConfig(intermediate_size=32, **COMMON),
    "siglip": SiglipVisionConfig(intermediate_size=32, **COMMON),
    "dinov2": Dinov2Config(mlp_ratio=2, **COMMON),
    "dinov2 with registers": Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=3, **COMMON),
    "vit": ViTConfig(intermediate_size=32, **COMMON),
    "dinov3": DINOv3ViTConfig(intermediate_size=32, num_register_tokens=3, **COMMON),
    # Two stages: one feature for 8 x 8 pixels, as for the patches.
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "convnext": ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], layer_scale_init_value=1.0),
    "convnextv2": ConvNextV2Config(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1]),
    "swin": SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2),
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
    assert not [key for key in encoder.state_dict() if "mask_token" in key]
    # In tokens of 8 pixels: a ResNet's look at the first one, whose middle is 3.5 before that of the block.
    assert encoder.shift == ((3.5 / 8, 3.5 / 8) if name == "resnet" else (0, 0))


def test_a_tower_whose_configuration_asks_for_tuples_is_the_same():
    config = BiFusionConfig(vision_config=TOWERS["clip"], hidden_size=12, projection_dim=12, projection_hidden_size=16)
    encoder, images = ImageEncoder(config).eval(), torch.randn(1, 3, 24, 40)
    expected = encoder(images)[0]
    encoder.vision_model.config.return_dict = False
    assert torch.equal(encoder(images)[0], expected)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_an_image_of_the_table_s_own_size_takes_its_positions_as_they_are(name):
    encoder = ImageEncoder(BiFusionConfig(vision_config=TOWERS[name])).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        plain = encoder.vision_model(images, return_dict=True).last_hidden_state
        found = encoder.vision_model(images, interpolate_pos_encoding=True, return_dict=True).last_hidden_state
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_interpolated_positions_are_kept_as_long_as_they_hold(name, monkeypatch):
    config = BiFusionConfig(vision_config=TOWERS[name])
    encoder, resized = ImageEncoder(config).eval(), []
    interpolate = torch.nn.functional.interpolate
    monkeypatch.setattr(
        torch.nn.functional, "interpolate", lambda *given, **more: resized.append(1) or interpolate(*given, **more)
    )

    def calls(images):
        """How often positions are interpolated for images, whose tokens are those of a new encoder."""
        new = ImageEncoder(config).eval().to(images.dtype)
        new.load_state_dict(encoder.state_dict())
        expected = new(images)[0].detach()
        resized.clear()
        with torch.no_grad():
            assert torch.equal(encoder(images)[0], expected)
        return len(resized)

    wide, high = torch.randn(1, 3, 24, 40), torch.randn(1, 3, 40, 24)
    assert [calls(wide), calls(wide), calls(wide.expand(2, -1, -1, -1)), calls(high), calls(high)] == [1, 0, 0, 1, 0]
    (table,) = (each for key, each in encoder.named_parameters() if key.endswith("position_embedding.weight"))
    with torch.no_grad():
        table[-1, 0] += 1
    assert [calls(high), calls(high)] == [1, 0]
    encoder.double()
    assert [calls(high.double()), calls(high.double())] == [1, 0]
    # What learns needs the gradient of each.
    resized.clear()
    encoder(high.double())[0].sum().backward()
    encoder(high.double())
    assert len(resized) == 2 and table.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in TOWERS if name != "resnet"])
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
    encoder = ImageEncoder(BiFusionConfig(vision_config=TOWERS["clip"]))
    for size in ((24, 36), (20, 40)):
        with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}.*patch size"):
            encoder(torch.randn(1, 3, *size))
    # (rows, columns)
    for patch in ((16, 8), (8, 16)):
        encoder.patch_size = patch
        with pytest.raises(ValueError, match=rf"24x40; the tower needs multiples of its patch size \({patch[0]}, "):
            encoder(torch.randn(1, 3, 24, 40))


@pytest.mark.parametrize("name", ["clip", "resnet", "convnext"])
def test_points_get_the_feature_of_the_pixels_around_them(name):
    """Where a sampled feature looks at, the mean over random towers, is where the point is."""
    config = BiFusionConfig(vision_config=TOWERS[name], hidden_size=12, projection_dim=12, projection_hidden_size=16)
    point = torch.tensor([[[0.475, 0.525]]])  # of 160 x 160 pixels (76, 84): the middle of a block of 8
    places = (torch.arange(160) + 0.5).expand(160, 160)
    centers = []
    for seed in range(20):
        torch.manual_seed(seed)
        encoder = ImageEncoder(config).eval()
        images = torch.randn(1, 3, 160, 160, requires_grad=True)
        sample_tokens(encoder(images)[0], point, encoder.shift).square().sum().backward()
        influence = images.grad[0].square().sum(0)
        # Attention looks everywhere: what counts is near.
        influence = influence * ((places - 76).abs() < 40) * ((places.T - 84).abs() < 40)
        centers.append(torch.stack([(influence * places).sum(), (influence * places.T).sum()]) / influence.sum())
    assert torch.allclose(torch.stack(centers).mean(0), torch.tensor([76.0, 84.0]), atol=1.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", r"ResNetModel made a map \[1, 16, 3, 5\] of images of 24x40; expected 3 x 10 features"),
        ("clip", r"CLIPVisionModel made tokens \[1, 16, 16\] of images of 24x40; expected 3 x 10 features"),
    ],
)
def test_a_tower_with_other_steps_than_its_configuration_says_is_refused(name, message):
    encoder = ImageEncoder(BiFusionConfig(vision_config=TOWERS[name]))
    encoder.patch_size = (8, 4)
    with pytest.raises(ValueError, match=message):
        encoder(torch.randn(1, 3, 24, 40))


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ({"size": (9, 4)}, {"mode": "bicubic", "align_corners": False}),
        ({"size": (3, 11)}, {"mode": "bicubic", "align_corners": True}),
        ({"size": (3, 11)}, {"mode": "bicubic", "antialias": True}),
        ({"size": 6}, {"mode": "bilinear"}),
        ({"scale_factor": (1.7, 0.6)}, {"mode": "bicubic"}),
        ({"scale_factor": 2}, {"mode": "nearest"}),
    ],
)
def test_resizing_by_products_is_resizing(arguments, options):
    """The form for deterministic training on a GPU: values and gradients."""
    values = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for resize in (torch.nn.functional.interpolate, resize_by_products):
        leaf = values.clone().requires_grad_()
        out = resize(leaf, **arguments, **options)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        results.append([out.detach(), torch.autograd.grad(out, leaf, weights)[0]])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("is_deterministic", [False, True])
@pytest.mark.parametrize("has_gradients", [False, True])
def test_only_gradients_of_a_gpu_that_have_to_be_deterministic_need_products(device, is_deterministic, has_gradients):
    torch.use_deterministic_algorithms(is_deterministic)
    try:
        with torch.set_grad_enabled(has_gradients):
            by_products = isinstance(_resizing(torch.device(device)), _ResizingByProducts)
    finally:
        torch.use_deterministic_algorithms(False)
    assert by_products == (device == "cuda" and is_deterministic and has_gradients)


@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_towers_resize_their_positions_by_products(name):
    torch.manual_seed(0)
    config = BiFusionConfig(vision_config=TOWERS[name])
    encoder, pixels = ImageEncoder(config).eval(), torch.randn(1, 3, 64, 96)
    expected = encoder(pixels)[0]
    with _ResizingByProducts():
        found = encoder(pixels)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    graph, names = [found.grad_fn], set()
    while graph:
        node = graph.pop()
        if node is not None and node not in names:
            names.add(node)
            graph += [following for following, _ in node.next_functions]
    assert not [node for node in names if "Upsample" in node.name()]


def test_a_tower_that_needs_more_than_an_image_is_refused(monkeypatch):
    class Tower(torch.nn.Module):
        def forward(self, pixel_values, input_ids, attention_mask=None):
            raise NotImplementedError

    monkeypatch.setattr(image_encoder.AutoModel, "from_config", lambda config: Tower())
    with pytest.raises(ValueError, match="'clip_vision_model': the tower needs pixel_values, input_ids; expected one"):
        ImageEncoder(BiFusionConfig(vision_config=TOWERS["clip"]))
