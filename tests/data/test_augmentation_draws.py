"""What the draws of the augmentation range over, on samples of a few points and pixels."""

import numpy as np
import pytest
from augmentation_off import only
from frame_factory import make_frame

from bifusion_hf.data.augmentation import AugmentationConfig, JointAugmentation, horizontal_rotation, resize_image


RUNS = 300


def moved(points, seed, **options):
    sample = {"points": np.array(points, np.float32), "camera_rotation": np.eye(3, dtype=np.float32)}
    return JointAugmentation(only(**options)).move_points(sample, np.random.default_rng(seed))


def colored(colors, seed, **options):
    """As they are after a colouring of which only the parts that are named have a strength; None = its default."""
    parts = dict.fromkeys(
        ("color_cast", "color_exposure", "color_contrast", "color_saturation", "hue_probability", "grey_probability"),
        0.0,
    )
    defaults = AugmentationConfig()
    parts |= {name: getattr(defaults, name) if value is None else value for name, value in options.items()}
    augmentation = JointAugmentation(only(color_probability=1.0, **parts))
    sample = {"point_rgb": np.array(colors, np.uint8)}
    return augmentation.photometric(sample, np.random.default_rng(seed))["point_rgb"].astype(float)


def test_a_horizontal_rotation_turns_by_the_right_hand():
    down = np.radians(90)
    # About x, ahead (y) goes up; about y, up goes to the right; about the diagonal, halfway.
    np.testing.assert_allclose(horizontal_rotation(0.0, down) @ [5, 1, 0], [5, 0, 1], atol=1e-12)
    np.testing.assert_allclose(horizontal_rotation(down, down) @ [0, 5, 1], [1, 5, 0], atol=1e-12)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(horizontal_rotation(down / 2, down) @ [0, 0, 1], [half, -half, 0], atol=1e-12)
    turned = horizontal_rotation(0.3, 0.2)
    np.testing.assert_allclose(turned @ [np.cos(0.3), np.sin(0.3), 0], [np.cos(0.3), np.sin(0.3), 0], atol=1e-12)
    assert turned[2, 2] == pytest.approx(np.cos(0.2))


def test_points_are_turned_to_either_side_within_the_range():
    angles = [np.arctan2(*moved([[1, 0, 0]], seed, rotation_range=0.8)["points"][0, 1::-1]) for seed in range(RUNS)]
    assert -0.8 <= min(angles) < -0.75 and 0.75 < max(angles) <= 0.8 and 0.4 < (np.array(angles) > 0).mean() < 0.6


def test_points_are_tilted_to_all_sides():
    tops = [moved([[0, 0, 1]], seed, tilt_probability=1.0)["points"][0] for seed in range(RUNS)]
    sides = np.arctan2(*np.transpose(tops)[1::-1])
    assert np.histogram(sides, 8, (-np.pi, np.pi))[0].min() > 20


def test_a_mirrored_axis_is_x_or_y_each_half_of_the_time():
    signs = np.array([moved([[1, 1, 1]], seed, flip_probability=0.5)["points"][0] for seed in range(RUNS)])
    shares = (signs < 0).mean(axis=0)
    assert (np.abs(shares[:2] - 0.5) < 0.1).all() and shares[2] == 0
    assert np.abs((signs[:, 0] * signs[:, 1]).mean()) < 0.2


def test_scale_then_shift_then_bending_then_another_size():
    """Lengths of shift and bending are metres of the scene that another size makes larger or smaller."""
    points = [[0, 0, 0], [1, 2, -1], [0.3, -2, 0.5]]
    options = {"scale_range": (2.0, 2.0), "rescale_probability": 1.0, "rescale_range": (3.0, 3.0)}
    found = moved(points, 1, translation_std=0.5, **options)["points"]
    np.testing.assert_allclose(found - found[0], 6 * np.array(points), atol=1e-5)
    shifts = np.array([moved([[0, 0, 0]], seed, translation_std=0.5, **options)["points"][0] for seed in range(RUNS)])
    np.testing.assert_allclose(shifts.std(axis=0), 1.5, rtol=0.15)
    assert np.abs(shifts.mean(axis=0)).max() < 0.3
    bending = {"elastic_probability": 1.0, "elastic_granularity": (6.0,), "elastic_magnitude": (40.0,)}
    plain = np.array([moved([[0, 0, 0]], seed, **bending)["points"][0] for seed in range(100)])
    # 40 cells of 2 cm, blurred twice by 3 x 3 x 3.
    assert plain.std() == pytest.approx(40 * 0.02 * (19 / 81) ** 1.5, rel=0.15)
    resized = np.array([moved([[0, 0, 0]], seed, **bending, **options)["points"][0] for seed in range(100)])
    assert resized.std() == pytest.approx(3 * 40 * 0.02 * (19 / 81) ** 1.5, rel=0.15)


