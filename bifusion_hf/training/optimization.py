"""AdamW's parameter groups and the learning rate schedule."""

from collections.abc import Sequence

import torch
from torch import nn

from ..recipe.arguments import OptimizerArguments
from .freezing import TOWER, is_below


def parameter_groups(model: nn.Module, arguments: OptimizerArguments, later: Sequence[str] = ()) -> list[dict]:
    """Groups of the trainable parameters, in a fixed order.

    Frozen parameters are left out, so that they get no optimizer state and no weight decay. Those that are to start
    later are listed from the beginning, so that a resumed run finds the same groups; AdamW passes over parameters
    without gradient, and gives them no state.

    Args:
        model: The network, after freezing.
        arguments: Learning rate, the tower's factor and the weight decay.
        later: Prefixes of frozen parameters that will be unfrozen during the run.

    Returns:
        Up to four dicts with `name`, `params`, `parameter_names`, `lr` and `weight_decay`.

    Raises:
        ValueError: Nothing is trainable.
    """
    groups = {
        f"{part}{suffix}": {"params": [], "parameter_names": [], "lr": rate, "weight_decay": decay}
        for part, rate in (
            ("main", arguments.learning_rate),
            ("tower", arguments.learning_rate * arguments.tower_learning_rate_scale),
        )
        for suffix, decay in (("", arguments.weight_decay), ("_no_decay", 0.0))
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or any(is_below(name, prefix) for prefix in later):
            group = groups[group_name(name, parameter)]
            group["params"].append(parameter)
            group["parameter_names"].append(name)
    filled = [{"name": name, **group} for name, group in groups.items() if group["params"]]
    if not filled:
        raise ValueError("the model has no trainable parameter: everything is frozen")
    return filled


def group_name(name: str, parameter: nn.Parameter) -> str:
    """Group that a parameter belongs to.

    Norm weights, biases, scales and frequencies are the tensors of at most one dimension: decay would pull a norm's
    scale to 0, which is not a simpler network.
    """
    part = "tower" if is_below(name, TOWER) else "main"
    return part if parameter.ndim > 1 else f"{part}_no_decay"


def build_optimizer(model: nn.Module, arguments: OptimizerArguments, later: Sequence[str] = ()) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`."""
    groups = [
        {key: value for key, value in group.items() if key != "parameter_names"}
        for group in parameter_groups(model, arguments, later)
    ]
    return torch.optim.AdamW(groups, betas=arguments.betas, eps=arguments.epsilon)


def learning_rate_factor(update: int, total: int, arguments: OptimizerArguments) -> float:
    """Factor on the learning rate of the update that follows `update` finished ones.

    `"poly"` is (1 - update / total) ** power, the schedule of ESAM and OneFormer3D counted in updates.
    """
    factor = 1.0
    if arguments.schedule == "poly":
        factor = (1 - min(update, total) / total) ** arguments.power
    if update < arguments.warmup_updates:
        factor *= (update + 1) / (arguments.warmup_updates + 1)
    return factor


def build_scheduler(
    optimizer: torch.optim.Optimizer, total: int, arguments: OptimizerArguments
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule, stepped once after every optimizer update."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: learning_rate_factor(update, total, arguments))
