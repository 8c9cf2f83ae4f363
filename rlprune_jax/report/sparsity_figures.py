"""Draw iterative pruning over iterations, against density and by layer.

Curves are named methods; arrays are [S, T], S seeds by T iterations; lines are means over seeds and
bands one standard deviation.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from rlprune_jax.report.drawing import PERCENT, colour_of, grid_of, label_ends, note_if_empty, style

Curves = Mapping[str, Mapping[str, ArrayLike]]
"""Name of the method -> name of what is measured -> f[S, T]."""

_DASHED = (0, (4, 3))
_SHORT_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")


def running_mean(values: ArrayLike) -> np.ndarray:
    """Return the mean over all iterations so far, f[..., T].

    The paper's accuracy curves show it.

    Example:
        >>> running_mean([1.0, 0.0, 0.5]).tolist()
        [1.0, 0.5, 0.5]
    """
    array = np.asarray(values, float)
    return np.cumsum(array, -1) / np.arange(1, array.shape[-1] + 1)


def iterations_figure(curves: Curves, metric: str = "accuracy") -> Figure:
    """Draw the paper's four panels against the iteration.

    They are the metric of each iteration, what remains, PQ Index and Gini Index. The metric's
    running mean, which the paper plotted, is dashed.

    Args:
        curves: with the metric, ``density``, ``pq_index`` and ``gini``.
        metric: its name.
    """
    panels = (
        (metric, f"Test {metric_title(metric)}, retrained"),
        ("density", "Weights left"),
        ("pq_index", "PQ Index (0.5, 1)"),
        ("gini", "Gini Index"),
    )
    with style():
        figure, grid = grid_of(4, height=2.9, columns=2)
        for axes, (key, title) in zip(grid, panels, strict=True):
            lines = {name: curve[key] for name, curve in curves.items()}
            _draw(axes, lines, log=key == "density")
            if key == metric:
                for name, curve in curves.items():
                    mean = running_mean(np.asarray(curve[key], float).mean(0))
                    axes.plot(mean, color=colour_of(name, curves), linestyle=_DASHED, linewidth=1)
                _format_metric(axes, metric)
            axes.set_title(title)
        return figure


def pruned_figure(curves: Curves, metric: str = "accuracy") -> Figure:
    """Draw what pruning costs before any retraining.

    Args:
        curves: with the metric, ``pq_index`` and both under their names and ``_pruned``.
        metric: its name.
    """
    title = metric_title(metric)
    with style():
        figure, grid = grid_of(3, height=2.9)
        array = np.asarray
        _draw(grid[0], {name: curve[f"{metric}_pruned"] for name, curve in curves.items()})
        grid[0].set_title(f"{title.capitalize()}, pruned")
        for axes, key, heading in (
            (grid[1], metric, f"{title.capitalize()} lost by pruning"),
            (grid[2], "pq_index", "PQ Index lost by pruning"),
        ):
            lost = {
                name: array(curve[key], float) - array(curve[f"{key}_pruned"], float)
                for name, curve in curves.items()
            }
            _draw(axes, lost)
            axes.set_title(heading)
        for axes in grid[:2]:
            _format_metric(axes, metric)
        return figure


def density_figure(curves: Curves, metric: str = "accuracy") -> Figure:
    """Draw a metric against density, all methods on one axis.

    Args:
        curves: with the metric and ``density``.
        metric: its name.
    """
    with style():
        figure, (axes,) = grid_of(1, height=3.6)
        for name, curve in curves.items():
            density, found = (np.asarray(curve[key], float) for key in ("density", metric))
            axes.errorbar(
                density.mean(0),
                found.mean(0),
                yerr=found.std(0),
                xerr=density.std(0),
                color=colour_of(name, curves),
                marker="o",
                markersize=3.5,
                elinewidth=0.8,
                label=name,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_SHORT_PERCENT)
        axes.xaxis.set_minor_formatter(NullFormatter())
        _format_metric(axes, metric)
        axes.invert_xaxis()
        axes.set_xlabel("weights left")
        axes.set_title(f"Test {metric_title(metric)}, retrained")
        if curves:
            axes.legend(frameon=False)
        note_if_empty(axes, not curves)
        return figure


def layer_densities_figure(layers: Mapping[str, Mapping[str, ArrayLike]], what: str) -> Figure:
    """Draw a quantity per layer against the iteration.

    Args:
        layers: method -> path -> f[S, T], a panel per method; of more than six layers the first,
            the middle and the last are drawn, as in the paper.
        what: the panels' title after the method's name; densities are drawn on a logarithmic axis.
    """
    with style():
        figure, grid = grid_of(len(layers), height=2.9, sharey=True)
        for axes, (name, by_path) in zip(grid, layers.items(), strict=True):
            paths = list(by_path)
            if len(paths) > 6:
                places = np.unique(np.linspace(0, len(paths) - 1, 3).round().astype(int))
                paths = [paths[place] for place in places]
            lines = {path.removesuffix("/kernel"): by_path[path] for path in paths}
            _draw(axes, lines, log=what == "density")
            axes.set_title(f"{name}: {what}")
        return figure


def heat_map_figure(
    grids: Mapping[str, ArrayLike], iterations: Sequence[int], p: ArrayLike, q: ArrayLike
) -> Figure:
    """Draw the PQ Index over pairs of exponents.

    Args:
        grids: method -> f[T, P, Q], a row per method.
        iterations: which of the T to show.
        p: f[P].
        q: f[Q].
    """
    low, high = np.asarray(p, float), np.asarray(q, float)
    with style():
        figure, axes_list = grid_of(
            len(grids) * len(iterations), height=2.4, columns=max(len(iterations), 1)
        )
        image = None
        for row, (name, grid) in enumerate(grids.items()):
            values = np.asarray(grid, float)
            for column, iteration in enumerate(iterations):
                axes = axes_list[row * len(iterations) + column]
                image = axes.imshow(
                    values[iteration],
                    origin="lower",
                    aspect="auto",
                    extent=(high[0], high[-1], low[0], low[-1]),
                    vmin=0,
                    vmax=1,
                    cmap="viridis",
                )
                axes.grid(visible=False)
                axes.set_title(f"{name}, t = {iteration}", fontsize=8.5)
                axes.set_xlabel("q")
                axes.set_ylabel("p")
        if image is not None:
            figure.colorbar(image, ax=axes_list, label="PQ Index", shrink=0.8)
        return figure


def metric_title(metric: str) -> str:
    """Return a metric's name as titles write it.

    Example:
        >>> metric_title("negative_loss")
        'negative loss'
    """
    return metric.replace("_", " ")


def is_fraction(metric: str) -> bool:
    """Return whether a metric is written in percent."""
    return "accuracy" in metric


def _format_metric(axes: Axes, metric: str) -> None:
    if is_fraction(metric):
        axes.yaxis.set_major_formatter(PERCENT)


def _draw(axes: Axes, lines: Mapping[str, ArrayLike], log: bool = False) -> None:
    ends = []
    for name, values in lines.items():
        array = np.asarray(values, float)
        mean, spread = array.mean(0), array.std(0)
        steps = np.arange(len(mean))
        colour = colour_of(name, lines)
        marker = "o" if len(mean) == 1 else None
        axes.plot(steps, mean, color=colour, marker=marker, label=name)
        axes.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
        if len(mean):
            ends.append((float(steps[-1]), float(mean[-1]), name, colour))
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if log:
        # Places of labels at the ends are worked out for linear axes.
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(_SHORT_PERCENT)
        axes.yaxis.set_minor_formatter(NullFormatter())
        if ends:
            axes.legend(frameon=False, fontsize=8)
    else:
        label_ends(axes, ends)
    note_if_empty(axes, not ends)
