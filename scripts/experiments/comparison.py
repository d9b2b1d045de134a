"""Intervals on the results of cells and on their differences, over the same resampled frames."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from bifusion_hf.evaluation.detections import FrameDetections, load_detections, write_arrays
from bifusion_hf.evaluation.evaluator import group_part

from .bootstrap import group_means, interval, resampled_weights
from .cells import (
    CLASS_GROUPS,
    PHOTOMETRIC,
    SHAPE_DISTINCT,
    check_comparable,
)
from .running import DETECTIONS_FILE, NORMAL


COMPARISON_FILE = "comparison.json"
# Beside a result: AP50 in every draw, so that a cell can be compared with later ones after its run's folder is gone.
DRAWS_SUFFIX = ".draws.npz"
ALL = "all"
GROUPS = (ALL, PHOTOMETRIC, SHAPE_DISTINCT)
TASKS = ("class_aware", "class_agnostic")
THRESHOLD = 0.5
# AP50 of each task and group in each draw.
Draws = dict[str, dict[str, np.ndarray]]
# Kind of draw (`"value"`: the one multiset of all frames) -> draws.
Drawn = dict[str, Draws]


@dataclass(frozen=True)
class Result:
    """The JSON file of a cell.

    Args:
        name: Recipe and seed.
        values: Its content.
    """

    name: str
    values: Mapping[str, Any]

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        return self.values["recipe"]

    @property
    def is_baseline(self) -> bool:
        """Whether it is the network without image."""
        return self.values["arguments"]["model.config.fusion_type"] == "none"

    def ap50(self, task: str, group: str, condition: str = NORMAL) -> float:
        """AP50 in 0..1; NaN where it was not measured."""
        metrics = self.values["metrics"].get(condition)
        if metrics is None:
            return float("nan")
        value = metrics[task]["all_ap_50%"] if group == ALL else metrics["groups"][group][task].get("ap50%")
        return float("nan") if value is None else value


def read_results(folder: str | Path) -> list[Result]:
    """All results of a folder, those of the network without image first.

    Raises:
        ValueError: There is none, or they differ in the data or in more than the network.
    """
    results = []
    for path in sorted(Path(folder).glob("*-s*.json")):
        results.append(Result(path.stem, json.loads(path.read_text(encoding="utf-8"))))
    if not results:
        raise ValueError(f"{folder} has no result RECIPE-sSEED.json; expected those that `run` wrote")
    check_comparable({result.name: result.values["arguments"] for result in results})
    if len({json.dumps(result.values["data"]["sha256"], sort_keys=True) for result in results}) > 1:
        raise ValueError(f"the results of {folder} are of different data; expected one data set")
    return sorted(results, key=lambda result: (not result.is_baseline, result.recipe, result.values["seed"]))


def by_recipe(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Recipe -> its results, one a seed."""
    recipes: dict[str, list[Result]] = {}
    for result in results:
        recipes.setdefault(result.recipe, []).append(result)
    return recipes


def room_of(frame_id: str) -> str:
    """The room that a frame shows with others: its name without the number of the view."""
    return frame_id.rpartition("-")[0] or frame_id


