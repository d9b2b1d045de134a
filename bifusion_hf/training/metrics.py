"""What a run shows and keeps: progress bar, `train.log`, `metrics.jsonl`, trackers, curves."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..io.atomic import write_text
from .curves import draw_curves


logger = logging.getLogger("bifusion_hf.training")
METRICS_FILE = "metrics.jsonl"
LOG_FILE = "train.log"
CURVES_FILE = "curves.png"
# Loss terms that the progress bar shows, in this order, where a run has them.
BAR_TERMS = ("loss", "loss_cls", "loss_mask", "loss_dice", "loss_sem", "loss_clip")
# What the loop itself spends its time on: the liveness audit, averaging the weights, showing and writing numbers, and
# checkpoints. Skipping updates, counting and moving batches are the rest of the overhead.
OWN_PARTS = ("audit", "ema", "logging", "checkpoint")
# Apple's GPUs.
DEVICES_WITHOUT_FLOAT64 = ("mps",)


def for_sums(values: torch.Tensor) -> torch.Tensor:
    """Values in float64, in which terms are added up; float32 on a device that has no float64."""
    return values.float() if values.device.type in DEVICES_WITHOUT_FLOAT64 else values.double()


class Timer:
    """Seconds spent in named parts of the loop since the last `reset`.

    What is neither data nor compute is the loop's own overhead; `OWN_PARTS` of it are counted apart. Evaluations are
    data and compute of their own and do not count at all.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Starts anew."""
        self.start = time.perf_counter()
        self.seconds = dict.fromkeys(("data", "compute", "evaluation", *OWN_PARTS), 0.0)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the time in the context under `name`; parts do not contain one another."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def summary(self) -> dict[str, float]:
        """Seconds without evaluations, and what fractions of them the parts are.

        `overhead_fraction` includes those of `OWN_PARTS`.
        """
        total = max(time.perf_counter() - self.start - self.seconds["evaluation"], 1e-9)
        fractions = {f"{name}_fraction": self.seconds[name] / total for name in ("data", "compute", *OWN_PARTS)}
        overhead = max(0.0, 1 - fractions["data_fraction"] - fractions["compute_fraction"])
        return {"seconds": total, "overhead_fraction": overhead, **fractions}


class Recorder:
    """Writes what happens in a run; all but the main process stay silent.

    Args:
        accelerator: Of the run, with its trackers started.
        folder: Where the files go.
        total_updates: Length of the progress bar.
        start_update: Finished updates; lines of `metrics.jsonl` beyond them are dropped, since they are run again.
        progress_bar: Show one.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, total_updates: int, start_update: int, progress_bar: bool
    ):
        self.accelerator = accelerator
        self.folder = folder
        self.timer = Timer()
        self.bar = tqdm(
            total=total_updates,
            initial=start_update,
            disable=not (progress_bar and accelerator.is_main_process),
            unit="update",
            dynamic_ncols=True,
        )
        self._points, self._since = 0, start_update
        self._handler: logging.Handler | None = None
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            self._handler = logging.FileHandler(folder / LOG_FILE, encoding="utf-8")
            self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            logger.addHandler(self._handler)
            logger.setLevel(logging.INFO)
            _drop_later_lines(folder / METRICS_FILE, start_update)

    def info(self, message: str) -> None:
        """A line for `train.log` and the terminal."""
        if self.accelerator.is_main_process:
            logger.info(message)
            with tqdm.external_write_mode():
                print(message, flush=True)

    def warning(self, message: str) -> None:
        """A warning, likewise."""
        if self.accelerator.is_main_process:
            logger.warning(message)
            with tqdm.external_write_mode():
                print(f"warning: {message}", flush=True)

    def advance(self, values: Mapping[str, float], learning_rate: float) -> None:
        """Moves the progress bar by one update."""
        self._points += values["points"]
        with self.timer.part("logging"):
            timing = self.timer.summary()
            shown = {name: f"{values[name]:.3f}" for name in BAR_TERMS if name in values}
            shown.update(
                {
                    "lr": f"{learning_rate:.1e}",
                    "data/compute": f"{100 * timing['data_fraction']:.0f}/{100 * timing['compute_fraction']:.0f}%",
                    "points/s": f"{self._points / timing['seconds']:.0f}",
                    "GiB": f"{memory_gib(self.accelerator.device):.1f}",
                }
            )
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update()

    def record_update(self, update: int, values: Mapping[str, float]) -> None:
        """Writes an update's numbers, with the time since the last call."""
        timing = self.timer.summary()
        timing["points_per_second"] = self._points / timing["seconds"]
        timing["updates_per_second"] = (update - self._since) / timing["seconds"]
        self.timer.reset()
        self._points, self._since = 0, update
        with self.timer.part("logging"):
            self._record(update, {**values, **timing})

    def record_evaluation(self, update: int, results: Mapping[str, float], best: Mapping[str, float]) -> None:
        """Writes an evaluation's numbers and the best so far, and draws the curves."""
        best_line = {f"best_{name}": value for name, value in best.items()}
        numbers = " ".join(
            f"{name} {value:.4f}" for name, value in {**results, **best_line}.items() if "update" not in name
        )
        self.info(f"evaluation of update {update}: {numbers} (best update {best['update']})")
        self._record(update, results)
        if self.accelerator.is_main_process:
            draw_curves(read_metrics(self.folder / METRICS_FILE), self.folder / CURVES_FILE)

    def _record(self, update: int, values: Mapping[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with open(self.folder / METRICS_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps({"update": update, **clean}) + "\n")
        self.accelerator.log({name: value for name, value in clean.items() if value is not None}, step=update)

    def close(self) -> None:
        """Ends the progress bar and closes the log."""
        self.bar.close()
        if self._handler is not None:
            logger.removeHandler(self._handler)
            self._handler.close()


def memory_gib(device: torch.device) -> float:
    """Peak GPU memory of this process, or its resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a `metrics.jsonl`; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def _drop_later_lines(path: Path, update: int) -> None:
    lines = [line for line in read_metrics(path) if line["update"] <= update]
    if path.is_file():
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
