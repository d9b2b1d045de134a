"""PNGs of the experiment, drawn with Pillow as the curves of a run are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from bifusion_hf.training.curves import (
    COLORS,
    MARGIN_BOTTOM,
    MARGIN_LEFT,
    MARGIN_TOP,
    PANEL_SIZE,
    draw_panel,
    legend_width,
    linear_axis,
)

from .comparison import GROUPS, TASKS, Result
from .running import NORMAL


GROUP_TITLES = {"all": "all classes", "photometric": "photometric", "shape_distinct": "shape-distinct"}


def draw_groups(comparison: Mapping[str, Any], path: str | Path) -> None:
    """AP50 of every cell on each group of classes, with intervals over frames: one panel a task.

    Args:
        comparison: Of `comparison.compare`.
        path: PNG file to write.
    """
    width, height = PANEL_SIZE
    image = Image.new("RGB", (width, len(TASKS) * height), "white")
    for index, task in enumerate(TASKS):
        panel = Image.new("RGB", (width, height), "white")
        cells = {recipe: conditions[NORMAL][task] for recipe, conditions in comparison["cells"].items()}
        _draw_bars(panel, f"AP50, {task.replace('_', '-')}, 95 % intervals over frames", cells)
        image.paste(panel, (0, index * height))
    image.save(path)


def _draw_bars(panel: Image.Image, title: str, cells: Mapping[str, Mapping[str, Any]]) -> None:
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(13)
    left, top = MARGIN_LEFT, MARGIN_TOP
    names = [recipe.removeprefix("rooms_") for recipe in cells]
    right, bottom = panel.width - legend_width(names), panel.height - MARGIN_BOTTOM
    draw.text(((left + right) / 2, 8), title, fill="black", font=ImageFont.load_default(15), anchor="ma")
    known = [
        100 * end
        for groups in cells.values()
        for found in groups.values()
        for end in found["frames"]
        if end is not None
    ]
    _, high, ticks = linear_axis(max(known, default=1.0))

    def place(value: float) -> float:
        return bottom - (bottom - top) * 100 * value / high

    for tick in ticks:
        draw.line((left, place(tick / 100), right, place(tick / 100)), fill="#e0e0e0")
        draw.text((left - 5, place(tick / 100)), f"{tick:.10g}", fill="black", font=font, anchor="rm")
    step = (right - left) / len(GROUPS)
    bar = 0.8 * step / len(cells)
    for place_of_group, group in enumerate(GROUPS):
        start = left + step * (place_of_group + 0.1)
        draw.text((start + 0.4 * step, bottom + 5), GROUP_TITLES[group], fill="black", font=font, anchor="ma")
        for index, groups in enumerate(cells.values()):
            found = groups[group]
            if found["value"] is None:
                continue
            x = start + bar * index
            box = (x + 1, place(found["value"]), x + bar - 2, bottom)
            draw.rectangle(box, fill=COLORS[index % len(COLORS)])
            middle = x + bar / 2
            low, above = (place(end) for end in found["frames"])
            draw.line((middle, low, middle, above), fill="black", width=1)
            for end in (low, above):
                draw.line((middle - 4, end, middle + 4, end), fill="black", width=1)
    draw.rectangle((left, top, right, bottom), outline="black")
    for index, name in enumerate(names):
        row = top + 6 + 18 * index
        draw.rectangle((right + 8, row, right + 20, row + 12), fill=COLORS[index % len(COLORS)])
        draw.text((right + 26, row - 1), name, fill="black", font=font)


def draw_learning_curves(results: Sequence[Result], path: str | Path) -> None:
    """AP50 of every run during training, class-aware and class-agnostic, on the frames of its learning curve.

    Args:
        results: Of `comparison.read_results`.
        path: PNG file to write.
    """
    width, height = PANEL_SIZE
    image = Image.new("RGB", (width, 2 * height), "white")
    last = max(line["update"] for result in results for line in result.values["learning_curve"])
    for index, (title, key) in enumerate(
        (("class-aware", "all_ap_50%"), ("class-agnostic", "class_agnostic_all_ap_50%"))
    ):
        panel = Image.new("RGB", (width, height), "white")
        curves = {
            result.name.removeprefix("rooms_"): [
                (line["update"], 100 * line[key])
                for line in result.values["learning_curve"]
                if line.get(key) is not None
            ]
            for result in results
        }
        draw_panel(panel, f"AP50 in training, {title}", curves, last)
        image.paste(panel, (0, index * height))
    image.save(path)
