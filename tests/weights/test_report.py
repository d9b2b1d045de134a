import pytest
import torch
from torch import nn

from bifusion_hf.weights.report import WeightLoadReport, assign, module_counts


def test_tensors_and_parameters_of_each_module_are_counted():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)))
    loaded = {"0.weight": torch.zeros(3, 2), "1.0.weight": torch.zeros(3), "1.0.running_mean": torch.zeros(3)}
    # Of tensors loaded, of all tensors, and of numbers loaded that train; statistics are none.
    assert module_counts(model, loaded) == {"0": (1, 2, 6), "1.0": (2, 5, 3), "1.1": (0, 2, 0)}
    assert module_counts(model, loaded, depth=1) == {"0": (1, 2, 6), "1": (2, 7, 3)}


def test_the_table_has_a_column_as_wide_as_the_longest_name():
    report = WeightLoadReport("weights.bin", loaded=["a"], modules={"encoder.point": (1, 2, 1234), "head": (0, 3, 0)})
    header, first, second, *_ = report.table().splitlines()
    assert header.startswith("module         tensors loaded") and second.startswith("head           ")
    assert first.split() == ["encoder.point", "1", "of", "2", "1,234"] and len(first) == len(second) == len(header)
    assert WeightLoadReport("weights.bin").table().startswith("module  tensors loaded")
    report = WeightLoadReport("w", ["a"], ["b"], ["c", "d"], [("e", (1, 2), "f", (3,))], notes=["look"])
    assert str(report).splitlines()[1:] == [
        "1 tensors of w loaded, 2 not used, 1 of another shape; 1 tensors of the model stay as they were",
        "another shape: e [1, 2] for f [3]",
        "note: look",
    ]


def test_modules_are_told_apart_by_three_parts_and_progress_is_none_of_them():
    inner = nn.ModuleDict({"c": nn.ModuleDict({"d": nn.Linear(2, 1)})})
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": inner})})
    model.scale = nn.Parameter(torch.zeros(4))
    model.register_buffer("training_update", torch.zeros(1))
    loaded = {"scale": torch.zeros(4), "a.b.c.d.weight": torch.zeros(1, 2)}
    assert module_counts(model, loaded) == {"scale": (1, 1, 4), "a.b.c": (1, 2, 2)}


def test_all_tensors_are_copied_or_none():
    model = nn.BatchNorm1d(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    good = {"weight": torch.full((3,), 5.0)}
    with pytest.raises(ValueError, match=r"^the model has no tensor gamma$"):
        assign(model, {**good, "gamma": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"^bias has shape \(3,\), the tensor \(1,\)$"):
        assign(model, {**good, "bias": torch.zeros(1)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assign(model, {**good, "running_mean": torch.tensor([1.0, 2.0, 3.0])})
    assert model.weight.tolist() == [5, 5, 5] and model.running_mean.tolist() == [1, 2, 3]
    assert model.weight.requires_grad and model.bias.tolist() == [0, 0, 0]
