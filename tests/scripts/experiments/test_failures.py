"""What became of instances and predictions, and its pictures."""

import numpy as np
import pytest

from scripts.experiments.failures import (
    NOTHING,
    OTHER_CLASS,
    RIGHT,
    find_failures,
)
from scripts.experiments.pictures import alpha_colors, describe


def test_every_kind_of_failure_is_told_apart():
    ids = np.repeat([0, 1, 2, 3, -1], [20, 20, 20, 4, 36])
    masks = np.zeros((5, 100), bool)
    masks[0, :18] = True  # the first instance
    masks[1, 22:40] = True  # the second, under another class
    masks[2, 40:50] = True  # half of the third: not more than half is no match
    masks[3, 70:90] = True  # nothing
    masks[4, 2:20] = True  # the first once more
    found = find_failures(masks, [7, 8, 7, 7, 7], ids, [7, 9, 7, 7], min_points=5)
    assert found.truth == (RIGHT, OTHER_CLASS, NOTHING, None)
    assert found.predictions == (RIGHT, OTHER_CLASS, NOTHING, NOTHING, RIGHT)
    assert found.confusions == ((9, 8),) and found.missed == (7,) and found.count == 4
    names = {7: "box", 8: "crate", 9: "chair"}
    assert describe("frame", found, names) == (
        "frame: of 3 instances 1 right (green), 1 of another class (orange): chair taken for crate, "
        "1 missed (red): box; 2 predictions fit no instance (red)."
    )


def test_a_right_prediction_counts_wherever_it_stands():
    ids = np.repeat([0, -1], [10, 10])
    masks = np.tile(ids >= 0, (2, 1))
    found = find_failures(masks, [1, 0], ids, [0], min_points=1)
    assert found.truth == (RIGHT,) and found.predictions == (OTHER_CLASS, RIGHT) and found.count == 0


def test_frames_without_predictions_or_instances():
    empty = np.zeros((0, 10), bool)
    assert find_failures(empty, [], np.zeros(10, int), [3], 1).missed == (3,)
    found = find_failures(np.ones((1, 10), bool), [3], np.full(10, -1), [], 1)
    assert found.truth == () and found.predictions == (NOTHING,)


def test_alpha_goes_from_blue_by_white_to_red():
    low, middle, high = alpha_colors(np.array([0.0, 0.5, 1.0]))
    assert low.argmax() == 2 and high.argmax() == 0 and np.ptp(middle) == 0
    np.testing.assert_allclose(alpha_colors(np.array([0.25])), [(low + middle) / 2])
    assert alpha_colors(np.array([-1.0, 2.0])) == pytest.approx(np.stack([low, high]))
