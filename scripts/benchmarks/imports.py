"""Time to import the package, beside the parts of transformers that it rests on, and to a first prediction."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


TRANSFORMERS = """
from transformers import AutoModel, PreTrainedModel, ProcessorMixin
from transformers.pipelines import PIPELINE_REGISTRY
"""
PACKAGE = "import bifusion_hf"
PREDICTION = """
from transformers import pipeline
import bifusion_hf
from bifusion_hf.assets import SAMPLE_CHECKPOINT
from bifusion_hf.data.frames import frame_from_row, load_frames
segmenter = pipeline("rgbd-instance-segmentation", model=str(SAMPLE_CHECKPOINT), device="cpu")
assert segmenter(frame_from_row(load_frames("sample", "val")[0]))["segments_info"]
"""
# Packages that must not be imported before they are used.
LATE = ("datasets", "open_clip", "torchvision", "gradio", "spconv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `benchmark.py imports`."""
    parser.add_argument("--repeats", type=int, default=5, help="processes for each measurement")
    parser.add_argument("--prediction", action="store_true", help="also time a first prediction of the sample")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--output", type=Path, help="write the result there as JSON")


def measure(code: str, threads: int) -> dict[str, float]:
    """Seconds that a new process takes for `code`, from its start to its end.

    Args:
        code: Python source.
        threads: Of torch.

    Returns:
        `wall_s`, and `cpu_s` of the process, which other load on the machine hardly touches.

    Raises:
        subprocess.CalledProcessError: The code failed.
    """
    script = (
        "import os, subprocess, sys, time; begin = time.perf_counter()\n"
        "subprocess.run([sys.executable, '-c', sys.argv[1]], check=True, stdout=subprocess.DEVNULL)\n"
        "times = os.times(); print(time.perf_counter() - begin, times.children_user + times.children_system)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    # A process between, whose children's times are those of this measurement alone.
    command = [sys.executable, "-c", script, code]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    wall, cpu = output.split()
    return {"wall_s": float(wall), "cpu_s": float(cpu)}


def late_imports() -> list[str]:
    """Which of the packages in `LATE` come with `import bifusion_hf`; none should."""
    code = f"import sys, bifusion_hf; print(*(set(sys.modules) & {set(LATE)}))"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark, prints it, and writes it where `--output` says."""
    codes = {"interpreter": "", "transformers": TRANSFORMERS, "bifusion_hf": PACKAGE}
    if args.prediction:
        codes["first_prediction"] = PREDICTION
    for code in codes.values():
        measure(code, args.threads)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in codes}
    # In turn, so that other load on the machine meets all alike.
    for _ in range(args.repeats):
        for name, code in codes.items():
            times[name].append(measure(code, args.threads))
    result: dict[str, Any] = {
        name: {kind: statistics.median(time[kind] for time in entries) for kind in ("wall_s", "cpu_s")}
        for name, entries in times.items()
    }
    result["ratio"] = {
        kind: statistics.median(
            own[kind] / theirs[kind] for own, theirs in zip(times["bifusion_hf"], times["transformers"], strict=True)
        )
        for kind in ("wall_s", "cpu_s")
    }
    result.update(repeats=args.repeats, threads=args.threads, late_imports=late_imports())
    for name in codes:
        print(f"{name:<17} {result[name]['wall_s']:6.2f} s, {result[name]['cpu_s']:6.2f} s of CPU")
    ratio = result["ratio"]
    print(
        f"import bifusion_hf takes {ratio['wall_s']:.2f} times as long as its parts of transformers "
        f"({ratio['cpu_s']:.2f} times the CPU); of {', '.join(LATE)} it imports "
        f"{', '.join(result['late_imports']) or 'none'}"
    )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    return result
