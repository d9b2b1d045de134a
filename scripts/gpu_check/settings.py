"""What the steps share: the device, the sizes, clocks that wait for the device."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """Sizes of the measurements; a rehearsal on a CPU has tiny ones.

    Args:
        device: `"cuda"` or `"cpu"`.
        voxels: Of the U-Net.
        large_voxels: Of its largest run.
        determinism_voxels: Of the runs that are compared bit for bit.
        dtypes: Names of `DTYPES`.
        repeats: Turns of each measurement.
        warm_ups: Turns before them that do not count.
        point_config: Of the U-Net; empty = Res16UNet34C.
        matrices: Of the eigen decomposition.
        points: Of a frame.
        frames: (preset, batch size) of training.
        updates: Of each training; it is resumed in the middle.
        presets: Whose latency is measured.
        folder: For what steps write.
    """

    device: str
    folder: Path
    voxels: tuple[int, ...] = (20_000, 50_000, 150_000)
    large_voxels: int = 500_000
    determinism_voxels: int = 20_000
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    repeats: int = 5
    warm_ups: int = 2
    point_config: Mapping[str, Any] = field(default_factory=dict)
    matrices: int = 75_000
    points: int = 20_000
    frames: tuple[tuple[str, int], ...] = (("simple", 4), ("full", 6))
    updates: int = 20
    presets: tuple[str, ...] = ("simple", "full", "sv3d")

    @classmethod
    def rehearsal(cls, folder: Path) -> "Settings":
        """Those of `--dry_run`."""
        return cls(
            device="cpu",
            folder=folder,
            voxels=(300,),
            large_voxels=600,
            determinism_voxels=200,
            dtypes=("float32", "bfloat16"),
            repeats=1,
            warm_ups=0,
            point_config={"stem_channels": 8, "planes": [8] * 8, "blocks": [1] * 8},
            matrices=500,
            points=400,
            frames=(("tiny", 1),),
            updates=2,
            presets=("tiny",),
        )

    @property
    def is_rehearsal(self) -> bool:
        """Whether there is no GPU."""
        return self.device == "cpu"


def synchronize(settings: Settings) -> None:
    """Waits until the device has done what it was given."""
    if not settings.is_rehearsal:
        torch.cuda.synchronize()


def median_ms(function: Callable[[], Any], settings: Settings) -> float:
    """Median wall-clock milliseconds of a call, the device's work included."""
    times = []
    for _ in range(settings.warm_ups + settings.repeats):
        synchronize(settings)
        begin = time.perf_counter()
        function()
        synchronize(settings)
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times[settings.warm_ups :])


def peak_mb(function: Callable[[], Any], settings: Settings) -> float | None:
    """Megabytes that a call takes at most beyond what was there; None on a CPU."""
    if settings.is_rehearsal:
        function()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
