"""How figures look, and their SVG that follows the page."""

import contextlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

INK, MUTED, FAINT = "#1b1e24", "#667085", "#d5d9e0"
# Okabe and Ito's palette, black and yellow left out; the first is for the method in question.
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g} %")
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d46")
_SLOTS = ("agent", "uniform", "random", "cross", "magnitude")

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
_WIDTH = 9.6


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in the style of this package inside a ``with``."""
    with mpl.rc_context(_STYLE):
        yield


def figure_svg(figure: Figure, prefix: str) -> str:
    """Return a figure as an ``<svg>`` element.

    The page defines its colours as ``--ink``, ``--muted``, ``--faint``, ``--series-0`` and so on.

    Args:
        figure: one of this module's; of another, colours that we do not know stay as they are.
        prefix: put before every id, so that several figures can stand in one page.
    """
    buffer = io.StringIO()
    svg_style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.family": "sans-serif",
    }
    with mpl.rc_context(svg_style):
        figure.savefig(buffer, format="svg", dpi=110, transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    # matplotlib names its fallback fonts; the page's own looks better and is always there.
    svg = re.sub(r"(font:[^;\"]*?px) [^;\"]*", r"\1 inherit", svg)
    for name, colour in _page_colours().items():
        svg = re.sub(colour, f"var({name}, {colour})", svg, flags=re.IGNORECASE)
    return svg


def colour_of(method: str, methods: Iterable[str]) -> str:
    """Return a method's colour, the same in every figure.

    Known methods have their own; others take what is left, in order.

    Args:
        method: name of the method.
        methods: names of all methods of the figure, in order.
    """
    names = list(methods)
    known = {
        name: SERIES[slot]
        for name in names
        for slot, word in enumerate(_SLOTS)
        if word in name.lower()
    }
    # Two variants of one method, such as two agents, must not look alike.
    colours: dict[str, str] = {}
    for name in names:
        if name in known and known[name] not in colours.values():
            colours[name] = known[name]
    reserved = set(known.values())
    left = [colour for colour in SERIES if colour not in reserved] or [MUTED]
    for index, name in enumerate(name for name in names if name not in colours):
        colours[name] = left[index % len(left)]
    return colours[method]


def _page_colours() -> dict[str, str]:
    named = {f"--series-{index}": colour for index, colour in enumerate(SERIES)}
    return {"--ink": INK, "--muted": MUTED, "--faint": FAINT, **named}


def grid_of(
    count: int, height: float, columns: int = 3, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Make a figure with so many panels, row by row.

    Args:
        count: panels; no more than these have axes.
        height: of each row, in inches.
        columns: at most so many side by side.
        sharex: whether panels of a column have one horizontal axis.
        sharey: whether all panels have one vertical axis.
    """
    columns = max(min(columns, count), 1)
    rows = max(-(-count // columns), 1)
    figure = Figure(figsize=(_WIDTH, height * rows + 0.25), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    for axes in grid.flat[max(count, 0) :]:
        axes.set_axis_off()
    return figure, list(grid.flat[:count])


def draw_lines(axes: Axes, lines: Mapping[str, np.ndarray]) -> None:
    """Draw a line per name, named at its end.

    Args:
        axes: to draw on.
        lines: name -> f[T] over the steps 1 to T; what is not finite is left out.
    """
    ends = []
    for index, (name, values) in enumerate(lines.items()):
        steps = np.arange(1, len(values) + 1)
        seen = np.isfinite(values)
        colour = SERIES[index % len(SERIES)]
        marker = "o" if seen.sum() == 1 else None
        axes.plot(steps[seen], values[seen], color=colour, marker=marker)
        if seen.any() and name:
            ends.append((steps[seen][-1], values[seen][-1], name, colour))
    label_ends(axes, ends)
    note_if_empty(axes, not any(np.isfinite(values).any() for values in lines.values()))


def draw_fractions(axes: Axes, lines: Mapping[str, np.ndarray]) -> None:
    """Draw lines of fractions from 0 to 1 in percent."""
    draw_lines(axes, lines)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PERCENT)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names at the right ends of lines.

    They are pushed apart where they would overlap.

    Args:
        axes: to write on.
        ends: ``(x, y, name, colour)`` of each line's last point.
    """
    if not ends:
        return
    axes.margins(y=0.1)
    axes.autoscale_view()
    low, high = axes.get_ylim()
    # A label is about 11 points high; the panel is measured before its final layout.
    gap = 11.0 / (axes.bbox.height * 72 / mpl.rcParams["figure.dpi"])
    order = sorted(range(len(ends)), key=lambda index: ends[index][1])
    heights = np.array([(ends[index][1] - low) / (high - low) for index in order])
    for _ in range(50):
        for first in range(len(heights) - 1):
            overlap = gap - (heights[first + 1] - heights[first])
            if overlap > 0:
                heights[first] -= overlap / 2
                heights[first + 1] += overlap / 2
    for place, index in zip(heights, order, strict=True):
        _, _, text, colour = ends[index]
        axes.annotate(
            text,
            (1, place),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold",
            fontsize=8.5,
            annotation_clip=False,
        )


def note_if_empty(axes: Axes, empty: bool) -> None:
    """Write on bare axes that there is nothing to show."""
    if empty:
        axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, ha="center", color=MUTED)
