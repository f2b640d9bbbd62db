import io
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from constrained_diffusion.reports import plots
from constrained_diffusion.reports.plots import Line, class_histogram, curves, trend
from constrained_diffusion.runtime.distribution import install_hint

SVG = "{http://www.w3.org/2000/svg}"


def paths(svg, colour, attribute):
    """Vertices of every path in that colour, as lists of (x, y) with y upwards."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if f"{attribute}: {colour}" in path.get("style", ""):
            numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path.get("d"))]
            found.append([(x, -y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)])
    return found


def texts(svg):
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_log_curve_lies_where_its_numbers_are():
    svg = curves([Line("P", [0, 10, 40], [1.0, 100.0, 0.1])], "penalty P", log=True)
    (line,) = [path for path in paths(svg, plots.BLUE, "stroke") if len(path) == 3]
    (x0, y0), (x1, y1), (x2, y2) = line
    assert (x2 - x0) / (x1 - x0) == pytest.approx(4, rel=1e-3)
    assert (y1 - y2) / (y1 - y0) == pytest.approx(1.5, rel=1e-3)  # three decades over two
    assert {"penalty P", "optimiser steps"} <= set(texts(svg))


def test_a_log_curve_says_where_zeros_are_and_survives_nothing_but_zeros():
    assert "P; 0 is below the edge" in texts(curves([Line("P", [0, 1], [1.0, 0.0])], "P", log=True))
    assert "P" in texts(curves([Line("P", [0, 1], [0.0, 0.0])], "P", log=True))


def test_levels_and_several_curves_are_named():
    svg = curves([Line("a", [0, 1], [1, 2]), Line("b", [0, 1], [2, 1])], "C", steps=True, levels=[("tau = 0.01", 0.01)])
    assert {"a", "b", "tau = 0.01"} <= set(texts(svg))
    (step,) = [path for path in paths(svg, plots.BLUE, "stroke") if len(path) == 3]
    assert step[0][1] == step[1][1]  # constant until the next
    assert step[1][0] == step[2][0]


def test_a_long_curve_is_smoothed_without_a_shift():
    ramp = [float(i) for i in range(200)]
    assert plots._moving_average(ramp)[10:-10] == pytest.approx(ramp[10:-10])
    assert plots._moving_average([3.0] * 100) == pytest.approx([3.0] * 100)
    svg = curves([Line("loss", range(200), [i % 2 for i in range(200)])], "loss", smooth=True)
    smooth = [p for p in paths(svg, plots.BLUE, "stroke") if p]
    heights = [max(y for _, y in p) - min(y for _, y in p) for p in smooth if len(p) > 20]
    assert len(heights) == 2
    assert min(heights) < 0.25 * max(heights)


def test_the_trend_shows_percent_bounds_and_what_is_allowed():
    epochs = [0, 1, 2]
    rate, upper = Line("fours", epochs, [0.1, 0.02, 0.04]), Line("", epochs, [0.2, 0.1, 0.06])
    svg = trend(Line("FID", epochs, [7.0, 8.0, 7.5]), rate, upper, limit=0.01)
    assert {"FID", "fours (%)", "epoch", "upper 95 % bound", "allowed: 1 %"} <= set(texts(svg))
    red = [path for path in paths(svg, plots.RED, "stroke") if len(path) == 3]
    measured, bound = ([y for _, y in path] for path in red[:2])  # then the legend
    assert (measured[0] - measured[2]) / (measured[0] - measured[1]) == pytest.approx(0.06 / 0.08, rel=1e-3)
    assert (bound[0] - bound[2]) / (measured[0] - measured[2]) == pytest.approx(0.14 / 0.06, rel=1e-3)
    ticks = [float(text) for text in texts(svg) if re.fullmatch(r"[\d.]+", text)]
    assert 10 <= max(ticks) <= 25  # shares are drawn in percent
    assert "FID" not in texts(trend(None, Line("fours", [0], [0.1])))


def test_bars_are_proportional_to_shares_whatever_the_totals():
    before, after = [10, 30, 20, 40], [0.1, 0.5, 0.0, 0.4]
    svg = class_histogram(before, after, removed=2)
    heights = [
        [max(y for _, y in path) - min(y for _, y in path) for path in paths(svg, colour, "fill")][:4]
        for colour in (plots.GREY, plots.BLUE)
    ]
    unit = heights[0][3] / 0.4
    assert [bar / unit for bar in heights[0]] == pytest.approx([0.1, 0.3, 0.2, 0.4], abs=2e-3)
    assert [bar / unit for bar in heights[1]] == pytest.approx([0.1, 0.5, 0.0, 0.4], abs=2e-3)
    assert {"removed", "before", "after", "class", "share of samples (%)"} <= set(texts(svg))
    band = paths(svg, plots.RED, "fill")[0]
    first_bar = paths(svg, plots.GREY, "fill")[2]
    assert min(x for x, _ in band) < min(x for x, _ in first_bar) < max(x for x, _ in band)
    assert "removed" not in texts(class_histogram(before, []))


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "$x_{$", "_hidden", "-->", "\u4e2d\u6587"])
def test_names_are_text_and_nothing_else(name):
    svg = curves([Line(name, [0, 1], [1, 2]), Line("b", [0, 1], [1, 3])], name)
    assert name in texts(svg) or name.lstrip("_") in texts(svg)
    assert b"<script" not in svg
    assert b"<!--" not in svg


def test_an_svg_stands_alone_and_follows_the_page():
    svg = curves([Line("a", [0, 1], [1, 2])], "a").decode()
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert plots._INK not in svg
    assert "metadata" not in svg
    assert not [target for target in re.findall(r'(?:href="|url\()([^")]*)', svg) if not target.startswith("#")]
    assert svg == curves([Line("a", [0, 1], [1, 2])], "a").decode()


def test_png_is_a_picture_on_white():
    from PIL import Image

    image = Image.open(io.BytesIO(curves([Line("a", [0, 1], [1, 2])], "a", kind="png"))).convert("RGB")
    assert image.getpixel((2, 2)) == (255, 255, 255)
    assert len(image.getcolors(100_000)) > 10


@pytest.mark.parametrize(
    ("draw", "match"),
    [
        (lambda: curves([], "y"), "at least one line"),
        (lambda: trend(None, None), "at least one line"),
        (lambda: curves([Line("a", [0, 1], [1])], "y"), "one length, got 2 and 1 for 'a'"),
        (lambda: class_histogram([1, 2], [1]), "one length, got 2 and 1 classes"),
        (lambda: class_histogram([], []), "one length"),
        (lambda: class_histogram([1, 2], [2, 1], removed=2), "a class from 0 to 1, got 2"),
    ],
)
def test_numbers_that_cannot_be_drawn_are_refused(draw, match):
    with pytest.raises(ValueError, match=match):
        draw()


def test_without_matplotlib_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError, match=re.escape(install_hint("report"))):
        curves([Line("a", [0, 1], [1, 2])], "a")


def test_global_state_of_matplotlib_is_left_alone():
    import matplotlib
    from matplotlib._pylab_helpers import Gcf

    settings, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    curves([Line("a", [0, 1], [1, 2])], "a")
    assert Gcf.get_all_fig_managers() == []
    assert (dict(matplotlib.rcParams), matplotlib.get_backend()) == (settings, backend)
