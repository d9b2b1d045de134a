import pytest
import torch

from bifusion_hf.layers.frame_batch import FrameBatch
from bifusion_hf.layers.query_decoder import MergeHead, QueryDecoder, blocked_share, probable_masks, products


def inputs(config, seed=0, superpoints=9, points=120):
    generator = torch.Generator().manual_seed(seed)

    def randn(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    ids = torch.cat(
        [torch.arange(superpoints), torch.randint(superpoints, (points - superpoints,), generator=generator)]
    )
    superpoint_features, positions = randn(1, superpoints, config.hidden_size), randn(1, points, 3)
    return {
        "frames": FrameBatch(
            points=positions,
            point_colors=torch.zeros_like(positions),
            point_mask=torch.ones(1, points, dtype=torch.bool),
            superpoint_ids=ids.unsqueeze(0),
        ),
        "superpoint_features": superpoint_features,
        "point_features": randn(1, points, config.hidden_size),
        "point_weights": 2 * torch.rand(1, points, 1, generator=generator, dtype=torch.float64),
        "query_superpoints": torch.arange(superpoints).unsqueeze(0),
    }


def slow_mask(head, batch):
    """Attention masks by loops over queries, superpoints and points."""
    num_queries, num_superpoints = head.mask_logits.shape[1], batch["frames"].superpoint_mask.shape[1]
    allowed = torch.zeros(num_queries, num_superpoints, dtype=torch.bool)
    for query in range(num_queries):
        logits = head.mask_logits[0, query]
        if head.level == "superpoint":
            row = torch.sigmoid(logits) >= 0.5
            allowed[query] = row if row.any() else True
            continue
        share = torch.zeros(num_superpoints, dtype=torch.float64)
        for superpoint in range(num_superpoints):
            own = (batch["frames"].superpoint_ids[0] == superpoint).nonzero().flatten()
            blocked = (torch.sigmoid(logits[own]) < 0.5).double() * batch["point_weights"][0, own, 0]
            share[superpoint] = blocked.mean()
        allowed[query] = (share <= 0.5) | (share == share.min())
    return allowed


def test_attention_masks_equal_the_slow_form(small_config):
    torch.manual_seed(0)
    config = small_config("none")
    decoder = QueryDecoder(config).double()
    batch = inputs(config)
    heads, semantic, _ = decoder(**batch)
    assert [head.level for head in heads] == ["superpoint", "superpoint", "point", "point"]
    assert semantic.shape == (1, 9, 201)
    for head in heads:
        # Also the extreme cases: a query whose mask is empty, and one whose mask is everything.
        head.mask_logits[0, 0] = -1
        head.mask_logits[0, 1] = 1
        mask = decoder._attention_mask(head, batch["frames"], batch["point_weights"])
        assert torch.equal(mask[0], slow_mask(head, batch))
        assert mask.any(2).all()


def test_blocked_share_leaves_padding_out():
    blocked = torch.ones(1, 2, 5, dtype=torch.bool)
    weights = torch.full((1, 5, 1), 1.5)
    ids = torch.tensor([[0, 0, 1, -1, -1]])
    share = blocked_share(
        -blocked.float(), weights, FrameBatch(torch.zeros(1, 5, 3), torch.zeros(1, 5, 3), ids >= 0, ids)
    )
    assert torch.equal(share, torch.full((1, 2, 2), 1.5))


def test_queries_follow_their_superpoints(small_config):
    """Reordering the queries reorders every output and changes nothing else."""
    torch.manual_seed(0)
    config = small_config("none")
    decoder = QueryDecoder(config).double()
    batch = inputs(config)
    order = torch.randperm(9)
    first, semantic, _ = decoder(**batch)
    second, permuted, _ = decoder(**{**batch, "query_superpoints": batch["query_superpoints"][:, order]})
    torch.testing.assert_close(permuted, semantic[:, order])
    for head, other in zip(first, second, strict=True):
        torch.testing.assert_close(other.mask_logits, head.mask_logits[:, order])
        torch.testing.assert_close(other.class_logits, head.class_logits[:, order])


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 1.0])
def test_only_probable_queries_have_masks(batch_size, threshold):
    generator = torch.Generator().manual_seed(0)
    queries, features, logits = (
        torch.randn(batch_size, *size, generator=generator) for size in ((7, 5), (20, 5), (7, 4))
    )
    found = probable_masks(queries, features, logits, threshold)
    every = products(queries, features)
    for sample in range(batch_size):
        for query in range(7):
            best = max(torch.softmax(logits[sample, query], dim=0)[:3].tolist())
            expected = every[sample, query] if best > threshold else torch.full((20,), -torch.inf)
            torch.testing.assert_close(found[sample, query], expected)
            torch.testing.assert_close(every[sample, query], features[sample] @ queries[sample, query])
    # As probable as the threshold is not more.
    halves = probable_masks(queries, features, torch.zeros(batch_size, 7, 2), 0.5)
    assert torch.isneginf(halves).all()


def test_one_superpoint(small_config):
    config = small_config("none")
    decoder = QueryDecoder(config).double()
    heads, *_ = decoder(**inputs(config, superpoints=1, points=3))
    assert all(torch.isfinite(head.mask_logits).all() for head in heads)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_merge_embeddings_equal_the_slow_form_and_see_no_padding(norm):
    head = MergeHead(6, norm)
    queries, mask = torch.randn(2, 5, 6), torch.tensor([[True] * 5, [True, True, False, False, False]])

    def normed(layer, values):
        over = 1 if norm == "layer" else 0
        deviation = (values.var(over, unbiased=False, keepdim=True) + layer.eps).sqrt()
        return (values - values.mean(over, keepdim=True)) / deviation * layer.weight + layer.bias

    hidden = normed(head.hidden_norm, queries[mask] @ head.hidden.weight.T + head.hidden.bias).clamp(min=0)
    embeddings = normed(head.out_norm, hidden @ head.out.weight.T + head.out.bias)
    found = head(queries, mask)
    torch.testing.assert_close(found[mask], embeddings / embeddings.norm(dim=1, keepdim=True))
    assert (found[~mask] == 0).all()
