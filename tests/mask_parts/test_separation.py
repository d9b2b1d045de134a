import numpy as np
import pytest
import torch
from built_kernels import skip_where_not_built

from bifusion_hf.mask_parts import compiled_backend, scipy_backend, separate_parts, separation, touching_points
from bifusion_hf.processing_bifusion import BiFusionProcessor


@pytest.fixture(autouse=True, params=["scipy", "compiled"])
def backend(request, monkeypatch):
    if request.param == "scipy":
        monkeypatch.setattr(separation, "choose_backend", lambda: scipy_backend)
    else:
        skip_where_not_built(compiled_backend.KERNELS, compiled_backend.unavailable_reason)


def plate(x, size=0.2, step=0.02):
    """A horizontal grid of points with its lower corner at x."""
    side = np.arange(0, size, step)
    grid = np.stack(np.meshgrid(side, side, [0.0]), axis=-1).reshape(-1, 3)
    return grid + [x, 0, 0]


def instances(masks, scores, **extra):
    masks = torch.as_tensor(np.stack(masks))
    return {
        "masks": masks,
        "scores": torch.tensor(scores),
        "labels": torch.zeros(len(masks), dtype=torch.int64),
        **extra,
    }


@pytest.fixture(scope="module")
def cloud():
    """Two plates of 100 points 30 cm apart, and one of 25 points behind."""
    plates = [plate(0.0), plate(0.5), plate(0.9, size=0.1)]
    owner = np.repeat([0, 1, 2], [len(points) for points in plates])
    return torch.from_numpy(np.concatenate(plates)).float(), owner


def test_parts_become_instances_with_lower_scores(cloud):
    points, owner = cloud
    found = instances([owner >= 0, owner == 1], [0.8, 0.5], queries=torch.tensor([7, 9]))
    parts = separate_parts(found, points, gap=0.05)
    # The two large ones are of one size, the small one has a quarter of it.
    assert parts["scores"].tolist() == pytest.approx([0.8, 0.8, 0.5, 0.4])
    assert parts["queries"].tolist() == [7, 7, 9, 7]
    assert parts["num_parts"].tolist() == [3, 3, 1, 3]
    expected = [owner == 0, owner == 1, owner == 1, owner == 2]
    np.testing.assert_array_equal(parts["masks"].numpy(), np.stack(expected))
    assert parts["labels"].tolist() == [0] * 4
    assert parts["scores"].dtype == torch.float32


def test_limits_hold_for_the_parts(cloud):
    points, owner = cloud
    found = instances([owner >= 0], [0.8])
    large = separate_parts(found, points, gap=0.05, min_points=25)
    # The third part is none of the instances, but the mask had it.
    assert len(large["scores"]) == 2 and large["num_parts"].tolist() == [3, 3]
    assert len(separate_parts(found, points, gap=0.05, threshold=0.4)["scores"]) == 2
    assert len(separate_parts(found, points, gap=0.05, max_instances=1)["scores"]) == 1
    # A speck of two points beside 100 is no part at all.
    speck = instances([(owner == 0) | (np.arange(len(owner)) >= len(owner) - 2)], [0.8])
    parts = separate_parts(speck, points, gap=0.05)
    np.testing.assert_array_equal(parts["masks"].numpy(), [owner == 0])
    assert parts["num_parts"].tolist() == [1]
    # A tenth is one.
    for points_of_it in (9, 10):
        mask = (owner == 0) | ((owner == 2) & (np.arange(len(owner)) < 200 + points_of_it))
        parts = separate_parts(instances([mask], [0.8]), points, gap=0.05)
        assert parts["masks"].sum(dim=1).tolist() == ([100] if points_of_it < 10 else [100, 10])


def test_parts_that_are_alike_stay_in_the_order_of_masks_and_points():
    """Forty heaps of points in one place each; one point of each is in both masks."""
    points = torch.zeros(800, 3)
    points[:, 0] = 10 * (torch.arange(800) % 40)
    mask = np.arange(800) < 40
    found = separate_parts(instances([mask, mask], [0.8, 0.8], queries=torch.tensor([7, 9])), points, gap=0.05)
    assert found["queries"].tolist() == [7] * 40 + [9] * 40 and found["num_parts"].tolist() == [40] * 80
    assert found["masks"][:, :40].int().tolist() == 2 * torch.eye(40, dtype=torch.int32).tolist()


def test_what_is_connected_stays_as_it_is(cloud):
    points, owner = cloud
    found = instances([owner == 0, owner == 2], [0.3, 0.9])
    parts = separate_parts(found, points, gap=0.05)
    assert parts["scores"].tolist() == pytest.approx([0.9, 0.3])
    np.testing.assert_array_equal(parts["masks"].numpy(), np.stack([owner == 2, owner == 0]))
    nothing = separate_parts({name: value[:0] for name, value in found.items()}, points, gap=0.05)
    assert nothing["masks"].shape == (0, len(points)) and nothing["scores"].shape == (0,)


def test_sparse_points_on_one_surface_touch():
    """20 cm from point to point: far from the camera that is no gap, though it is wider than the one asked for."""
    points = torch.from_numpy(plate(0.0, size=2.0, step=0.2)).float()
    parts = separate_parts(instances([np.ones(len(points), bool)], [0.7]), points, gap=0.05)
    assert len(parts["masks"]) == 1 and parts["masks"].all()


