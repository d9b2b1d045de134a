"""Where the time of a training run goes: waiting for data, the network, and the loop's own overhead."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bifusion_hf.training.metrics import METRICS_FILE, OWN_PARTS, read_metrics


PARTS = ("data", "compute", "overhead")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `benchmark.py training`."""
    parser.add_argument("--recipe", default="tiny", help="a recipe of bifusion-train")
    parser.add_argument("--updates", type=int, default=60, help="optimizer updates of the run")
    parser.add_argument("--num_workers", type=int, default=2, help="loader workers")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--output", type=Path, help="write the result there as JSON")


def summarize(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Fractions of the time over all updates of a run but those of its first line, in which the workers start.

    Args:
        lines: Of the run's `metrics.jsonl`.

    Returns:
        `data_fraction`, `compute_fraction`, `overhead_fraction` and the parts of the last one, such as
        `audit_fraction`; `updates`, `seconds_per_update`.

    Raises:
        ValueError: Fewer than two lines tell times.
    """
    timed = [line for line in lines if "overhead_fraction" in line]
    if len(timed) < 2:
        raise ValueError(f"{len(timed)} lines of {METRICS_FILE} tell times, at least 2 are needed; use more --updates")
    first, rest = timed[0], timed[1:]
    seconds = sum(line["seconds"] for line in rest)
    updates = rest[-1]["update"] - first["update"]
    fractions = {
        f"{part}_fraction": sum(line[f"{part}_fraction"] * line["seconds"] for line in rest) / seconds
        for part in (*PARTS, *OWN_PARTS)
    }
    return {**fractions, "updates": updates, "seconds_per_update": seconds / updates}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains in a process of its own, prints where its time went, and writes it where `--output` says."""
    with tempfile.TemporaryDirectory() as folder:
        words = {
            "output_dir": folder,
            "data.num_workers": args.num_workers,
            "training.max_updates": args.updates,
            "logging.progress_bar": "false",
            "logging.every_updates": 5,
        }
        command = [sys.executable, "-m", "bifusion_hf.cli.train", args.recipe]
        command += [text for key, value in words.items() for text in (f"--{key}", str(value))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        if subprocess.run(command, env=environment).returncode != 0:
            raise ValueError(f"the training failed: {' '.join(command)}")
        result = {
            "recipe": args.recipe,
            "num_workers": args.num_workers,
            "threads": args.threads,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "torch": torch.__version__,
            "machine": platform.machine(),
            **summarize(read_metrics(Path(folder) / METRICS_FILE)),
        }
    shares, own = (
        ", ".join(f"{part} {100 * result[f'{part}_fraction']:.1f} %" for part in parts) for parts in (PARTS, OWN_PARTS)
    )
    print(f"{args.recipe}, {args.num_workers} workers: {result['seconds_per_update']:.2f} s an update; {shares}")
    print(f"of the overhead: {own}")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    return result
