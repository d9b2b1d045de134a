"""The card of the experiment: tables and plots, made from the results' JSON files alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .cells import CLASS_GROUPS, SHAPE_DISTINCT
from .comparison import (
    ALL,
    COMPARISON_FILE,
    GROUPS,
    TASKS,
    Result,
    by_recipe,
    compare,
    read_results,
)
from .plots import GROUP_TITLES, draw_groups, draw_learning_curves
from .running import (
    NORMAL,
    SHUFFLED,
    ZEROED,
    write_json,
)


GROUPS_PLOT, CURVES_PLOT = "ap50_by_group.png", "learning_curves.png"
PICTURES_FILE = "pictures.json"
PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
_INTRODUCTION = """# Does the image help?

{cells} cells of one experiment on rendered rooms: networks that differ in the image branch and its fusion alone, with
the same data, seeds, budget, augmentation and optimizer, and the same colours on the points. *Photometric* classes
come in families of one shape, one distribution of colours and one mean colour at the scale of a voxel, so that only
texture finer than a voxel tells them apart; *shape-distinct* are all others. AP is ScanNet's, over the sampled
points, in percent. Spreads are standard deviations over seeds, where there are several. Intervals hold 95 % of
{draws} bootstrap draws of the validation frames, the same frames for both cells of a difference; in square brackets
of rooms with all their frames, which are fewer independent units. They tell how sure a difference is for these
trained networks, not how much another seed would change it.

This page is made by `python -m scripts.experiments.rooms_matrix report` from the JSON files beside it.
"""


def write_report(folder: str | Path, output: str | Path, work: str | Path | None = None) -> None:
    """Writes the card and its plots.

    Args:
        folder: Of the results.
        output: Markdown file; plots go beside it.
        work: Folder of the runs; with it the intervals are computed anew and kept in `comparison.json` of `folder`,
            without it they are taken from there.

    Raises:
        ValueError: There are no results, or no intervals for one of them.
    """
    folder, output = Path(folder), Path(output)
    results = read_results(folder)
    path = folder / COMPARISON_FILE
    if work is not None:
        write_json(path, compare(results, folder, work))
    elif not path.is_file():
        raise ValueError(f"{path} is missing; give the folder of the runs to compute it")
    # What was written is read again, so that both ways give one page.
    comparison = json.loads(path.read_text(encoding="utf-8"))
    missing = sorted(by_recipe(results).keys() - comparison["cells"].keys())
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; give the folder of the runs to compute it anew")
    output.parent.mkdir(parents=True, exist_ok=True)
    draw_groups(comparison, output.parent / GROUPS_PLOT)
    draw_learning_curves(results, output.parent / CURVES_PLOT)
    sections = [
        _INTRODUCTION.format(cells=len(by_recipe(results)), draws=comparison["draws"]),
        _data(results, comparison),
        f"## AP50\n\n{results_table(results)}\n\n![AP50 by group and cell]({GROUPS_PLOT})\n",
        _differences(comparison),
        _controls(results, comparison),
        f"## Learning curves\n\nOn the first frames of the validation set, with averaged weights.\n\n"
        f"![AP50 in training]({CURVES_PLOT})\n",
        _classes(results),
        _runs(results),
        *_pictures(folder),
    ]
    output.write_text("\n".join(sections), encoding="utf-8")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [" | ".join(header), " | ".join(["---", *["---:"] * (len(header) - 1)]), *map(" | ".join, rows)]
    return "\n".join(f"| {line} |" for line in lines)


def percent(value: float | None) -> str:
    """A fraction in percent."""
    return "–" if value is None or np.isnan(value) else f"{100 * value:.1f}"


def with_spread(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation, in percent."""
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{percent(float(np.mean(values)))}{spread}"


def signed(found: Mapping[str, Any]) -> str:
    """A difference in points with its interval over frames and, in brackets, over rooms."""
    if found["value"] is None:
        return "–"
    frames, rooms = (", ".join(f"{100 * end:+.1f}" for end in found[unit]) for unit in ("frames", "rooms"))
    return f"{100 * found['value']:+.1f} ({frames}) [{rooms}]"


def _data(results: Sequence[Result], comparison: Mapping[str, Any]) -> str:
    data, arguments = results[0].values["data"], results[0].values["arguments"]
    metrics = results[0].values["metrics"][NORMAL]
    hashes = "\n".join(
        f"- {split}: {count} frames, sha256 `{data['sha256'][split]}`" for split, count in data["frames"].items()
    )
    budget = arguments["training.max_updates"]
    length = f"{arguments['training.epochs']} epochs" if budget == "None" else f"{budget} updates"
    return (
        f"## Data and budget\n\n{hashes}\n- {comparison['units']['rooms']} validation rooms, "
        f"{metrics['class_aware']['num_instances']} instances of {len(metrics['class_aware']['classes'])} classes "
        f"({', '.join(sorted(set(CLASS_GROUPS['photometric']) & metrics['class_aware']['classes'].keys()))} are "
        f"photometric)\n- {length} of batches of {arguments['training.batch_size']}, learning rate "
        f"{arguments['optimizer.learning_rate']}, {metrics['protocol']['points_per_frame']} points a frame\n"
    )


