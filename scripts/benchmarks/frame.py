"""What a frame costs from images to instances, by stage, and as a stream through the pipeline.

Stages take turns within a round, and superpoints in C with those of numpy, so that other load meets all alike.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bifusion_hf.data.frames import RGBDFrame, frame_from_row, load_frames
from bifusion_hf.hub.pretrained import load_pretrained
from bifusion_hf.layers.frame_batch import FORWARD_INPUTS
from bifusion_hf.pipeline_bifusion import RGBDInstanceSegmentationPipeline
from bifusion_hf.postprocessing import SCORE_THRESHOLD
from bifusion_hf.superpoints import segmentation
from bifusion_hf.superpoints.backends import compiled_backend, numpy_backend

from .evaluation import peak_memory_mb
from .model import PRECISIONS, resized_frame
from .parameters import update_file


SIZES = ((480, 640), (240, 320))
STAGES = {
    "superpoints_numpy": "superpoints, numpy",
    "superpoints": "superpoints",
    "processor": "processor, with superpoints",
    "network": "network",
    "postprocessing": "post-processing",
    "frame": "whole frame",
    "stream": "frame of a stream",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark."""
    parser.add_argument("--checkpoint", default="sample", help="default: sample")
    parser.add_argument("--data", default="sample", help="data set of frames; the first val frames are used")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of torch; default: 1 2")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float32"], help="default: float32")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each setting, default: 7")
    parser.add_argument("--stream_frames", type=int, default=12, help="frames of a stream, default: 12")
    parser.add_argument("--without_pose", action="store_true", help="take the poses away, so that up is estimated")
    parser.add_argument("--output", type=Path, help="write the result there as JSON; a file that is there is shown")
    parser.add_argument("--update", type=Path, nargs="+", default=(), metavar="FILE", help="fill in the table there")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures unless the output file is there, prints the table, and writes it where `--update` says."""
    if args.output is not None and args.output.exists():
        result = json.loads(args.output.read_text(encoding="utf-8"))
    else:
        result = measure(args)
        if args.output is not None:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    table = format_table(result)
    print(table)
    for path in args.update:
        update_file(path, "frame", table)
    return result


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Medians of wall-clock milliseconds of every stage in every setting."""
    model, processor = load_pretrained(args.checkpoint)
    segmenter = RGBDInstanceSegmentationPipeline(model=model, processor=processor, device=torch.device("cpu"))
    rows = load_frames(args.data, "val")
    load_before, settings, threads_before = os.getloadavg()[0], [], torch.get_num_threads()
    try:
        for size, precision, threads in itertools.product(SIZES, args.precisions, args.threads):
            torch.set_num_threads(threads)
            frames = [resized_frame(frame_from_row(row), *size) for row in rows.select(range(min(4, len(rows))))]
            if args.without_pose:
                for frame in frames:
                    frame.camera_to_world = None
            measured = measure_setting(segmenter, frames, precision, args.repeats, args.stream_frames)
            settings.append({"size": list(size), "precision": precision, "threads": threads, "ms": measured})
    finally:
        torch.set_num_threads(threads_before)
    return {
        "checkpoint": args.checkpoint,
        "points": processor.num_points,
        "part_gap": processor.part_gap,
        "poses": not args.without_pose,
        "repeats": args.repeats,
        "settings": settings,
        "peak_memory_mb": round(peak_memory_mb()),
        "load": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        "machine": platform.machine(),
        # The widest vectors that torch uses, on which most of the time depends.
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }


def measure_setting(
    segmenter: RGBDInstanceSegmentationPipeline, frames: list[RGBDFrame], precision: str, repeats: int, length: int
) -> dict[str, float]:
    """Medians over the rounds, in milliseconds, of each of `STAGES`.

    Args:
        segmenter: The pipeline.
        frames: Round k takes frame k, and so on in a circle.
        precision: One of `PRECISIONS`.
        repeats: Rounds.
        length: Frames of a stream.
    """
    processor = segmenter.processor
    milliseconds: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def timed(stage: str, function: Callable[..., Any], *arguments: Any, share: int = 1) -> Any:
        begin = time.perf_counter()
        result = function(*arguments)
        milliseconds[stage].append(1000 * (time.perf_counter() - begin) / share)
        return result

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32"):
        for number in range(-1, repeats):
            frame = frames[number % len(frames)]
            for stage, backend in (("superpoints_numpy", numpy_backend), ("superpoints", compiled_backend)):
                with superpoints_by(backend):
                    timed(stage, _segment, processor, frame)
            batch = timed("processor", _prepare, processor, frame)
            outputs = timed("network", _forward, segmenter.model, batch)
            timed("postprocessing", processor.post_process_instance_segmentation, outputs, batch)
            timed("frame", segmenter, frame)
            stream = itertools.islice(itertools.cycle(frames), length)
            timed("stream", lambda frames: list(segmenter(frames)), stream, share=length)
    # The first round warms up.
    return {stage: round(statistics.median(values[1:]), 1) for stage, values in milliseconds.items()}


@contextmanager
def superpoints_by(backend: Any) -> Iterator[None]:
    """Superpoints by a certain backend."""
    before = segmentation.choose_backend
    segmentation.choose_backend = lambda: backend
    try:
        yield
    finally:
        segmentation.choose_backend = before


def _prepare(processor: Any, frame: RGBDFrame) -> dict[str, Any]:
    return processor.collate([processor.prepare_frame(frame)])


def _forward(model: torch.nn.Module, batch: dict[str, Any]) -> Any:
    inputs = {name: batch[name] for name in FORWARD_INPUTS if name in batch}
    return model(**inputs, score_threshold=SCORE_THRESHOLD)


def _segment(processor: Any, frame: RGBDFrame) -> Any:
    return segmentation.segment_superpoints(
        frame.image,
        frame.depth,
        frame.intrinsics,
        num_segments=processor.num_superpoints,
        color_blur=processor.superpoint_color_blur,
    )


def format_table(result: Mapping[str, Any]) -> str:
    """The numbers as Markdown."""
    settings = result["settings"]
    heads = [f"{each['size'][1]}x{each['size'][0]}, {each['precision']}, {each['threads']}" for each in settings]
    lines = [
        f"Milliseconds (medians of {result['repeats']}) by size, precision and threads, "
        f"{'with' if result['poses'] else 'without'} poses, {result['points']} points, on {result['cores']} "
        f"{result['machine']} cores with {result['vectors']}; load of the machine {result['load'][0]:g} before, "
        f"{result['load'][1]:g} after:",
        "",
        f"| | {' | '.join(heads)} |",
        "|---|" + "---|" * len(heads),
    ]
    lines += [
        f"| {label} | {' | '.join(format(each['ms'][stage], '.0f') for each in settings)} |"
        for stage, label in STAGES.items()
    ]
    rates = [1000 / each["ms"]["stream"] for each in settings]
    lines.append(f"| frames a second of a stream | {' | '.join(f'{rate:.1f}' for rate in rates)} |")
    lines += [
        "",
        "ESAM-E (Xu et al., ICLR 2025) reports 20 ms for FastSAM's masks and 80 ms for the rest of a frame, on a GPU.",
    ]
    return "\n".join(lines)
