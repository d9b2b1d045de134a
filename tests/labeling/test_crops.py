import numpy as np
import pytest

from bifusion_hf.labeling.crops import MIN_SIDE, SCALES, instance_crops, pool_patches


GREY = (120, 121, 122)


def test_crops_are_squares_around_the_mask():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 100, (60, 80, 3), dtype=np.uint8)
    mask = np.zeros((60, 80), dtype=bool)
    mask[20:40, 30:60] = True
    crops = instance_crops(image, mask, GREY)
    assert [crop.shape for crop in crops] == [(round(30 * scale),) * 2 + (3,) for scale in SCALES]
    # The middle of the second one is the middle of the box.
    side = len(crops[1])
    top, left = round((60 - side) / 2), round((90 - side) / 2)
    np.testing.assert_array_equal(crops[1], image[top : top + side, left : left + side])
    # Beyond the image is the plain colour: 72 rows are wanted and 60 there.
    height = len(crops[2])
    rows = (crops[2] == GREY).all(axis=(1, 2))
    assert height == 72 and rows.sum() == 12 and rows[:6].all() and rows[-6:].all()


def test_the_first_crop_shows_the_instance_alone():
    image = np.full((60, 80, 3), 9, dtype=np.uint8)
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:50, 20:60] = True
    image[10:50, 20:60] = 200
    # A hole of the depth, which the thing shows through, and a corner that is something else.
    mask[25:28, 35:38] = False
    mask[10:30, 40:60] = False
    crop = instance_crops(image, mask, GREY)[0]
    seen = (crop != GREY).all(axis=2)
    assert seen[25:28, 20:23].all()
    assert not seen[2:20, -18:].any()
    outside = (crop[seen] == 9).all(axis=1).mean()
    assert outside < 0.1


def test_a_small_mask_has_surroundings():
    mask = np.zeros((60, 80), dtype=bool)
    mask[0, 0] = True
    crops = instance_crops(np.zeros((60, 80, 3), dtype=np.uint8), mask, GREY)
    assert all(crop.shape == (MIN_SIDE, MIN_SIDE, 3) for crop in crops)


def test_masks_that_do_not_fit_are_refused():
    image = np.zeros((6, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="mask is empty"):
        instance_crops(image, np.zeros((6, 8), dtype=bool), GREY)
    with pytest.raises(ValueError, match=r"mask has shape \(8, 6\)"):
        instance_crops(image, np.ones((8, 6), dtype=bool), GREY)


def test_pooling_counts_the_pixels_of_each_patch():
    patches = np.eye(6, dtype=np.float32).reshape(2, 3, 6)
    mask = np.zeros((10, 30), dtype=bool)
    mask[4:6, 8:12] = True
    # Two columns and one row in each of four patches: equal parts.
    np.testing.assert_allclose(pool_patches(patches, mask), [0.5, 0.5, 0, 0.5, 0.5, 0])
    # Features may outnumber the pixels of a patch, and a patch may have none.
    tiny = np.array([[True, False]])
    np.testing.assert_allclose(pool_patches(patches, tiny), [0, 0, 0, 1, 0, 0])