def test_a_passage_without_an_image_or_without_colours_is_left_alone():
    bare = {"point_rgb": np.array([[1, 2, 3]], np.uint8), "image": None}
    jittered = JointAugmentation(only(brightness=0.5)).photometric(bare, np.random.default_rng(0))
    assert jittered["image"] is None and jittered["point_rgb"] is bare["point_rgb"]
    only_image = {"image": np.full((2, 2, 3), 90, np.uint8)}
    changed = JointAugmentation(only(color_probability=1.0)).photometric(only_image, np.random.default_rng(0))
    assert set(changed) == {"image"} and (changed["image"] != 90).any()


def test_exposure_is_an_exponent_and_a_gain():
    logarithms = []
    for seed in range(RUNS):
        dark, light = colored([[40] * 3, [120] * 3], seed, color_exposure=None)[:, 0]
        gamma = np.log(light / dark) / np.log(3)
        logarithms.append([np.log(gamma), np.log(light / 255) - gamma * np.log(120 / 255)])
    low, high = np.min(logarithms, axis=0), np.max(logarithms, axis=0)
    # Rounded colours, hence a little more than 0.4.
    assert (low > -0.43).all() and (low < -0.37).all() and (high > 0.37).all() and (high < 0.43).all()
    assert (np.abs(np.mean(logarithms, axis=0)) < 0.04).all()
    assert abs(np.corrcoef(np.transpose(logarithms))[0, 1]) < 0.15


def test_a_cast_is_a_gain_of_each_channel():
    gains = np.log([colored([[120] * 3], seed, color_cast=None)[0] / 120 for seed in range(RUNS)])
    np.testing.assert_allclose(gains.std(axis=0), 0.2, rtol=0.12)
    assert np.abs(gains.mean(axis=0)).max() < 0.04
    assert np.abs(np.corrcoef(gains.T) - np.eye(3)).max() < 0.25


def test_contrast_is_about_the_middle_and_saturation_about_the_own_grey():
    found = np.array([colored([[60] * 3, [128] * 3, [195] * 3], seed, color_contrast=None) for seed in range(RUNS)])
    factors = (found[:, 2] - found[:, 0]).mean(axis=1) / 135
    assert 0.69 < factors.min() < 0.72 and 1.28 < factors.max() < 1.31 and 0.4 < (factors < 1).mean() < 0.6
    assert np.abs(found[:, 1] - 128).max() <= 1 and np.abs(found[:, 0] + found[:, 2] - 255).max() <= 1
    found = np.array([colored([[90, 140, 100], [77] * 3], seed, color_saturation=None) for seed in range(RUNS)])
    factors = (found[:, 0, 1] - found[:, 0, 0]) / 50
    assert 0.48 < factors.min() < 0.55 and 1.45 < factors.max() < 1.52 and 0.4 < (factors < 1).mean() < 0.6
    assert (found[:, 1] == 77).all()
    grey = np.array([90, 140, 100]) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(found[:, 0], grey + factors[:, None] * ([90, 140, 100] - grey), atol=1.6)


def test_hue_and_grey_come_as_often_as_they_should():
    found = np.array([colored([[150, 100, 100]], seed, hue_probability=None)[0] for seed in range(RUNS)])
    is_turned = (found != [150, 100, 100]).any(axis=1)
    assert 0.13 < is_turned.mean() < 0.27
    np.testing.assert_allclose(found.mean(axis=1), 350 / 3, atol=1)
    x, y = found @ [1, -0.5, -0.5], found @ [0, np.sqrt(0.75), -np.sqrt(0.75)]
    np.testing.assert_allclose(np.hypot(x, y), 50, atol=1.5)
    assert np.histogram(np.arctan2(y, x)[is_turned], 4, (-np.pi, np.pi))[0].min() > 5
    found = np.array([colored([[150, 100, 100]], seed, grey_probability=None)[0] for seed in range(RUNS)])
    is_grey = np.ptp(found, axis=1) == 0
    assert 0.1 < is_grey.mean() < 0.2 and (found[~is_grey] == [150, 100, 100]).all()
    # The light of a grey scene has its colour all the same.
    cast = np.array([colored([[150, 100, 100], [100, 150, 90]], 5, grey_probability=1.0, color_cast=0.5)])[0]
    np.testing.assert_allclose(cast[0] / cast[0, 0], cast[1] / cast[1, 0], rtol=0.03)
    assert np.ptp(cast[0]) > 20


