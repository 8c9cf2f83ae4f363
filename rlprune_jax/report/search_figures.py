"""Figures of a pruning run.

Functions from plain arrays to a matplotlib Figure; NaN and infinity are left out, empty histories
drawn as empty axes. Colours are safe for colour-blind readers, and `figure_svg` leaves them to
the page, so that they follow its light or dark mode.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from rlprune_jax.checks import require
from rlprune_jax.report.drawing import (
    INK,
    MUTED,
    PERCENT,
    colour_of,
    draw_fractions,
    draw_lines,
    grid_of,
    label_ends,
    note_if_empty,
    style,
)

_DASHED = (0, (4, 3))


def search_figure(
    metrics: Mapping[str, ArrayLike],
    budget_names: Sequence[str],
    limits: ArrayLike,
    units: Sequence[str] | None = None,
) -> Figure:
    """Draw how the agent's search went, per iteration.

    Panels show the reward, the cost beside each budget, the multipliers and the fraction of
    candidates within every budget.

    Args:
        metrics: ``reward_mean``, ``reward_best`` f[T]; ``cost_mean``, ``multiplier`` f[T, K];
            ``feasible_fraction`` f[T]. What is missing is not drawn; ``reward`` and ``cost``
            stand for the means.
        budget_names: K names.
        limits: f[K], drawn dashed.
        units: unit of each budget; ``"fraction"`` (of dense, the default) is shown in percent.
    """
    limits = np.asarray(limits, float).reshape(-1)
    count = len(limits)
    series = {name: np.asarray(values, float) for name, values in metrics.items()}
    reward = series.get("reward_mean", series.get("reward"))
    cost = series.get("cost_mean", series.get("cost"))
    panels: list[tuple[str, Callable[[Axes], None]]] = []
    if reward is not None:
        lines = {"mean": reward}
        if "reward_best" in series:
            lines["best so far"] = _running_best(series["reward_best"])
        panels.append(("Held-out reward", lambda axes: draw_lines(axes, lines)))
    if cost is not None:
        for index, name in enumerate(budget_names):
            values = cost.reshape(-1, count)[:, index]
            heading = f"Cost: {name} (limit {_amount(limits[index], index, units)})"
            panels.append((heading, _cost_panel(values, limits[index], index, units)))
    if "multiplier" in series:
        by_name = dict(zip(budget_names, series["multiplier"].reshape(-1, count).T, strict=True))
        panels.append(("Multipliers", lambda axes: draw_lines(axes, by_name)))
    if "feasible_fraction" in series:
        within = {"": series["feasible_fraction"]}
        panels.append(("Within every budget", lambda axes: draw_fractions(axes, within)))
    with style():
        figure, grid = grid_of(len(panels), height=2.35)
        for axes, (title, draw) in zip(grid, panels, strict=True):
            axes.set_title(title)
            draw(axes)
            axes.set_xlabel("iteration")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return figure


def layers_figure(
    names: Sequence[str], sizes: Sequence[int], kept: Mapping[str, Sequence[int]]
) -> Figure:
    """Draw how many units each layer keeps, per method.

    Methods stand side by side; the dense layer is an outline.

    Args:
        names: G groups in depth order.
        sizes: G sizes of the dense groups.
        kept: per method the G numbers of kept units.

    Raises:
        ValueError: a row is not as long as ``names``.
    """
    for argument, row in {"sizes": sizes, **kept}.items():
        require(len(row) == len(names), argument, row, f"of {len(names)} numbers, one per name")
    positions, dense = np.arange(len(names)), np.asarray(sizes, float)
    width = 0.8 / max(len(kept), 1)
    rotate = len(names) > 6 or max(map(len, names), default=0) > 12
    with style():
        figure, grid = grid_of(2, height=2.3, columns=1, sharex=True)
        for axes, title, scale in zip(
            grid,
            ("Units kept", "Fraction of the layer kept"),
            (np.ones_like(dense), np.maximum(dense, 1)),
            strict=True,
        ):
            axes.set_title(title)
            axes.bar(positions, dense / scale, 0.86, fill=False, edgecolor=MUTED, linewidth=0.9)
            for index, (method, counts) in enumerate(kept.items()):
                values = np.asarray(counts, float)
                offset = (index - (len(kept) - 1) / 2) * width
                colour = colour_of(method, kept)
                bars = axes.bar(positions + offset, values / scale, width * 0.94, color=colour)
                if len(names) * len(kept) <= 30:
                    factor = 1 if title == "Units kept" else 100
                    number = [f"{factor * value:.0f}" for value in values / scale]
                    axes.bar_label(bars, number, fontsize=7.5, color=colour, padding=1)
            axes.grid(axis="x", visible=False)
            axes.set_xticks(
                positions, names, rotation=40 if rotate else 0, ha="right" if rotate else "center"
            )
            axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
        grid[1].yaxis.set_major_formatter(PERCENT)
        handles: list[Artist] = [
            Patch(facecolor=colour_of(method, kept), label=method) for method in kept
        ]
        handles.append(Patch(fill=False, edgecolor=MUTED, label="dense"))
        _legend(figure, handles)
        return figure


def candidates_figure(
    histories: Mapping[str, Mapping[str, ArrayLike]],
    budget_names: Sequence[str],
    limits: ArrayLike,
    units: Sequence[str] | None = None,
    delivered: Mapping[str, tuple[float, ArrayLike]] | None = None,
) -> Figure:
    """Draw reward against cost of every candidate, per budget.

    Faint points break some budget. The step line is the front: the best reward at each cost among
    candidates that keep the other budgets; the dashed line is this budget's limit.

    Args:
        histories: per method ``rewards`` f[M] and ``costs`` f[M, K]; further leading axes are
            flattened.
        budget_names: K names.
        limits: f[K].
        units: as in `search_figure`.
        delivered: per method its final ``(reward, costs f[K])``, marked by a diamond.
    """
    limits = np.asarray(limits, float).reshape(-1)
    clean = {method: _flat(history, len(limits)) for method, history in histories.items()}
    rewards = np.concatenate([pair[0] for pair in clean.values()] or [np.zeros(0)])
    costs = np.concatenate([pair[1] for pair in clean.values()] or [np.zeros((0, len(limits)))])
    within = costs <= limits * (1 + 1e-6)
    with style():
        figure, grid = grid_of(len(limits), height=3.6, columns=2, sharey=True)
        for index, axes in enumerate(grid):
            for method, (reward, cost) in reversed(clean.items()):
                good = (cost <= limits * (1 + 1e-6)).all(-1)
                for mask, alpha, size in ((~good, 0.13, 7), (good, 0.55, 10)):
                    axes.scatter(
                        cost[mask, index],
                        reward[mask],
                        s=size,
                        alpha=alpha,
                        linewidths=0,
                        color=colour_of(method, clean),
                        # Thousands of vector points would make the page megabytes.
                        rasterized=len(rewards) > 500,
                    )
            others = np.delete(within, index, axis=1).all(-1)
            front = _front(costs[others, index], rewards[others])
            axes.step(*front, where="post", color=INK, linewidth=1.1, label="front")
            axes.axvline(limits[index], color=INK, linestyle=_DASHED, linewidth=1.1)
            for method, (value, where) in (delivered or {}).items():
                place = np.asarray(where, float).reshape(-1)[index]
                colour = colour_of(method, clean)
                axes.scatter(place, value, s=46, marker="D", color=colour, edgecolors=INK, zorder=5)
            _scale_axis(axes.xaxis, index, units)
            _focus(axes, costs[:, index], limits[index])
            axes.set_title(f"{budget_names[index]} ≤ {_amount(limits[index], index, units)}")
            axes.set_xlabel(_axis_name(budget_names[index], index, units))
            note_if_empty(axes, len(rewards) == 0)
        if len(rewards):
            _focus_rewards(grid[0], rewards[(costs <= 2 * limits).all(-1)], rewards)
        grid[0].set_ylabel("held-out reward")
        handles: list[Artist] = [
            Patch(color=colour_of(method, clean), label=method) for method in clean
        ]
        handles.append(Line2D([], [], color=INK, linewidth=1.1, label="front"))
        handles.append(Line2D([], [], color=INK, linestyle=_DASHED, linewidth=1.1, label="limit"))
        if delivered:
            diamond = Line2D([], [], linestyle="", marker="D", color="none", label="delivered")
            diamond.set_markeredgecolor(INK)
            handles.append(diamond)
        _legend(figure, handles)
        return figure


def progress_figure(
    histories: Mapping[str, Mapping[str, ArrayLike]], limits: ArrayLike, log: bool = True
) -> Figure:
    """Draw the best reward so far against evaluations, per method.

    Only candidates within every budget count.

    Args:
        histories: as in `candidates_figure`, in the order of evaluation.
        limits: f[K].
        log: whether evaluations are drawn on a logarithmic axis.
    """
    limits = np.asarray(limits, float).reshape(-1)
    with style():
        figure, (axes,) = grid_of(1, height=3.4)
        ends = []
        for method, history in histories.items():
            rewards, costs = _flat(history, len(limits), keep_missing=True)
            good = (costs <= limits * (1 + 1e-6)).all(-1) & np.isfinite(rewards)
            best = _running_best(np.where(good, rewards, -np.inf))
            evaluations = np.arange(1, len(best) + 1)
            seen = np.isfinite(best)
            colour = colour_of(method, histories)
            axes.step(evaluations[seen], best[seen], where="post", color=colour)
            if seen.any():
                ends.append((evaluations[-1], best[-1], method, colour))
            else:
                ends.append((1, np.nan, f"{method}: none within budget", colour))
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        label_ends(axes, [end for end in ends if np.isfinite(end[1])])
        missing = [end[2] for end in ends if not np.isfinite(end[1])]
        if missing:
            axes.text(
                0.01, 0.02, "\n".join(missing), transform=axes.transAxes, color=MUTED, va="bottom"
            )
        axes.set_title("Best reward within every budget")
        axes.set_xlabel("candidates evaluated")
        axes.set_ylabel("held-out reward")
        note_if_empty(axes, not ends)
        return figure


def _legend(figure: Figure, handles: list[Artist]) -> None:
    columns = len(handles) if len(handles) <= 6 else -(-len(handles) // 2)
    figure.legend(handles=handles, loc="outside upper right", ncols=columns, frameon=False)


def _cost_panel(
    values: np.ndarray, limit: float, index: int, units: Sequence[str] | None
) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        draw_lines(axes, {"": values})
        axes.axhline(limit, color=INK, linestyle=_DASHED, linewidth=1.1)
        finite = values[np.isfinite(values)]
        top = max([1.25 * limit, *(1.08 * finite)])
        axes.set_ylim(0, top if top > 0 else 1)
        _scale_axis(axes.yaxis, index, units)

    return draw


def _flat(
    history: Mapping[str, ArrayLike], count: int, keep_missing: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return rewards f[M] and costs f[M, K], without candidates that have no number."""
    rewards = np.asarray(history["rewards"], float).reshape(-1)
    costs = np.asarray(history["costs"], float).reshape(-1, count)
    if keep_missing:
        return rewards, costs
    seen = np.isfinite(rewards) & np.isfinite(costs).all(-1)
    return rewards[seen], costs[seen]


