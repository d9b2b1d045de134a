import numpy as np
import pytest

from bifusion_hf.superpoints.colour import rgb_to_lab
from bifusion_hf.visualization import instance_colors


def test_colors_are_stable_and_distinct():
    colors = instance_colors(60)
    assert colors.dtype == np.uint8 and colors.shape == (60, 3)
    for number in (0, 1, 17):
        np.testing.assert_array_equal(instance_colors(number), colors[:number])
    lab = rgb_to_lab(colors)
    distance = np.linalg.norm(lab[:, None] - lab, axis=-1)[np.triu_indices(60, 1)]
    # 2.3 is just noticeable.
    assert distance.min() > 15
    assert len(np.unique(instance_colors(512), axis=0)) == 512
    np.testing.assert_array_equal(instance_colors(600)[512:], instance_colors(88))


def test_caller_cannot_change_the_palette():
    colors = instance_colors(3)
    colors[:] = 0
    assert instance_colors(3).any(axis=1).all()


def test_negative_number():
    with pytest.raises(ValueError, match="number is -1"):
        instance_colors(-1)
