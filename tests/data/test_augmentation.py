import dataclasses

import numpy as np
import pytest
from augmentation_off import only
from frame_factory import make_frame

from bifusion_hf.data.alignment import alignment_error, sample_image
from bifusion_hf.data.augmentation import (
    AugmentationConfig,
    JointAugmentation,
    elastic_displacement,
    resize_image,
)
from bifusion_hf.data.dataset import FrameDataset
from bifusion_hf.processing_bifusion import BiFusionProcessor


@pytest.fixture(scope="module")
def sample():
    superpoints = np.arange(240 * 320).reshape(240, 320) // 1000
    return BiFusionProcessor(num_points=4000).prepare_frame(make_frame(240, 320, superpoints=superpoints))


def augment(sample, seed=0, **options):
    return JointAugmentation(only(**options))(sample, np.random.default_rng(seed))


def assert_image_axes_fit_the_points(sample):
    """The columns of camera_rotation point to where x, y of the image and the distance grow."""
    points, pixels = sample["points"].astype(np.float64), sample["point_pixels"].astype(np.float64)
    seen = sample["point_visible"]
    axes = sample["camera_rotation"].astype(np.float64)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    local = (points @ axes)[seen]
    # u z = fx x + (cx + 0.5) z up to the place of the camera, which the fit finds: u (z + c) is linear in x, z, 1.
    for axis in range(2):
        place = pixels[seen, axis]
        design = np.stack([local[:, axis], local[:, 2], np.ones(len(local)), -place], axis=1)
        solution, residual, *_ = np.linalg.lstsq(design, place * local[:, 2], rcond=None)
        assert solution[0] > 0
        assert np.sqrt(residual[0] / len(local)) < 1e-3


def test_all_off_changes_nothing(sample):
    same = augment(sample)
    assert all(np.array_equal(same[name], sample[name]) for name in sample)


def test_unaugmented_sample_fits(sample):
    assert_image_axes_fit_the_points(sample)


