"""Weights of image towers other than CLIP as transformers stores them: DINOv2, DINOv3, SigLIP, ResNet, ..."""

from pathlib import Path

from torch import nn
from transformers import CLIPVisionConfig

from ..configuration_bifusion import tower_depth, tower_width
from ..io.hub_files import verify_pulled_weights
from ..modeling_bifusion import BiFusionForInstanceSegmentation, BiFusionModel
from .report import WeightLoadReport, assign, module_counts


# What changes a tower's outputs and no tensor's shape; the names are those of transformers' configurations.
UNSEEN_SETTINGS = (
    "hidden_act",
    "num_attention_heads",
    "layer_norm_eps",
    "patch_size",
    "rope_theta",
    "downsample_in_first_stage",
    "downsample_in_bottleneck",
)


def image_tower(model: nn.Module) -> tuple[nn.Module, str]:
    """The image tower of a model, and what stands before its names there.

    Raises:
        ValueError: The model is none of this package, or has no image branch.
    """
    if not isinstance(model, (BiFusionForInstanceSegmentation, BiFusionModel)):
        raise ValueError(
            f"model is a {type(model).__name__}; expected BiFusionForInstanceSegmentation or BiFusionModel"
        )
    if model.config.vision_config is None:
        raise ValueError(f"the model has no image branch (fusion_type {model.config.fusion_type!r})")
    place = "encoder.image_encoder.vision_model."
    prefix = "" if isinstance(model, BiFusionModel) else f"{model.base_model_prefix}."
    return model.base_model.encoder.image_encoder.vision_model, prefix + place


def load_vision_weights(model: nn.Module, source: str | Path, *, revision: str | None = None) -> WeightLoadReport:
    """Loads an image tower that transformers can load into a model's image branch.

    Every tensor of the configured blocks must be there, with the same shape. Later blocks, or stages of a
    convolutional tower, and parts that the branch does not have (head, mask token) are not used. Nothing is changed if
    an error is raised.

    Args:
        model: A `BiFusionForInstanceSegmentation` or `BiFusionModel` whose tower is not CLIP's.
        source: Folder or Hub id of a checkpoint for the class of the tower, for instance `"facebook/dinov2-small"`
            where `vision_config` is of type `dinov2`.
        revision: Of the repository.

    Returns:
        The report. It covers the image tower; `missing` is therefore empty.

    Raises:
        ValueError: The model has no such tower; the source holds none of its type, or one of another width, patch,
            grid of positions, activation, number of heads or epsilon, other stages, or fewer blocks; or the download
            is not what
            the Hub promised.
        OSError: The source cannot be found, reached or read.
    """
    tower, place = image_tower(model)
    config = tower.config
    if config.model_type == CLIPVisionConfig.model_type:
        raise ValueError("the model's image tower is CLIP's: load_clip_weights (init.clip in a recipe) fills it")
    try:
        published, loading = type(tower).from_pretrained(
            source, revision=revision, output_loading_info=True, disable_mmap=True
        )
    finally:
        verify_pulled_weights(source, revision)
    state, targets = published.state_dict(), tower.state_dict()
    # What the source does not hold has a random start in `published`.
    absent = set(loading["missing_keys"])
    report = WeightLoadReport(str(source))
    problems = [
        f"{name} is {getattr(published.config, name, None)}, the model's vision_config has {getattr(config, name)}"
        for name in UNSEEN_SETTINGS
        if hasattr(config, name) and getattr(published.config, name, None) != getattr(config, name)
    ]
    depths, wanted = (list(getattr(c, "depths", [])) for c in (published.config, config))
    if depths[: len(wanted)] != wanted:
        problems.append(f"depths is {depths}, the model's vision_config has {wanted}")
    for name, target in targets.items():
        if name not in state or name in absent:
            problems.append(f"{name} is missing")
        elif state[name].shape != target.shape:
            problems.append(f"{name} has shape {list(state[name].shape)}, the tower's {list(target.shape)}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"{source}: the checkpoint does not fit the image tower ({config.model_type}, "
            f"{tower_depth(config)} blocks, width {tower_width(config)}, image_size "
            f"{getattr(config, 'image_size', None)}): {'; '.join(problems[:5])}{more}. Nothing was loaded"
        )
    tensors = {name: state[name] for name in targets}
    report.loaded = list(tensors)
    report.unexpected = [name for name in state if name not in targets] + sorted(loading["unexpected_keys"])
    assign(tower, tensors)
    depth = tower_depth(published.config)
    if depth > tower_depth(config):
        report.notes.append(f"the first {tower_depth(config)} of {depth} blocks are loaded, as configured")
    report.modules = {place + name: counts for name, counts in module_counts(tower, tensors).items()}
    return report