def test_noise_and_holes_are_of_any_strength_up_to_the_largest():
    frame = make_frame(36, 48, holes=False, depth=np.full((36, 48), 2.0))
    augmentation = JointAugmentation(only(depth_noise_probability=1.0, hole_probability=1.0))
    noise, holes = [], []
    for seed in range(40):
        depth = augmentation.frame(frame, np.random.default_rng(seed)).depth
        holes.append((depth == 0).mean())
        noise.append(np.std(depth[depth > 0]))
    # 5 mm at one metre are 20 mm at two.
    assert max(noise) < 0.022 and max(noise) > 0.018 and min(noise) < 0.002
    assert max(holes) < 0.35 and max(holes) > 0.25 and min(holes) < 0.06
    recoloring = JointAugmentation(only(recolor_probability=1.0))
    bare = make_frame(36, 48, instance=None)
    assert recoloring.frame(bare, np.random.default_rng(0)) is bare
    share = np.mean(
        [
            (recoloring.frame(frame, np.random.default_rng(seed)).image != frame.image)[frame.instance == 3].any()
            for seed in range(40)
        ]
    )
    assert 0.25 < share < 0.75


def test_a_crop_of_the_whole_image_keeps_the_points_on_its_edges():
    corners = np.array([[0, 0], [1, 1], [0, 1], [0.5, 0.2]], np.float32)
    sample = {
        "image": np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8),
        "point_pixels": corners,
        "point_visible": np.array([True, True, True, False]),
        "camera_rotation": np.eye(3, dtype=np.float32),
    }
    augmentation = JointAugmentation(only(crop_probability=1.0, crop_scale=(1.0, 1.0)))
    found = augmentation.move_image(sample, np.random.default_rng(0))
    for name, value in sample.items():
        np.testing.assert_array_equal(found[name], value)
    assert resize_image(sample["image"], [6, 9]) is sample["image"]


def test_a_crop_may_be_anywhere_in_the_image():
    """Rows and columns of their own, from one edge to the other."""
    v, u = np.mgrid[:60, :80]
    image = np.stack([u * 3, v * 4, 0 * u], axis=-1).astype(np.uint8)
    sample = {
        "image": image,
        "point_pixels": np.stack([(u + 0.5) / 80, (v + 0.5) / 60], axis=-1).reshape(-1, 2).astype(np.float32),
        "point_visible": np.ones(4800, dtype=bool),
    }
    augmentation = JointAugmentation(only(crop_probability=1.0, crop_scale=(0.5, 0.5)))
    first = []
    for seed in range(60):
        found = augmentation.move_image(sample, np.random.default_rng(seed))
        assert found["image"].shape == image.shape and found["point_pixels"].dtype == np.float32
        # The pixel at the upper left of the crop, by its colour and by the points that are left.
        place = found["image"][0, 0, :2] / [3, 4]
        seen = sample["point_pixels"][found["point_visible"]].min(axis=0) * [80, 60] - 0.5
        assert np.abs(place - seen).max() < 1.1
        assert found["point_visible"].sum() == pytest.approx(1200, abs=80)
        first.append(seen)
    low, high = np.min(first, axis=0), np.max(first, axis=0)
    assert (low < [4, 3]).all() and (high > [36, 27]).all() and (high <= [40, 30]).all()
    assert abs(np.corrcoef(np.transpose(first))[0, 1]) < 0.4


def test_by_default_half_of_the_images_are_mirrored_and_half_are_cropped():
    sample = {
        "image": np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8),
        "point_pixels": np.array([[0.45, 0.5], [0.55, 0.5]], np.float32),
        "point_visible": np.array([True, True]),
        "camera_rotation": np.eye(3, dtype=np.float32),
    }
    found = [JointAugmentation().move_image(sample, np.random.default_rng(seed)) for seed in range(200)]
    is_mirrored = np.array([part["camera_rotation"][0, 0] < 0 for part in found])
    sizes = np.array([0.1 / abs(np.diff(part["point_pixels"][:, 0])[0]) for part in found])
    is_cropped = np.abs(sizes - 1) > 1e-4
    assert 0.4 < is_mirrored.mean() < 0.6 and 0.4 < is_cropped.mean() < 0.6
    assert abs(np.corrcoef(is_mirrored, is_cropped)[0, 1]) < 0.2
    seen = sizes[is_cropped]
    assert 0.7 <= seen.min() + 1e-4 < 0.73 and 0.97 < seen.max() <= 1
