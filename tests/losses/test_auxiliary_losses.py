import pytest
import torch
import torch.nn.functional as F

from bifusion_hf.losses.auxiliary import (
    fusion_balance_loss,
    no_view_loss,
    no_view_samples,
    spatial_consistency_loss,
)
from bifusion_hf.losses.targets import batch_targets


def test_spatial_consistency_pair_by_pair():
    torch.manual_seed(0)
    features = torch.randn(30, 8, dtype=torch.float64, requires_grad=True)
    samples = torch.arange(3).repeat_interleave(10)
    # Sample 1 has no pairs; voxel 4 has none either; some pairs go one way only.
    row = torch.tensor([0, 0, 1, 2, 3, 5, 9, 20, 21, 21, 29])
    neighbor = torch.tensor([1, 2, 0, 9, 5, 3, 2, 25, 20, 22, 28])

    def slow():
        values = []
        for b in range(3):
            pairs = [(i, j) for i, j in zip(row.tolist(), neighbor.tolist(), strict=True) if samples[i] == b]
            distances = [1 - F.cosine_similarity(features[i], features[j], dim=0) for i, j in pairs]
            values.append(sum(distances) / max(len(pairs), 1) + 0 * features.sum())
        return torch.stack(values)

    found, expected = spatial_consistency_loss(features, samples, row, neighbor, 3), slow()
    torch.testing.assert_close(found, expected)
    assert found[1] == 0
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), features),
        torch.autograd.grad((expected * weights).sum(), features),
    )


def test_spatial_consistency_without_any_pair():
    features = torch.randn(4, 8, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    values = spatial_consistency_loss(features, torch.tensor([0, 0, 1, 1]), nothing, nothing, 2)
    assert values.tolist() == [0, 0]
    values.sum().backward()
    assert not features.grad.any()


def test_spatial_consistency_of_unsorted_pairs():
    pairs = torch.tensor([0, 2, 1]), torch.tensor([1, 0, 2])
    with pytest.raises(ValueError, match="row is not ascending"):
        spatial_consistency_loss(torch.ones(3, 8), torch.zeros(3).long(), *pairs, 1)


def test_spatial_consistency_of_equal_features_is_zero():
    features = torch.ones(10, 8)
    row = torch.arange(10).repeat_interleave(2)
    values = spatial_consistency_loss(features, torch.zeros(10).long(), row, (row + 3) % 10, 1)
    assert abs(values.item()) < 1e-6


@pytest.mark.parametrize("threshold", [-1.0, 0.3])
def test_no_view_point_by_point(random_batch, threshold):
    batch = random_batch(sizes=((60, 8, 3), (45, 6, 2), (20, 3, 1)), visible_fraction=0.6)
    features, targets, visible = batch.fusion.fused_features, batch.targets, batch.fusion.point_visible
    visible[2] = True
    rows = torch.full(targets.point_mask.shape, -1)
    rows[targets.point_mask] = torch.arange(int(targets.point_mask.sum()))
    expected = []
    for b in range(3):
        real = targets.point_mask[b]
        ids = targets.superpoint_ids[b]
        teachers = []
        for s in range(targets.num_superpoints):
            shown = real & visible[b] & (ids == s)
            if shown.any():
                teachers.append(F.normalize(features.detach()[rows[b, shown]].mean(0), dim=0))
        losses = []
        for n in (real & ~visible[b]).nonzero().flatten().tolist():
            cosine = max((F.normalize(features[rows[b, n]], dim=0) @ teacher).item() for teacher in teachers)
            if cosine > threshold:
                losses.append(1 - cosine)
        expected.append(sum(losses) / max(len(losses), 1))
    found = no_view_loss(features, targets, visible, threshold)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert no_view_samples(targets, visible).tolist() == [True, True, False]
    (gradient,) = torch.autograd.grad(found.sum(), features)
    seen = visible[targets.point_mask]
    # The visible points teach, they do not learn.
    assert not gradient[seen].any()
    assert gradient[~seen].any()


def test_a_point_without_view_needs_a_teacher_that_is_more_alike_than_the_threshold():
    """One superpoint is in view; the other points' cosines to it are 0.8, a little more, and -1."""
    ids = torch.tensor([[0, 0, 1, 1]])
    nothing = [torch.zeros(0, 4, dtype=torch.bool)], [torch.zeros(0, dtype=torch.int64)]
    targets = batch_targets(*nothing, None, ids, ids >= 0, 2)
    features = torch.tensor([[1.0, 0], [4, 3], [4, 2.9], [-1, 0]], dtype=torch.float64)
    visible = torch.tensor([[True, False, False, False]])
    closer = 1 - 4 / (4**2 + 2.9**2) ** 0.5
    assert no_view_loss(features, targets, visible).item() == pytest.approx(closer, rel=1e-12)
    assert no_view_loss(features, targets, visible, 0.79).item() == pytest.approx((0.2 + closer) / 2, rel=1e-12)
    # A superpoint that nobody sees teaches nothing.
    assert no_view_loss(features, targets, visible, -1.0).item() == pytest.approx((0.2 + closer) / 2, rel=1e-12)


@pytest.mark.parametrize("visible_fraction", [0.0, 1.0])
def test_no_view_without_teachers_or_students(random_batch, visible_fraction):
    batch = random_batch(visible_fraction=visible_fraction)
    features = batch.fusion.fused_features
    values = no_view_loss(features, batch.targets, batch.fusion.point_visible, -1.0)
    assert values.tolist() == [0, 0]
    values.sum().backward()
    assert not features.grad.any()
    assert not no_view_samples(batch.targets, batch.fusion.point_visible).any()


def test_no_view_needs_memory_for_superpoints_only(random_batch):
    # 20,000 points: all pairs of them would take 400 MB in each direction of each sample.
    batch = random_batch(sizes=((20000, 300, 5),), visible_fraction=0.5, width=8)
    largest = []

    def note(tensor):
        largest.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, note):
        no_view_loss(batch.fusion.fused_features, batch.targets, batch.fusion.point_visible).sum().backward()
    assert max(largest) < 20000 * 300


def test_balance(random_batch):
    batch = random_batch(sizes=((60, 8, 3), (45, 6, 2), (20, 3, 1)))
    weights, targets, visible = batch.fusion.fusion_weights, batch.targets, batch.fusion.point_visible
    visible[1] = False
    values = fusion_balance_loss(weights, targets, visible)
    padded = torch.zeros(targets.point_mask.shape)
    padded[targets.point_mask] = weights.detach().squeeze(1)
    for b in (0, 2):
        mean = padded[b][visible[b] & targets.point_mask[b]].mean()
        assert values[b].item() == pytest.approx((mean - 0.4).item() ** 2, rel=1e-4)
        other = fusion_balance_loss(weights, targets, visible, target=0.9)[b]
        assert other.item() == pytest.approx((mean - 0.9).item() ** 2, rel=1e-4)
    assert values[1] == 0
    values[1].backward()
    assert not weights.grad.any()


def test_float32_under_autocast(random_batch):
    batch = random_batch(width=256)
    fusion = batch.fusion

    def losses():
        return (
            spatial_consistency_loss(fusion.voxel_features, fusion.voxel_samples, *fusion.neighbor_pairs, 2),
            no_view_loss(fusion.fused_features, batch.targets, fusion.point_visible, -1.0),
            fusion_balance_loss(fusion.fusion_weights, batch.targets, fusion.point_visible),
        )

    expected = losses()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses()
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, reference)
