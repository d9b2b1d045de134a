"""The card of the real benchmark: tables from the results' JSON files alone, and the pictures beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..report import percent, table
from .folder import ROOMS, SINGLE, SOURCES, TABLE_TOPS
from .measurement import CAMERA_UP, CONDITIONS, NO_POSE, TRUE_UP


PREFIX, GRAVITY, BOXES = "real_frames_", "gravity", "boxes"
# Results whose names begin so are no checkpoints to choose from: short trainings that differ in one thing, the points
# of one long training, and one checkpoint under other settings. Each kind has a table of its own.
SERIES = {
    "ablation": "What of the recipe helps: trainings of equal length and seed, from one checkpoint. `rooms` is the "
    "recipe of the rooms; `colour`, `tilt` (with frames without a pose, and scale) and `world` (close-ups beside the "
    "rooms, enlarged) each add one thing to it, `all` adds all.",
    "curve": "What longer training brings: `tiny_world_2.yaml` at the update in the name, (`curve_3`) "
    "`tiny_world_3.yaml`, and (`curve_4`) the same from the shipped checkpoint on; `mean` is that of its twenty "
    "checkpoints.",
    "resolution": "What finer voxels and more points bring by themselves: the shipped checkpoint, trained with voxels "
    "of 4 cm and 8,000 points, on voxels of 3 cm, with 20,000 points, and with both.",
}
# Written by hand, taken into the card as they are: what the pictures show.
NOTES_FILE = "notes.md"
# Groups in the order of the tables; others follow by name.
_ORDER = (ROOMS, TABLE_TOPS, SINGLE)
_INTRODUCTION = """# Real frames

How well checkpoints do on single frames of real cameras. The frames are for measuring: nothing was trained on them,
and they are not part of the package. Class-agnostic average precision by ScanNet's protocol over the points sampled
from a frame, in percent; points without a label are void. *Mean IoU* is that of each object with the best instance
above score {score}. In brackets: 95 % of {draws} bootstrap draws of a group's frames. They are few, so differences
inside the intervals say little.

This page is made by `python -m scripts.experiments.real_frames report`.
"""


_BOXES = """How far the sides of boxes along the camera's axes are off, medians in centimetres over the {objects} of
{labelled_objects} labelled objects that `{checkpoint}` finds both with masks left whole and with their parts taken
apart; and segments with points outside their largest part. Boxes are of all points, or leave a share of them out on
each side, {percent:g} % in the package. Labels have stray points at their outlines too, so truth is taken in three
ways."""


def write_card(results: str | Path, output: str | Path) -> None:
    """Writes the card.

    Args:
        results: Folder of `real_frames_NAME.json`.
        output: The Markdown file; pictures `NAME-GROUP.jpg` and `notes.md` are looked for beside it.

    Raises:
        ValueError: There are no results.
    """
    output = Path(output)
    found = read_results(results)
    protocol = next(iter(found.values()))["protocol"]
    sections = [_INTRODUCTION.format(score=protocol["score_of_mean_iou"], draws=protocol["draws"])]
    whole = {name: result for name, result in found.items() if _series_of(name) is None}
    sections += [f"## {group}\n\n{group_table(whole, group)}\n" for group in group_names(whole)]
    sections.append(f"## What the superpoints allow\n\n{ceiling_table(whole)}\n")
    for series, text in SERIES.items():
        members = {name: result for name, result in sorted(found.items()) if _series_of(name) == series}
        if members:
            sections.append(f"## {series.capitalize()}\n\n{text}\n\n{series_table(members)}\n")
    gravity = Path(results) / f"{PREFIX}{GRAVITY}.json"
    if gravity.is_file():
        sections.append(f"## Up\n\n{gravity_table(json.loads(gravity.read_text(encoding='utf-8')))}\n")
    boxes = Path(results) / f"{PREFIX}{BOXES}.json"
    if boxes.is_file():
        content = json.loads(boxes.read_text(encoding="utf-8"))
        text = _BOXES.format(**content, percent=100 * content["protocol"]["today"])
        sections.append(f"## Boxes\n\n{text}\n\n{boxes_table(content)}\n")
    notes = output.parent / NOTES_FILE
    if notes.is_file():
        sections.append(notes.read_text(encoding="utf-8"))
    sections.append(_pictures(found, output.parent))
    sections.append(f"## Frames\n\n{sources_table(found)}\n")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(section for section in sections if section), encoding="utf-8")


def read_results(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The results of a folder: name -> content, in the order in which they were measured.

    Raises:
        ValueError: There are none.
    """
    paths = Path(folder).glob(f"{PREFIX}*.json")
    contents = {path.stem.removeprefix(PREFIX): json.loads(path.read_text(encoding="utf-8")) for path in paths}
    found = {name: content for name, content in contents.items() if "groups" in content}
    if not found:
        raise ValueError(f"{folder} has no {PREFIX}NAME.json; expected results of `measure`")
    return dict(sorted(found.items(), key=lambda entry: (entry[1]["measured"], entry[0])))


