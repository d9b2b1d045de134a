"""Half precision: finite losses, and float32 where it is needed. Memory of the enhanced gate."""

import subprocess
import sys

import pytest
import torch
from light_package import light_package
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bifusion_hf import BiFusionForInstanceSegmentation
from bifusion_hf.layers.frame_batch import FrameBatch
from bifusion_hf.layers.query_decoder import blocked_share
from bifusion_hf.layers.reductions import sample_mean
from bifusion_hf.layers.superpoint_pooling import SuperpointPooling
from bifusion_hf.losses.branch_consistency import BranchConsistencyLoss


DTYPES = [torch.bfloat16, torch.float16]
GPU = pytest.param("cuda", marks=pytest.mark.gpu)
EVERYTHING = {
    "use_tiny_sa_2d": True,
    "use_tiny_sa_3d": True,
    "use_spatial_attention": True,
    "loss_config": {"balance_loss_weight": 0.1, "consistency_loss_weight": 0.1},
}


@pytest.fixture(scope="module")
def model(small_config, make_batch):
    torch.manual_seed(0)
    model = BiFusionForInstanceSegmentation(small_config("enhanced_gate", **EVERYTHING)).train()
    with torch.no_grad():
        model(**make_batch((60,)))  # the sparse engine tries its products out in the first pass, in float32
    return model


def to(batch, device):
    def move(value):
        return [item.to(device) for item in value] if isinstance(value, list) else value.to(device)

    return {name: move(value) for name, value in batch.items()}


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_are_finite_on_random_batches(dtype, device, model, make_batch):
    model.to(device)
    # As many as there are combinations.
    for seed in range(24):
        batch = make_batch(
            ((120, 80), (60,), (40, 1))[seed % 3],
            seed=seed,
            image_size=((24, 32), (16, 16))[seed % 2],
            visible=(0.0, 0.3, 0.9, 1.0)[seed % 4],
        )
        if seed < 12:
            batch["mask_labels"][0], batch["class_labels"][0] = (
                batch["mask_labels"][0][:0],
                batch["class_labels"][0][:0],
            )
        # Colours and pixels far out of the usual range, too.
        batch["point_colors"] *= (1, 10)[seed % 2]
        batch["pixel_values"] *= (1, 5)[seed % 2]
        model.set_training_progress(seed, 24)
        seeds = torch.full((len(batch["points"]),), seed)
        with torch.no_grad(), torch.autocast(device, dtype=dtype):
            output = model(**to(batch, device), query_seeds=seeds)
        assert output.loss.dtype == torch.float32
        values = {name: float(value) for name, value in output.loss_dict.items()}
        assert torch.isfinite(output.loss), (seed, values)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_finite_and_near_those_of_float32(dtype, device, model, make_batch):
    model.to(device).set_training_progress(5, 20)
    batch = to(make_batch((600, 450)), device)
    gradients = []
    for enabled in (True, False):
        model.zero_grad()
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            loss = model(**batch, query_seeds=torch.tensor([1, 2])).loss
        # As a gradient scaler does: the small ones would vanish in float16.
        (1024 * loss).backward()
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        assert all(torch.isfinite(parameter.grad).all() for parameter in parameters)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))
    similarity = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert similarity > 0.97


NORMS = (nn.LayerNorm, nn.BatchNorm1d)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype", DTYPES)
def test_normalisations_are_computed_in_float32(dtype, device, model, make_batch):
    """Their arithmetic, weights and statistics: the result is that of float32, rounded once."""
    model.to(device)
    seen = {}

    def check(name):
        def hook(module, inputs, output):
            assert module.weight.dtype == module.bias.dtype == torch.float32
            values = inputs[0].float()
            with torch.autocast(device, enabled=False):
                if isinstance(module, nn.LayerNorm):
                    expected = nn.functional.layer_norm(values, module.normalized_shape, module.weight, module.bias, module.eps)  # fmt: skip # noqa: E501
                else:
                    assert module.running_mean.dtype == module.running_var.dtype == torch.float32
                    statistics = (None, None) if len(values) > 1 else (module.running_mean, module.running_var)
                    expected = nn.functional.batch_norm(
                        values, *statistics, module.weight, module.bias, training=len(values) > 1, eps=module.eps
                    )
            rounding = torch.finfo(output.dtype).eps
            torch.testing.assert_close(output.float(), expected, rtol=rounding, atol=8 * rounding * 1e-2, msg=name)
            seen[name] = inputs[0].dtype

        return hook

    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, NORMS)]
    handles = [module.register_forward_hook(check(name)) for name, module in norms]
    try:
        with torch.no_grad(), torch.autocast(device, dtype=dtype):
            model(**to(make_batch((300, 200)), device), query_seeds=torch.tensor([1, 2]))
    finally:
        for handle in handles:
            handle.remove()
    assert seen.keys() == {name for name, _ in norms}
    assert dtype in seen.values(), "half precision reaches them, else this proves nothing"


