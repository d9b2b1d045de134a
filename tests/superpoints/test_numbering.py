import numpy as np
import pytest

from bifusion_hf.superpoints.numbering import renumber_superpoints


SUPERPOINTS = np.array([[-1, 4, 4], [8, 8, 0], [0, 7, -10]])
# Flat pixels of the superpoints 0, 8 and 0; nothing of 4 and 7 is sampled.
PIXELS = np.array([5, 3, 6])


@pytest.mark.parametrize("highest", [8, 9, 10])
def test_numbers_may_be_as_large_as_the_image(highest):
    """Of nine pixels; what is none stays none."""
    superpoints = np.array([[-1, 2, highest], [2, 3, 3], [3, 3, -1]])
    numbers, of_points = renumber_superpoints(superpoints, np.array([2, 3]))
    assert numbers.tolist() == [[-1, 0, 1], [0, -1, -1], [-1, -1, -1]]
    assert of_points.tolist() == [1, 0]


def test_every_pixel_may_have_a_number_of_its_own():
    superpoints = np.array([[-1, 900, 800], [700, 600, 500]])
    numbers, of_points = renumber_superpoints(superpoints, np.array([1, 2, 3]))
    assert numbers.tolist() == [[-1, 2, 1], [0, -1, -1]] and of_points.tolist() == [2, 1, 0]


@pytest.mark.parametrize("step", [1, 1000], ids=["small numbers", "numbers beyond the size of the image"])
def test_sampled_superpoints_are_numbered_without_gaps(step):
    superpoints = np.where(SUPERPOINTS < 0, SUPERPOINTS, step * SUPERPOINTS)
    numbers, of_points = renumber_superpoints(superpoints, PIXELS)
    assert numbers.dtype == np.int32 and of_points.dtype == np.int64
    assert numbers.tolist() == [[-1, -1, -1], [1, 1, 0], [0, -1, -1]]
    assert of_points.tolist() == [0, 1, 0]
