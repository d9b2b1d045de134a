"""Tables of docs/naming.md from the stored results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bifusion_hf.labels import SPLIT_NAMES
from scripts.benchmarks.parameters import update_file


def write_tables(results: Path, document: Path) -> None:
    """Fills in the tables whose results are there.

    Args:
        results: Folder of the JSON files.
        document: The Markdown file.

    Raises:
        ValueError: The document lacks the place of a table.
    """
    for name, (file, table) in TABLES.items():
        path = results / file
        if path.is_file():
            update_file(document, name, table(json.loads(path.read_text(encoding="utf-8"))))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def semantic_table(content: Mapping[str, Any]) -> str:
    """Names by the semantic head."""
    groups, threshold = ", ".join(SPLIT_NAMES), content["name_threshold"]
    lines = [
        f"| data | found | right, all | {groups} | named from {threshold:g} on | right |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in content["data"].items():
        groups = ", ".join(_percent(row[split]["share"]) for split in SPLIT_NAMES)
        shown = row["above_the_threshold"]
        cells = [
            f"`{name}`",
            f"{row['all']['found']} of {row['true_instances']}",
            _percent(row["all"]["share"]),
            groups,
        ]
        cells += [_percent(shown["shown"]), _percent(shown["right"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speed_table(content: Mapping[str, Any]) -> str:
    """Seconds of naming a frame."""
    times = [f"{name} {values['2 threads']:.1f} s" for name, values in content.items() if isinstance(values, Mapping)]
    return (
        f"A frame of {content['instances']} instances, ViT-B/16, two threads: {'; '.join(times)} (load of the machine "
        f"{content['load_before']:.1f} before, {content['load_after']:.1f} after)."
    )


def clip_table(content: Mapping[str, Any]) -> str:
    """Names by the small CLIP, beside chance and the semantic head."""
    training = content["protocol"]["training"] or {}
    lines = ["| names by | right, all | head | common | tail |", "|---|---|---|---|---|"]
    for name, value in content["frames"]["chance"].items():
        lines.append(f"| chance: {name} | {_percent(value)} | | | |")
    parts = [("", {name: row for name, row in content["frames"].items() if name != "chance"})]
    parts.append(("scenes: ", content.get("scenes", {})))
    for prefix, rows in parts:
        for name, row in rows.items():
            cells = " | ".join(_percent(row[split]["share"]) for split in SPLIT_NAMES)
            found = f"{_percent(row['all']['share'])} of {row['all']['found']}"
            lines.append(f"| {prefix}{name} | {found} | {cells} |")
    if training:
        lines += [
            "",
            f"Trained on {training['instances']} instances of {training['classes']} classes, {training['updates']} "
            f"updates of {training['batch_size']} crops, {training['cpu_seconds'] / 60:.0f} minutes of one core.",
        ]
    return "\n".join(lines)


def finetune_table(content: Mapping[str, Any]) -> str:
    """Average precision of the classes of the recipe `finetune`."""
    lines = ["| | AP | AP50 | AP25 | instances |", "|---|---|---|---|---|"]

    def add(name: str, values: list[float | None], count: int) -> None:
        cells = " | ".join("–" if value is None else f"{100 * value:.1f}" for value in values)
        lines.append(f"| {name} | {cells} | {count} |")

    keys = ("all_ap", "all_ap_50%", "all_ap_25%")
    for part in ("class_aware", "class_agnostic"):
        row = content[part]
        add(part.replace("_", "-"), [row[key] for key in keys], row["num_instances"])
    for name, row in content["class_aware"]["classes"].items():
        add(f"`{name}`", [row[key] for key in ("ap", "ap50%", "ap25%")], row["num_instances"])
    return "\n".join(lines)


TABLES = {
    "semantic": ("semantic_names.json", semantic_table),
    "speed": ("naming_speed.json", speed_table),
    "clip": ("small_clip_names.json", clip_table),
    "finetune": ("finetune_sample_val.json", finetune_table),
}
