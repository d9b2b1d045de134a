import pytest
import torch
from torch import nn

from bifusion_hf.recipe.arguments import OptimizerArguments
from bifusion_hf.training.freezing import TOWER
from bifusion_hf.training.optimization import (
    build_optimizer,
    build_scheduler,
    group_name,
    learning_rate_factor,
    parameter_groups,
)


def test_groups_split_by_tower_and_dimension():
    matrix, vector, scalar = (nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,), ()))
    assert group_name("decoder.out.weight", matrix) == "main"
    assert group_name("decoder.norm.weight", vector) == "main_no_decay"
    assert group_name("model.encoder.fusion.scale", scalar) == "main_no_decay"
    assert group_name(f"{TOWER}.layers.0.fc1.weight", matrix) == "tower"
    assert group_name(f"{TOWER}.layers.0.fc1.bias", vector) == "tower_no_decay"
    # The projection head is beside the tower, and trains at the full rate.
    assert group_name("model.encoder.image_encoder.projection.out.weight", matrix) == "main"


def test_groups_hold_each_trainable_parameter_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    groups = parameter_groups(model, OptimizerArguments())
    assert {group["name"]: group["parameter_names"] for group in groups} == {
        "main": ["2.weight"],
        "main_no_decay": ["1.weight", "1.bias", "2.bias"],
    }
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    later = parameter_groups(model, OptimizerArguments(), later=["0"])
    assert sum(len(group["params"]) for group in later) == 6
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(model, OptimizerArguments())


def test_frozen_parameters_listed_for_later_get_no_state_and_no_decay():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = build_optimizer(model, OptimizerArguments(), later=["0"])
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert not any(parameter in optimizer.state for parameter in model[0].parameters())


def test_the_optimizer_has_the_numbers_of_the_recipe():
    arguments = OptimizerArguments(learning_rate=0.03, betas=(0.7, 0.8), epsilon=1e-3, weight_decay=0.2)
    (group, plain) = build_optimizer(nn.Linear(2, 2), arguments).param_groups
    found = [group[name] for name in ("lr", "betas", "eps", "weight_decay")]
    assert found == [0.03, (0.7, 0.8), 1e-3, 0.2] and plain["weight_decay"] == 0


def test_poly_schedule_counts_updates():
    arguments = OptimizerArguments(warmup_updates=0)
    for update in (0, 10, 99):
        assert learning_rate_factor(update, 100, arguments) == pytest.approx((1 - update / 100) ** 0.9)
    assert learning_rate_factor(100, 100, arguments) == learning_rate_factor(101, 100, arguments) == 0
    warm = OptimizerArguments(schedule="constant", warmup_updates=4)
    assert [learning_rate_factor(update, 100, warm) for update in range(6)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1]
    )


def test_scheduler_keeps_the_ratio_of_the_groups():
    model = nn.Module()
    model.model = nn.Module()
    model.model.encoder = nn.Module()
    model.model.encoder.image_encoder = nn.Module()
    model.model.encoder.image_encoder.vision_model = nn.Linear(2, 2)
    model.decoder = nn.Linear(2, 2)
    optimizer = build_optimizer(model, OptimizerArguments())
    # A checkpoint knows them by their places.
    names = [group["name"] for group in optimizer.param_groups]
    assert names == ["main", "main_no_decay", "tower", "tower_no_decay"]
    scheduler = build_scheduler(optimizer, 10, OptimizerArguments())
    for update in range(10):
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert rates["main"] == pytest.approx(1e-4 * (1 - update / 10) ** 0.9)
        assert rates["tower"] == pytest.approx(0.1 * rates["main"])
        optimizer.step()
        scheduler.step()
