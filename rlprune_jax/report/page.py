"""The page of a run, one HTML file with tables and figures."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple, SupportsFloat

import jinja2
import numpy as np
from matplotlib.figure import Figure

from rlprune_jax.files import to_json, write_atomically
from rlprune_jax.report.drawing import SERIES, figure_svg
from rlprune_jax.report.search_figures import (
    candidates_figure,
    layers_figure,
    progress_figure,
    search_figure,
)
from rlprune_jax.wording import difference_text, metric_text, metric_title

__all__ = [
    "Table",
    "candidates_figure",
    "layers_figure",
    "percent",
    "progress_figure",
    "render_report",
    "results_table",
    "search_figure",
    "write_report",
]


class Table(NamedTuple):
    """Hold a table of the page.

    Cells are text, numbers or booleans, which are shown as tick and cross.

    Attributes:
        title: heading above it.
        columns: names of the columns; the first column names the row.
        rows: each as long as ``columns``.
        emphasis: first cells of the rows to stress.
        caption: a sentence below.
        interactive: sorted by a click on a column's name and filtered by what is typed above it;
            such tables come after the figures.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    emphasis: Sequence[str] = ()
    caption: str = ""
    interactive: bool = False


def results_table(
    dense: Mapping[str, object],
    methods: Mapping[str, Mapping[str, object]],
    emphasis: Sequence[str] = ("agent",),
    caption: str = "",
    metric: str = "accuracy",
) -> Table:
    """Make the table of every method beside the dense network.

    It holds accuracy, size, work, evaluations and whether budgets are kept; in brackets the
    difference to dense in points of accuracy, and the fraction of dense. A loss with its sign
    turned is shown as the loss.

    Args:
        dense: ``accuracy`` (fraction), ``params``, ``macs`` of the dense network.
        methods: the same per method, and where known ``evaluations``, ``latency_ms`` and
            ``satisfied`` (all budgets kept).
        emphasis: methods to stress.
        caption: a sentence below the table.
        metric: the key that holds how well a network does; accuracies are fractions.
    """
    everything = {"dense": dense, **methods}
    optional = [
        (key, title)
        for key, title in (
            ("latency_ms", "latency (ms)"),
            ("evaluations", "evaluations"),
            ("satisfied", "within budgets"),
        )
        if any(key in entry for entry in everything.values())
    ]
    columns = ["method", f"test {metric_title(metric)}", "params", "MACs"]
    rows = []
    for name, entry in everything.items():
        change = _number(entry, metric) - _number(dense, metric)
        unknown = name == "dense" or math.isnan(change)
        beside = "" if unknown else f" ({difference_text(change, metric)})"
        row: list[object] = [name, metric_text(_number(entry, metric), metric) + beside]
        for key in ("params", "macs"):
            fraction = percent(_number(entry, key) / max(_number(dense, key), 1e-30), 2)
            row.append(_cell(entry.get(key)) + ("" if name == "dense" else f" ({fraction})"))
        rows.append(row + [entry.get(key) for key, _ in optional])
    return Table(
        title="Results",
        columns=columns + [title for _, title in optional],
        rows=rows,
        emphasis=emphasis,
        caption=caption,
    )


def render_report(
    title: str,
    summary: Mapping[str, object],
    tables: Sequence[Table],
    figures: Sequence[tuple[str, Figure, str]],
    details: Mapping[str, object],
    lead: str = "",
) -> str:
    """Return the page as HTML, with everything inside.

    No other file and no network is needed to show it.

    Args:
        title: heading.
        summary: headline numbers by label; a value is text or a number, or a pair of one and a
            note below it.
        tables: in order, below the headline.
        figures: ``(title, figure, caption)`` in order.
        details: configuration, versions, device and the like: nested dicts, shown folded.
        lead: a sentence or two below the heading.
    """
    tiles = [
        (label, *(value if isinstance(value, tuple) else (value, "")))
        for label, value in summary.items()
    ]
    drawn = [
        (name, figure_svg(figure, f"figure-{index}"), caption)
        for index, (name, figure, caption) in enumerate(figures)
    ]
    folded = {
        name: json.dumps(to_json(value), indent=2, ensure_ascii=False)
        if isinstance(value, Mapping | list | tuple)
        else str(value)
        for name, value in details.items()
    }
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    environment.filters["sortable"] = _sortable
    source = resources.files("rlprune_jax.report").joinpath("templates/report.html")
    return environment.from_string(source.read_text()).render(
        title=title,
        lead=lead,
        tiles=tiles,
        tables=tables,
        figures=drawn,
        details=folded,
        series=list(enumerate(SERIES)),
    )


def write_report(path: str | os.PathLike, html: str) -> None:
    """Write the page whole or not at all.

    Raises:
        UnwritableError: the place cannot be written.
    """
    write_atomically(path, html)


def percent(fraction: float, digits: int = 1) -> str:
    """Write a fraction in percent, or a dash where unknown.

    Example:
        >>> percent(0.1234), percent(float("nan"))
        ('12.3 %', '–')
    """
    return f"{100 * fraction:.{digits}f} %" if math.isfinite(fraction) else "–"


def _number(entry: Mapping[str, object], key: str) -> float:
    value = entry.get(key)
    return float(value) if isinstance(value, SupportsFloat) else math.nan


def _cell(value: object) -> str:
    """Return the text of a cell, thousands apart, four digits of a fraction, ✓ and ✗."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "✓" if value else "✗"
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return str(value)


def _sortable(value: object) -> str:
    """Return what a cell is sorted by, a number with all its digits or its text."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, int | float | np.number):
        return repr(float(value))
    return str(value)
