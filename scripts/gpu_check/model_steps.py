"""Whole networks on the device: latency by stage, launches and waits, and short trainings that are resumed."""

import gc
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bifusion_hf.configuration_bifusion import BiFusionConfig
from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.layers.frame_batch import FORWARD_INPUTS
from bifusion_hf.modeling_bifusion import BiFusionForInstanceSegmentation
from bifusion_hf.pipeline_bifusion import RGBDInstanceSegmentationPipeline
from bifusion_hf.processing_bifusion import BiFusionProcessor

from ..benchmarks.model import resized_frame
from .running import Note
from .settings import DTYPES, TESTS, Settings, median_ms, peak_mb, synchronize


LABELS = ("mask_labels", "class_labels", "semantic_labels")
# What the profiler calls a wait of the host for the device.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
# Of the losses of two runs that should be the same.
RESUME_TOLERANCE = {"bf16": 5e-2, "fp16": 5e-2, "no": 1e-4}


def latency(settings: Settings, note: Note) -> None:
    """Milliseconds of a frame of 480 x 640 by stage, each network with random weights."""
    row = load_frames("sample", "val")[0]
    size = (60, 80) if settings.is_rehearsal else (480, 640)
    frame = resized_frame(frame_from_row(row), *size)
    for preset in settings.presets:
        torch.manual_seed(0)
        config = BiFusionConfig.from_preset(preset)
        model = BiFusionForInstanceSegmentation(config).eval().to(settings.device)
        processor = BiFusionProcessor.from_preset(preset, config, num_points=settings.points)
        segmenter = RGBDInstanceSegmentationPipeline(model=model, processor=processor, device=settings.device)
        for label in settings.dtypes:
            note(f"{preset}, {label}", stages(segmenter, frame, DTYPES[label], settings))


def stages(
    segmenter: RGBDInstanceSegmentationPipeline, frame: Any, dtype: torch.dtype, settings: Settings
) -> dict[str, float | None]:
    """Milliseconds of each stage of a frame, and of the pipeline's call as a whole."""
    processor, model = segmenter.processor, segmenter.model

    def prepare() -> dict[str, Any]:
        return processor.collate([processor.prepare_frame(frame)])

    def copy(batch: dict[str, Any]) -> dict[str, Any]:
        return segmenter.ensure_tensor_on_device(**batch)

    def forward(batch: dict[str, Any]) -> Any:
        return model(**{name: batch[name] for name in FORWARD_INPUTS if name in batch})

    is_mixed = dtype != torch.float32
    with torch.inference_mode(), torch.autocast(settings.device, dtype, enabled=is_mixed):
        batch = prepare()
        moved = copy(batch)
        outputs = forward(moved)
        return {
            "processing": median_ms(prepare, settings),
            "copy": median_ms(lambda: copy(batch), settings),
            "network": median_ms(lambda: forward(moved), settings),
            "post-processing": median_ms(
                lambda: processor.post_process_instance_segmentation(outputs, moved), settings
            ),
            "frame": median_ms(lambda: segmenter(frame), settings),
            "peak_mb": peak_mb(lambda: segmenter(frame), settings),
        }


def launches(settings: Settings, note: Note) -> None:
    """Kernels launched and waits of the host, by the profiler, beside those that the tests' counter counts on a CPU.

    Networks of full depth and a few channels, with the torch backend, as the counter has them.
    """
    sys.path.insert(0, str(TESTS))
    try:
        import launch_counter
        from conftest import _make_batch as make_batch
    finally:
        sys.path.remove(str(TESTS))
    points = settings.points // 5
    frame = {name: value for name, value in make_batch((points,), image_size=(64, 96)).items() if name not in LABELS}
    counter = launch_counter.count_forward(launch_counter.narrow_network("simple"), frame)
    note("frame of simple, counted", counted(counter))
    batch = make_batch((points,) * 2, image_size=(64, 96))
    batch["query_seeds"] = torch.arange(2)
    counter = launch_counter.count_update(launch_counter.narrow_network("full"), batch)
    note("update of full, counted", counted(counter))
    if settings.is_rehearsal:
        return
    network = launch_counter.narrow_network("simple").eval().to(settings.device)
    moved = _move(frame, settings.device)
    with torch.no_grad():
        note("frame of simple, profiled", profiled(lambda: network(**moved)))
    network = launch_counter.narrow_network("full").train().to(settings.device)
    moved = _move(batch, settings.device)
    note("update of full, profiled", profiled(lambda: network(**moved).loss.backward()))


