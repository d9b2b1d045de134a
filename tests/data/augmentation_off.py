"""An augmentation of a few parts alone."""

from bifusion_hf.data.augmentation import AugmentationConfig


# What is on by default.
OFF = {
    "flip_probability": 0.0,
    "rotation_range": 0.0,
    "scale_range": (1.0, 1.0),
    "translation_std": 0.0,
    "elastic_probability": 0.0,
    "image_flip_probability": 0.0,
    "crop_probability": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
}


def only(**options) -> AugmentationConfig:
    """Everything off but what is named."""
    return AugmentationConfig(**{**OFF, **options})
