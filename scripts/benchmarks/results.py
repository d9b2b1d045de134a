"""Measured results of checkpoints, from the JSON files of `bifusion-evaluate`, as a table for the README."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bifusion_hf.evaluation.results import load_results

from .parameters import update_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `benchmark.py results`."""
    parser.add_argument("files", type=Path, nargs="+", help="JSON files of bifusion-evaluate")
    parser.add_argument("--update", type=Path, nargs="+", default=(), metavar="FILE", help="fill in the table there")


def format_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Class-agnostic AP in percent, with what it was measured on, as Markdown."""
    lines = [
        "| data | frames | points a frame | instances | AP | AP50 | AP25 |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        protocol, scores = result["protocol"], result["class_agnostic"]
        cells = [f"`{protocol['data']}`, {protocol['split']}", protocol["num_frames"], protocol["points_per_frame"]]
        cells.append(scores["num_instances"])
        cells += [f"{100 * scores[name]:.1f}" for name in ("all_ap", "all_ap_50%", "all_ap_25%")]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> str:
    """Prints the table and writes it where `--update` says."""
    table = format_table([load_results(path) for path in args.files])
    print(table)
    for path in args.update:
        update_file(path, "results", table)
    return table
