"""One cell from its recipe to its result: training, evaluation under the controls, a JSON file."""

import gc
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from bifusion_hf.data.augmentation import AugmentationConfig
from bifusion_hf.data.dataset import FrameDataset
from bifusion_hf.data.frames import load_frames
from bifusion_hf.evaluation import evaluate_model
from bifusion_hf.evaluation.detections import DetectionRecorder, save_detections
from bifusion_hf.evaluation.results import without_nan
from bifusion_hf.io.atomic import write_text
from bifusion_hf.modeling_bifusion import BiFusionForInstanceSegmentation
from bifusion_hf.processing_bifusion import BiFusionProcessor
from bifusion_hf.recipe.arguments import DataArguments
from bifusion_hf.training.freezing import TOWER, freeze_for_training, is_below
from bifusion_hf.training.metrics import LOG_FILE, METRICS_FILE, read_metrics
from bifusion_hf.training.run import build_trainer, cache_superpoints

from .cells import (
    CLASS_GROUPS,
    Cell,
    RoomsData,
    changed_keys,
    content_of,
)
from .controls import HiddenImages, ShuffledImages, derangement
from .token_memory import remember_tokens


CELL_FILE = "cell.json"
DETECTIONS_FILE = "detections.npz"
NORMAL, SHUFFLED, ZEROED = "normal", "shuffled", "zeroed"
# Of the exchange of images, so that all cells get the same wrong ones.
_SHUFFLE_SEED = 0
_PACKAGES = ("bifusion_hf", "torch", "transformers", "accelerate", "datasets", "numpy", "scipy", "scikit-image")
_ALPHA_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def run_cell(cell: Cell, data: RoomsData, results: str | Path) -> str:
    """Trains and evaluates a cell, unless its result is there.

    What was begun goes on: a killed training at its latest checkpoint, a killed evaluation from its start. A cell that
    another process is running is left to it.

    Args:
        cell: The cell.
        data: The frames.
        results: Folder of the JSON files.

    Returns:
        What was done, for the terminal.

    Raises:
        ValueError: The run's folder holds a run of other arguments or data.
    """
    path = Path(results) / f"{cell.name}.json"
    identity = {"arguments": content_of(cell.arguments), "data": data.identity()}
    if is_complete(path, identity):
        return f"skipped, {path} is complete"
    cell.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(cell.folder / "cell.lock", blocking=False):
            _claim(cell.folder / CELL_FILE, identity)
            if not (cell.folder / "final").is_dir():
                train_cell(cell)
            write_json(path, {"recipe": cell.recipe, "seed": cell.arguments.seed, **identity, **measure(cell, data)})
    except Timeout:
        return "left to the process that is running it"
    return f"done, {path}"


def is_complete(path: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a result of these arguments and data is there."""
    if not path.is_file():
        return False
    return not _differences(json.loads(path.read_text(encoding="utf-8")), identity)


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Arguments that differ, and "the frames"; their folder's name does not matter."""
    frames = [] if found["data"]["sha256"] == wanted["data"]["sha256"] else ["the frames"]
    return changed_keys(found["arguments"], wanted["arguments"]) + frames


def _claim(path: Path, identity: Mapping[str, Any]) -> None:
    """Writes what a folder's run is, or makes sure that it is this one."""
    if not path.is_file():
        write_json(path, identity)
        return
    different = _differences(json.loads(path.read_text(encoding="utf-8")), identity)
    if different:
        raise ValueError(
            f"{path.parent} holds a run that differs in {', '.join(different)}; expected another --work folder, or "
            "that this one is deleted"
        )


def train_cell(cell: Cell) -> None:
    """Trains a cell in its folder, as `bifusion-train` does."""
    # Two processes that start together would both find the superpoints of all frames.
    with FileLock(cell.folder.parent / "superpoints.lock"):
        trainer = build_trainer(cell.arguments)
    later = cell.arguments.training.unfreeze_at
    if has_frozen_tower(trainer.network, later) and keeps_images(cell.arguments.data):
        for network in [trainer.network, *([trainer.ema.module] if trainer.ema else [])]:
            remember_tokens(network, cell.folder.parent / "tower_tokens")
    trainer.train()
    # The next cell of this process needs the memory.
    del trainer
    gc.collect()


def has_frozen_tower(network: torch.nn.Module, later: Iterable[str]) -> bool:
    """Whether a network has an image tower of which nothing trains, nor starts to (`training.unfreeze_at`)."""
    trains = [
        parameter.requires_grad or any(is_below(name, prefix) for prefix in later)
        for name, parameter in network.named_parameters()
        if is_below(name, TOWER)
    ]
    return bool(trains) and not any(trains)


def keeps_images(data: DataArguments) -> bool:
    """Whether a recipe's augmentation leaves every image as it is."""
    augmentation = AugmentationConfig(**data.augmentation)
    changes = ("image_flip_probability", "crop_probability", "brightness", "contrast", "saturation")
    changes += ("recolor_probability", "color_probability")
    return not data.augment or not any(getattr(augmentation, name) for name in changes)


def measure(cell: Cell, data: RoomsData) -> dict[str, Any]:
    """Everything that a result says of a trained cell; the detections of its frames are written into its folder."""
    arguments = cell.arguments
    model, processor = load_trained(cell.folder)
    dataset = validation_frames(data, processor, arguments.data.num_workers, cell.folder.parent)
    conditions = {NORMAL: dataset, SHUFFLED: ShuffledImages(dataset, derangement(len(dataset), _SHUFFLE_SEED))}
    if model.config.fusion_type != "none":
        conditions[ZEROED] = HiddenImages(dataset)
    metrics, detections = {}, {}
    alpha = None
    for condition, frames in conditions.items():
        recorder = DetectionRecorder()
        with recorded_alpha(model) as values:
            found = evaluate_model(
                model,
                processor,
                frames,
                batch_size=arguments.evaluation.batch_size,
                num_workers=arguments.evaluation.num_workers,
                groups=CLASS_GROUPS,
                on_frame=recorder.add,
            )
        metrics[condition] = _without_absent_classes(found)
        detections.update({f"{condition}/{part}": value for part, value in recorder.detections().items()})
        if condition == NORMAL and values:
            alpha = _alpha_summary(np.concatenate(values))
        print(f"{cell.name}, {condition}: AP50 {100 * found['class_aware']['all_ap_50%']:.1f}", flush=True)
    save_detections(cell.folder / DETECTIONS_FILE, detections)
    freeze_for_training(model, arguments.training)
    parameters = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "device": model.device.type,
        "parameters": {
            "all": sum(size for size, _ in parameters),
            "trainable": sum(size for size, trains in parameters if trains),
        },
        **training_summary(cell.folder),
        "alpha": alpha,
        "metrics": metrics,
    }


