"""A small checkpoint, results and a release, for the tests of releases."""

import torch

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.hub.model_card import DataDescription
from bifusion_hf.recipe.reading import load_arguments


RESULTS = {
    "class_agnostic": {
        "all_ap": 0.315,
        "all_ap_50%": 0.52,
        "all_ap_25%": 0.71,
        "num_instances": 345,
    },
    "protocol": {"checkpoint": "/home/me/runs/best", "data": "/home/me/rooms", "split": "val", "min_points": 4.5},
}
TRAINING_DATA = DataDescription("Rooms", "cc0-1.0", "org/rooms")
EVALUATION_DATA = DataDescription("Kitchens", "cc-by-4.0")


def small_model(**overrides) -> BiFusionForInstanceSegmentation:
    torch.manual_seed(0)
    point_config = {"stem_channels": 8, "planes": [8] * 8, "blocks": [1] * 8}
    values = {"point_config": point_config, "hidden_size": 8, **overrides}
    return BiFusionForInstanceSegmentation(BiFusionConfig.from_preset("tiny", **values))


def save_checkpoint(folder):
    """A run's folder: `best` with model and processor, and the recipe beside it."""
    model = small_model()
    model.save_pretrained(folder / "best")
    BiFusionProcessor.from_preset("tiny", model.config, num_points=900).save_pretrained(folder / "best")
    recipe(folder).save(folder / "recipe.yaml")
    return folder / "best"


def recipe(folder):
    """One that names folders of the machine that trained."""
    return load_arguments(
        "tiny",
        ["--data.train", "/home/me/rooms", "--data.val", "/home/me/rooms", "--output_dir", f"{folder}/outputs"],
    )
