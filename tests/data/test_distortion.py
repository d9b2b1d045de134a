"""What is done to colours and to depth: maps by hand, ranges by many draws."""

import warnings

import numpy as np
import pytest
from frame_factory import make_frame

from bifusion_hf.data.distortion import (
    LUMA,
    apply_colors,
    cut_holes,
    hue_rotation,
    noisy_depth,
    recolor_objects,
    saturation_matrix,
)


def test_grey_hue_and_cast_are_what_they_say():
    rng = np.random.default_rng(0)
    colors = rng.integers(60, 180, (500, 3)).astype(np.uint8)
    grey = apply_colors(colors, saturation_matrix(0.0)).astype(int)
    assert np.ptp(grey, axis=1).max() == 0
    np.testing.assert_allclose(grey[:, 0], colors @ LUMA, atol=0.51)
    np.testing.assert_array_equal(apply_colors(colors, np.eye(3)), colors)
    np.testing.assert_allclose(saturation_matrix(1.5) @ [100, 100, 100], [100] * 3, rtol=1e-6)
    np.testing.assert_allclose(saturation_matrix(1.5) @ [100, 0, 0], [150 - 14.95, -14.95, -14.95], rtol=1e-6)
    third = np.abs(apply_colors(colors, hue_rotation(2 * np.pi / 3)).astype(int) - np.roll(colors, 1, axis=1))
    assert third.max() <= 1
    np.testing.assert_allclose(hue_rotation(0.7) @ hue_rotation(-0.7), np.eye(3), atol=1e-12)
    darker = apply_colors(colors, np.eye(3), gamma=2.0)
    np.testing.assert_allclose(darker, 255 * (colors / 255) ** 2, atol=0.51)


def test_objects_get_other_colours_and_the_rest_keeps_its_own():
    frame = make_frame(120, 160, image_scale=2)
    changed = recolor_objects(frame.image, frame.instance, 1.0, np.random.default_rng(1))
    labels = frame.instance.repeat(2, 0).repeat(2, 1)
    difference = np.abs(changed.astype(int) - frame.image).max(axis=2)
    assert (difference[labels < 0] == 0).all()
    for index in np.unique(labels[labels >= 0]):
        assert difference[labels == index].mean() > 5
    same = recolor_objects(frame.image, frame.instance, 0.0, np.random.default_rng(1))
    assert same is frame.image
    some = [recolor_objects(frame.image, frame.instance, 0.5, np.random.default_rng(seed)) for seed in range(10)]
    counts = {sum((image != frame.image)[labels == index].any() for index in (3, 10, 17, 40)) for image in some}
    assert len(counts) > 1


def test_a_black_object_stays_black():
    black, labels = np.zeros((6, 8, 3), np.uint8), np.zeros((6, 8), int)
    with np.errstate(all="raise"):
        for seed in range(6):
            assert not recolor_objects(black, labels, 1.0, np.random.default_rng(seed)).any()


def test_noise_grows_with_the_square_of_the_depth_and_keeps_holes():
    depth = np.full((200, 200), 1.0, np.float32)
    depth[:, 100:] = 3.0
    depth[:20] = 0
    noisy = noisy_depth(depth, 0.004, np.random.default_rng(0))
    assert (noisy[:20] == 0).all()
    near, far = (noisy - depth)[20:, :100], (noisy - depth)[20:, 100:]
    assert near.std() == pytest.approx(0.004, rel=0.05) and far.std() == pytest.approx(0.036, rel=0.05)
    # However strong, a measurement stays one.
    strong = noisy_depth(depth, 5.0, np.random.default_rng(0))[20:]
    assert strong[:, :100].min() == 0.5 and strong[:, 100:].min() == 1.5


def test_holes_are_connected_and_cover_their_share():
    from scipy import ndimage

    depth = np.full((240, 320), 2.0, np.float32)
    for share in (0.05, 0.3):
        cut = cut_holes(depth, share, np.random.default_rng(3))
        assert (cut == 0).mean() == pytest.approx(share, abs=0.02)
        assert ndimage.label(cut == 0)[1] < 25