def load_trained(folder: Path) -> tuple[BiFusionForInstanceSegmentation, BiFusionProcessor]:
    """Network, in eval mode, and processor of a finished run."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = BiFusionForInstanceSegmentation.from_pretrained(folder / "final").eval().to(device)
    return model, BiFusionProcessor.from_pretrained(folder / "final")


def validation_frames(data: RoomsData, processor: BiFusionProcessor, num_workers: int, work: Path) -> FrameDataset:
    """All validation frames, with their superpoints found once for all cells."""
    with FileLock(work / "superpoints.lock"):
        rows = cache_superpoints(load_frames(data.folder, "val"), processor, num_workers)
    return FrameDataset(rows, processor)


@contextmanager
def recorded_alpha(model: BiFusionForInstanceSegmentation) -> Iterator[list[np.ndarray]]:
    """A list that takes the gate's weights on the visible points of every forward; stays empty without a gate."""
    values: list[np.ndarray] = []

    def record(module: torch.nn.Module, args: tuple, inputs: Mapping[str, Any], outputs: Any) -> None:
        if outputs.fusion_weights is not None:
            seen = inputs["point_visible"] & inputs["point_mask"]
            values.append(outputs.fusion_weights.squeeze(-1)[seen].float().cpu().numpy())

    handle = model.register_forward_hook(record, with_kwargs=True)
    try:
        yield values
    finally:
        handle.remove()


def _alpha_summary(values: np.ndarray) -> dict[str, Any]:
    quantiles = np.quantile(values, _ALPHA_QUANTILES)
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "quantiles": {str(share): float(value) for share, value in zip(_ALPHA_QUANTILES, quantiles, strict=True)},
        "num_points": len(values),
    }


def _without_absent_classes(results: dict[str, Any]) -> dict[str, Any]:
    """The same result without the classes of which there is no instance."""
    for part in ("class_aware", "semantic"):
        if part in results:
            count = "num_instances" if part == "class_aware" else "num_points"
            present = {name: row for name, row in results[part]["classes"].items() if row[count]}
            results[part]["classes"] = present
    return results


def training_summary(folder: Path) -> dict[str, Any]:
    """What the logs of a run tell: `training` (time and updates), `learning_curve` and `liveness`."""
    lines = read_metrics(folder / METRICS_FILE)
    timed = [line for line in lines if "updates_per_second" in line]
    seconds, updates = sum(line["seconds"] for line in timed), timed[-1]["update"]
    curve = [line for line in lines if "all_ap_50%" in line]
    return {
        "training": {
            # Without evaluations and checkpoints, and without what a kill made to be run again.
            "seconds": round(seconds, 1),
            "updates": updates,
            "seconds_per_update": round(seconds / updates, 4),
            "skipped_updates": timed[-1]["skipped_updates"],
            "final_loss": timed[-1]["loss"],
        },
        "learning_curve": curve,
        "liveness": liveness_summary((folder / LOG_FILE).read_text(encoding="utf-8")),
    }


def liveness_summary(log: str) -> dict[str, Any]:
    """What the liveness audit said in a run that it did not stop.

    Args:
        log: Content of `train.log`.

    Returns:
        `audited_updates`; `alarms`, rows of its tables with a trainable tensor that had no gradient and no reason for
        it, each with its update; `last_table`, line by line.
    """
    # A table ends where the next line with a date begins.
    found = re.findall(r"liveness audit of update (\d+)\n(.*?)(?=^\d{4}-\d\d-\d\d |\Z)", log, re.DOTALL | re.MULTILINE)
    # Updates that were run again after a kill are there twice; the last time counts.
    tables = {int(update): table.rstrip().splitlines() for update, table in found}
    return {
        "audited_updates": sorted(tables),
        "alarms": [
            f"update {update}: {row}" for update, rows in tables.items() for row in rows if "NO GRADIENT" in row
        ],
        "last_table": tables[max(tables)] if tables else [],
    }


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON, NaN as null, so that a reader finds all of it or nothing."""
    write_text(path, json.dumps(without_nan(values), indent=1, allow_nan=False) + "\n")
