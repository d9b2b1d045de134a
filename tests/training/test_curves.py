import math

import numpy as np
import pytest
from PIL import Image

from bifusion_hf.training.curves import (
    MARGIN_TOP,
    PANEL_SIZE,
    _select,
    dashes,
    draw_curves,
    draw_panel,
    linear_axis,
    logarithmic_axis,
)


def test_curves_show_what_was_measured(tmp_path):
    lines = [
        {"update": update, "loss": 10 / update, "loss_cls": None, "learning_rate_main": 1e-3, "alpha_mean": 0.5}
        for update in range(1, 50)
    ]
    lines.append({"update": 49, "all_ap": float("nan"), "all_ap_50%": 0.4})
    draw_curves(lines, tmp_path / "curves.png")
    picture = np.asarray(Image.open(tmp_path / "curves.png"))
    width, height = PANEL_SIZE
    assert picture.shape == (2 * height, 2 * width, 3)
    blue = (picture == (0x1F, 0x77, 0xB4)).all(axis=2)
    panels = [blue[y : y + height, x : x + width] for y in (0, height) for x in (0, width)]
    assert all(panel.sum() > 20 for panel in panels)
    # A loss that falls: the curve's left end is above its right end.
    rows, columns = np.nonzero(panels[0][:, : width - 170])
    assert rows[columns < 150].mean() < rows[columns > width - 250].mean()


def test_a_panel_has_its_title_above_the_axes():
    titles = []
    for title in ("losses", "learning rate", ""):
        panel = Image.new("RGB", PANEL_SIZE, "white")
        draw_panel(panel, title, {}, 1)
        titles.append(np.asarray(panel)[:MARGIN_TOP])
    assert (titles[2] == 255).all() and 0 < (titles[0] < 255).sum() < (titles[1] < 255).sum()


@pytest.mark.parametrize(
    ("high", "expected"),
    [(0.37, [0, 0.1, 0.2, 0.3, 0.4]), (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.0, [0, 0.2]), (256, [0, 100, 200, 300])],
)
def test_axes_start_at_zero_and_have_round_ticks(high, expected):
    low, top, ticks = linear_axis(high)
    assert ticks == pytest.approx(expected) and (low, top) == (ticks[0], ticks[-1]) and top >= high


def test_logarithmic_axes_hold_the_values_and_round_ticks():
    low, high, ticks = logarithmic_axis(0.17, 14)
    assert low < 0.17 and high > 14 and ticks == pytest.approx([0.2, 0.5, 1, 2, 5, 10])
    assert logarithmic_axis(1e-4, 1e4)[2] == pytest.approx([10.0**power for power in range(-4, 5)])


def test_dashes_and_gaps_share_a_line_in_halves():
    line = [(0.0, 0.0), (30.0, 40.0), (30.0, 71.0)]
    parts = dashes(line, length=6.0)
    drawn = sum(math.dist(*part) for part in parts)
    assert drawn == pytest.approx(42)  # of 81 pixels: 6 of every 12, and 6 of the last 9
    assert parts[0] == [(0.0, 0.0), pytest.approx((3.6, 4.8))] and parts[1][0] == pytest.approx((7.2, 9.6))
    # None crosses the corner without turning.
    assert all(a[0] == b[0] == 30 or max(a[1], b[1]) <= 40 + 1e-9 for a, b in parts)


def test_curves_are_those_named_and_those_of_a_beginning():
    lines = [{"update": 3, "loss": 1, "loss_cls": 2.0, "lossy": 4.0, "flag": None, "x": float("inf"), "xa": 5.0}]
    assert _select(lines, ["loss"]) == {"loss": [(3, 1)]}
    assert _select(lines, ["loss_*", "x*", "flag"]) == {"loss_cls": [(3, 2.0)], "xa": [(3, 5.0)]}


def test_curves_of_the_same_values_are_both_seen(tmp_path):
    rates = {"learning_rate_main": 1e-3, "learning_rate_tower": 1e-3}
    draw_curves([{"update": update, **rates} for update in range(50)], tmp_path / "curves.png")
    width, height = PANEL_SIZE
    panel = np.asarray(Image.open(tmp_path / "curves.png"))[height:, width:][:, : width - 170]
    for color in ((0x1F, 0x77, 0xB4), (0xD6, 0x27, 0x28)):
        assert (panel == color).all(axis=2).any(axis=0).sum() > 200


def test_a_legend_holds_its_longest_name():
    panel = Image.new("RGB", PANEL_SIZE, "white")
    draw_panel(panel, "title", {"a_rather_long_name_of_a_recipe-s0": [(0, 0.0), (9, 1.0)], "b": [(0, 1.0)]}, 9)
    pixels = np.asarray(panel)
    assert (pixels[:, -2:] == 255).all()  # nothing is cut off
    assert (pixels[:, -60:-20] < 255).any()  # and the name ends near there


def test_curves_of_nothing(tmp_path):
    draw_curves([], tmp_path / "curves.png")
    draw_curves([{"update": 0, "all_ap": 0.0}], tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (2 * PANEL_SIZE[0], 2 * PANEL_SIZE[1])