def test_a_map_of_colours_is_of_columns_rounded_and_cut():
    matrix, offset = np.array([[2, 0, 0], [0, 0, 1], [0, 0.5, 0]]), np.array([0.6, 100, -100])
    colors = np.array([[[10, 100, 200], [0, 0, 0]]], np.uint8)
    found = apply_colors(colors, matrix, offset)
    assert found.dtype == np.uint8 and found.tolist() == [[[21, 255, 0], [1, 100, 0]]]
    assert apply_colors(colors[0, 0], np.eye(3), -0.4).tolist() == [10, 100, 200]


def recolored(colors, count):
    """The pixels of an object of these colours after each of so many draws, [count, pixels, 3]."""
    image, labels = np.array([colors], np.uint8), np.zeros((1, len(colors)), int)
    return np.array([recolor_objects(image, labels, 1.0, np.random.default_rng(seed))[0] for seed in range(count)])


def test_a_grey_object_becomes_lighter_or_darker_or_coloured_and_keeps_its_shading():
    found = recolored([[80] * 3, [120] * 3], 400).astype(float)
    is_grey = np.ptp(found, axis=2).max(axis=1) <= 1
    assert 0.42 < is_grey.mean() < 0.58
    gains = found[is_grey].mean(axis=(1, 2)) / 100
    assert 0.60 < gains.min() < 0.63 and 1.6 < gains.max() < 1.66 and 0.42 < (gains < 1).mean() < 0.58
    colored = found[~is_grey]
    # Each channel is uniform from 20 to 235 before it becomes lighter or darker.
    assert colored.mean() == pytest.approx(127.5, rel=0.1)
    assert colored.mean(axis=1).min() < 25 and (colored == 255).any()
    seen = (colored > 40).all(axis=1) & (colored < 255).all(axis=1)
    np.testing.assert_allclose((colored[:, 1] / colored[:, 0])[seen], 1.5, rtol=0.03)


def test_a_hue_is_turned_to_any_side():
    pixels = recolored([[150, 100, 100]], 200)[:, 0].astype(float)
    x, y = pixels @ [1, -0.5, -0.5], pixels @ [0, np.sqrt(0.75), -np.sqrt(0.75)]
    # Turning keeps the saturation; a colour of its own hardly ever has the same.
    is_turned = np.abs(np.hypot(x, y) / pixels.mean(axis=1) - 50 / 350 * 3) < 0.02
    assert 0.4 < is_turned.mean() < 0.6
    sides = np.bincount((np.arctan2(y, x)[is_turned] // (np.pi / 2)).astype(int) + 2, minlength=4)
    assert sides.min() > 0.15 * is_turned.sum()


def test_an_object_that_a_smaller_image_does_not_show_is_passed_over():
    image, labels = np.full((2, 3, 3), 90, np.uint8), np.full((4, 6), -1)
    labels[1, 3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(6):
            np.testing.assert_array_equal(recolor_objects(image, labels, 1.0, np.random.default_rng(seed)), image)


def test_holes_are_as_wide_as_high_whatever_the_shape_of_the_picture():
    for shape in ((60, 300), (300, 60)):
        hole = cut_holes(np.ones(shape, np.float32), 0.5, np.random.default_rng(0)) == 0
        along, across = (np.diff(hole.astype(int), axis=axis) != 0 for axis in (0, 1))
        assert along.mean() == pytest.approx(across.mean(), rel=0.2)
        # An edge every tenth of the shorter side or two.
        assert 6 < 1 / along.mean() < 12


def test_the_same_generator_gives_the_same_picture_in_every_release():
    """A training that goes on with a later version has the data of the earlier one: the numbers are of the first."""
    frame = make_frame(60, 80, holes=False)
    image = recolor_objects(frame.image, frame.instance, 0.7, np.random.default_rng(2))
    noisy = noisy_depth(frame.depth, 0.02, np.random.default_rng(2))
    cut = cut_holes(frame.depth, 0.3, np.random.default_rng(2))
    assert noisy.dtype == cut.dtype == np.float32
    found = [image.mean(), image.std(), (noisy - frame.depth)[:30].mean(), (noisy - frame.depth).std(), cut.mean()]
    np.testing.assert_allclose(found, [123.852917, 59.683563, -0.00282689, 0.15942876, 1.8957344], rtol=1e-5)
