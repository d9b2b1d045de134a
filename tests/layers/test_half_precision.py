"""What must not be computed in sixteen bits, although the network's features are."""

import pytest
import torch

from bifusion_hf.layers.attention import eager_attention_forward
from bifusion_hf.layers.frame_batch import FrameBatch
from bifusion_hf.layers.fusion import EnhancedFusionGate, neighbor_mean, unit_length
from bifusion_hf.layers.geometry import GeometricEncoding, sample_tokens
from bifusion_hf.layers.query_decoder import blocked_share, place_boxes, probable_masks
from bifusion_hf.layers.reductions import sample_mean
from bifusion_hf.layers.superpoint_pooling import SuperpointPooling
from bifusion_hf.sparse import voxelize


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
# Ones added up in bfloat16 end at 256; a sum beyond 65504 is infinite in float16.
COUNT = 3000


@HALVES
def test_means_of_many_rows(dtype):
    rows = torch.full((COUNT, 2), 40.0, dtype=dtype)
    mean = sample_mean(rows, torch.zeros(COUNT, dtype=torch.int64), 1)
    assert mean.dtype == dtype and mean.tolist() == [[40.0, 40.0]]
    everybody = torch.arange(COUNT).expand(2, -1)
    around = neighbor_mean(rows, torch.tensor([0, 1]).repeat_interleave(COUNT), everybody.flatten())
    assert around.dtype == dtype and around[:2].tolist() == [[40.0, 40.0]] * 2


@HALVES
def test_lengths(dtype):
    features = torch.full((3, 64), 2e4, dtype=dtype)
    unit = unit_length(features)
    assert unit.dtype == dtype
    torch.testing.assert_close(unit, torch.full_like(unit, 1 / 8))


@HALVES
def test_pixels(dtype):
    """A row of 640 pixels: neighbours are 0.0016 apart, of which bfloat16 knows two between 0.5 and 1."""
    tokens = torch.arange(20.0).expand(1, 1, 2, 20).to(dtype)
    pixels = torch.stack([(torch.arange(640) + 0.5) / 640, torch.full((640,), 0.5)], dim=1)[None]
    sampled = sample_tokens(tokens, pixels)
    assert sampled.dtype == dtype
    exact = sample_tokens(tokens.float(), pixels)
    torch.testing.assert_close(sampled, exact.to(dtype))
    assert (sampled.float() - exact).abs().max() < 0.05
    # Pixels that came in 16 bits are those that they say.
    rounded = pixels.to(dtype)
    torch.testing.assert_close(sample_tokens(tokens, rounded), sample_tokens(tokens, rounded.float()))


@HALVES
def test_frequencies(dtype):
    """A wave of 64 half-waves over the scene: its phase is kept, whatever the weights' precision."""
    points, sample, rotations = torch.rand(50, 3), torch.zeros(50, dtype=torch.int64), torch.eye(3)[None]
    half = GeometricEncoding(0.02).to(dtype)
    full = GeometricEncoding(0.02)
    full.load_state_dict(half.state_dict())
    found = half(points, sample, rotations.to(dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, full(points, sample, rotations))


@HALVES
def test_shapes_of_surfaces(dtype):
    """Positions stay in single precision, and the gate takes their shape in its own."""
    torch.manual_seed(0)
    points, features = torch.rand(200, 3), torch.randn(2, 200, 8)
    grid = voxelize(points, torch.zeros(200, dtype=torch.int64), 0.1, 1)
    gate = EnhancedFusionGate(8, 0.1, radius=0.2, max_neighbors=6, use_spatial_attention=True)
    with torch.no_grad():
        exact = gate(*features, points, grid)
        found = gate.to(dtype)(*features.to(dtype), points, grid)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, atol=0.02, rtol=0)


@HALVES
def test_share_of_a_large_superpoint(dtype):
    """A share that sixteen bits cannot hold."""
    weights = torch.full((1, COUNT, 1), 0.75, dtype=dtype)
    blocked = (torch.arange(COUNT) % 5 > 0)[None, None]
    ids = torch.zeros(1, COUNT, dtype=torch.int64)
    frames = FrameBatch(torch.zeros(*ids.shape, 3), torch.zeros(*ids.shape, 3), ids >= 0, ids)
    share = blocked_share(-blocked.float(), weights, frames)
    assert share.item() == pytest.approx(0.6, abs=1e-6)


@HALVES
def test_boxes_and_the_labels_that_decide_on_masks(dtype):
    """Sizes are exponents, and centres lie where the points do; a label's probability is that in single precision."""
    torch.manual_seed(0)
    regression, centres = torch.randn(2, 5, 6).to(dtype), torch.rand(2, 5, 3)
    boxes = place_boxes(regression, centres)
    assert boxes.dtype == place_boxes(regression.double(), centres).dtype == torch.float32
    assert torch.equal(boxes, place_boxes(regression.float(), centres))
    queries, features, logits = (torch.randn(1, *size).to(dtype) for size in ((400, 4), (3, 4), (400, 3)))
    threshold = float(logits[0, 7].float().softmax(0)[0]) - 1e-6
    masks = probable_masks(queries, features, logits, threshold)
    probable = (logits[0].float().softmax(dim=-1)[:, :-1] > threshold).any(dim=1)
    assert masks.dtype == dtype and torch.equal(torch.isfinite(masks[0]).all(dim=1), probable)


@HALVES
def test_pooling_of_a_large_superpoint(dtype):
    torch.manual_seed(0)
    pooling = SuperpointPooling(8).eval()
    points, features = torch.rand(COUNT, 3), torch.rand(COUNT, 8) + 30
    ids = torch.zeros(COUNT, dtype=torch.int64)
    with torch.no_grad():
        exact, _ = pooling(points, features, ids, 1)
        found, weights = pooling.to(dtype)(points, features.to(dtype), ids, 1)
    assert found.dtype == weights.dtype == dtype
    assert (found.float() - exact).abs().max() < 1e-2 * exact.abs().max()


@HALVES
def test_weights_of_attention(dtype):
    """Over many keys each weight is small: in 16 bits their sum would be far from 1."""
    module = torch.nn.Module()
    query, key = torch.zeros(1, 1, 1, 4, dtype=dtype), torch.zeros(1, 1, COUNT, 4, dtype=dtype)
    value = torch.full((1, 1, COUNT, 4), 2.0, dtype=dtype)
    mask = torch.ones(1, 1, 1, COUNT, dtype=torch.bool)
    mask[..., COUNT // 2 :] = False
    attended, weights = eager_attention_forward(module, query, key, value, mask, scaling=1.0)
    assert attended.dtype == weights.dtype == dtype
    assert weights.float().sum().item() == pytest.approx(1, abs=1e-2) and not weights[~mask].any()
    torch.testing.assert_close(attended.float(), torch.full((1, 1, 1, 4), 2.0), rtol=1e-2, atol=0)
