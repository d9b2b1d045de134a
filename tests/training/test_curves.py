import math

import numpy as np
import pytest
from PIL import Image

from bifusion_hf.training import curves
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
    # Up to eight, or powers of ten alone.
    assert logarithmic_axis(1, 200)[2] == pytest.approx([1, 2, 5, 10, 20, 50, 100, 200])
    assert logarithmic_axis(1, 500)[2] == pytest.approx([1, 10, 100])
    assert logarithmic_axis(1e-4, 1e4)[2] == pytest.approx([10.0**power for power in range(-4, 5)])


def test_dashes_and_gaps_share_a_line_in_halves():
    line = [(0.0, 0.0), (30.0, 40.0), (30.0, 71.0)]
    parts = dashes(line, length=6.0)
    drawn = sum(math.dist(*part) for part in parts)
    assert drawn == pytest.approx(42)  # of 81 pixels: 6 of every 12, and 6 of the last 9
    assert parts[0] == [(0.0, 0.0), pytest.approx((3.6, 4.8))] and parts[1][0] == pytest.approx((7.2, 9.6))
    # One that ends at a corner is one part, and lengths that no float holds leave no gap out.
    assert len(dashes([(0.0, 0.0), (6.0, 0.0), (6.0, 6.0), (6.0, 6.0), (6.0, 18.0)])) == 2
    for length, whole in ((0.3, 3.0), (4.7, 94.0)):
        parts_of = dashes([(0.0, 0.0), (whole, 0.0)], length)
        assert sum(math.dist(*part) for part in parts_of) == pytest.approx(whole / 2)
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


@pytest.mark.parametrize(("updates", "last"), [([], 1), ([0], 1), ([1, 7, 3], 7)])
def test_all_panels_go_from_the_start_to_the_last_update(updates, last, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "draw_panel", lambda panel, title, lines, last, logarithmic: drawn.append(last))
    draw_curves([{"update": update} for update in updates], tmp_path / "curves.png")
    assert drawn == [last] * 4


def test_curves_of_nothing(tmp_path):
    draw_curves([], tmp_path / "curves.png")
    draw_curves([{"update": 0, "all_ap": 0.0}], tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (2 * PANEL_SIZE[0], 2 * PANEL_SIZE[1])


class Pen:
    """Stands in for `ImageDraw`: what is drawn, in its order."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda place, text=None, **options: self.calls.append((name, place, text, options))

    def of(self, name):
        return [place if text is None else (text, place) for kind, place, text, _ in self.calls if kind == name]


@pytest.fixture
def draw(monkeypatch):
    """Factory: a pen that has drawn a panel of 760 x 400 pixels."""

    def make(curves_drawn, last, **options):
        pen = Pen()
        monkeypatch.setattr(curves.ImageDraw, "Draw", lambda image: pen)
        draw_panel(Image.new("RGB", (760, 400)), "title", curves_drawn, last, **options)
        return pen

    return make


def test_a_panel_to_the_pixel(draw):
    """The axes go from 76 to 600 for 10 updates, and from 360 up to 34 for a value of 4."""
    pen = draw({"first": [(0, 0.0), (10, 4.0)], "second": [(5, 2.0)]}, 10)
    levels = [360.0, 278.5, 197.0, 115.5, 34.0]
    assert pen.of("text") == [
        ("title", (338.0, 8)),
        *((f"{value}", (71, y)) for value, y in enumerate(levels)),
        *((f"{update}", (pytest.approx(76 + 52.4 * update), 365)) for update in (0, 2, 4, 6, 8, 10)),
        ("update", (338.0, 396)),
        ("first", (631, 40)),
        ("second", (631, 56)),
    ]
    assert [options["anchor"] for _, _, text, options in pen.calls if text in ("title", "update")] == ["ma", "md"]
    # Every second curve is dashed, in the legend too.
    grid = [(76, y, 600, y) for y in levels]
    marks = [[(608, 47), (626, 47)], [(608.0, 63.0), (614.0, 63.0)], [(620.0, 63.0), (626.0, 63.0)]]
    assert pen.of("line") == [*grid, [(76.0, 360.0), (600.0, 34.0)], *marks]
    assert pen.of("ellipse") == [(74.0, 358.0, 78.0, 362.0), (598.0, 32.0, 602.0, 36.0), (336.0, 195.0, 340.0, 199.0)]
    # The frame is drawn over the grid.
    frame = ("rectangle", (76, 34, 600, 360), None, {"outline": "black"})
    assert frame in pen.calls[[place for _, place, _, _ in pen.calls].index(grid[-1]) :]
    styles = [options for kind, _, _, options in pen.calls if kind == "line"][len(grid) :]
    assert [style["fill"] for style in styles] == ["#1f77b4", "#1f77b4", "#d62728", "#d62728"]
    assert {style["width"] for style in styles} == {2}


def test_a_panel_of_values_that_are_not_there(draw):
    """Zero has no place on a logarithmic axis."""
    for options in ({"curves_drawn": {}}, {"curves_drawn": {"loss": [(1, 0.0)]}, "logarithmic": True}):
        pen = draw(last=10, **options)
        assert pen.of("text")[1:] == [("no values yet", (338.0, 197.0))]
        assert pen.of("rectangle") == [(76, 34, 600, 360)] and not pen.of("line")


def test_a_logarithmic_panel_places_powers_evenly(draw):
    pen = draw({"loss": [(0, 100.0), (5, 10.0), (10, 1.0), (10, -1.0)]}, 10, logarithmic=True)
    (curve,) = [line for line in pen.of("line") if isinstance(line, list) and line[0][0] == 76]
    heights = [y for _, y in curve]
    # From 1 / 1.2 to 120.
    expected = [360 - 326 * (math.log10(value) - math.log10(1 / 1.2)) / math.log10(144) for value in (100, 10, 1)]
    assert heights == pytest.approx(expected)
    names = [text for text, (x, _) in pen.of("text") if x == 71]
    assert names == ["1", "2", "5", "10", "20", "50", "100"]


def test_ticks_end_where_the_updates_do_and_points_are_marked_sparsely(draw):
    places = [(update, 1.0) for update in range(81)]
    pen = draw({"a": places, "b": places}, 70)
    assert [text for text, (_, y) in pen.of("text") if y == 365] == ["0", "20", "40", "60"]
    # Of 81 points every second one; of a dashed curve none.
    assert len(pen.of("ellipse")) == 41
    assert len(draw({"a": places[:79]}, 70).of("ellipse")) == 79


def test_more_curves_than_colours_begin_anew(draw):
    pen = draw({f"curve {index}": [(0, 0.0), (10, 1.0)] for index in range(10)}, 10)
    fills = [options["fill"] for kind, place, _, options in pen.calls if kind == "line" and isinstance(place, list)]
    assert len(set(fills)) == 9 and fills[0] == fills[-1]


def test_a_legend_is_as_wide_as_its_longest_name():
    assert curves.legend_width([]) == curves.legend_width(["a"]) == 160
    name = "a_name_that_is_longer_than_all_those_of_losses"
    wide = curves.ImageFont.load_default(13).getlength(name)
    assert curves.legend_width(["a", name]) == 31 + math.ceil(wide) + 8 > 160
