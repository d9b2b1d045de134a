import pytest
import torch

from bifusion_hf.losses.matcher import Matches, SparseMatcher, matching_costs


def make_problem(seed, num_queries=9, num_instances=4, length=50, num_labels=3):
    generator = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(num_queries, num_labels + 1, generator=generator)
    mask_logits = 3 * torch.randn(num_queries, length, generator=generator)
    class_labels = torch.randint(num_labels, (num_instances,), generator=generator)
    valid = torch.rand(length, generator=generator) < 0.8
    masks = (torch.rand(num_instances, length, generator=generator) < 0.3) & valid
    eligible = torch.rand(num_instances, num_queries, generator=generator) < 0.4
    return class_logits, mask_logits, class_labels, masks, valid, eligible


def slow_costs(class_logits, mask_logits, class_labels, masks, valid):
    costs = torch.zeros(3, len(mask_logits), len(masks))
    for q, logits in enumerate(mask_logits):
        for m, mask in enumerate(masks):
            p, t = logits[valid].sigmoid(), mask[valid].float()
            costs[0, q, m] = -class_logits[q].softmax(0)[class_labels[m]]
            costs[1, q, m] = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
            costs[2, q, m] = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    return costs


@pytest.mark.parametrize("seed", range(5))
def test_against_pair_by_pair(seed):
    problem = make_problem(seed)
    eligible = problem[-1]
    slow = slow_costs(*problem[:-1])
    torch.testing.assert_close(torch.stack(matching_costs(*problem[:-1])), slow, atol=1e-5, rtol=1e-5)
    total = 0.5 * slow[0] + slow[1] + slow[2]
    expected = []
    for m in range(len(eligible)):
        queries = eligible[m].nonzero().flatten().tolist()
        if queries:
            expected.append((min(queries, key=lambda q: total[q, m].item()), m))
    queries, instances = SparseMatcher()(*problem)
    assert list(zip(queries.tolist(), instances.tolist(), strict=True)) == expected


def test_a_class_counts_half_and_both_costs_of_masks_wholly():
    for seed in range(60):
        problem = make_problem(seed, num_queries=20, length=12)
        costs = matching_costs(*problem[:-1])
        total = 0.5 * costs.classification + costs.mask + costs.dice
        total = total.T.masked_fill(~problem[-1], torch.inf)
        queries, instances = SparseMatcher()(*problem)
        assert queries.tolist() == total.argmin(dim=1)[instances].tolist()


def test_values_at_padding_do_not_matter():
    class_logits, mask_logits, *rest = make_problem(0)
    valid = rest[2]
    spoiled = mask_logits.masked_fill(~valid, torch.nan)
    for clean, other in zip(
        matching_costs(class_logits, mask_logits, *rest[:-1]),
        matching_costs(class_logits, spoiled, *rest[:-1]),
        strict=True,
    ):
        assert torch.equal(clean, other)


@pytest.mark.parametrize("length", [7, 300, 20000])
def test_of_identical_queries_the_first_wins(length):
    # Long rows of a matrix product may be summed in another order at the end of a block.
    for num_queries in (3, 17, 65):
        generator = torch.Generator().manual_seed(num_queries)
        logits = 4 * torch.randn(1, length, generator=generator)
        masks = torch.rand(2, length, generator=generator) < 0.5
        queries, instances = SparseMatcher()(
            torch.zeros(num_queries, 2),
            logits.repeat(num_queries, 1),
            torch.zeros(2, dtype=torch.int64),
            masks,
            torch.ones(length, dtype=torch.bool),
            torch.tensor([[True] * num_queries, [False] + [True] * (num_queries - 1)]),
        )
        assert queries.tolist() == [0, 1]
        assert instances.tolist() == [0, 1]


def test_instances_without_an_eligible_query_are_left_out():
    problem = list(make_problem(1))
    problem[-1][2] = False
    assert 2 not in SparseMatcher()(*problem)[1].tolist()
    problem[-1][:] = False
    queries, instances = SparseMatcher()(*problem)
    assert queries.shape == instances.shape == (0,)


