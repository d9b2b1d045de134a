import math

import pytest
import torch

from bifusion_hf.losses.instance import classification_loss, mask_losses
from bifusion_hf.losses.matcher import Matches
from bifusion_hf.losses.semantic import semantic_loss


def indices(*values):
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize("num_labels", [1, 198])
def test_classification_query_by_query(num_labels):
    torch.manual_seed(0)
    logits = torch.randn(3, 5, num_labels + 1, dtype=torch.float64)
    query_mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] + [False] * 4])
    matches = Matches([indices(3, 0), indices(), indices(0)], [indices(0, 2), indices(), indices(1)])
    class_labels = [indices(0, 7, 5) % num_labels, indices(), indices(2, 1) % num_labels]
    losses = classification_loss(logits, query_mask, matches, class_labels)
    for b in range(3):
        total = weights = 0.0
        pairs = dict(zip(matches.queries[b].tolist(), matches.instances[b].tolist(), strict=True))
        for q in range(int(query_mask[b].sum())):
            label, weight = (class_labels[b][pairs[q]].item(), 1.0) if q in pairs else (num_labels, 0.1)
            total += weight * -logits[b, q].log_softmax(0)[label].item()
            weights += weight
        assert losses[b].item() == pytest.approx(total / weights, rel=1e-12)
    # Where queries without an object do not count, a sample without any object costs nothing.
    assert classification_loss(logits, query_mask, matches, class_labels, no_object_weight=0.0)[1] == 0


def test_the_first_of_overlapping_instances_decides_the_class():
    logits = torch.tensor([[[5.0, 0.0, 0.0]]])
    matches = Matches([indices(0, 0)], [indices(0, 1)])
    first = classification_loss(logits, torch.ones(1, 1, dtype=torch.bool), matches, [indices(0, 1)])
    assert first.item() == pytest.approx(math.log(1 + 2 * math.exp(-5)), rel=1e-4)


def test_masks_pair_by_pair():
    torch.manual_seed(1)
    valid = torch.arange(30) < torch.tensor([30, 20, 25])[:, None]
    # What stands at padding does not matter.
    logits = (4 * torch.randn(3, 4, 30)).masked_fill(~valid[:, None], torch.nan).requires_grad_()
    masks = [(torch.rand(3, 30) < 0.4) & valid[b] for b in range(3)]
    matches = Matches([indices(2, 0), indices(), indices(1)], [indices(0, 1), indices(), indices(2)])
    cross_entropy, dice = mask_losses(logits, matches, masks, valid)
    for b in range(3):
        slow_cross_entropy, slow_dice = [], []
        for q, m in zip(matches.queries[b].tolist(), matches.instances[b].tolist(), strict=True):
            p, t = logits[b, q, valid[b]].sigmoid(), masks[b][m, valid[b]].float()
            slow_cross_entropy.append(-(t * p.log() + (1 - t) * (1 - p).log()).mean().item())
            slow_dice.append((1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)).item())
        pairs = max(len(slow_dice), 1)
        assert cross_entropy[b].item() == pytest.approx(sum(slow_cross_entropy) / pairs, rel=1e-4)
        assert dice[b].item() == pytest.approx(sum(slow_dice) / pairs, rel=1e-4)
    (cross_entropy + dice).sum().backward()
    touched = logits.grad.abs().sum(2) > 0
    assert touched.nonzero().tolist() == [[0, 0], [0, 2], [2, 1]]
    assert not logits.grad[2, 1, 25:].any()


def test_saturated_masks_are_finite():
    logits = torch.tensor([[[1e4, -1e4, 1e4, -1e4]]], requires_grad=True)
    masks = [torch.tensor([[True, False, False, True]])]
    cross_entropy, dice = mask_losses(
        logits, Matches([indices(0)], [indices(0)]), masks, torch.ones(1, 4, dtype=torch.bool)
    )
    assert cross_entropy.item() == 5000
    assert dice.item() == pytest.approx(1 - 3 / 5)
    (cross_entropy + dice).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_half_precision_logits_give_float32_losses():
    torch.manual_seed(2)
    for dtype in (torch.float16, torch.bfloat16):
        logits = torch.randn(1, 2, 20000).to(dtype)
        masks = [torch.rand(2, 20000) < 0.5]
        valid = torch.ones(1, 20000, dtype=torch.bool)
        matches = Matches([indices(0, 1)], [indices(0, 1)])
        half, full = mask_losses(logits, matches, masks, valid), mask_losses(logits.float(), matches, masks, valid)
        assert half[0].dtype == half[1].dtype == torch.float32
        # The sum of 20,000 probabilities would already be off by 16 in bfloat16.
        assert torch.equal(half[0], full[0])
        assert torch.equal(half[1], full[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_classes_give_float32_losses(dtype):
    torch.manual_seed(4)
    logits, query_mask = 5 * torch.randn(2, 30, 9).to(dtype), torch.ones(2, 30, dtype=torch.bool)
    matches = Matches([indices(3, 0), indices(7)], [indices(0, 1), indices(0)])
    labels = torch.randint(8, (2, 30))
    for loss in (
        lambda logits: classification_loss(logits, query_mask, matches, [indices(1, 2), indices(7)]),
        lambda logits: semantic_loss(logits, labels, num_semantic_labels=8),
    ):
        half, full = loss(logits), loss(logits.float())
        assert half.dtype == torch.float32 and torch.equal(half, full)


def test_semantics_query_by_query():
    torch.manual_seed(3)
    logits = torch.randn(2, 4, 6, requires_grad=True)
    labels = torch.tensor([[0, 4, -100, 2], [-100, -100, -100, -100]])
    losses = semantic_loss(logits, labels, num_semantic_labels=5)
    expected = [-logits[0, q, :5].log_softmax(0)[labels[0, q]].item() for q in (0, 1, 3)]
    assert losses[0].item() == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert losses[1].item() == 0
    losses.sum().backward()
    assert not logits.grad[1].any()
    assert not logits.grad[..., 5].any()
