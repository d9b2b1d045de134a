import pytest
import torch

from bifusion_hf.layers.encoder import BiFusionEncoder, encode_windows
from bifusion_hf.layers.frame_batch import FORWARD_INPUTS, FrameBatch
from bifusion_hf.layers.frame_memory import FrameMemory
from bifusion_hf.sparse import voxelize


LIVE = torch.tensor(False)


def encoder_of(small_config, fusion_type="residual", **overrides):
    torch.manual_seed(0)
    point_config = {"stem_channels": 4, "planes": [4, 4, 8, 8, 8, 8, 8, 12], "blocks": [1] * 8}
    config = small_config(fusion_type, point_config={**point_config, "use_frame_adapters": True}, **overrides)
    encoder = BiFusionEncoder(config).eval()
    for adapter in encoder.point_encoder.frame_adapters:
        torch.nn.init.ones_(adapter.norm_mix.weight)
    return encoder


def frames_of(make_batch, *num_points):
    batch = make_batch(num_points)
    return FrameBatch(**{name: batch[name] for name in FORWARD_INPUTS})


def test_windows_give_all_that_their_frames_give(small_config, make_batch):
    """Two windows of two frames; the image tower is asked for its layers."""
    encoder, frames = encoder_of(small_config), frames_of(make_batch, 40, 30, 35, 25)
    encoder.image_encoder.vision_model.set_attn_implementation("eager")
    asked, memory, parts = {"output_hidden_states": True, "output_attentions": True}, FrameMemory(), []
    with torch.no_grad():
        whole = encode_windows(encoder, frames, 2, LIVE, **asked)
        for part in frames.split(2):
            parts.append(encoder(part, LIVE, memory, **asked))
            memory = parts[-1].memory
    assert whole.frames is frames
    for name in ("features", "fusion_weights", "image_embeds", "point_embeds"):
        torch.testing.assert_close(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    for name in ("hidden_states", "attentions"):
        layers = getattr(whole, name)
        assert type(layers) is tuple and len(layers) == len(getattr(parts[0], name)) > 1
        for index, layer in enumerate(layers):
            assert torch.equal(layer, torch.cat([getattr(part, name)[index] for part in parts]))
    assert whole.grid.batch_size == 4 and len(whole.grid) == sum(len(part.grid) for part in parts)
    for level, other in zip(whole.memory.levels, memory.levels, strict=True):
        assert torch.equal(level.features, other.features)
    for name in ("image_embeds", "point_embeds"):
        torch.testing.assert_close(getattr(whole, name).norm(dim=1), torch.ones(130))


def test_points_alone_give_no_more_than_their_features(small_config, make_batch):
    encoder, frames = encoder_of(small_config, "none"), frames_of(make_batch, 40, 30)
    with torch.no_grad():
        first = encoder(frames, LIVE, FrameMemory())
        whole = encode_windows(encoder, frames, 1, LIVE, first.memory)
        again, alone = encoder(frames, LIVE, first.memory), encoder(frames, LIVE)
    torch.testing.assert_close(whole.features, again.features)
    assert not torch.allclose(whole.features, first.features) and torch.equal(alone.features, first.features)
    for encoding in (first, whole):
        assert len(encoding.memory.levels) == 4
        for name in ("fusion_weights", "image_embeds", "point_embeds", "hidden_states", "attentions"):
            assert getattr(encoding, name) is None
    assert alone.memory is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_point_has_one_voxel_at_every_precision(small_config, make_batch, dtype):
    """A hair before the border of a voxel in double precision is the border in single precision."""
    encoder, frames = encoder_of(small_config).to(dtype), frames_of(make_batch, 20, 20)
    frames.points = (frames.points.double() / 0.05).round() * 0.05 - 1e-12
    frames.camera_rotations = frames.camera_rotations.double()
    points, sample = frames.real(frames.points), frames.sample
    expected = voxelize(points.float(), sample, 0.05, 2).coordinates
    assert not torch.equal(expected, voxelize(points, sample, 0.05, 2).coordinates)
    with torch.no_grad():
        encodings = [encoder(frames.cast(dtype), LIVE), encode_windows(encoder, frames.cast(dtype), 2, LIVE)]
    for encoding in encodings:
        assert encoding.features.dtype == dtype and torch.isfinite(encoding.features).all()
        assert torch.equal(encoding.grid.coordinates, expected)
