"""Figures of iterative pruning: the course over iterations, accuracy against density, layers.

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
    """Mean over all iterations so far, f[..., T]: what the paper's accuracy curves show.

    Example:
        >>> running_mean([1.0, 0.0, 0.5]).tolist()
        [1.0, 0.5, 0.5]
    """
    array = np.asarray(values, float)
    return np.cumsum(array, -1) / np.arange(1, array.shape[-1] + 1)


def iterations_figure(curves: Curves) -> Figure:
    """The paper's panels against the iteration: accuracy, what remains, PQ Index, Gini.

    Accuracy is that of each iteration; its running mean, which the paper plotted, is dashed.

    Args:
        curves: with ``accuracy``, ``density``, ``pq_index`` and ``gini``.
    """
    panels = (
        ("accuracy", "Test accuracy, retrained"),
        ("density", "Weights left"),
        ("pq_index", "PQ Index (0.5, 1)"),
        ("gini", "Gini Index"),
    )
    with style():
        figure, grid = grid_of(4, height=2.9, columns=2)
        for axes, (key, title) in zip(grid, panels, strict=True):
            lines = {name: curve[key] for name, curve in curves.items()}
            _draw(axes, lines, log=key == "density")
            if key == "accuracy":
                for name, curve in curves.items():
                    mean = running_mean(np.asarray(curve[key], float).mean(0))
                    axes.plot(mean, color=colour_of(name, curves), linestyle=_DASHED, linewidth=1)
                axes.yaxis.set_major_formatter(PERCENT)
            axes.set_title(title)
        return figure


def pruned_figure(curves: Curves) -> Figure:
    """After pruning and before retraining: accuracy, and what it and the PQ Index lost.

    Args:
        curves: with ``accuracy``, ``accuracy_pruned``, ``pq_index`` and ``pq_index_pruned``.
    """
    with style():
        figure, grid = grid_of(3, height=2.9)
        array = np.asarray
        _draw(grid[0], {name: curve["accuracy_pruned"] for name, curve in curves.items()})
        grid[0].set_title("Accuracy, pruned")
        for axes, key, title in (
            (grid[1], "accuracy", "Accuracy lost by pruning"),
            (grid[2], "pq_index", "PQ Index lost by pruning"),
        ):
            lost = {
                name: array(curve[key], float) - array(curve[f"{key}_pruned"], float)
                for name, curve in curves.items()
            }
            _draw(axes, lost)
            axes.set_title(title)
        for axes in grid[:2]:
            axes.yaxis.set_major_formatter(PERCENT)
        return figure


def density_figure(curves: Curves) -> Figure:
    """Accuracy against density on one axis for all methods: what matched sparsity is worth.

    Args:
        curves: with ``accuracy`` and ``density``.
    """
    with style():
        figure, (axes,) = grid_of(1, height=3.6)
        for name, curve in curves.items():
            density, accuracy = (np.asarray(curve[key], float) for key in ("density", "accuracy"))
            axes.errorbar(
                density.mean(0),
                accuracy.mean(0),
                yerr=accuracy.std(0),
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
        axes.yaxis.set_major_formatter(PERCENT)
        axes.invert_xaxis()
        axes.set_xlabel("weights left")
        axes.set_title("Test accuracy, retrained")
        if curves:
            axes.legend(frameon=False)
        note_if_empty(axes, not curves)
        return figure


def layer_densities_figure(layers: Mapping[str, Mapping[str, ArrayLike]], what: str) -> Figure:
    """A quantity per layer against the iteration, one panel per method.

    Args:
        layers: method -> path -> f[S, T]; of more than six layers the first, the middle and the
            last are drawn, as in the paper.
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
    """PQ Index over pairs of exponents at some iterations: a row per method.

    Args:
        grids: method -> f[T, P, Q].
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
