import numpy as np
import pytest
from superpoint_metrics import boundary_recall, oracle_ious, undersegmentation_error


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    superpoints = np.kron(rng.permutation(30).reshape(5, 6), np.ones((4, 4), int))
    superpoints[:2, :5] = -1
    instances = np.kron(rng.integers(-1, 4, (4, 4)), np.ones((5, 6), int))
    return superpoints, instances


def test_perfect_superpoints_score_perfectly(maps):
    _, instances = maps
    superpoints = np.unique(instances, return_inverse=True)[1].reshape(instances.shape)
    assert boundary_recall(superpoints, instances, 0) == 1
    assert undersegmentation_error(superpoints, instances) == 0
    assert (oracle_ious(superpoints, instances)[0] == 1).all()


def test_boundary_recall_counts_boundaries_within_the_tolerance():
    labels = np.zeros((10, 20), int)
    labels[:, 10:] = 1
    superpoints = np.zeros((10, 20), int)
    superpoints[:5, 12:] = 1
    # Upper half: two pixels off; its own lower boundary lies to the right of column 11.
    assert boundary_recall(superpoints, labels, 1) == 0
    assert boundary_recall(superpoints, labels, 2) == pytest.approx(0.7)
    superpoints[:, :] = -1
    assert np.isnan(boundary_recall(superpoints, labels))


def test_undersegmentation_error_against_a_slow_count(maps):
    superpoints, instances = maps
    total = 0
    for s in range(30):
        for label in range(-1, 4):
            inside = np.sum((superpoints == s) & (instances == label))
            total += min(inside, np.sum(superpoints == s) - inside)
    assert undersegmentation_error(superpoints, instances) == pytest.approx(total / np.sum(superpoints >= 0))


def test_oracle_against_a_slow_choice(maps):
    superpoints, instances = maps
    ious, sizes = oracle_ious(superpoints, instances)
    present = [i for i in range(4) if ((instances == i) & (superpoints >= 0)).any()]
    assert len(ious) == len(present)
    for found, size, i in zip(ious, sizes, present, strict=True):
        truth = (instances == i) & (superpoints >= 0)
        chosen = [s for s in range(30) if truth[superpoints == s].mean() > 0.5]
        mask = np.isin(superpoints, chosen)
        assert found == pytest.approx((mask & truth).sum() / (mask | truth).sum())
        assert size == truth.sum()


def test_maps_of_different_size():
    with pytest.raises(ValueError, match=r"superpoints \(2, 3\) and labels \(3, 2\)"):
        oracle_ious(np.zeros((2, 3), int), np.zeros((3, 2), int))
