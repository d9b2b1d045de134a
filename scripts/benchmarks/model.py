"""Time and memory of one forward pass of a preset on a full frame, float32 and bfloat16."""

import argparse
import inspect
import json
import multiprocessing
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bifusion_hf.configuration_bifusion import BiFusionConfig
from bifusion_hf.data.frames import (
    RGBDFrame,
    frame_from_row,
    load_frames,
    scale_intrinsics,
)
from bifusion_hf.modeling_bifusion import BiFusionForInstanceSegmentation
from bifusion_hf.presets import PRESETS
from bifusion_hf.processing_bifusion import BiFusionProcessor

from .evaluation import peak_memory_mb


PRECISIONS = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `benchmark.py model`."""
    parser.add_argument("--preset", default="simple", choices=sorted(PRESETS), help="which network")
    parser.add_argument("--data", default="sample", help="data set of frames; its first val frame is used")
    parser.add_argument("--image_size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--num_points", type=int, default=20_000, help="points of the frame")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes of each precision")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--output", type=Path, help="write the result there as JSON")


def resized_frame(frame: RGBDFrame, height: int, width: int) -> RGBDFrame:
    """The frame at another size: colours interpolated, depth of the nearest pixel, intrinsics scaled.

    Args:
        frame: A frame without labels of interest; they are dropped.
        height: In pixels.
        width: In pixels.
    """
    scale_x, scale_y = width / frame.depth.shape[1], height / frame.depth.shape[0]
    rows = ((np.arange(height) + 0.5) / scale_y).astype(int)
    columns = ((np.arange(width) + 0.5) / scale_x).astype(int)
    return RGBDFrame(
        image=np.asarray(Image.fromarray(frame.image).resize((width, height))),
        depth=frame.depth[np.ix_(rows, columns)],
        intrinsics=scale_intrinsics(frame.intrinsics, scale_x, scale_y),
        camera_to_world=frame.camera_to_world,
        frame_id=frame.frame_id,
    )


def build(args: argparse.Namespace) -> tuple[BiFusionForInstanceSegmentation, dict[str, torch.Tensor]]:
    """The network in eval mode, with random weights, and its inputs."""
    torch.manual_seed(0)
    config = BiFusionConfig.from_preset(args.preset)
    model = BiFusionForInstanceSegmentation(config).eval().to(args.device)
    frame = resized_frame(frame_from_row(load_frames(args.data, "val")[0]), *args.image_size)
    processor = BiFusionProcessor.from_preset(args.preset, config, num_points=args.num_points)
    inputs = processor.collate([processor.prepare_frame(frame)])
    names = inspect.signature(model.forward).parameters
    return model, {
        name: value.to(args.device) for name, value in inputs.items() if name in names and torch.is_tensor(value)
    }


def forward(model: torch.nn.Module, inputs: dict[str, torch.Tensor], precision: str) -> float:
    """Seconds of one forward pass."""
    device = next(model.parameters()).device.type
    enabled = precision != "float32"
    begin = time.perf_counter()
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
        model(**inputs)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def memory_growth(args: argparse.Namespace, precision: str, results: "multiprocessing.Queue") -> None:
    """Puts the growth of the process's peak memory over the loaded model, in MB, after two passes."""
    torch.set_num_threads(args.threads)
    model, inputs = build(args)
    if args.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e6
    else:
        before = peak_memory_mb()
    for _ in range(2):
        forward(model, inputs, precision)
    after = torch.cuda.max_memory_allocated() / 1e6 if args.device.startswith("cuda") else peak_memory_mb()
    results.put({"loaded_mb": before, "growth_mb": after - before})


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark, prints it, and writes it where `--output` says."""
    torch.set_num_threads(args.threads)
    # Peak memory never falls within a process, so each precision has one of its own.
    context = multiprocessing.get_context("spawn")
    memory = {}
    for precision in PRECISIONS:
        queue = context.Queue()
        process = context.Process(target=memory_growth, args=(args, precision, queue))
        process.start()
        memory[precision] = queue.get()
        process.join()
    model, inputs = build(args)
    seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for precision in PRECISIONS:
        forward(model, inputs, precision)
    # In turn, so that other load on the machine meets both alike.
    for _ in range(args.repeats):
        for precision in PRECISIONS:
            seconds[precision].append(forward(model, inputs, precision))
    medians = {precision: statistics.median(values) for precision, values in seconds.items()}
    result = {
        "preset": args.preset,
        "image_size": list(args.image_size),
        "num_points": int(inputs["point_mask"].sum()),
        "num_superpoints": int(inputs["superpoint_ids"].max()) + 1,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": args.device,
        "threads": args.threads,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "forward_s": medians,
        "forward_s_all": seconds,
        "memory": memory,
        "speedup_bfloat16": medians["float32"] / medians["bfloat16"],
    }
    print(f"{args.preset}: {result['parameters']:,} parameters, {result['num_points']} points, {args.device}")
    for precision in PRECISIONS:
        print(
            f"  {precision:9} forward {medians[precision]:.2f} s (median of {args.repeats}), "
            f"peak memory {memory[precision]['growth_mb']:.0f} MB above the loaded model "
            f"({memory[precision]['loaded_mb']:.0f} MB)"
        )
    print(f"  bfloat16 is {result['speedup_bfloat16']:.2f} times as fast")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    return result
