"""Figures of a study."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rlprune_jax.report.drawing import (
    MUTED,
    PERCENT,
    SERIES,
    colour_of,
    grid_of,
    label_ends,
    note_if_empty,
    style,
)


def front_figure(
    fronts: Mapping[str, Mapping[str, ArrayLike]], cost: str, reward: str, dense: float = math.nan
) -> Figure:
    """Draw reward against budget, per method with its interval.

    Args:
        fronts: per method ``cost``, ``mean``, ``low``, ``high`` f[B].
        cost: name of the budget, a fraction of dense.
        reward: what is drawn upwards.
        dense: reward of the dense network, a dashed line where it is known.
    """
    with style():
        figure, (axes,) = grid_of(1, height=3.8)
        ends = []
        for method, front in fronts.items():
            order = np.argsort(np.asarray(front["cost"], float))
            x, mean, low, high = (
                np.asarray(front[name], float)[order] for name in ("cost", "mean", "low", "high")
            )
            colour = colour_of(method, fronts)
            axes.plot(x, mean, marker="o", color=colour)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            if np.isfinite(mean).any():
                ends.append((x[-1], float(mean[np.isfinite(mean)][-1]), method, colour))
        if math.isfinite(dense):
            axes.axhline(dense, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.1)
        axes.set_xscale("log")
        # The budgets themselves are the ticks, as long as there is room for them.
        budgets = sorted({float(x) for front in fronts.values() for x in np.asarray(front["cost"])})
        if 1 <= len(budgets) <= 12:
            axes.set_xticks(budgets, minor=False)
            axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(PERCENT)
        axes.tick_params(axis="x", which="both", labelsize=8)
        label_ends(axes, ends)
        axes.set_title(f"{reward.capitalize()} against cost")
        axes.set_xlabel(f"budget on {cost} (of dense)")
        axes.set_ylabel(reward)
        note_if_empty(axes, not ends)
        return figure


def effects_figure(
    settings: Mapping[str, Sequence], mean: ArrayLike, metric: str, log: Sequence[str] = ()
) -> Figure:
    """Draw the marginal effect of each hyper-parameter.

    Points are settings, the line the mean per part of the range.

    Args:
        settings: H values per hyper-parameter; constants are left out.
        mean: f[H] of the metric.
        metric: its name.
        log: hyper-parameters drawn on a logarithmic axis.
    """
    values = np.asarray(mean, float)
    drawn = {name: column for name, column in settings.items() if len(set(column)) > 1}
    with style():
        figure, panels = grid_of(max(len(drawn), 1), height=2.6, sharey=True)
        note_if_empty(panels[0], not drawn)
        for axes, (name, column) in zip(panels, drawn.items(), strict=False):
            levels = sorted(set(column))
            numbers = not isinstance(levels[0], str | bool)
            x = np.asarray(column if numbers else [levels.index(value) for value in column], float)
            axes.plot(x, values, ".", color=SERIES[0], alpha=0.35, markersize=4)
            parts = [x == level for level in sorted(set(x))]
            if len(parts) > 8:
                parts = [np.isin(np.arange(len(x)), part) for part in _fifths(x)]
            centres = [x[part].mean() for part in parts]
            means = [np.nanmean(values[part]) if _known(values[part]) else np.nan for part in parts]
            axes.plot(centres, means, color=SERIES[1], marker="o", markersize=4)
            if name in log and numbers and x.min() > 0:
                axes.set_xscale("log")
            if not numbers:
                axes.set_xticks(range(len(levels)), [str(level) for level in levels])
            axes.set_title(name)
        panels[0].set_ylabel(metric)
        return figure


def correlation_figure(proxies: Mapping[str, tuple[ArrayLike, str]], accuracy: ArrayLike) -> Figure:
    """Draw finetuned accuracy against rewards that are to predict it.

    Args:
        proxies: per name rewards f[n], and a note such as the rank correlation.
        accuracy: f[n] after finetuning.
    """
    with style():
        figure, panels = grid_of(len(proxies), height=3.0, columns=4, sharey=True)
        for axes, (name, (rewards, note)) in zip(panels, proxies.items(), strict=True):
            axes.plot(np.asarray(rewards, float), accuracy, "o", color=SERIES[0], markersize=4)
            axes.set_title(f"{name}\n{note}", fontsize=9.5)
            axes.set_xlabel("reward")
        panels[0].set_ylabel("finetuned test accuracy")
        return figure


def scaling_figure(counts: ArrayLike, seconds: Mapping[str, ArrayLike]) -> Figure:
    """Draw seconds against the number of settings.

    Args:
        counts: f[n] settings.
        seconds: way of running them -> f[n], compilation included.
    """
    x = np.asarray(counts, float)
    with style():
        figure, (axes,) = grid_of(1, height=3.4)
        ends = []
        for name, values in seconds.items():
            y, colour = np.asarray(values, float), colour_of(name, seconds)
            axes.plot(x, y, marker="o", color=colour)
            ends.append((x[-1], y[-1], name, colour))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for _, y_end, name, colour in ends:
            axes.annotate(
                name,
                (x[-1], y_end),
                xytext=(6, 0),
                textcoords="offset points",
                color=colour,
                va="center",
                fontweight="bold",
                fontsize=8.5,
                annotation_clip=False,
            )
        axes.set_xlabel("settings")
        axes.set_ylabel("seconds, compilation included")
        return figure


def _fifths(x: np.ndarray) -> list[np.ndarray]:
    return [part for part in np.array_split(np.argsort(x), 5) if len(part)]


def _known(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())
