"""Freezing: a frozen parameter has no gradient and no optimizer state, a frozen module no drifting statistics.

The original BiFusion froze by a learning rate of 0, under which batch statistics went on moving, and by `no_grad`
around the whole image branch, which froze the projection head too. Here freezing is `requires_grad`, named by module.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping

from torch import nn

from ..recipe.arguments import TrainingArguments


# The pretrained part of the image branch; the projection head beside it always trains.
TOWER = "model.encoder.image_encoder.vision_model"
FROZEN_EARLY_LAYERS = 3
# Children of transformers' towers: the list of blocks, and what is before the first block.
_BLOCK_LISTS = ("encoder.layers", "encoder.layer", "layers", "layer")
_EMBEDDINGS = ("embeddings", "embedder", "pre_layrnorm", "pre_layernorm")


def freeze_for_training(model: nn.Module, training: TrainingArguments) -> None:
    """Freezes what the model's configuration, `training.freeze` and `training.unfreeze_at` freeze at the start.

    Raises:
        ValueError: A name that the model has not.
    """
    freeze(model, [*frozen_prefixes(model), *training.freeze, *training.unfreeze_at])


def frozen_prefixes(model: nn.Module) -> list[str]:
    """Names of the modules that the model's configuration freezes.

    `freeze_tower_early_layers` is the first three blocks of the tower, counted through its stages where it has some;
    `freeze_tower_embeddings` its patch, position and class embedding with the norm behind them.

    Raises:
        ValueError: The configuration freezes a part that the tower does not have.
    """
    config = model.config
    if getattr(config, "vision_config", None) is None:
        return []
    tower = model.get_submodule(TOWER)
    prefixes = []
    if config.freeze_tower_embeddings:
        found = sorted(name for name, _ in tower.named_modules() if name.rpartition(".")[2] in _EMBEDDINGS)
        found = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
        if not found:
            raise ValueError(f"freeze_tower_embeddings: {type(tower).__name__} has none of {_EMBEDDINGS}")
        prefixes += found
    if config.freeze_tower_early_layers:
        prefixes += _early_parts(tower)
    return [f"{TOWER}.{name}" for name in prefixes]


def _early_parts(tower: nn.Module) -> list[str]:
    """The first three blocks of a tower, and what a stage does before its first block where that is one of them."""
    # In the order of the modules: that of a set would be another one in every process.
    names = [name for name, _ in tower.named_modules()]
    lists = [name for name in names for end in _BLOCK_LISTS if name == end or name.endswith(f".{end}")]
    if not lists:
        raise ValueError(f"freeze_tower_early_layers: {type(tower).__name__} has no list of blocks {_BLOCK_LISTS}")
    # Stages have a list each, of names that differ in the stage's number; blocks may have lists of their own.
    kinds = [re.sub(r"\d+", "*", name) for name in lists]
    outermost = min(kinds, key=len)
    parts, left = [], FROZEN_EARLY_LAYERS
    for blocks in dict.fromkeys(name for name, kind in zip(lists, kinds, strict=True) if kind == outermost):
        stage, _, own = blocks.rpartition(".")
        if left > 0 and stage.rpartition(".")[2].isdigit():
            others = {name: child for name, child in tower.get_submodule(stage).named_children() if name != own}
            parts += [f"{stage}.{name}" for name, child in others.items() if list(child.parameters())]
        depth = min(left, len(tower.get_submodule(blocks)))
        parts += [f"{blocks}.{index}" for index in range(depth)]
        left -= depth
    return parts


def freeze(model: nn.Module, prefixes: list[str]) -> int:
    """Stops the parameters of the named modules from training.

    Args:
        model: The network.
        prefixes: Names of modules or parameters.

    Returns:
        How many parameters (scalars) are frozen now.

    Raises:
        ValueError: A name that the model has not.
    """
    for prefix in prefixes:
        _set_requires_grad(model, prefix, False)
    return sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)


def unfreeze_due(model: nn.Module, schedule: Mapping[str, float], progress: float) -> list[str]:
    """Lets the modules train whose time has come.

    Args:
        model: The network.
        schedule: Module name prefix -> progress in [0, 1].
        progress: Finished updates / all updates.

    Returns:
        Names of the parameters that start to train now.
    """
    started = []
    for prefix, start in schedule.items():
        if progress >= start:
            started += _set_requires_grad(model, prefix, True)
    return started


def is_below(name: str, prefix: str) -> bool:
    """Whether a dotted name is `prefix` or lies below it."""
    return name == prefix or name.startswith(f"{prefix}.")


def _set_requires_grad(model: nn.Module, prefix: str, value: bool) -> list[str]:
    matching = [(name, parameter) for name, parameter in model.named_parameters() if is_below(name, prefix)]
    if not matching:
        raise ValueError(f"no parameter below {prefix!r}; the model's top modules: {_top_modules(model)}")
    changed = [name for name, parameter in matching if parameter.requires_grad != value]
    for _, parameter in matching:
        parameter.requires_grad_(value)
    return changed


def _top_modules(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name and name.count(".") <= 2]


def is_frozen(module: nn.Module) -> bool:
    """Whether a module has parameters and none of them trains."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def train_mode(model: nn.Module) -> nn.Module:
    """`model.train()`, but frozen modules stay in eval mode: no dropout, no update of batch statistics."""
    model.train()
    for module in model.modules():
        if is_frozen(module):
            module.eval()
    return model


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """`model.eval()` within the context, then the mode that each module had before."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes.items():
            module.training = training
