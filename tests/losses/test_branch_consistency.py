import pytest
import torch

from bifusion_hf.configuration_bifusion import BiFusionLossConfig
from bifusion_hf.losses import BranchConsistencyLoss, batch_targets


# Short names of the settings.
NAMES = {"mode": "loss_mode", "across_batch": "negatives_across_batch"}


def consistency(**settings):
    """The loss with settings by their short names."""
    fields = {f"consistency_{NAMES.get(name, name)}": value for name, value in settings.items()}
    return BranchConsistencyLoss(BiFusionLossConfig(**fields))


def inputs(batch):
    fusion = batch.fusion
    return fusion.features_3d, fusion.features_2d, batch.targets, fusion.point_visible


def slow_loss(batch, temperature, mode="contrastive", across_batch=False):
    """Superpoint by superpoint, from the labels; [B]."""
    targets, visible = batch.targets, batch.fusion.point_visible
    rows = torch.full(targets.point_mask.shape, -1)
    rows[targets.point_mask] = torch.arange(int(targets.point_mask.sum()))
    entries = []
    for b in range(targets.batch_size):
        for s in range(targets.num_superpoints):
            points = (targets.superpoint_ids[b] == s) & visible[b] & targets.point_mask[b]
            if not points.any():
                continue
            f, g = (x.detach()[rows[b, points]].mean(0) for x in (batch.fusion.features_3d, batch.fusion.features_2d))
            instances = targets.superpoint_masks[b][:, s].nonzero().flatten().tolist()
            thing = ("instance", b, instances[0]) if instances else ("class", targets.superpoint_semantic[b, s].item())
            entries.append((b, f / f.norm(), g / g.norm(), thing))
    losses = [[] for _ in range(targets.batch_size)]
    for b, f, g, thing in entries:
        own = (f @ g / temperature).item()
        if mode == "positive":
            losses[b].append(-torch.tensor(own).sigmoid().log().item())
            continue
        others = [e for e in entries if e[3] != thing and (across_batch or e[0] == b)]
        if others:
            to_2d = torch.tensor([own] + [(f @ e[2] / temperature).item() for e in others])
            to_3d = torch.tensor([own] + [(e[1] @ g / temperature).item() for e in others])
            losses[b].append(((to_2d.logsumexp(0) + to_3d.logsumexp(0)) / 2 - own).item())
    return [sum(values) / max(len(values), 1) for values in losses]