def test_near_neighbours_touch_up_to_the_gap():
    """Two plates of nine points: each point has some of the other plate among its sixteen nearest, 15 cm away."""
    points = torch.from_numpy(np.concatenate([plate(0.0, size=0.06), plate(0.19, size=0.06)])).float()
    found = instances([np.ones(len(points), bool)], [0.7])
    counts = {gap: len(separate_parts(found, points, gap=gap)["masks"]) for gap in (0.05, 0.2)}
    assert counts == {0.05: 2, 0.2: 1}


def pairs_of(points, gap, among=None):
    """Pairs of different points that touch, bool [N, N]."""
    points = np.asarray(points, dtype=float)
    others, touching = touching_points(points, gap, np.ones(len(points), bool) if among is None else among)
    pairs = np.zeros((len(points), len(points)), bool)
    for row, (nearest, number) in enumerate(zip(others, touching, strict=True)):
        pairs[row, nearest[:number]] = True
    np.fill_diagonal(pairs, False)
    return pairs | pairs.T


def test_points_in_one_place_touch_and_few_points_are_no_error():
    pairs = pairs_of([[0, 0, 0], [0.01, 0, 0], [0.01, 0, 0], [5, 0, 0]], 0.05)
    assert pairs[0, 1] and pairs[0, 2] and pairs[1, 2]
    assert pairs_of(np.zeros((40, 3)), 0.05).any(axis=1).all()
    assert not pairs_of(np.zeros((1, 3)), 0.05).any()
    assert pairs_of(np.zeros((0, 3)), 0.05).shape == (0, 0)
    assert pairs_of([[0, 0, 0], [0.04, 0, 0]], 0.05)[0, 1]
    for count, width in ((0, 0), (1, 1), (5, 5), (40, 17)):
        nobody = touching_points(np.zeros((count, 3)), 0.05, np.zeros(count, bool))
        assert [values.shape for values in nobody] == [(count, width), (count,)]
        assert [values.dtype for values in nobody] == [np.int32] * 2 and not any(values.any() for values in nobody)


def test_points_that_are_not_asked_about_do_not_change_the_others():
    rng = np.random.default_rng(3)
    points, among = rng.random((300, 3)), rng.random(300) < 0.4
    every, some = pairs_of(points, 0.1), pairs_of(points, 0.1, among)
    both = among[:, None] & among[None]
    np.testing.assert_array_equal(some[both], every[both])
    assert some[both].any() and not some[~among][:, ~among].any()


def slow_touching(points, gap):
    """bool [N, N] by the definition: of a point's 16 nearest those within the gap, or within twice the usual distance.

    The usual distance is the median over the nearer half of them.
    """
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    touches = np.zeros(distances.shape, bool)
    for row, others in enumerate(np.argsort(distances, axis=1)[:, :16]):
        reach = max(gap, 2 * np.median(distances[row, others[:8]]))
        touches[row, others] = distances[row, others] <= reach
    return touches | touches.T


def slow_parts(touches, mask):
    """Sets of connected points of a mask."""
    left, parts = set(np.flatnonzero(mask).tolist()), []
    while left:
        part = edge = {left.pop()}
        while edge:
            edge = {point for point in left if touches[point, list(edge)].any()}
            part = part | edge
            left -= edge
        parts.append(part)
    return parts


@pytest.mark.parametrize("gap", [0.01, 0.05, 0.2])
def test_parts_are_those_of_a_slow_search(gap):
    """Clumps of another density each, so that both rules decide, and masks at random."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(3 * rng.random(3), size, (50, 3)) for size in (0.02, 0.05, 0.2, 0.5)])
    touches = slow_touching(points, gap)
    np.testing.assert_array_equal(pairs_of(points, gap), touches)
    masks = [rng.random(len(points)) < share for share in (0.2, 0.6)]
    scores = {7: 0.9, 8: 0.6}
    found = separate_parts(instances(masks, list(scores.values()), queries=torch.tensor([7, 8])),
                           torch.from_numpy(points), gap=gap, min_points=1)  # fmt: skip
    expected = set()
    for (query, score), mask in zip(scores.items(), masks, strict=True):
        parts = slow_parts(touches, mask)
        largest = max(map(len, parts))
        expected |= {
            (query, round(score * (len(part) / largest) ** 0.5, 5), tuple(sorted(part)))
            for part in parts
            if len(part) > 1 and len(part) >= 0.1 * largest
        }
    assert len(expected) == len(found["scores"]) and len(expected) > 3
    assert expected == {
        (int(query), round(float(score), 5), tuple(np.flatnonzero(mask).tolist()))
        for query, score, mask in zip(*(found[name].numpy() for name in ("queries", "scores", "masks")), strict=True)
    }
    assert (found["scores"].diff() <= 0).all()


def test_files_that_do_not_say_leave_masks_whole(tmp_path):
    """What was saved before there was the choice keeps its numbers; what is saved now keeps its own."""
    import json

    assert BiFusionProcessor().part_gap == 0.05
    assert BiFusionProcessor.from_preset("sv3d").part_gap == 0.0
    BiFusionProcessor().save_pretrained(tmp_path)
    assert BiFusionProcessor.from_pretrained(tmp_path).part_gap == 0.05
    path = tmp_path / "processor_config.json"
    values = json.loads(path.read_text())
    del values["part_gap"]
    path.write_text(json.dumps(values))
    assert BiFusionProcessor.from_pretrained(tmp_path).part_gap == 0.0


def test_a_negative_gap_is_refused():
    with pytest.raises(ValueError, match="part_gap is -1"):
        BiFusionProcessor(part_gap=-1.0)