def compare(
    results: Sequence[Result], folder: str | Path, work: str | Path, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Intervals of 95 % for AP50 of all cells, and for their differences, paired by frames.

    Two kinds of draws: of frames, and of rooms with all their frames, which are wider as they should be: frames of one
    room are no independent evidence. Differences between cells are means over the seeds that both have.

    Args:
        results: Of `read_results`.
        folder: Of the results. The draws of each cell are kept there; they stand for detections that are gone.
        work: Folder of the runs, with their detections.
        draws: Number of draws.
        seed: Of the draws.

    Returns:
        `draws`, `level`, `seed`, `units` (how many frames and rooms); `cells`: recipe -> condition -> task -> group ->
        `value`, `frames` and `rooms` (interval each); `differences`: recipe -> `from_baseline`, `from_shuffled`,
        `from_zeroed` -> the same.

    Raises:
        ValueError: Detections and draws of a cell are missing, or not those of its result, or of other frames.
    """
    values: dict[tuple[str, str], Drawn] = {}
    first: CellDraws | None = None
    for result in results:
        path, kept = Path(work) / result.name / DETECTIONS_FILE, Path(folder) / f"{result.name}{DRAWS_SUFFIX}"
        if path.is_file() or not kept.is_file():
            found, is_new = draw_cell(result, load_detections(path), draws, seed), True
        else:
            found, is_new = load_draws(kept), False
        first = first or found
        if (found.frame_ids, found.draws, found.seed) != (first.frame_ids, first.draws, first.seed):
            raise ValueError(f"{result.name}: its draws are of other frames than those of {results[0].name}")
        for condition in result.values["metrics"]:
            if condition not in found.conditions:
                raise ValueError(f"{kept} has no draws for {condition}; give the folder of the run to draw anew")
            values[result.name, condition] = found.conditions[condition]
            _check_value(result, condition, values[result.name, condition]["value"])
        if is_new:
            save_draws(kept, found)
    recipes = by_recipe(results)
    baseline = {result.values["seed"]: values[result.name, NORMAL] for result in results if result.is_baseline}
    cells: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for recipe, of_recipe in recipes.items():
        conditions = list(of_recipe[0].values["metrics"])
        own = {name: [values[result.name, name] for result in of_recipe] for name in conditions}
        cells[recipe] = {name: _summary(_mean(own[name])) for name in conditions}
        if of_recipe[0].is_baseline:
            continue
        normal = _mean(own[NORMAL])
        differences[recipe] = {
            f"from_{name}": _summary(_difference(normal, _mean(own[name]))) for name in conditions if name != NORMAL
        }
        shared = [result for result in of_recipe if result.values["seed"] in baseline]
        if shared:
            fused = _mean([values[result.name, NORMAL] for result in shared])
            plain = _mean([baseline[result.values["seed"]] for result in shared])
            differences[recipe]["from_baseline"] = _summary(_difference(fused, plain))
    return {
        "draws": first.draws,
        "level": 0.95,
        "seed": first.seed,
        "units": {"frames": len(set(first.frame_ids)), "rooms": len({room_of(name) for name in first.frame_ids})},
        "cells": cells,
        "differences": differences,
    }


@dataclass(frozen=True)
class CellDraws:
    """AP50 of a cell in every draw.

    Args:
        frame_ids: Of the validation frames.
        draws: Number of draws.
        seed: Of the draws.
        conditions: Condition -> kind of draw -> task -> group -> AP50 in each draw.
    """

    frame_ids: list[str]
    draws: int
    seed: int
    conditions: dict[str, Drawn]


def draw_cell(result: Result, detections: Mapping[str, FrameDetections], draws: int, seed: int) -> CellDraws:
    """Draws for a cell, under all conditions of its result.

    Args:
        result: Of the cell.
        detections: `"CONDITION/PART"` -> detections.
        draws: Number of draws.
        seed: Of the draws.

    Raises:
        ValueError: A condition has no detections, or the parts are of different frames.
    """
    frame_ids = next(iter(detections.values())).frame_ids.tolist()
    units = {"frames": frame_ids, "rooms": [room_of(name) for name in frame_ids]}
    weights = {"value": np.ones((1, len(frame_ids)), dtype=np.int64)}
    weights.update({unit: resampled_weights(names, draws, seed) for unit, names in units.items()})
    drawn = {}
    for condition in result.values["metrics"]:
        parts = {
            part.partition("/")[2]: found for part, found in detections.items() if part.startswith(f"{condition}/")
        }
        if not parts or any(found.frame_ids.tolist() != frame_ids for found in parts.values()):
            raise ValueError(
                f"{result.name}: its detections ({condition}) are missing, or of other frames than the first"
            )
        drawn[condition] = {unit: _draw(parts, rows) for unit, rows in weights.items()}
    return CellDraws(frame_ids, draws, seed, drawn)


def save_draws(path: str | Path, cell: CellDraws) -> None:
    """Writes draws, in float32, as a compressed npz file."""
    arrays = {
        f"{condition}/{unit}/{task}/{group}": values.astype(np.float32)
        for condition, units in cell.conditions.items()
        for unit, tasks in units.items()
        for task, groups in tasks.items()
        for group, values in groups.items()
    }
    write_arrays(path, {"frame_ids": np.array(cell.frame_ids), "numbers": np.array([cell.draws, cell.seed]), **arrays})


def load_draws(path: str | Path) -> CellDraws:
    """Reads what `save_draws` wrote.

    Raises:
        ValueError: It is no such file.
    """
    conditions: dict[str, Drawn] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            frame_ids, (draws, seed) = arrays["frame_ids"].tolist(), arrays["numbers"].tolist()
            for key in set(arrays.files) - {"frame_ids", "numbers"}:
                condition, unit, task, group = key.split("/")
                tasks = conditions.setdefault(condition, {}).setdefault(unit, {})
                tasks.setdefault(task, {})[group] = arrays[key].astype(np.float64)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise ValueError(f"{path}: not a file of draws ({error})") from error
    return CellDraws(frame_ids, draws, seed, conditions)


def _draw(parts: Mapping[str, FrameDetections], weights: np.ndarray) -> Draws:
    """AP50 of each task and group over multisets of frames."""
    aware = parts["class_aware"]
    per_class = aware.average_precision(weights, THRESHOLD)
    agnostic = {group: parts["class_agnostic" if group == ALL else group_part(group)] for group in GROUPS}
    return {
        "class_aware": group_means(per_class, aware.class_names, {ALL: aware.class_names.tolist(), **CLASS_GROUPS}),
        "class_agnostic": {
            group: found.average_precision(weights, THRESHOLD)[:, 0] for group, found in agnostic.items()
        },
    }


def _check_value(result: Result, condition: str, drawn: Draws) -> None:
    for task in TASKS:
        for group in GROUPS:
            found, expected = float(drawn[task][group][0]), result.ap50(task, group, condition)
            if not np.isclose(found, expected, atol=1e-6, equal_nan=True):
                raise ValueError(
                    f"{result.name}: its detections give AP50 {found:.6f} ({condition}, {task}, {group}), its result "
                    f"says {expected:.6f}: they are not of one run"
                )


def _each(combine: Callable[..., np.ndarray], *drawn: Drawn) -> Drawn:
    return {
        unit: {
            task: {group: combine(*(other[unit][task][group] for other in drawn)) for group in GROUPS}
            for task in TASKS
        }
        for unit in drawn[0]
    }


def _mean(seeds: Sequence[Drawn]) -> Drawn:
    """Mean over seeds, draw by draw."""
    return _each(lambda *values: np.mean(values, axis=0), *seeds)


def _difference(first: Drawn, second: Drawn) -> Drawn:
    """Draw by draw: both are of the same frames."""
    return _each(np.subtract, first, second)


def _summary(drawn: Drawn) -> dict[str, Any]:
    return {
        task: {
            group: {
                "value": float(drawn["value"][task][group][0]),
                **{unit: list(interval(drawn[unit][task][group])) for unit in ("frames", "rooms")},
            }
            for group in GROUPS
        }
        for task in TASKS
    }
