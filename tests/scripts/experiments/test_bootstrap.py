import numpy as np
import pytest

from scripts.experiments.bootstrap import group_means, interval, resampled_weights


def test_means_of_groups_leave_out_classes_without_instances():
    values = np.array([[0.2, 0.4, np.nan, 1.0], [np.nan, 0.4, np.nan, 0.0]])
    groups = {"all": ("a", "b", "c", "d"), "first": ("a", "b"), "last": ("d",)}
    means = group_means(values, np.array(["a", "b", "c", "d"]), groups)
    assert means["all"] == pytest.approx([1.6 / 3, 0.2])
    assert means["first"] == pytest.approx([0.3, 0.4]) and means["last"] == pytest.approx([1.0, 0.0])


def test_draws_are_seeded_hold_as_many_units_and_keep_units_together():
    weights = resampled_weights(["x", "y", "x", "z"], 500, seed=3)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    # Each unit is drawn once on average; a third of the draws, (2/3)^3, leaves it out.
    assert weights.mean(axis=0) == pytest.approx([1, 1, 1, 1], abs=0.15)
    assert (weights[:, 1] == 0).mean() == pytest.approx(8 / 27, abs=0.07)
    np.testing.assert_array_equal(weights, resampled_weights(["x", "y", "x", "z"], 500, seed=3))
    assert (weights != resampled_weights(["x", "y", "x", "z"], 500, seed=4)).any()


def test_an_interval_is_of_percentiles_and_leaves_out_what_has_no_value():
    values = np.append(np.arange(1001) / 1000, [np.nan, np.nan])
    assert interval(values) == pytest.approx((0.025, 0.975))
    assert np.isnan(interval(np.array([np.nan]))).all()