def results_table(results: Sequence[Result], condition: str = NORMAL) -> str:
    """AP50 of every cell by task and group: mean and spread over seeds."""
    header = ["cell", "seeds"]
    header += [f"{task.replace('_', '-')}, {GROUP_TITLES[group]}" for task in TASKS for group in GROUPS]
    rows = []
    for recipe, found in by_recipe(results).items():
        cells = [
            with_spread([result.ap50(task, group, condition) for result in found])
            for task in TASKS
            for group in GROUPS
        ]
        rows.append([f"`{recipe}`", str(len(found)), *cells])
    return table(header, rows)


def _differences(comparison: Mapping[str, Any]) -> str:
    rows = [
        [f"`{recipe}`", task.replace("_", "-"), *(signed(found["from_baseline"][task][group]) for group in GROUPS)]
        for recipe, found in comparison["differences"].items()
        if "from_baseline" in found
        for task in TASKS
    ]
    if not rows:
        return ""
    header = ["cell", "AP50", *(GROUP_TITLES[group] for group in GROUPS)]
    return f"## Fused minus 3D-only\n\n{table(header, rows)}\n"


def _controls(results: Sequence[Result], comparison: Mapping[str, Any]) -> str:
    titles = {NORMAL: "as it is", SHUFFLED: "image of another frame", ZEROED: "image branch off"}
    rows, lost = [], []
    for recipe, found in by_recipe(results).items():
        for condition in found[0].values["metrics"]:
            cells = [
                with_spread([result.ap50("class_aware", group, condition) for result in found]) for group in GROUPS
            ]
            rows.append([f"`{recipe}`", titles[condition], *cells])
            name = f"from_{condition}"
            if name in comparison["differences"].get(recipe, {}):
                changes = comparison["differences"][recipe][name]["class_aware"]
                lost.append([f"`{recipe}`", titles[condition], *(signed(changes[group]) for group in GROUPS)])
    header = ["cell", "evaluated", *(GROUP_TITLES[group] for group in GROUPS)]
    sections = ["## Controls", "Class-aware AP50 of the same weights.", table(header, rows)]
    if lost:
        sections += ["What the right image gives over each control:", table(header, lost)]
    return "\n\n".join(sections) + "\n"


def _classes(results: Sequence[Result]) -> str:
    recipes = by_recipe(results)
    classes = results[0].values["metrics"][NORMAL]["class_aware"]["classes"]
    rows = []
    for group, members in CLASS_GROUPS.items():
        for name in sorted(set(members) & classes.keys()):
            values = [
                with_spread(
                    [
                        result.values["metrics"][NORMAL]["class_aware"]["classes"][name]["ap50%"] or 0.0
                        for result in found
                    ]
                )
                for found in recipes.values()
            ]
            title = f"{name} (photometric)" if group != SHAPE_DISTINCT else name
            rows.append([title, str(classes[name]["num_instances"]), *values])
    header = ["class", "instances", *(f"`{recipe}`" for recipe in recipes)]
    return f"## AP50 by class\n\n{table(header, rows)}\n"


def _runs(results: Sequence[Result]) -> str:
    rows, alarms = [], []
    for result in results:
        values = result.values
        alpha = "–" if values["alpha"] is None else f"{values['alpha']['mean']:.2f} ± {values['alpha']['std']:.2f}"
        liveness = values["liveness"]
        rows.append(
            [
                f"`{result.name}`",
                f"{values['parameters']['all']:,}",
                f"{values['parameters']['trainable']:,}",
                f"{values['training']['seconds'] / 60:.0f}",
                str(values["training"]["updates"]),
                PRECISIONS[values["arguments"]["training.mixed_precision"]],
                percent(result.ap50("class_aware", ALL)),
                percent(values["metrics"][NORMAL]["class_aware"]["all_ap"]),
                percent(values["metrics"][NORMAL]["class_aware"]["all_ap_25%"]),
                alpha,
                str(len(liveness["audited_updates"])),
                str(len(liveness["alarms"])),
            ]
        )
        alarms += [f"- `{result.name}`, {alarm}" for alarm in liveness["alarms"]]
    header = [
        "run",
        "parameters",
        "trainable",
        "minutes",
        "updates",
        "trained in",
        "AP50",
        "AP",
        "AP25",
        "alpha",
        "audits",
        "alarms",
    ]
    versions = ", ".join(f"{name} {number}" for name, number in results[0].values["versions"].items())
    notes = "\n".join(
        [
            "Alpha is the gate's weight of the image on the visible points of the validation frames, mean and spread. "
            "Alarms of the liveness audit are trainable tensors without a gradient and without a reason for it at an "
            "audited update; a tensor that stays so stops a run.",
            *alarms,
        ]
    )
    return (
        f"## Runs\n\n{table(header, rows)}\n\n{notes}\n\nVersions: {versions}; device {results[0].values['device']}.\n"
    )


def _pictures(folder: Path) -> list[str]:
    path = folder / PICTURES_FILE
    if not path.is_file():
        return []
    entries = json.loads(path.read_text(encoding="utf-8"))
    return ["## Pictures\n", *(f"![{entry['caption']}]({entry['file']})\n\n{entry['caption']}\n" for entry in entries)]