SIZES = ((60, 8, 3), (45, 6, 0), (80, 20, 4))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"mode": "positive"}, {"across_batch": True}])
def test_against_superpoint_by_superpoint(random_batch, seed, options):
    batch = random_batch(seed, sizes=SIZES, num_labels=4, visible_fraction=0.4)
    loss = consistency(temperature=0.2, coverage_gate="none", **options)
    assert loss(*inputs(batch)).tolist() == pytest.approx(slow_loss(batch, 0.2, **options), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("mode", ["contrastive", "positive"])
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_flow_ratio(random_batch, mode, ratio, dtype):
    batch = random_batch(dtype=dtype)

    def gradients(r):
        loss = consistency(gradient_flow_ratio=r, mode=mode)(*inputs(batch)).sum()
        return loss, *torch.autograd.grad(loss, [batch.fusion.features_3d, batch.fusion.features_2d])

    value, points, image = gradients(ratio)
    full_value, full_points, full_image = gradients(1.0)
    assert value == full_value
    assert torch.equal(points, full_points)
    assert full_image.abs().max() > 1e-4
    torch.testing.assert_close(image, ratio * full_image, rtol=1e-6, atol=0)


def test_superpoints_of_one_instance_never_repel(random_batch):
    batch = random_batch(sizes=((200, 30, 2),))
    instances = batch.targets.superpoint_instances()[0]
    loss = consistency(coverage_gate="none")
    visible = batch.fusion.point_visible
    negatives = loss._negatives(batch.targets, loss._visible_superpoints(batch.targets, visible))[0]
    same = (instances[:, None] == instances) & (instances >= 0)[:, None]
    assert same.sum() > 30
    assert not negatives[same].any()
    assert negatives[(instances == 0)[:, None] & (instances == 1)].any()
    # All in one instance: nothing repels, nothing to learn from contrast, still finite.
    one = {"mask_labels": [torch.ones(1, 200, dtype=torch.bool)], "class_labels": [torch.zeros(1).long()]}
    batch.targets = batch_targets(**{**batch.labels, **one})
    values = loss(*inputs(batch))
    assert values.tolist() == [0]
    values.sum().backward()
    assert not batch.fusion.features_2d.grad.any()


def test_points_out_of_view_take_no_part(random_batch):
    batch = random_batch()
    visible = batch.fusion.point_visible[batch.targets.point_mask]
    loss = consistency()
    values = loss(*inputs(batch))
    gradients = torch.autograd.grad(values.sum(), [batch.fusion.features_3d, batch.fusion.features_2d])
    for gradient in gradients:
        assert not gradient[~visible].any()
    with torch.no_grad():
        batch.fusion.features_2d[~visible] = 1e6
    assert torch.equal(loss(*inputs(batch)), values)


@pytest.mark.parametrize("options", [{}, {"mode": "positive"}, {"across_batch": True}, {"coverage_gate": "hard"}])
def test_nothing_visible(random_batch, options):
    batch = random_batch(visible_fraction=0.0)
    loss = consistency(**options)
    values = loss(*inputs(batch))
    assert values.tolist() == [0, 0]
    assert not loss.anchors(batch.targets, batch.fusion.point_visible).any()
    for gradient in torch.autograd.grad(values.sum(), [batch.fusion.features_3d, batch.fusion.features_2d]):
        assert not gradient.any()


def test_coverage_gate(random_batch):
    batch = random_batch(sizes=((100, 10, 3), (100, 10, 3)))
    batch.fusion.point_visible = torch.arange(100) < torch.tensor([[30], [80]])
    plain, soft, hard = (consistency(coverage_gate=gate, coverage_threshold=0.6) for gate in ("none", "soft", "hard"))
    ungated = plain(*inputs(batch))
    torch.testing.assert_close(soft(*inputs(batch)), ungated * torch.tensor([0.5, 1.0]))
    assert hard(*inputs(batch)).tolist() == [0, ungated[1].item()]
    assert hard.anchors(batch.targets, batch.fusion.point_visible).any(1).tolist() == [False, True]
    assert soft.anchors(batch.targets, batch.fusion.point_visible).any(1).tolist() == [True, True]
    # Exactly the threshold is enough.
    half = consistency(coverage_gate="hard", coverage_threshold=0.5)
    visible = torch.arange(100) < torch.tensor([[50], [49]])
    assert half.anchors(batch.targets, visible).any(1).tolist() == [True, False]


@pytest.mark.parametrize("gate", ["none", "soft", "hard"])
def test_a_sample_of_one_point_is_wholly_seen_and_one_of_padding_alone_costs_nothing(random_batch, gate):
    batch = random_batch(sizes=((40, 5, 2), (1, 1, 1)), visible_fraction=1.0)
    loss = consistency(mode="positive", coverage_gate=gate, coverage_threshold=0.6)
    both = loss(*inputs(batch))
    torch.testing.assert_close(both, consistency(mode="positive", coverage_gate="none")(*inputs(batch)))
    labels = {**batch.labels, "superpoint_ids": batch.labels["superpoint_ids"].clone()}
    labels["superpoint_ids"][1] = -1
    targets = batch_targets(**{**labels, "point_mask": labels["superpoint_ids"] >= 0})
    features = batch.fusion.features_3d[:40], batch.fusion.features_2d[:40]
    assert loss(*features, targets, batch.fusion.point_visible).tolist() == [both[0].item(), 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_under_autocast(random_batch, dtype):
    batch = random_batch(width=256)
    expected = consistency()(*inputs(batch))
    with torch.autocast("cpu", dtype=dtype):
        values = consistency()(*inputs(batch))
    assert values.dtype == torch.float32
    assert torch.equal(values, expected)
    features_3d, features_2d, *rest = inputs(batch)
    values = consistency()(features_3d.to(dtype), features_2d.to(dtype), *rest)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("mode", ["contrastive", "positive"])
def test_zero_features_are_finite(random_batch, mode):
    batch = random_batch()
    with torch.no_grad():
        batch.fusion.features_3d.zero_()
        batch.fusion.features_2d.zero_()
    values = consistency(mode=mode)(*inputs(batch))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(batch.fusion.features_2d.grad).all()
