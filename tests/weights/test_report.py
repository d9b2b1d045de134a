import torch
from torch import nn

from bifusion_hf.weights.report import WeightLoadReport, module_counts


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