def test_no_instances_at_all():
    problem = make_problem(2, num_instances=0)
    queries, instances = SparseMatcher()(*problem)
    assert queries.shape == instances.shape == (0,)
    assert queries.dtype == instances.dtype == torch.int64


def test_costs_stay_in_float32_under_autocast():
    problem = make_problem(3, length=4000)[:-1]
    expected = matching_costs(*problem)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = matching_costs(*problem)
    for cost, reference in zip(found, expected, strict=True):
        assert cost.dtype == torch.float32
        assert torch.equal(cost, reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_costs_of_16_bit_logits_are_those_of_the_same_numbers_in_float32(dtype):
    class_logits, mask_logits, *rest = make_problem(3, length=4000)[:-1]
    class_logits, mask_logits = class_logits.to(dtype), mask_logits.to(dtype)
    expected = matching_costs(class_logits.float(), mask_logits.float(), *rest)
    for cost, reference in zip(matching_costs(class_logits, mask_logits, *rest), expected, strict=True):
        assert cost.dtype == torch.float32 and torch.equal(cost, reference)


def test_means_by_sample():
    matches = Matches(
        queries=[torch.tensor([4, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([1])],
        instances=[torch.tensor([0, 1]), torch.tensor([], dtype=torch.int64), torch.tensor([3])],
    )
    values = torch.tensor([1.0, 3.0, 5.0], requires_grad=True)
    means = matches.mean_by_sample(values)
    assert means.tolist() == [2, 0, 5]
    means[1].backward()
    assert values.grad.tolist() == [0, 0, 0]
    samples, queries = matches.query_index()
    assert samples.tolist() == [0, 0, 2]
    assert queries.tolist() == [4, 2, 1]


@pytest.mark.parametrize(("ahead", "winner"), [(1e-4, 1), (-1e-4, 0), (1e-8, 0)])
def test_a_query_that_is_a_little_cheaper_wins_and_one_within_rounding_does_not(ahead, winner):
    mask_logits = torch.zeros(2, 40)
    mask_logits[1] += ahead
    masks = torch.ones(1, 40, dtype=torch.bool)
    queries, instances = SparseMatcher()(
        torch.zeros(2, 2), mask_logits, torch.tensor([0]), masks, masks[0], torch.ones(1, 2, dtype=torch.bool)
    )
    assert queries.tolist() == [winner] and instances.tolist() == [0]


@pytest.mark.parametrize(("ahead", "winner"), [(1.9e-6, 1), (1.6e-6, 0)])
def test_costs_within_a_millionth_of_one_and_the_cost_are_tied(ahead, winner):
    """The costs are 0.77, so that 1.77e-6 is the bound; in double precision, of which rounding is none."""
    # Derivatives by the logit of each element at 0: the binary cross entropy's, and the Dice loss's by the formula.
    mask_logits = torch.zeros(2, 40, dtype=torch.float64)
    mask_logits[1] += ahead / (0.5 + (80 * 61 - 41 * 40) / 61**2 / 4)
    masks = torch.ones(1, 40, dtype=torch.bool)
    class_logits, eligible = torch.zeros(2, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    queries, _ = SparseMatcher()(class_logits, mask_logits, torch.tensor([0]), masks, masks[0], eligible)
    assert queries.tolist() == [winner]


@pytest.mark.parametrize(("ahead", "winner"), [(5e-4, 0), (0.1, 1)])
@pytest.mark.parametrize("is_class", [False, True])
def test_what_counts_as_a_tie_grows_with_the_cost(is_class, ahead, winner):
    """Of costs near 1,000 or -1,000, which single precision knows to 6e-5: a fraction of 1e-6 is rounding."""
    class_logits, mask_logits = torch.zeros(2, 2), torch.full((2, 40), 0.0 if is_class else -1000.0)
    # The probability of one of two equal classes grows by a quarter of the logit.
    (class_logits[1:, 0] if is_class else mask_logits[1]).add_(ahead / 500 if is_class else ahead)
    masks = torch.ones(1, 40, dtype=torch.bool)
    queries, _ = SparseMatcher(class_cost=2000 if is_class else 0)(
        class_logits, mask_logits, torch.tensor([0]), masks, masks[0], torch.ones(1, 2, dtype=torch.bool)
    )
    assert queries.tolist() == [winner]
