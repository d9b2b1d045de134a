"""Thousands of small frames through a pipeline, a scene and an evaluation: memory and open files must stay flat."""

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bifusion_hf.data.dataset import FrameDataset
from bifusion_hf.data.frames import RGBDFrame, frame_from_row, load_frames, scale_intrinsics
from bifusion_hf.evaluation.evaluator import evaluate_model
from bifusion_hf.hub.pretrained import load_pretrained
from bifusion_hf.io.atomic import write_text
from bifusion_hf.pipeline_bifusion import RGBDInstanceSegmentationPipeline
from bifusion_hf.scenes import SceneSession


# Of the sample frames; what is kept of a frame on purpose (its map of ids, its scores) is far below the bound.
STRIDE = 4
DISTINCT = 32
NUM_POINTS = 1000
# MiB for each thousand frames of the later half.
MEMORY_BOUND = 8.0
Tick = Callable[[], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark."""
    parser.add_argument("--frames", type=int, default=2000, help="through each, default: 2000")
    parser.add_argument("--every", type=int, default=20, help="look at memory after so many, default: 20")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="default: all")
    parser.add_argument("--output", type=Path, help="JSON file; runs that are not asked for stay in it")


def small_frames(count: int = DISTINCT, stride: int = STRIDE) -> list[RGBDFrame]:
    """Sample frames of which every `stride`-th pixel is kept, with their labels and poses."""
    frames = []
    for row in load_frames("sample", "val").select(range(count)):
        frame = frame_from_row(row)
        part = (slice(None, None, stride), slice(None, None, stride))
        labels = {
            name: None if value is None else value[part]
            for name in ("instance", "semantic", "superpoints")
            for value in [getattr(frame, name)]
        }
        intrinsics = scale_intrinsics(frame.intrinsics, 1 / stride, 1 / stride)
        frames.append(
            replace(frame, image=frame.image[part], depth=frame.depth[part], intrinsics=intrinsics, **labels)
        )
    return frames


class Watch:
    """Looks at this process after every `every` frames.

    Args:
        every: So many.
    """

    def __init__(self, every: int):
        self.every, self.frames = every, 0
        self.at: list[int] = []
        self.resident_mib: list[float] = []
        self.open_files: list[int] = []

    def tick(self) -> None:
        """A frame is done."""
        self.frames += 1
        if self.frames % self.every == 0:
            self.at.append(self.frames)
            self.resident_mib.append(resident_mib())
            self.open_files.append(len(os.listdir("/proc/self/fd")))

    def summary(self) -> dict[str, Any]:
        """The numbers, and whether they are flat."""
        slope = later_slope(self.at, self.resident_mib)
        half = len(self.at) // 2
        return {
            "frames": self.frames,
            "resident_mib": [round(value, 1) for value in self.resident_mib[:: max(1, len(self.at) // 20)]],
            "mib_per_1000_frames": round(slope, 3),
            "open_files": [min(self.open_files[half:]), max(self.open_files[half:])],
            "flat": slope <= MEMORY_BOUND and later_slope(self.at, self.open_files) * self.frames < 1000,
        }


def resident_mib() -> float:
    """Resident memory of this process without files that are mapped."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def later_slope(at: Sequence[int], values: Sequence[float]) -> float:
    """Growth for each thousand frames over the later half, by least squares."""
    half = len(at) // 2
    return 1000 * float(np.polyfit(at[half:], values[half:], 1)[0])


def through_pipeline(model: Any, processor: Any, frames: Sequence[RGBDFrame], count: int, tick: Tick) -> None:
    """Frame by frame, as a stream."""
    segmenter = RGBDInstanceSegmentationPipeline(model=model, processor=processor, device="cpu")
    for _ in segmenter(frames[index % len(frames)] for index in range(count)):
        tick()


def through_session(model: Any, processor: Any, frames: Sequence[RGBDFrame], count: int, tick: Tick) -> None:
    """A scene that comes by the same places again and again."""
    session = SceneSession(model, processor)
    for index in range(count):
        session.update(replace(frames[index % len(frames)], frame_id=f"frame {index}"))
        tick()


def through_evaluation(model: Any, processor: Any, frames: Sequence[RGBDFrame], count: int, tick: Tick) -> None:
    """One evaluation over all."""
    dataset = FrameDataset([frames[index % len(frames)] for index in range(count)], processor)
    evaluate_model(model, processor, dataset, batch_size=1, on_frame=lambda *_: tick())


RUNS = {"pipeline": through_pipeline, "session": through_session, "evaluation": through_evaluation}


def measure(names: Sequence[str], count: int, every: int) -> dict[str, dict[str, Any]]:
    """Memory and open files of runs by name."""
    model, processor = load_pretrained("sample")
    model.eval()
    processor.num_points = NUM_POINTS
    frames, results = small_frames(), {}
    with torch.no_grad():
        for name in names:
            watch, start = Watch(every), time.perf_counter()
            RUNS[name](model, processor, frames, count, watch.tick)
            seconds = time.perf_counter() - start
            results[name] = {
                **watch.summary(),
                "ms_per_frame": round(1000 * seconds / count, 1),
                "load_average": round(os.getloadavg()[0], 2),
            }
            print(name, json.dumps(results[name]), flush=True)
    return results


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, and writes the numbers where `--output` says.

    Raises:
        ValueError: Something grows; the file is written before.
    """
    results = measure(args.runs, args.frames, args.every)
    if args.output is not None:
        kept = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {}
        write_text(args.output, json.dumps({**kept, **results}, indent=2) + "\n")
    if growing := [name for name, result in results.items() if not result["flat"]]:
        raise ValueError(f"memory or open files grow: {', '.join(growing)}")
    return results
