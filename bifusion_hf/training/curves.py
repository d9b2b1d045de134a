"""A PNG of a run's curves.

Drawn with Pillow, which the package needs anyway: four plain line plots do not justify matplotlib and what it brings.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


# Panel title -> the metrics drawn in it; a name that ends with * stands for all that start so.
PANELS: Mapping[str, Sequence[str]] = {
    "losses (log scale)": ("loss", "loss_*"),
    "average precision": ("all_ap", "all_ap_50%", "all_ap_25%"),
    "alpha on visible points": ("alpha_mean", "alpha_std"),
    "learning rate": ("learning_rate*",),
}
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf", "#8c564b", "#e377c2", "#7f7f7f")
PANEL_SIZE = (760, 400)
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 76, 160, 34, 40


def draw_curves(lines: Sequence[Mapping[str, float | None]], path: str | Path) -> None:
    """Draws losses, AP, alpha and learning rate over updates.

    Args:
        lines: Lines of `metrics.jsonl`, each with `update`.
        path: PNG file to write.
    """
    width, height = PANEL_SIZE
    image = Image.new("RGB", (2 * width, 2 * height), "white")
    last = max([1, *(line["update"] for line in lines)])
    for index, (title, patterns) in enumerate(PANELS.items()):
        panel = Image.new("RGB", PANEL_SIZE, "white")
        _draw_panel(panel, title, _select(lines, patterns), last, logarithmic="log scale" in title)
        image.paste(panel, (index % 2 * width, index // 2 * height))
    image.save(path)


def _select(lines: Iterable[Mapping], patterns: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, value in line.items():
            matches = any(
                name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns
            )
            if matches and isinstance(value, (int, float)) and math.isfinite(value):
                curves.setdefault(name, []).append((line["update"], value))
    return curves


def _draw_panel(
    panel: Image.Image, title: str, curves: dict[str, list[tuple[float, float]]], last: float, logarithmic: bool
) -> None:
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(13)
    width, height = panel.size
    left, top, right, bottom = MARGIN_LEFT, MARGIN_TOP, width - MARGIN_RIGHT, height - MARGIN_BOTTOM
    draw.text(((left + right) / 2, 8), title, fill="black", font=ImageFont.load_default(15), anchor="ma")
    draw.rectangle((left, top, right, bottom), outline="black")
    if logarithmic:
        curves = {name: [(x, math.log10(y)) for x, y in points if y > 0] for name, points in curves.items()}
    values = [y for points in curves.values() for _, y in points]
    if not values:
        draw.text(((left + right) / 2, (top + bottom) / 2), "no values yet", fill="gray", font=font, anchor="mm")
        return
    low, high = min(values), max(values)
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - pad, high + pad

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / last, bottom - (bottom - top) * (y - low) / (high - low)

    for step in range(5):
        value = low + (high - low) * step / 4
        y = place(0, value)[1]
        draw.line((left, y, right, y), fill="#e0e0e0")
        draw.text((left - 5, y), f"{10**value if logarithmic else value:.3g}", fill="black", font=font, anchor="rm")
        x = left + (right - left) * step / 4
        draw.text((x, bottom + 5), f"{last * step / 4:.0f}", fill="black", font=font, anchor="ma")
    draw.text(((left + right) / 2, height - 4), "update", fill="black", font=font, anchor="md")
    for index, (name, points) in enumerate(curves.items()):
        color = COLORS[index % len(COLORS)]
        places = [place(x, y) for x, y in points]
        if len(places) > 1:
            draw.line(places, fill=color, width=2, joint="curve")
        for x, y in places[:: max(1, len(places) // 40)]:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=color)
        row = top + 6 + 16 * index
        draw.line((right + 8, row + 7, right + 22, row + 7), fill=color, width=3)
        draw.text((right + 27, row), name, fill="black", font=font)