def _running_best(values: np.ndarray) -> np.ndarray:
    best = np.maximum.accumulate(np.where(np.isfinite(values), values, -np.inf))
    return np.where(np.isfinite(best), best, np.nan)


def _front(costs: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((-rewards, costs))
    best = np.maximum.accumulate(rewards[order]) if len(order) else rewards
    new = np.diff(best, prepend=-np.inf) > 0
    return costs[order][new], best[new]


def _focus(axes: Axes, costs: np.ndarray, limit: float) -> None:
    """Leave out of sight what is far over the limit and would squeeze what matters."""
    right = 1.3 * limit
    if len(costs):
        right = max(right, min(np.quantile(costs, 0.98), 2.5 * limit))
    left = min([0.8 * limit, *costs])
    axes.set_xlim(max(0.0, left - 0.05 * right), 1.04 * right)


def _focus_rewards(axes: Axes, near: np.ndarray, rewards: np.ndarray) -> None:
    low, high = np.quantile(near if len(near) else rewards, 0.03), rewards.max()
    pad = 0.06 * (high - low) if high > low else 0.05
    axes.set_ylim(low - pad, high + pad)


def _is_fraction(index: int, units: Sequence[str] | None) -> bool:
    return units is None or units[index] in ("fraction", "")


def _amount(value: float, index: int, units: Sequence[str] | None) -> str:
    if _is_fraction(index, units):
        return f"{100 * value:.3g} %"
    return f"{value:.3g} {units[index]}" if units else f"{value:.3g}"


def _axis_name(name: str, index: int, units: Sequence[str] | None) -> str:
    unit = "of dense" if _is_fraction(index, units) else units[index] if units else ""
    return f"{name} ({unit})"


def _scale_axis(axis: Axis, index: int, units: Sequence[str] | None) -> None:
    if _is_fraction(index, units):
        axis.set_major_formatter(PERCENT)
