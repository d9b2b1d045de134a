"""Every field of the augmentation changes the sample, and the jitter of colours does what its names say."""

import dataclasses

import numpy as np
import pytest
from augmentation_off import only
from frame_factory import make_frame

from bifusion_hf.data.augmentation import AugmentationConfig, JointAugmentation
from bifusion_hf.data.distortion import LUMA
from bifusion_hf.processing_bifusion import BiFusionProcessor


# Field -> a value, another one, and what is on beside it.
CHANGES = {
    "flip_probability": (0.0, 1.0, {}),
    "rotation_range": (0.0, 1.0, {}),
    "scale_range": ((1.0, 1.0), (0.5, 0.6), {}),
    "translation_std": (0.0, 1.0, {}),
    "elastic_probability": (0.0, 1.0, {}),
    "elastic_granularity": ((6.0, 20.0), (12.0, 20.0), {"elastic_probability": 1.0}),
    "elastic_magnitude": ((40.0, 160.0), (80.0, 160.0), {"elastic_probability": 1.0}),
    "elastic_voxel_size": (0.02, 0.04, {"elastic_probability": 1.0}),
    "image_flip_probability": (0.0, 1.0, {}),
    "crop_probability": (0.0, 1.0, {}),
    "crop_scale": ((0.9, 0.9), (0.5, 0.5), {"crop_probability": 1.0}),
    "brightness": (0.0, 0.3, {}),
    "contrast": (0.0, 0.3, {}),
    "saturation": (0.0, 0.3, {}),
    "pose_dropout": (0.0, 1.0, {}),
    "depth_noise_probability": (0.0, 1.0, {}),
    "depth_noise": (0.005, 0.1, {"depth_noise_probability": 1.0}),
    "hole_probability": (0.0, 1.0, {}),
    "hole_share": (0.1, 0.6, {"hole_probability": 1.0}),
    "recolor_probability": (0.0, 1.0, {}),
    "recolor_share": (0.2, 1.0, {"recolor_probability": 1.0}),
    "tilt_probability": (0.0, 1.0, {}),
    "tilt_range": (0.1, 0.5, {"tilt_probability": 1.0}),
    "rescale_probability": (0.0, 1.0, {}),
    "rescale_range": ((0.5, 0.5), (2.0, 2.0), {"rescale_probability": 1.0}),
    "color_probability": (0.0, 1.0, {}),
    "color_cast": (0.0, 0.5, {"color_probability": 1.0}),
    "color_exposure": (0.0, 0.8, {"color_probability": 1.0}),
    "color_contrast": (0.0, 0.6, {"color_probability": 1.0}),
    "color_saturation": (0.0, 0.8, {"color_probability": 1.0}),
    "hue_probability": (0.0, 1.0, {"color_probability": 1.0}),
    "grey_probability": (0.0, 1.0, {"color_probability": 1.0}),
}


@pytest.fixture(scope="module")
def frame():
    return make_frame(60, 80, superpoints=np.arange(60 * 80).reshape(60, 80) // 100)


@pytest.fixture(scope="module")
def sample(frame):
    return BiFusionProcessor(num_points=500).prepare_frame(frame)


def observe(frame, sample, **options):
    """All that an augmentation makes of a frame and of a sample, by the same draws."""
    augmentation = JointAugmentation(only(**options))
    changed = augmentation.frame(frame, np.random.default_rng(3))
    made = augmentation(sample, np.random.default_rng(3))
    return [changed.image, changed.depth, changed.camera_to_world, *(made[name] for name in sorted(made))]


def test_every_field_is_looked_at():
    assert {field.name for field in dataclasses.fields(AugmentationConfig)} == set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_field_changes_the_sample(frame, sample, name):
    first, second, beside = CHANGES[name]
    before, after = (observe(frame, sample, **{**beside, name: value}) for value in (first, second))
    assert not all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def jittered(sample, name, seed):
    image = sample["image"] // 4 + 96  # far from black and white, where it would be cut
    options = only(**{name: 0.3})
    found = JointAugmentation(options).photometric({**sample, "image": image}, np.random.default_rng(seed))["image"]
    return image.astype(float), found.astype(float)


def slope(x, y):
    return (x * y).sum() / (x * x).sum()


def test_colour_jitter_does_what_its_names_say(sample):
    """Brightness scales all; contrast the distance from the mean grey; saturation that from each pixel's own grey."""
    before, _ = jittered(sample, "brightness", 0)
    mean = before.reshape(-1, 3).mean(0) @ LUMA
    for name, grey in {"brightness": 0.0, "contrast": mean, "saturation": (before @ LUMA)[..., None]}.items():
        factors = []
        for seed in range(6):
            _, after = jittered(sample, name, seed)
            factors.append(slope(before - grey, after - grey))
            assert np.abs(after - grey - factors[-1] * (before - grey)).max() <= 0.6, name
        assert 0.7 <= min(factors) < 0.9 and 1.1 < max(factors) <= 1.3, name
