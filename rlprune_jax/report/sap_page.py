"""Write the page of a comparison of iterative pruners."""

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from rlprune_jax.report.page import Table, percent, render_report, write_report
from rlprune_jax.report.sparsity_figures import (
    density_figure,
    heat_map_figure,
    is_fraction,
    iterations_figure,
    layer_densities_figure,
    metric_title,
    pruned_figure,
)
from rlprune_jax.types import PyTree

Json = Mapping[str, PyTree]
"""An object of ``result.json``."""

Arrays = Mapping[str, Mapping[str, np.ndarray]]
"""Method -> what was measured -> f[seeds, iterations]."""


class SapPage(NamedTuple):
    """Hold what the parts of the page are drawn from.

    Attributes:
        result: as ``result.json`` holds it.
        metric: name of the metric.
        arrays: of the curves.
        shown: iterations that the table and the heat maps show.
    """

    result: Json
    metric: str
    arrays: Arrays
    shown: list[int]


def write_sap_page(path: str | os.PathLike, result: Json, settings: Json) -> None:
    """Write the page of a comparison of iterative pruners.

    Args:
        path: of the HTML file.
        result: as ``result.json`` holds it, besides the curves with ``dataset``, ``model``,
            ``epochs``, ``train_images``, ``scope`` and ``seconds``.
        settings: of the run.

    Raises:
        UnwritableError: the place cannot be written.
    """
    arrays = curve_arrays(result)
    last = len(next(iter(arrays.values()))["density"][0]) - 1
    shown = sorted({round(place) for place in np.linspace(0, last, 4)})
    page = SapPage(result=result, metric=result["metric_name"], arrays=arrays, shown=shown)
    html = render_report(
        f"{result['model']} on {result['dataset']}, pruned iteratively",
        summary(page),
        [some_iterations(page), *matched_tables(page)],
        figures(page),
        {
            "configuration": settings,
            "versions": result["versions"],
            "device": result["device"],
        },
        lead=f"{len(result['seeds'])} seeds, {result['epochs']} epochs of "
        f"{result['train_images']} examples an iteration, scope {result['scope']}, "
        f"{result['seconds']:.0f} seconds in all.",
    )
    write_report(path, html)


def curve_arrays(result: Json) -> Arrays:
    """Return what was measured as arrays."""
    metric = result["metric_name"]
    names = ("density", metric, f"{metric}_pruned", "pq_index", "pq_index_pruned", "gini")
    return {
        name: {key: np.array([row[key] for row in curve["iterations"]], float).T for key in names}
        for name, curve in result["curves"].items()
    }


def summary(page: SapPage) -> dict[str, tuple[str, str]]:
    """Return the headline numbers, one per method."""
    return {
        name: (
            _mean(curve[page.metric][:, -1], page.metric),
            f"with {percent(curve['density'][:, -1].mean(), 3)} of the weights left",
        )
        for name, curve in page.arrays.items()
    }


def some_iterations(page: SapPage) -> Table:
    """Return the table of some iterations of every method."""
    metric = page.metric
    rows = [
        [
            name,
            iteration,
            percent(curve["density"][:, iteration].mean(), 3),
            _spread(curve[metric][:, iteration], metric),
            _spread(curve[f"{metric}_pruned"][:, iteration], metric),
            f"{curve['pq_index'][:, iteration].mean():.3f}",
        ]
        for name, curve in page.arrays.items()
        for iteration in page.shown
    ]
    columns = ("method", "iteration", "weights left", metric_title(metric), "before retraining")
    return Table(
        "Some iterations",
        (*columns, "PQ Index"),
        rows,
        caption="Means and standard deviations over seeds, on the full test set.",
    )


def matched_tables(page: SapPage) -> list[Table]:
    """Return the table of differences at matched density.

    There is none without a lottery ticket.
    """
    rows = page.result["matched"]
    if not rows:
        return []
    scale, unit = (100, "difference in points") if is_fraction(page.metric) else (1, "difference")
    digits = 2 if is_fraction(page.metric) else 4
    cells = [
        [
            row["method"],
            row["iteration"],
            percent(row["density"], 3),
            f"{scale * row['difference']:+.{digits}f} ± {scale * row['std']:.{digits}f}",
            row["seeds"],
        ]
        for row in rows
    ]
    table = Table(
        "Against the lottery ticket at matched density",
        ("method", "iteration", "weights left", unit, "seeds"),
        cells,
        caption=f"Seed by seed; the lottery ticket's {metric_title(page.metric)} interpolated in "
        "the logarithm of its density.",
        interactive=True,
    )
    return [table]


def figures(page: SapPage) -> list[tuple[str, Figure, str]]:
    """Return the figures with their titles and captions."""
    result, arrays, metric = page.result, page.arrays, page.metric
    title = metric_title(metric).capitalize()
    densities = by_layer(
        result, lambda row, first: np.array(row["live"]) / np.maximum(first["live"], 1)
    )
    indices = by_layer(result, lambda row, first: row["pq_index"])
    grids = {
        name: np.array([np.mean(row["pq_grid"], 0) for row in curve["iterations"]], float)
        for name, curve in result["curves"].items()
    }
    grid = result["grid"]
    return [
        (
            "Against the iteration",
            iterations_figure(arrays, metric),
            f"{title} as it is at each iteration; dashed its running mean over iterations, which "
            "the paper plotted.",
        ),
        (f"{title} against density", density_figure(arrays, metric), "At matched sparsity."),
        (
            "Before retraining",
            pruned_figure(arrays, metric),
            "Pruned by the iteration's own weights.",
        ),
        ("Layers", layer_densities_figure(densities, "density"), "Fraction of each layer left."),
        ("Layers' PQ Index", layer_densities_figure(indices, "PQ Index"), "Of live weights."),
        (
            "PQ Index over (p, q)",
            heat_map_figure(grids, page.shown, grid["p"], grid["q"]),
            "Mean over seeds; (1, 1) is 0.",
        ),
    ]


def by_layer(
    result: Json, value: Callable[[Json, Json], PyTree]
) -> dict[str, dict[str, np.ndarray]]:
    """Return a quantity of each layer as f[seeds, iterations].

    Args:
        result: as ``result.json`` holds it.
        value: ``(layer of an iteration, the same of the first) -> f[seeds]``.
    """
    return {
        name: {
            path: np.array(
                [value(row["layers"][path], first[path]) for row in curve["iterations"]], float
            ).T
            for path in first
        }
        for name, curve in result["curves"].items()
        for first in [curve["iterations"][0]["layers"]]
    }


def _mean(values: np.ndarray, metric: str) -> str:
    return percent(values.mean(), 2) if is_fraction(metric) else f"{values.mean():.4g}"


def _spread(values: np.ndarray, metric: str) -> str:
    if is_fraction(metric):
        return f"{100 * values.mean():.2f} ± {100 * values.std():.2f} %"
    return f"{values.mean():.4f} ± {values.std():.4f}"