@pytest.mark.parametrize(
    "options",
    [
        {"flip_probability": 1.0},
        {"rotation_range": np.pi},
        {"scale_range": (0.8, 1.2)},
        {"translation_std": 0.1},
        {"tilt_probability": 1.0, "tilt_range": 0.7},
        {"rescale_probability": 1.0},
        {"image_flip_probability": 1.0},
        {"crop_probability": 1.0, "crop_scale": (0.5, 0.6)},
        {
            "flip_probability": 0.5,
            "rotation_range": np.pi,
            "scale_range": (0.8, 1.2),
            "translation_std": 0.1,
            "tilt_probability": 0.5,
            "rescale_probability": 0.5,
            "image_flip_probability": 0.5,
            "crop_probability": 0.5,
        },
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_camera_rotation_follows_and_points_keep_their_pixels(sample, options, seed):
    augmented = augment(sample, seed, **options)
    assert any(not np.array_equal(augmented[name], sample[name]) for name in ("points", "image"))
    assert_image_axes_fit_the_points(augmented)
    # Moving the points is exact; only a crop resamples the image.
    limit = 8 / 255 if "crop_probability" in options else 1e-6
    assert alignment_error(augmented) < limit


@pytest.mark.parametrize("seed", range(20))
def test_alignment_holds_under_everything(sample, seed):
    augmented = JointAugmentation().geometric(sample, np.random.default_rng(seed))
    limit = 2 / 255 if augmented["point_visible"].all() else 8 / 255
    assert alignment_error(augmented) < limit


@pytest.mark.parametrize("seed", range(4))
def test_alignment_holds_on_a_real_frame(real_frames, seed):
    from PIL import Image

    from bifusion_hf.data.inputs import frame_from_arrays

    frame = frame_from_arrays(
        Image.open(real_frames / "desk_1_color.png"),
        Image.open(real_frames / "desk_1_depth.png"),
        np.array([[520.9, 0, 325.1], [0, 521.0, 249.7], [0, 0, 1]]),
        depth_scale=5000,
        superpoints=np.zeros((480, 640), np.int32),
    )
    augmentation = JointAugmentation(AugmentationConfig(crop_probability=1.0, image_flip_probability=1.0))
    for size in (None, [240, 320]):
        sample = BiFusionProcessor(image_size=size).prepare_frame(frame)
        assert alignment_error(sample) < (2 if size is None else 8) / 255
        assert alignment_error(augmentation.geometric(sample, np.random.default_rng(seed))) < 8 / 255


def test_moving_the_points_leaves_the_image_side_alone(sample):
    augmented = augment(
        sample, flip_probability=1.0, rotation_range=1.0, scale_range=(1.1, 1.2), translation_std=0.1,
        elastic_probability=1.0,
    )  # fmt: skip
    for name in ("image", "point_pixels", "point_visible", "point_rgb", "superpoint_ids", "pixel_indices"):
        np.testing.assert_array_equal(augmented[name], sample[name])


def test_point_transforms_are_what_they_say(sample):
    points = sample["points"]
    flipped = augment(sample, flip_probability=1.0)["points"]
    np.testing.assert_allclose(flipped, points * [-1, -1, 1], atol=1e-6)
    turned = augment(sample, rotation_range=np.pi)["points"]
    np.testing.assert_allclose(turned[:, 2], points[:, 2], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(points, axis=1), atol=1e-5)
    assert np.abs(turned - points).max() > 0.1
    ratios = augment(sample, scale_range=(0.8, 1.2))["points"] / points
    assert 0.8 <= np.median(ratios) <= 1.2
    np.testing.assert_allclose(ratios, np.median(ratios), rtol=1e-3)
    shift = augment(sample, translation_std=0.1)["points"] - points
    np.testing.assert_allclose(shift, shift[:1].repeat(len(shift), 0), atol=1e-6)


def test_draws_follow_their_distributions(sample):
    few = {
        name: value[:50] if np.shape(value)[:1] == sample["points"].shape[:1] else value
        for name, value in sample.items()
    }
    runs = [augment(few, seed, rotation_range=np.pi, flip_probability=0.5) for seed in range(300)]
    turns = np.array([np.linalg.det(run["camera_rotation"]) for run in runs])
    # Mirroring along one axis, not both, changes the handedness: half of the runs.
    assert 0.4 < (turns < 0).mean() < 0.6
    moves = np.array([augment(few, seed, translation_std=0.1)["points"][0] - few["points"][0] for seed in range(300)])
    np.testing.assert_allclose(moves.std(axis=0), 0.1, rtol=0.2)


def test_image_flip_mirrors_image_and_pixels_together(sample):
    flipped = augment(sample, image_flip_probability=1.0)
    np.testing.assert_array_equal(flipped["image"], sample["image"][:, ::-1])
    np.testing.assert_allclose(flipped["point_pixels"], [1, 0] + sample["point_pixels"] * [-1, 1], atol=1e-7)
    np.testing.assert_array_equal(flipped["points"], sample["points"])
    back = augment(flipped, image_flip_probability=1.0)
    np.testing.assert_array_equal(back["image"], sample["image"])
    np.testing.assert_allclose(back["point_pixels"], sample["point_pixels"], atol=1e-6)
    np.testing.assert_array_equal(back["camera_rotation"], sample["camera_rotation"])


def test_crop_hides_what_it_cuts_off(sample):
    cropped = augment(sample, crop_probability=1.0, crop_scale=(0.6, 0.6))
    assert cropped["image"].shape == sample["image"].shape
    share = cropped["point_visible"].mean()
    assert 0.2 < share < 0.6
    assert (cropped["point_pixels"] >= 0).all()
    assert (cropped["point_pixels"] <= 1).all()
    seen = cropped["point_visible"]
    steps = np.ptp(cropped["point_pixels"][seen], axis=0) / np.ptp(sample["point_pixels"][seen], axis=0)
    np.testing.assert_allclose(steps, 1 / 0.6, rtol=1e-4)
    # What was not visible before does not become so.
    hidden = {**sample, "point_visible": np.arange(4000) < 2000}
    again = augment(hidden, crop_probability=1.0, crop_scale=(0.6, 0.6))
    np.testing.assert_array_equal(again["point_visible"], seen & (np.arange(4000) < 2000))


def test_crop_that_would_hide_all_points_is_not_made(sample):
    corner = {**sample, "point_visible": (sample["point_pixels"] < 0.05).all(axis=1)}
    assert corner["point_visible"].any()
    for seed in range(10):
        cropped = augment(corner, seed, crop_probability=1.0, crop_scale=(0.5, 0.5))
        assert cropped["point_visible"].any()


def test_colour_jitter_touches_the_image_only(sample):
    jittered = augment(sample, brightness=0.4, contrast=0.4, saturation=0.4)
    changed = [name for name in sample if not np.array_equal(sample[name], jittered[name])]
    assert changed == ["image"]
    assert jittered["image"].dtype == np.uint8
    darker = [augment(sample, seed, brightness=0.5)["image"].mean() / sample["image"].mean() for seed in range(40)]
    assert min(darker) < 0.7
    assert max(darker) > 1.2
    grey = np.repeat(np.arange(200, dtype=np.uint8).reshape(10, 20)[..., None], 3, axis=2)
    np.testing.assert_allclose(augment({**sample, "image": grey}, saturation=0.9)["image"], grey, atol=1)


def test_the_same_seed_gives_the_same_sample_and_leaves_the_first_alone(sample):
    before = {name: np.copy(value) for name, value in sample.items() if isinstance(value, np.ndarray)}
    first, second = (JointAugmentation()(sample, np.random.default_rng([1, 2, 3])) for _ in range(2))
    other = JointAugmentation()(sample, np.random.default_rng([1, 2, 4]))
    for name, value in before.items():
        np.testing.assert_array_equal(sample[name], value)
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].dtype == value.dtype and first[name].shape == value.shape
    assert not np.array_equal(first["points"], other["points"])


def test_elastic_field_is_smooth_and_of_the_stated_strength():
    rng = np.random.default_rng(0)
    points = rng.uniform(-1.9, 1.9, (3000, 3))
    cell, magnitude = 0.4, 3.2
    fields = [elastic_displacement(points, cell, magnitude, np.random.default_rng(seed)) for seed in range(20)]
    field = np.stack(fields)
    assert np.abs(field.mean()) < 0.05
    # Blurring white noise twice by 3x3x3 leaves sqrt((19 / 81)^3) of its strength, a little less between grid points.
    blurred = magnitude * (19 / 81) ** 1.5
    assert 0.7 * blurred < field.std() < blurred
    near = elastic_displacement(points + 0.01, cell, magnitude, np.random.default_rng(0))
    assert np.abs(near - fields[0]).max() < 0.1
    np.testing.assert_array_equal(fields[3], elastic_displacement(points, cell, magnitude, np.random.default_rng(3)))


def test_elastic_field_equals_trilinear_interpolation_of_its_grid():
    """At grid points values are those of twice blurred noise, halfway they are the means of the eight around."""
    axes = np.arange(-3, 2), np.arange(-1, 3), np.arange(-2, 3)
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(float)
    # Cells reach as far to one side as to the other, and beyond what lies farthest out.
    shape = (11, 9, 9)
    noise = np.random.default_rng(1).standard_normal((3, *shape))
    for _ in range(2):
        padded, noise = np.pad(noise, ((0, 0), (1, 1), (1, 1), (1, 1))), 0
        for i, j, k in np.ndindex(3, 3, 3):
            noise = noise + padded[:, i : i + shape[0], j : j + shape[1], k : k + shape[2]] / 27
    found = elastic_displacement(0.5 * points, 0.5, 1.0, np.random.default_rng(1))
    np.testing.assert_allclose(found, noise[:, 2:7, 3:7, 2:7].reshape(3, -1).T, atol=1e-12)
    # The last of these keeps the cloud as large as it is.
    halfway = np.array([[1.5, 2.5, 2.5], [-2.5, -0.5, 0.5], [-3.0, 0, 0]])
    found = elastic_displacement(halfway, 1.0, 2.0, np.random.default_rng(1))
    np.testing.assert_allclose(found[0], 2 * noise[:, 6:8, 6:8, 6:8].mean(axis=(1, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(found[1], 2 * noise[:, 2:4, 3:5, 4:6].mean(axis=(1, 2, 3)), atol=1e-12)


def test_resize_is_antialiased_and_cuts_by_pixel_edges():
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    assert resize_image(ramp, (32, 64)) is ramp
    half = resize_image(ramp, (16, 32))
    np.testing.assert_allclose(half[8, 4:-4, 0], np.arange(32)[4:-4] * 2 + 0.5, atol=1)
    part = resize_image(ramp, (32, 64), (16, 8, 48, 24))
    pixels = np.stack([np.linspace(0.3, 0.7, 9), np.full(9, 0.5)], axis=1)
    np.testing.assert_allclose(sample_image(part, (pixels - 0.25) / 0.5), sample_image(ramp, pixels), atol=0.6)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    assert resize_image(noise, (16, 16)).std() < 10


def test_samples_without_an_image_are_augmented_too(sample):
    bare = {name: value for name, value in sample.items() if name != "image"}
    augmented = JointAugmentation()(bare, np.random.default_rng(0))
    assert not np.array_equal(augmented["points"], bare["points"])
    np.testing.assert_array_equal(augmented["point_pixels"], bare["point_pixels"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flip_probability", 1.5),
        ("crop_scale", (0.9, 1.1)),
        ("scale_range", (1.2, 0.8)),
        ("brightness", 1.0),
        ("rotation_range", -1.0),
        ("elastic_granularity", (6.0,)),
        ("pose_dropout", -0.1),
        ("recolor_share", 1.2),
        ("rescale_range", (0.0, 2.0)),
        ("hole_share", 1.0),
        ("color_cast", -1.0),
        ("elastic_voxel_size", 0.0),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"AugmentationConfig: {name} is"):
        AugmentationConfig(**{name: value})


def test_defaults_are_those_of_the_baseline():
    config = AugmentationConfig()
    assert (
        dataclasses.asdict(config).items()
        >= {
            "flip_probability": 0.5,
            "rotation_range": np.pi,
            "scale_range": (0.8, 1.2),
            "translation_std": 0.1,
            "elastic_probability": 0.5,
            "elastic_granularity": (6.0, 20.0),
            "elastic_magnitude": (40.0, 160.0),
            "elastic_voxel_size": 0.02,
        }.items()
    )


# What the version before the parts below gave for `test_what_is_off_draws_nothing`.
POINT_SUM, IMAGE_SUM, NEXT_DRAW = [931.8625, -1186.0568, -504.1726], 25837689, 290950323
NEW_PARTS = {
    "pose_dropout": 1.0,
    "depth_noise_probability": 1.0,
    "hole_probability": 1.0,
    "recolor_probability": 1.0,
    "tilt_probability": 1.0,
    "rescale_probability": 1.0,
    "color_probability": 1.0,
}


def test_what_is_off_draws_nothing(sample):
    """Recipes from before these parts existed keep every draw: the numbers were taken from that version."""
    rng = np.random.default_rng(5)
    frame = make_frame()
    augmentation = JointAugmentation()
    assert augmentation.frame(frame, rng) is frame
    augmented = augmentation(sample, rng)
    np.testing.assert_allclose(augmented["points"].sum(axis=0), POINT_SUM, rtol=1e-4)
    assert int(augmented["image"].astype(np.int64).sum()) == IMAGE_SUM
    assert int(rng.integers(2**32)) == NEXT_DRAW


def test_every_part_changes_what_it_is_about(sample):
    frame = make_frame(120, 160)
    frame_parts = {
        "pose_dropout": "camera_to_world",
        "depth_noise_probability": "depth",
        "hole_probability": "depth",
        "recolor_probability": "image",
    }
    for name, part in frame_parts.items():
        options = only(**{name: 1.0})
        changed = JointAugmentation(options).frame(frame, np.random.default_rng(0))
        different = [
            field.name
            for field in dataclasses.fields(frame)
            if not np.array_equal(getattr(changed, field.name), getattr(frame, field.name))
        ]
        assert different == [part], name
    assert frame.camera_to_world is not None


def test_a_tilt_turns_up_by_at_most_its_range(sample):
    angles = []
    for seed in range(40):
        augmented = augment(sample, seed, tilt_probability=1.0, tilt_range=0.5)
        turned = augmented["camera_rotation"] @ sample["camera_rotation"].T
        assert np.linalg.det(turned) == pytest.approx(1, abs=1e-5)
        angles.append(np.arccos(np.clip(turned[2, 2], -1, 1)))
        # Vertical goes to the side that the axis asks for, but nothing turns about the vertical.
        assert turned[0, 1] == pytest.approx(turned[1, 0], abs=1e-5)
    assert 0.4 < max(angles) <= 0.5 and min(angles) < 0.1
    by_default = [augment(sample, seed, tilt_probability=1.0)["camera_rotation"] for seed in range(60)]
    angles = np.degrees(np.arccos([(turned @ sample["camera_rotation"].T)[2, 2] for turned in by_default]))
    assert 28 < max(angles) <= 30


def test_rescaling_is_uniform_in_the_logarithm(sample):
    spread = sample["points"].std()
    options = {"rescale_probability": 1.0, "rescale_range": (0.25, 4.0)}
    factors = np.array([augment(sample, seed, **options)["points"].std() / spread for seed in range(200)])
    assert factors.min() > 0.249 and factors.max() < 4.01
    assert 0.35 < (factors < 1).mean() < 0.65
    by_default = [augment(sample, seed, rescale_probability=1.0)["points"].std() / spread for seed in range(60)]
    assert 0.33 < min(by_default) < 0.4 and 1.7 < max(by_default) < 2.01


@pytest.mark.parametrize("seed", range(6))
def test_image_and_points_are_coloured_together(sample, seed):
    augmented = augment(sample, seed, color_probability=1.0, hue_probability=0.5, grey_probability=0.3)
    assert np.abs(augmented["image"].astype(int) - sample["image"]).mean() > 2
    assert np.abs(augmented["point_rgb"].astype(int) - sample["point_rgb"]).mean() > 2
    # The points of a frame at its native size have the colours of their pixels, whatever these are now.
    assert alignment_error(augmented) < 1e-6
    np.testing.assert_array_equal(augmented["points"], sample["points"])


def test_a_frame_with_everything_on_is_prepared_and_aligned():
    frame = make_frame(120, 160, superpoints=np.arange(120 * 160).reshape(120, 160) // 300)
    options = only(**NEW_PARTS)
    processor = BiFusionProcessor(num_points=2000)
    frames = FrameDataset([frame], processor, training=True, augmentation=JointAugmentation(options), seed=1)
    first, again = (frames[3, 0] for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    # It is measured before colours change; afterwards it holds as well, since they change together.
    assert first["alignment_error"] < 1e-6 and alignment_error(first) < 1e-6
    assert len(first["class_labels"]) > 0
    assert_image_axes_fit_the_points(first)