def group_names(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The groups of all results, in the order of the tables."""
    names = {group for result in results.values() for group in result["groups"]}
    return [name for name in _ORDER if name in names] + sorted(names.difference(_ORDER))


def group_table(results: Mapping[str, Mapping[str, Any]], group: str) -> str:
    """Every checkpoint under every condition on one group."""
    header = ["checkpoint", "given", "frames", "objects", "AP", "AP50", "AP25", "mean IoU"]
    rows = []
    for name, result in results.items():
        if group not in result["groups"]:
            continue
        values = result["groups"][group]
        for condition in CONDITIONS:
            given = f"{condition} ({', '.join(f'{n} {up}' for up, n in sorted(values['up'][condition].items()))})"
            cells = [with_interval(values[condition][metric]) for metric in ("ap", "ap50", "ap25", "mean_iou")]
            rows.append([f"`{name}`", given, str(values["frames"]), str(values["objects"]), *cells])
    return table(header, rows)


def _series_of(name: str) -> str | None:
    """The kind of series that a result belongs to, by its name."""
    kind, underscore, _ = name.partition("_")
    return kind if underscore and kind in SERIES else None


def series_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a run without a pose, and its rendered frames where they were measured."""
    groups = group_names(results)
    header = ["run", *(f"{group}: {what}" for group in groups for what in ("AP", "AP50", "mean IoU"))]
    header += ["rendered: AP", "AP50"]
    rows = []
    for name, result in results.items():
        cells = []
        for group in groups:
            values = result["groups"].get(group, {}).get(NO_POSE, {})
            cells += [percent(values.get(metric, {}).get("value")) for metric in ("ap", "ap50", "mean_iou")]
        rendered = result.get("rendered", {})
        cells += [percent(rendered.get(metric)) for metric in ("ap", "ap50")]
        rows.append([f"`{name.partition('_')[2]}`", *cells])
    return table(header, rows)


def ceiling_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """What a perfect choice of superpoints reaches: mean IoU, and objects above 0.5."""
    header = ["checkpoint", *(f"{group}: {what}" for group in group_names(results) for what in ("mean IoU", "found"))]
    rows = []
    for name, result in results.items():
        cells = []
        for group in group_names(results):
            values = result["groups"].get(group, {}).get(NO_POSE, {})
            cells += [percent(values.get(metric, {}).get("value")) for metric in ("ceiling_iou", "ceiling_found")]
        rows.append([f"`{name}`", *cells])
    return table(header, rows)


def gravity_table(result: Mapping[str, Any]) -> str:
    """Errors of the estimated up, in degrees."""
    header = ["frames", "count", "median", "90th percentile", f"within {result['within']:g}°", "estimated"]
    header += ["camera's own up: median", f"within {result['within']:g}°", "ms"]
    rows = [
        [
            name,
            str(values["count"]),
            f"{values['median']:.1f}°",
            f"{values['percentile_90']:.1f}°",
            f"{percent(values['share_within'])} %",
            f"{percent(values['share_estimated'])} %",
            f"{values['median_camera']:.1f}°",
            f"{percent(values['share_within_camera'])} %",
            f"{values['median_milliseconds']:.0f}",
        ]
        for name, values in result["sets"].items()
    ]
    return table(header, rows)


def boxes_table(result: Mapping[str, Any]) -> str:
    """One line for masks and rule of the boxes; errors in centimetres, by each truth."""
    truths = result["protocol"]["truths"]
    header = ["masks", "boxes", "segments", "with stray points"]
    header += [f"more than {percent(result['protocol']['many_strays'])} % of them"]
    header += [f"{side}, truth: {truth}" for truth in truths for side in ("largest side", "all sides")]
    rows = []
    for masks, by_rule in result["errors"].items():
        values = result["masks"][masks]
        for rule, by_truth in by_rule.items():
            sides = [by_truth[truth][side] for truth in truths for side in ("largest_side", "all_sides")]
            shares = [percent(values[name]) for name in ("with_strays", "with_many_strays")]
            rows.append([masks, rule, str(values["segments"]), *shares, *map(percent, sides)])
    return table(header, rows)


def sources_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the frames come from."""
    names = sorted({name for result in results.values() for name in result["frames"]})
    rows = []
    for source in sorted({name.partition("/")[0] for name in names}):
        count = str(sum(name.startswith(f"{source}/") for name in names))
        known = SOURCES.get(source)
        rows.append([source, count, *((known.origin, known.camera, known.licence) if known else ("–",) * 3)])
    return table(["source", "labelled frames", "from", "camera", "licence"], rows)


def with_interval(found: Mapping[str, float | None]) -> str:
    """A value with its interval, in percent."""
    return f"{percent(found['value'])} ({percent(found['low'])}–{percent(found['high'])})"


def summary_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a group and checkpoint, for the terminal."""
    header = ["group", "checkpoint", "frames", "AP", "AP50", "AP25", "mean IoU"]
    header += [f"AP50, {CAMERA_UP}", f"AP50, {TRUE_UP}", "superpoints allow"]
    rows = []
    for group in group_names(results):
        for name, result in results.items():
            if group in result["groups"]:
                values = result["groups"][group]
                rows.append(
                    [
                        group,
                        name,
                        str(values["frames"]),
                        *(with_interval(values[NO_POSE][metric]) for metric in ("ap", "ap50", "ap25", "mean_iou")),
                        *(with_interval(values[condition]["ap50"]) for condition in (CAMERA_UP, TRUE_UP)),
                        percent(values[NO_POSE]["ceiling_found"]["value"]),
                    ]
                )
    return table(header, rows)


def _pictures(results: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    lines = []
    for name, result in results.items():
        shown = [path for path in sorted(folder.glob(f"{name}-*.jpg")) if path.is_file()]
        if shown:
            lines.append(f"\n`{name}` ({result['checkpoint']}), without a pose; labelled frames beside their truth:\n")
        lines += [f"![{path.stem}]({path.name})\n" for path in shown]
    return "\n".join(["## Pictures", *lines]) if lines else ""
