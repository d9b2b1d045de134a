"""Cost of the evaluation: its speed against the plain form, and time and memory of a validation set of full size."""

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...data.labels import INSTANCE_CLASS_NAMES
from ...evaluation import InstanceAveragePrecision


Frame = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `benchmark.py evaluation`."""
    parser.add_argument("--frames", type=int, default=2800, help="frames of the full-size run")
    parser.add_argument("--comparison_frames", type=int, default=300, help="frames of the comparison")
    parser.add_argument("--predictions", type=int, default=100, help="predictions per frame")
    parser.add_argument("--points", type=int, default=20_000, help="points per frame")
    parser.add_argument("--instances", type=int, default=25, help="instances per frame")
    parser.add_argument("--output", type=Path, help="write the result there as JSON")


def synthetic_frames(
    count: int, *, num_points: int, num_instances: int, num_predictions: int, seed: int = 0
) -> Iterator[Frame]:
    """Frames as arguments of `InstanceAveragePrecision.update`, made one at a time.

    Instances are runs of points and cover about 70 % of a frame. Predictions are instances with some of their points
    missing and some foreign ones, pairs of instances, or pieces; scores have two digits, so that many are tied.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        sizes = rng.dirichlet(np.full(num_instances, 0.7)) * 0.7 * num_points
        ids = np.full(num_points, -1)
        start = rng.integers(num_points)
        for instance, size in enumerate(sizes.astype(int)):
            ids[np.arange(start, start + size) % num_points] = instance
            start += size + rng.integers(max(1, int(0.2 * num_points / num_instances)))
        gt_labels = rng.integers(0, len(INSTANCE_CLASS_NAMES), num_instances)
        masks = np.zeros((num_predictions, num_points), dtype=bool)
        targets = rng.integers(num_instances, size=num_predictions)
        for row, target in enumerate(targets):
            masks[row] = ids == target
            if rng.random() < 0.2:
                masks[row] |= ids == rng.integers(num_instances)
            begin = rng.integers(num_points)
            masks[row, begin : begin + int(rng.integers(num_points) * 0.15)] ^= True
        labels = np.where(
            rng.random(num_predictions) < 0.6,
            gt_labels[targets],
            rng.integers(0, len(INSTANCE_CLASS_NAMES), num_predictions),
        )
        yield masks, np.round(rng.random(num_predictions), 2), labels, ids, gt_labels


def pairwise_overlaps(masks: np.ndarray, instance_ids: np.ndarray, num_instances: int) -> np.ndarray:
    """`mask_overlaps` as evaluation scripts commonly have it: every mask against every instance."""
    columns = [instance_ids == instance for instance in range(num_instances)] + [instance_ids < 0]
    return np.array(
        [[np.count_nonzero(np.logical_and(column, mask)) for column in columns] for mask in masks], dtype=np.int64
    ).reshape(len(masks), num_instances + 1)


class PairwiseAveragePrecision(InstanceAveragePrecision):
    """The same metric with overlaps counted pair by pair."""

    _overlaps = staticmethod(pairwise_overlaps)


def timed_evaluation(metric: InstanceAveragePrecision, frames: Iterator[Frame]) -> tuple[float, dict[str, Any]]:
    """Seconds of all updates and of the result, without those that making the frames took; and the result."""
    seconds = 0.0
    for frame in frames:
        begin = time.perf_counter()
        metric.update(*frame)
        seconds += time.perf_counter() - begin
    begin = time.perf_counter()
    result = metric.compute()
    return seconds + time.perf_counter() - begin, result


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    # Kilobytes on Linux, bytes on macOS.
    unit = 1e-6 if sys.platform == "darwin" else 1e-3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark, prints it, and writes it where `--output` says.

    Raises:
        RuntimeError: The two forms disagree.
    """
    size = {"num_points": args.points, "num_instances": args.instances, "num_predictions": args.predictions}
    settings = {**size, "num_classes": len(INSTANCE_CLASS_NAMES), "min_points": 100}

    # Peak memory never falls, so this run comes first; its growth counts from after one frame, so that the frame
    # itself and the libraries' buffers are not in it.
    metric = InstanceAveragePrecision(INSTANCE_CLASS_NAMES)
    timed_evaluation(InstanceAveragePrecision(INSTANCE_CLASS_NAMES), synthetic_frames(1, **size))
    before = peak_memory_mb()
    seconds, result = timed_evaluation(metric, synthetic_frames(args.frames, **size, seed=1))
    growth = peak_memory_mb() - before

    compared = {}
    for name, metric_class in (("sparse", InstanceAveragePrecision), ("pairwise", PairwiseAveragePrecision)):
        metric = metric_class(INSTANCE_CLASS_NAMES)
        compared[name] = timed_evaluation(metric, synthetic_frames(args.comparison_frames, **size))
    if json.dumps(compared["sparse"][1]) != json.dumps(compared["pairwise"][1]):
        raise RuntimeError("the sparse and the pairwise overlaps give different results")
    sparse, pairwise = compared["sparse"][0], compared["pairwise"][0]

    report = {
        "settings": settings,
        "comparison": {
            "frames": args.comparison_frames,
            "sparse_seconds": round(sparse, 3),
            "pairwise_seconds": round(pairwise, 3),
            "speedup": round(pairwise / sparse, 1),
            "same_result": True,
        },
        "full_size": {
            "frames": args.frames,
            "seconds": round(seconds, 2),
            "milliseconds_per_frame": round(1000 * seconds / max(args.frames, 1), 2),
            "memory_growth_mb": round(growth, 1),
            "num_predictions": result["num_predictions"],
            "all_ap": result["all_ap"],
        },
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")
    return report
