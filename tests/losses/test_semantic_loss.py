import pytest
import torch

from bifusion_hf.losses.semantic import semantic_loss


LABELS = torch.tensor([[0, 3, -100, 1], [-100, -100, -100, -100]])


def test_the_mean_over_supervised_entries_and_nothing_without_any():
    logits = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = semantic_loss(logits, LABELS, 4)
    expected = torch.nn.functional.cross_entropy(logits[0], LABELS[0])
    torch.testing.assert_close(found, torch.stack([expected, torch.zeros(())]))
    found.sum().backward()
    assert logits.grad[0, 0].any() and not logits.grad[0, 2].any() and not logits.grad[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_further_columns_take_no_part_and_16_bits_give_float32(dtype):
    logits = (5 * torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = semantic_loss(logits, LABELS, 4)
    assert found.dtype == torch.float32 and torch.equal(found, semantic_loss(logits[..., :4].float(), LABELS, 4))
    # Where nothing is said, ScanNet's 200.
    many = logits.repeat(1, 1, 41)[..., :203]
    assert torch.equal(semantic_loss(many, LABELS), semantic_loss(many, LABELS, 200))
