"""The names of release 0.1, and where their values live now.

In 0.1 the settings of the losses, and those of the processor, were fields of the network's configuration, and names
began with `clip_` that hold for any image tower. `config.json` files, recipes, results and code with those names are
still read. A value that is given under both its names is refused.
"""

from collections.abc import Mapping
from typing import Any


# Fields that moved into `loss_config` as they are.
_LOSS_FIELDS = (
    "no_object_weight",
    "class_weight",
    "mask_weight",
    "dice_weight",
    "semantic_weight",
    "image_semantic_weight",
    "spatial_loss_weight",
    "noview_loss_weight",
    "noview_similarity_threshold",
    "balance_loss_weight",
    "balance_target",
    "stage_schedule",
)
# clip_NAME that became `loss_config.consistency_NAME`.
_CONSISTENCY_FIELDS = (
    "loss_weight",
    "loss_mode",
    "temperature",
    "gradient_flow_ratio",
    "negatives_across_batch",
    "coverage_gate",
    "coverage_threshold",
    "warmup",
)
# Field of 0.1 -> where its value lives in the configuration.
MOVED_FIELDS: Mapping[str, str] = {
    **{name: f"loss_config.{name}" for name in _LOSS_FIELDS},
    **{f"clip_{name}": f"loss_config.consistency_{name}" for name in _CONSISTENCY_FIELDS},
    "freeze_clip_early_layers": "freeze_tower_early_layers",
    "freeze_clip_patch_embedding": "freeze_tower_embeddings",
}
# Fields of 0.1 that the processor has, under the same names.
PROCESSOR_FIELDS = ("image_size", "image_mean", "image_std", "num_points", "mask_threshold", "max_instances")
# A field of 0.1 that nothing read.
UNUSED_FIELDS = ("score_threshold",)
# Where recipes keep the two kinds.
_CONFIG, _PROCESSOR = "model.config.", "model.processor."


def rename_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a network's configuration under today's names; those of the losses go into `loss_config`.

    Args:
        values: By the names of today or of 0.1; is not changed.

    Raises:
        ValueError: A value is given under both its names.
    """
    renamed = {name: value for name, value in values.items() if name not in MOVED_FIELDS}
    for old in values.keys() & MOVED_FIELDS.keys():
        section, _, name = MOVED_FIELDS[old].rpartition(".")
        target = renamed
        if section:
            given = renamed.get(section) or {}
            target = renamed[section] = dict(given if isinstance(given, Mapping) else given.to_dict())
        if name in target:
            raise ValueError(f"{old} is the old name of {MOVED_FIELDS[old]}, and both are given; expected the new one")
        target[name] = values[old]
    return renamed


def rename_key(key: str) -> str:
    """A dotted key of a recipe under today's name: `model.config.num_points` is `model.processor.num_points` now."""
    field = key.removeprefix(_CONFIG)
    if field == key:
        return key
    return f"{_PROCESSOR}{field}" if field in PROCESSOR_FIELDS else f"{_CONFIG}{MOVED_FIELDS.get(field, field)}"


def rename_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe, section by section, under today's names.

    Raises:
        ValueError: A value is given under both its names.
    """
    model = recipe.get("model")
    config = model.get("config") if isinstance(model, Mapping) else None
    if not isinstance(config, Mapping):
        return dict(recipe)
    of_processor = {name: value for name, value in config.items() if name in PROCESSOR_FIELDS}
    processor = model.get("processor") or {}
    for name in of_processor:
        if name in processor:
            raise ValueError(
                f"{_CONFIG}{name} is the old name of {_PROCESSOR}{name}, and both are given; expected the new one"
            )
    fields = rename_fields({name: value for name, value in config.items() if name not in PROCESSOR_FIELDS})
    model = {**model, "config": fields}
    if of_processor:
        model["processor"] = {**processor, **of_processor}
    return {**recipe, "model": model}