def counted(counter: Any) -> dict[str, int]:
    """Totals of a `LaunchCounter`."""
    apart = counter.launches.get("convolutions", 0)
    return {
        "launches": counter.launches.total(),
        "of them convolutions": apart,
        "waits": counter.waits.total(),
    }


def profiled(function: Callable[[], Any]) -> dict[str, int]:
    """What the profiler sees of a call, the third."""
    for _ in range(2):
        function()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
    names = Counter({event.key: event.count for event in profile.key_averages()})
    # Leaving the profiler waits once.
    return {
        "launches": sum(
            count for name, count in names.items() if name.startswith(("cudaLaunchKernel", "cuLaunchKernel"))
        ),
        "waits": sum(names[name] for name in WAITS),
        "copies": sum(count for name, count in names.items() if name.startswith("cudaMemcpyAsync")),
    }


def _move(value: Any, device: str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _move(item, device) for name, item in value.items()}
    return [_move(item, device) for item in value] if isinstance(value, list) else value


def updates(settings: Settings, note: Note) -> None:
    """Short trainings on the sample frames in half precision: finite, and the same when resumed in the middle."""
    wrong = []
    for preset, batch_size in settings.frames:
        for precision in ("bf16",) if settings.is_rehearsal else ("bf16", "fp16"):
            found = train_twice(preset, batch_size, precision, settings)
            note(f"{preset}, {batch_size} x {settings.points}, {precision}", found)
            if not (found["is_finite"] and found["resumed_difference"] < RESUME_TOLERANCE[precision]):
                wrong.append(f"{preset} in {precision}")
    if wrong:
        raise RuntimeError(f"not finite, or another loss when resumed: {', '.join(wrong)}")


def train_twice(preset: str, batch_size: int, precision: str, settings: Settings) -> dict[str, Any]:
    """A run, and the run that goes on from its checkpoint in the middle."""
    folder = settings.folder / f"{preset}_{precision}"
    begin = time.perf_counter()
    found: dict[str, Any] = {}
    losses = []
    found["peak_mb"] = peak_mb(lambda: losses.append(train(preset, batch_size, precision, folder, settings)), settings)
    found["seconds"] = time.perf_counter() - begin
    first = losses[0]
    for checkpoint in (folder / "checkpoints").iterdir():
        # What stands after the middle goes, so that the latest is the one to go on from.
        if int(checkpoint.name.rpartition("-")[2]) > settings.updates // 2:
            shutil.rmtree(checkpoint)
    second = train(preset, batch_size, precision, folder, settings, "--resume_from_checkpoint", "latest")
    shared = sorted(update for update in first.keys() & second.keys() if update > settings.updates // 2)
    found["losses"] = [first[update] for update in sorted(first)]
    found["is_finite"] = all(torch.isfinite(torch.tensor(value)) for value in found["losses"]) and bool(shared)
    found["resumed_difference"] = max(
        (abs(first[update] - second[update]) / abs(first[update]) for update in shared), default=float("inf")
    )
    return found


def train(
    preset: str, batch_size: int, precision: str, folder: Path, settings: Settings, *words: str
) -> dict[int, float]:
    """Loss by update of a run of `bifusion-train`'s trainer, in this process."""
    from bifusion_hf.recipe.reading import load_arguments
    from bifusion_hf.training.metrics import METRICS_FILE, read_metrics
    from bifusion_hf.training.run import build_trainer

    keys = {
        "output_dir": folder,
        "model.preset": preset,
        "model.processor": f"{{num_points: {settings.points}}}",
        "data.train": "sample",
        "data.val": "null",
        "data.num_workers": 0,
        "training.max_updates": settings.updates,
        "training.batch_size": batch_size,
        "training.mixed_precision": precision,
        "checkpoints.every_updates": max(settings.updates // 2, 1),
        "logging.every_updates": 1,
        "logging.progress_bar": "false",
    }
    given = [word for name, value in keys.items() for word in (f"--{name}", str(value))]
    trainer = build_trainer(load_arguments(None, [*given, *words]))
    trainer.train()
    synchronize(settings)
    del trainer
    gc.collect()
    return {line["update"]: line["loss"] for line in read_metrics(folder / METRICS_FILE) if "loss" in line}