class Softmaxes(TorchDispatchMode):
    """Precision in which softmax, its logarithm and its sums are computed."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if name in ("aten::_softmax", "aten::_log_softmax", "aten::logsumexp", "aten::linalg_vector_norm"):
            self.found.add((name, args[0].dtype))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_and_contrastive_logits_are_float32(dtype, device, small_config, make_batch, monkeypatch):
    torch.manual_seed(0)
    config = small_config("enhanced_gate", **EVERYTHING)
    # The fused kernels keep their softmax to themselves; the plain form shows it.
    config._attn_implementation = "eager"
    model = BiFusionForInstanceSegmentation(config).train().to(device)
    contrast, logits = BranchConsistencyLoss._contrast, []

    def watched(self, pooled_3d, pooled_2d, *rest):
        logits.append(((pooled_3d @ pooled_2d.transpose(1, 2)).dtype, pooled_3d.dtype, pooled_2d.dtype))
        return contrast(self, pooled_3d, pooled_2d, *rest)

    monkeypatch.setattr(BranchConsistencyLoss, "_contrast", watched)
    batch = to(make_batch((300, 200)), device)
    with torch.no_grad(), torch.autocast(device, dtype=dtype):
        model(**batch, query_seeds=torch.tensor([1, 2]))  # once before: what is tried only once is no part of it
        with Softmaxes() as softmaxes:
            model(**batch, query_seeds=torch.tensor([1, 2]))
    assert {name for name, _ in softmaxes.found} >= {"aten::_softmax", "aten::_log_softmax", "aten::logsumexp"}
    assert {precision for _, precision in softmaxes.found} == {torch.float32}
    assert set(logits) == {(torch.float32,) * 3}


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_of_the_fused_attention_is_float32_too(dtype, device):
    """It cannot be looked into, but a softmax in half precision would be off by more than the result's rounding."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 300, 8, device=device).to(dtype) for _ in range(3))
    mask = torch.rand(2, 1, 300, 300, device=device) < 0.5
    found = nn.functional.scaled_dot_product_attention(4 * query, 4 * key, value, attn_mask=mask)
    scores = (16 * query.float() @ key.float().transpose(2, 3)) / 8**0.5
    expected = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value.float()
    assert (found.float() - expected).abs().max() < 4 * torch.finfo(dtype).eps


# Sums


@pytest.mark.parametrize("dtype", DTYPES)
def test_means_over_many_rows_do_not_stall_or_overflow(dtype):
    """A sum of bfloat16 ones ends at 256; one of float16 values overflows at 65504."""
    values = torch.full((20_000, 3), 7.0, dtype=dtype)
    mean = sample_mean(values, torch.zeros(20_000, dtype=torch.int64), 1)
    assert mean.dtype == dtype and (mean == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wall_is_pooled_as_in_float32(dtype):
    torch.manual_seed(0)
    pooling = SuperpointPooling(16)
    points, features = torch.rand(12_000, 3), 5 + 5 * torch.rand(12_000, 16)
    superpoints = (torch.arange(12_000) > 11_000).long()
    with torch.no_grad():
        expected, _ = pooling(points, features, superpoints, 2)
        with torch.autocast("cpu", dtype=dtype):
            pooled, weights = pooling(points, features.to(dtype), superpoints, 2)
        torch.testing.assert_close(pooled.float(), expected, rtol=0.02, atol=0.02)
        blocked = torch.zeros(1, 1, 12_000, dtype=torch.bool)
        blocked[..., :8000] = True
        everywhere = torch.ones(1, 12_000, dtype=torch.bool)
        frames = FrameBatch(points[None], torch.zeros(1, 12_000, 3), everywhere, superpoints[None])
        share = blocked_share(-blocked.float(), weights[None], frames)
    expected = weights[:8000].float().sum() / 11_001
    assert share[0, 0].tolist() == pytest.approx([float(expected), 0], rel=1e-3)


# Memory

GATE_MEMORY = """
import ctypes, torch

# It imports the whole compiler, and nothing is compiled here.
torch.compiler.disable = lambda function: function
from bifusion_hf.layers.fusion import EnhancedFusionGate
from bifusion_hf.sparse import voxelize

torch.set_num_threads(1)


def megabytes(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1000 for line in status if line.startswith(key))


def step(count):
    gate(image[:count], geometry[:count], points[:count], grids[count]).sum().backward()
    image.grad = geometry.grad = None
    gate.zero_grad()


# Floor and two walls of a room, as a frame shows them.
generator = torch.Generator().manual_seed(0)
points = torch.rand(20_000, 3, generator=generator) * torch.tensor([3.0, 3.0, 2.0])
wall = torch.randint(3, (20_000,), generator=generator)
for axis in range(3):
    points[:, axis] = torch.where(wall == axis, 0.01 * points[:, axis], points[:, axis])
image, geometry = (torch.randn(20_000, 256, requires_grad=True) for _ in range(2))
gate = EnhancedFusionGate(256, 0.02, 0.1, 16, use_spatial_attention=True)
grids = {count: voxelize(points[:count], torch.zeros(count, dtype=torch.int64), 0.02, 1) for count in (100, 20_000)}
step(100)  # what libraries set up once
ctypes.CDLL(None).malloc_trim(0)
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = megabytes("VmRSS")
step(20_000)
print(len(grids[20_000]), megabytes("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of resident memory from /proc")
def test_enhanced_gate_stays_under_100_mb_at_20000_points(tmp_path):
    """In a new process: a fork has holes in its heap, which are filled before a mapping is made."""
    # A mapping of its own for every large tensor: else the allocator's holes are measured too, 70 to 150 MB by chance.
    environment = light_package(tmp_path) | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", GATE_MEMORY]
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path)
    voxels, growth = result.stdout.split()
    assert int(voxels) > 15_000
    # 20,000 x 16 x 256 float32 values alone would be 328 MB.
    assert 10 < float(growth) < 100, f"forward and backward took {growth} MB"
