"""Cost of the evaluation: its speed against the plain form, and time and memory of a validation set of full size."""

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bifusion_hf.evaluation import InstanceAveragePrecision
from bifusion_hf.labels import INSTANCE_CLASS_NAMES


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
    """`mask_overlaps` pair by pair, every mask against every instance; the masks of the instances are made once."""
    columns = [instance_ids == instance for instance in range(num_instances)] + [instance_ids < 0]
    return np.array(
        [[np.count_nonzero(np.logical_and(column, mask)) for column in columns] for mask in masks], dtype=np.int64
    ).reshape(len(masks), num_instances + 1)


def script_overlaps(masks: np.ndarray, instance_ids: np.ndarray, num_instances: int) -> np.ndarray:
    """The same as ScanNet's script and those derived from it have it: the instance's mask is made for each pair."""
    ids = np.where(instance_ids < 0, num_instances, instance_ids)
    return np.array(
        [[np.count_nonzero(np.logical_and(ids == i, mask)) for i in range(num_instances + 1)] for mask in masks],
        dtype=np.int64,
    ).reshape(len(masks), num_instances + 1)


class PairwiseAveragePrecision(InstanceAveragePrecision):
    """The same metric with `pairwise_overlaps`."""

    _overlaps = staticmethod(pairwise_overlaps)


class ScriptAveragePrecision(InstanceAveragePrecision):
    """The same metric with `script_overlaps`."""

    _overlaps = staticmethod(script_overlaps)


FORMS = {
    "one_pass": InstanceAveragePrecision,
    "pairwise": PairwiseAveragePrecision,
    "pairwise_as_in_scripts": ScriptAveragePrecision,
}


def timed_evaluation(
    metrics: Mapping[str, InstanceAveragePrecision],
    frames: Iterator[Frame],
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Seconds of all updates and of the result, without what making the frames took, and the result, of each metric.

    The metrics take turns frame by frame, and in being the first that touches a frame, so that other load on the
    machine and cold caches meet all alike.
    """
    seconds, results = dict.fromkeys(metrics, 0.0), {}
    names = list(metrics)
    for frame in frames:
        names.append(names.pop(0))
        for name in names:
            begin = clock()
            metrics[name].update(*frame)
            seconds[name] += clock() - begin
    for name, metric in metrics.items():
        begin = clock()
        results[name] = metric.compute()
        seconds[name] += clock() - begin
    return seconds, results


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    # Kilobytes on Linux, bytes on macOS.
    unit = 1e-6 if sys.platform == "darwin" else 1e-3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark, prints it, and writes it where `--output` says.

    Raises:
        RuntimeError: The forms disagree.
    """
    size = {"num_points": args.points, "num_instances": args.instances, "num_predictions": args.predictions}
    # Peak memory never falls, so this run comes first; its growth counts from after one frame, so that the frame
    # itself and the libraries' buffers are not in it.
    timed_evaluation({"warm_up": InstanceAveragePrecision(INSTANCE_CLASS_NAMES)}, synthetic_frames(1, **size))
    before = peak_memory_mb()
    metrics = {"one_pass": InstanceAveragePrecision(INSTANCE_CLASS_NAMES)}
    seconds, results = timed_evaluation(metrics, synthetic_frames(args.frames, **size, seed=1))
    growth = peak_memory_mb() - before

    # Time of the processor, not of the wall: the ratio is what counts.
    metrics = {name: metric(INSTANCE_CLASS_NAMES) for name, metric in FORMS.items()}
    cpu_seconds, compared = timed_evaluation(
        metrics, synthetic_frames(args.comparison_frames, **size), clock=time.process_time
    )
    if len({json.dumps(result) for result in compared.values()}) != 1:
        raise RuntimeError(f"the forms {sorted(compared)} give different results")

    report = {
        "settings": {**size, "num_classes": len(INSTANCE_CLASS_NAMES), "min_points": 100},
        "full_size": {
            "frames": args.frames,
            "seconds": round(seconds["one_pass"], 2),
            "milliseconds_per_frame": round(1000 * seconds["one_pass"] / max(args.frames, 1), 2),
            "memory_growth_mb": round(growth, 1),
            "num_predictions": results["one_pass"]["num_predictions"],
            "all_ap": results["one_pass"]["all_ap"],
        },
        "comparison": {
            "frames": args.comparison_frames,
            "cpu_seconds": {name: round(value, 3) for name, value in cpu_seconds.items()},
            "speedup": {
                f"over_{name}": round(value / cpu_seconds["one_pass"], 1)
                for name, value in cpu_seconds.items()
                if name != "one_pass"
            },
        },
        "machine": {"cpu": platform.machine(), "cpu_count": os.cpu_count(), "numpy": np.__version__},
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")
    return report
