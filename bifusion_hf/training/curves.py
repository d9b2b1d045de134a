"""A PNG of a run's curves.

Drawn with Pillow, which the package needs anyway: four plain line plots do not justify matplotlib and what it brings.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..io.images import save_png


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
        draw_panel(panel, title, _select(lines, patterns), last, logarithmic="log scale" in title)
        image.paste(panel, (index % 2 * width, index // 2 * height))
    save_png(image, Path(path))


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


def draw_panel(
    panel: Image.Image,
    title: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    last: float,
    logarithmic: bool = False,
) -> None:
    """Draws curves over updates, with a legend.

    Args:
        panel: RGB image to draw on.
        title: Above the axes.
        curves: Name -> points (update, value), in ascending order of updates.
        last: Update at the right end.
        logarithmic: Scale of the values.
    """
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(13)
    width, height = panel.size
    left, top, right, bottom = MARGIN_LEFT, MARGIN_TOP, width - legend_width(curves), height - MARGIN_BOTTOM
    draw.text(((left + right) / 2, 8), title, fill="black", font=ImageFont.load_default(15), anchor="ma")
    frame = (left, top, right, bottom)
    draw.rectangle(frame, outline="black")
    if logarithmic:
        curves = {name: [(x, y) for x, y in points if y > 0] for name, points in curves.items()}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        draw.text(((left + right) / 2, (top + bottom) / 2), "no values yet", fill="gray", font=font, anchor="mm")
        return
    values = [y for points in curves.values() for _, y in points]
    low, high, ticks = logarithmic_axis(min(values), max(values)) if logarithmic else linear_axis(max(values))
    scale = math.log10 if logarithmic else float

    def place(x: float, y: float) -> tuple[float, float]:
        share = (scale(y) - scale(low)) / (scale(high) - scale(low))
        return left + (right - left) * x / last, bottom - (bottom - top) * share

    for value in ticks:
        y = place(0, value)[1]
        draw.line((left, y, right, y), fill="#e0e0e0")
        draw.text((left - 5, y), f"{value:.10g}", fill="black", font=font, anchor="rm")
    draw.rectangle(frame, outline="black")
    for update in linear_axis(last)[2]:
        if update <= last:
            draw.text((place(update, high)[0], bottom + 5), f"{update:.10g}", fill="black", font=font, anchor="ma")
    draw.text(((left + right) / 2, height - 4), "update", fill="black", font=font, anchor="md")
    for index, (name, points) in enumerate(curves.items()):
        color, row = COLORS[index % len(COLORS)], top + 13 + 16 * index
        places = [place(x, y) for x, y in points]
        # Every second curve is dashed, so that one does not hide another of the same values.
        for line in (places, [(right + 8, row), (right + 26, row)]):
            for part in dashes(line) if index % 2 else [line]:
                draw.line(part, fill=color, width=2, joint="curve")
        for x, y in places[:: max(1, len(places) // 40)] if index % 2 == 0 or len(places) == 1 else []:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=color)
        draw.text((right + 31, row - 7), name, fill="black", font=font)


def legend_width(names: Iterable[str]) -> int:
    """Pixels to the right of the axes that hold marks and names of a legend, MARGIN_RIGHT at least."""
    font = ImageFont.load_default(13)
    return max([MARGIN_RIGHT, *(31 + math.ceil(font.getlength(name)) + 8 for name in names)])


def linear_axis(high: float, ticks: int = 5) -> tuple[float, float, list[float]]:
    """An axis from 0 for values up to `high`.

    Returns:
        0, its upper end, and about `ticks` multiples of 1, 2 or 5 times a power of ten, of which the ends are two.
    """
    rough = (high if high > 0 else 1.0) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    count = max(1, math.ceil(high / step - 1e-9))
    return 0.0, count * step, [index * step for index in range(count + 1)]


def logarithmic_axis(low: float, high: float, ticks: int = 8) -> tuple[float, float, list[float]]:
    """An axis for positive values, somewhat longer than from `low` to `high`.

    Returns:
        Its ends and, in between, at most about `ticks` of 1, 2 or 5 times the powers of ten, or only those powers.
    """
    low, high = low / 1.2, high * 1.2
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [value for value in fine if low <= value <= high]
    if len(inside) > ticks:
        inside = [value for value in inside if f"{value:e}".startswith("1.0")]
    return low, high, inside


def dashes(line: Sequence[tuple[float, float]], length: float = 6.0) -> list[list[tuple[float, float]]]:
    """The drawn parts of a dashed line through points, each `length` pixels long, as are the gaps."""
    parts, walked = [], 0.0
    for (x, y), (end_x, end_y) in zip(line, line[1:], strict=False):
        whole = math.hypot(end_x - x, end_y - y)
        # A dash and a gap are one period; of each dash that which lies on this piece of the line.
        for period in range(math.floor(walked / (2 * length)), math.ceil((walked + whole) / (2 * length))):
            start = max(0.0, 2 * period * length - walked)
            end = min(whole, (2 * period + 1) * length - walked)
            if start < end:
                at = [(x + (end_x - x) * share / whole, y + (end_y - y) * share / whole) for share in (start, end)]
                parts.append(at)
        walked += whole
    return parts
