"""Parameters of every preset, part by part, as a table for the README."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bifusion_hf.configuration_bifusion import BiFusionConfig
from bifusion_hf.modeling_bifusion import BiFusionForInstanceSegmentation
from bifusion_hf.presets import PRESETS
from bifusion_hf.training.freezing import freeze, frozen_prefixes


# Column -> modules of the network; a preset may be without some.
PARTS = {
    "point branch": ("model.encoder.point_encoder", "model.encoder.tiny_sa_3d"),
    "image tower": ("model.encoder.image_encoder.vision_model", "model.encoder.tiny_sa_2d"),
    "projections": (
        "model.encoder.image_encoder.projection",
        "model.encoder.point_projection",
        "model.encoder.point_projection_norm",
    ),
    "fusion block": ("model.encoder.fusion", "model.encoder.film", "model.encoder.geometric_encoding"),
    "pooling": ("model.superpoint_pooling",),
    "decoder": ("decoder",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `benchmark.py parameters`."""
    parser.add_argument("--update", type=Path, nargs="+", default=(), metavar="FILE", help="fill in the table there")
    parser.add_argument("--output", type=Path, help="write the numbers there as JSON")


def count_parameters(preset: str) -> dict[str, int]:
    """Parameters of a preset: of each part, of all, and of what trains.

    Raises:
        RuntimeError: A parameter belongs to no part, or to several.
    """
    # Shapes alone, no memory.
    with torch.device("meta"):
        model = BiFusionForInstanceSegmentation(BiFusionConfig.from_preset(preset))
    counts = {part: sum(_count(model, name) for name in names) for part, names in PARTS.items()}
    counts["all"] = sum(parameter.numel() for parameter in model.parameters())
    if sum(counts[part] for part in PARTS) != counts["all"]:
        raise RuntimeError(f"the parts of {preset} hold {counts}; expected each parameter in one of them")
    counts["trained"] = counts["all"] - freeze(model, frozen_prefixes(model))
    return counts


def _count(model: nn.Module, name: str) -> int:
    module: Any = model
    for part in name.split("."):
        module = getattr(module, part, None)
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def format_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """The counts of `count_parameters` by preset, as Markdown."""
    columns = ["all", "trained", *PARTS]
    lines = [f"| preset | {' | '.join(columns)} | float32 file |", "|---" * (len(columns) + 2) + "|"]
    for preset, values in counts.items():
        cells = [f"{values[column]:,}" if values[column] else "–" for column in columns]
        lines.append(f"| `{preset}` | {' | '.join(cells)} | {4e-6 * values['all']:.1f} MB |")
    return "\n".join(lines)


def update_file(path: Path, name: str, table: str) -> None:
    """Puts a table between the marker comments `<!-- NAME:begin -->` and `<!-- NAME:end -->` of a file.

    Raises:
        ValueError: The file has not exactly one of each marker, in this order.
    """
    first, last = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not end or first in rest or last in before + after:
        raise ValueError(f"{path}: expected one {first} and after it one {last}")
    path.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


def run(args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Counts, prints the table and writes it where `--update` and `--output` say."""
    counts = {preset: count_parameters(preset) for preset in PRESETS}
    table = format_table(counts)
    print(table)
    for path in args.update:
        update_file(path, "parameters", table)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    return counts
