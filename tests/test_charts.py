"""Charts: marks and names where the figures are, in the page's colours, the same each time, whatever the names are."""

import re
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import matplotlib
import pytest

from megl.pages.charts import BAD, GOOD, LINE, Points, bars, chart_of_points, frame, histogram


NASTY = "<script>$\\frac{1}$ & 猫\n\x1b[2J"


def marks(chart):
    """Tooltip to the ends of a bar, or to the place of a point."""
    found = {}
    for mark in ElementTree.fromstring(chart).iter():
        for title in mark.findall("title"):
            if mark.tag == "use":
                found[title.text] = float(mark.get("x")), float(mark.get("y"))
            else:
                numbers = [float(number) for number in re.findall(r"[\d.]+", mark.get("d"))]
                found[title.text] = min(numbers[::2]), max(numbers[::2])
    return found


def texts(chart):
    """Text to its place."""
    found = ElementTree.fromstring(chart).iter("text")
    return {text.text: (float(text.get("x")), float(text.get("y"))) for text in found}


def lines(chart, colour):
    """The places that each line of a colour goes through."""
    paths = [
        path for path in ElementTree.fromstring(chart).iter("path") if f"stroke: {colour}" in path.get("style", "")
    ]
    places = [re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.get("d")) for path in paths]
    return [[(float(x), float(y)) for x, y in line] for line in places if len(line) > 1]


def test_bars_are_as_long_as_their_shares():
    rows = [("name", 0.5, [0.25, 0.75], "n = 4"), ("all", 1, [-0.5, 1], ""), ("none", None, None, "n = 0")]
    chart = bars("t", rows)
    shown, written = marks(chart), texts(chart)
    assert shown == {"name: 0.500 (0.250 to 0.750)": (170, 305), "all: 1.000 (-0.500 to 1.000)": (170, 440)}
    assert (written["0.0"][0], written["1.0"][0]) == (170, 440)
    whiskers = [[x for x, _ in line] for line in lines(chart, "var(--ink)")]
    assert [237.5, 372.5] in whiskers and [170, 440] in whiskers  # no interval over the names
    assert written["name"][1] == written["n = 4"][1] < written["none"][1] == written["n = 0"][1]


def test_long_names_lose_their_middle():
    chart = bars("t", [("rationale gradient map_and_features", None, None, ""), ("x" * 22, None, None, "")])
    assert "rationale …nd_features" in texts(chart) and "x" * 22 in texts(chart)


def test_points_and_lines_are_where_the_figures_are():
    series = [
        Points([0, 1], [0, 1], colour=LINE, line=True),
        Points([0, 0.5, 1], [0, 1, 0.25], ["a", "b", "c"], line=True, colour=GOOD),
        Points([0.1, 0.2], [0.5, 0.5], ["d", "e"], sizes=[2, 8], colour=BAD, ring=True),
    ]
    chart = chart_of_points("title", "across", "up", series)
    shown = marks(chart)
    assert (shown["a"], shown["b"], shown["c"]) == ((56, 332), (298, 12), (540, 252))
    assert shown["e"][1] - shown["e"][0] == 16  # of radius 8
    assert lines(chart, "var(--good)") == [[(56, 332), (298, 12), (540, 252)]]
    assert [(56, 332), (540, 12)] in lines(chart, "var(--line)")
    assert {"across", "up", "0.0", "0.2", "1.0"} <= texts(chart).keys()


def test_axes_show_what_differs():
    assert frame([0.5, 1]) == (0.5, 1) and frame([0.31, 0.4]) == (0.3, 0.5)
    points = Points([0.35], [0.75], ["a"])
    chart = chart_of_points("t", "x", "y", [points], frame(points.x), frame(points.y))
    assert marks(chart)["a"] == (298, 172)  # amid 0.3 to 0.4, and 0.7 to 0.8


def test_names_do_not_lie_over_each_other():
    def heights(*xs):
        chart = chart_of_points("t", "x", "y", [Points(xs, [0.5] * len(xs), ["a", "b"], ["one", "two"])])
        written = texts(chart)
        return written["two"][1] - written["one"][1], lines(chart, "var(--line)")[12:]

    apart, led = heights(0.2, 0.7)
    assert apart == 0 and led == []
    apart, led = heights(0.5, 0.5)
    assert abs(apart) == 13
    low = Points([0.5] * 3, [0.0] * 3, ["a", "b", "c"], ["one", "two", "three"])
    written = texts(chart_of_points("t", "x", "y", [low]))
    assert sorted(round(332 - written[name][1] + 4.6) for name in low.names) == [0, 13, 26]  # none below the axes


def test_thousands_of_points_share_their_look():
    tips = [str(number) for number in range(2000)]
    chart = chart_of_points("t", "x", "y", [Points([0.5] * 2000, [0.5] * 2000, tips, faint=True)])
    assert list(marks(chart)) == tips and len(chart) < 2000 * 70 + 10_000


@pytest.mark.filterwarnings("error")
def test_another_s_text_is_shown_as_it_stands():
    printed, short = NASTY.replace("\n", " ").replace("\x1b", "\N{REPLACEMENT CHARACTER}"), NASTY[:22]
    for chart in (
        bars(NASTY, [(short, 0.5, None, NASTY)]),
        chart_of_points(NASTY, "$x$", "y_1^2", [Points([0.5], [0.5], [f"{short}: 0.500"], [short])]),
    ):
        assert "<script" not in chart
        assert ElementTree.fromstring(chart).get("aria-label") == printed
        assert short in texts(chart) and list(marks(chart)) == [f"{short}: 0.500"]
    assert {"$x$", "y_1^2"} <= texts(chart).keys()
    assert printed in texts(bars("t", [("a", None, None, NASTY)]))


def test_charts_have_the_colours_and_letters_of_their_page():
    series = [Points([0.5], [0.5], ["a"], ["b"], colour=colour, line=True) for colour in (GOOD, BAD, LINE)]
    chart = chart_of_points("t", "x", "y", series) + histogram([1, 2], 1, "x", "", "y")
    assert not re.search(r"#[0-9a-f]{6}\b(?!\w)", re.sub(r'(id|href)="[^"]*"', "", chart))
    assert {"var(--good)", "var(--bad)", "var(--line)", "var(--soft)", "var(--strong)"} <= set(
        re.findall(r"var\(--\w+\)", chart)
    )
    assert not re.search(r"font|url\(|http|<style|xlink|<!", chart)


def test_ids_of_charts_on_a_page_differ():
    ids = [re.findall(r' id="([^"]+)"', bars(title, [("a", 0.5, [0.4, 0.6], "")])) for title in ("one", "two")]
    assert ids[0] and not set(ids[0]) & set(ids[1])


def test_charts_are_the_same_in_threads_and_whatever_the_user_has_set():
    def draw(number):
        return bars(f"t{number}", [("$a$", number / 10, None, "")])

    expected = [draw(number) for number in range(8)]
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False, "figure.dpi": 100}):
        before = dict(matplotlib.rcParams)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(draw, range(8))) == expected
        assert dict(matplotlib.rcParams) == before
