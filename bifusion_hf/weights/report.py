"""What was loaded from a foreign checkpoint, and what was not."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn


@dataclass
class WeightLoadReport:
    """Outcome of loading a checkpoint of another layout.

    Args:
        source: Where the checkpoint came from.
        loaded: Its tensors that were loaded.
        missing: Tensors of the model that got nothing and stay as they were.
        unexpected: Tensors of the checkpoint that were not used.
        mismatched: (tensor of the checkpoint, its shape, tensor of the model, its shape): not loaded.
        modules: Module of the model -> (tensors loaded, tensors in all, numbers loaded).
        notes: What a reader should know.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], str, tuple[int, ...]]] = field(default_factory=list)
    modules: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def table(self) -> str:
        """One line for each module, and what was left out."""
        width = max([len(name) for name in self.modules] + [len("module")])
        lines = [f"{'module':{width}}  tensors loaded  parameters"]
        for name, (loaded, total, numbers) in self.modules.items():
            lines.append(f"{name:{width}}  {f'{loaded} of {total}':>14}  {numbers:>10,}")
        lines.append(
            f"{len(self.loaded)} tensors of {self.source} loaded, {len(self.unexpected)} not used, "
            f"{len(self.mismatched)} of another shape; {len(self.missing)} tensors of the model stay as they were"
        )
        lines += [f"another shape: {a} {list(b)} for {c} {list(d)}" for a, b, c, d in self.mismatched]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    __str__ = table

    def save(self, path: str | Path) -> None:
        """Writes the report as JSON."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")


def module_counts(model: nn.Module, loaded: Mapping[str, torch.Tensor], depth: int = 3) -> dict:
    """`WeightLoadReport.modules`: tensors of each module, named by the first `depth` parts of their names.

    Args:
        model: The model.
        loaded: Tensors by their names in the model.
        depth: How deep modules are told apart.
    """
    counts: dict[str, tuple[int, int, int]] = {}
    parameters = {name for name, _ in model.named_parameters()}
    for name in model.state_dict():
        if name.rpartition(".")[2].startswith("training_"):
            continue  # progress of training, which no checkpoint of another project has
        module = ".".join(name.split(".")[:-1][:depth]) or name
        done, total, numbers = counts.get(module, (0, 0, 0))
        if name in loaded:
            done += 1
            numbers += loaded[name].numel() if name in parameters else 0
        counts[module] = (done, total + 1, numbers)
    return counts


@torch.no_grad()
def assign(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies tensors into the model, all or none.

    Args:
        model: The model.
        tensors: By their names in the model.

    Raises:
        ValueError: A name or a shape does not fit; nothing has been copied then.
    """
    targets = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        if name not in targets:
            raise ValueError(f"the model has no tensor {name}")
        if targets[name].shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(targets[name].shape)}, the tensor {tuple(tensor.shape)}")
    for name, tensor in tensors.items():
        targets[name].copy_(tensor)
