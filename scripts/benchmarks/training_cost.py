"""What a frame of a training takes: to read and prepare it, and for the network; and what feeds GPUs of which speed.

On a GPU nothing was measured. What its machine has to bring beside it can be reckoned all the same: cores that prepare
frames as fast as it takes them, and a network that carries them.
"""

import inspect
import time
from collections.abc import Mapping, Sequence

import torch

from bifusion_hf.data.augmentation import AugmentationConfig, JointAugmentation
from bifusion_hf.data.collator import BiFusionCollator
from bifusion_hf.data.dataset import FrameDataset
from bifusion_hf.data.frames import load_frames
from bifusion_hf.hub.pretrained import load_pretrained
from bifusion_hf.recipe.reading import load_arguments
from bifusion_hf.training.optimization import build_optimizer


# Frames a second that a GPU may take, from a large network to a small one.
SPEEDS = (10, 50, 200)
GPUS_PER_NODE = 8


def measure(frames: int) -> dict[str, float]:
    """Processor time of frames of the sample in a training of the shipped network, on one thread.

    Args:
        frames: How many are read, augmented and learned from.

    Returns:
        `frames`; `load_cpu_s` and `step_cpu_s` of all: reading and preparing, and forward, backward and update.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, processor = load_pretrained("sample")
        recipe = load_arguments("tiny_world")
        rows = load_frames("sample", "train")
        augmentation = JointAugmentation(AugmentationConfig(**recipe.data.augmentation))
        dataset = FrameDataset(rows, processor, training=True, augmentation=augmentation)
        optimizer = build_optimizer(model.train(), recipe.optimizer)
        collate, names = BiFusionCollator(processor), inspect.signature(model.forward).parameters
        load = step = 0.0
        # The first frame warms up.
        for index in range(frames + 1):
            begin = time.process_time()
            batch = collate([dataset[0, index % len(rows)]])
            loaded = time.process_time()
            model(**{name: value for name, value in batch.items() if name in names}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if index:
                load, step = load + loaded - begin, step + time.process_time() - loaded
    finally:
        torch.set_num_threads(threads)
    return {"frames": frames, "load_cpu_s": round(load, 2), "step_cpu_s": round(step, 2)}


def feeding(measured: Mapping[str, float], bytes_a_frame: float, frames: int) -> list[dict[str, float]]:
    """What GPUs of each speed of `SPEEDS` need, reckoned.

    Args:
        measured: Of `measure`.
        bytes_a_frame: As they are stored.
        frames: Of an epoch.

    Returns:
        For each speed `frames_per_s` of a GPU; `cores`, that prepare its frames; `gbit_per_node`, what a machine of
        `GPUS_PER_NODE` reads a second; `epoch_h` on such a machine.
    """
    load = measured["load_cpu_s"] / measured["frames"]
    return [
        {
            "frames_per_s": speed,
            "cores": speed * load,
            "gbit_per_node": 8e-9 * GPUS_PER_NODE * speed * bytes_a_frame,
            "epoch_h": frames / (GPUS_PER_NODE * speed) / 3600,
        }
        for speed in SPEEDS
    ]


def table(measured: Mapping[str, float], rows: Sequence[Mapping[str, float]], frames: int) -> str:
    """What was measured and what was reckoned from it, as Markdown."""
    load, step = (1000 * measured[name] / measured["frames"] for name in ("load_cpu_s", "step_cpu_s"))
    cores = frames * (load + step) / 3.6e6
    lines = [
        f"Measured: {load:.0f} ms of a core to read, augment and prepare a frame, {step:.0f} ms for the network of "
        f"the sample checkpoint, forward and backward. On CPUs alone an epoch of {frames:,} frames takes {cores:,.0f} "
        "core hours. Reckoned, for GPUs of which none was at hand:",
        "",
        f"| a GPU takes | cores that feed it | traffic of {GPUS_PER_NODE} GPUs | epoch of {frames:,} frames on them |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['frames_per_s']:g} frames a second | {row['cores']:.1f} | {row['gbit_per_node']:.2f} Gbit/s "
        f"| {row['epoch_h']:.1f} h |"
        for row in rows
    ]
    return "\n".join(lines)
