"""Figures of a pruning run: the search over time, what it kept, what it tried, how fast it learnt.

Functions from plain arrays to a matplotlib Figure; NaN and infinity are left out, empty histories
drawn as empty axes. Colours are safe for colour-blind readers, and `figure_svg` leaves them to
the page, so that they follow its light or dark mode.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

INK, MUTED, FAINT = "#1b1e24", "#667085", "#d5d9e0"
# Okabe and Ito's palette, black and yellow left out; the first is for the method in question.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d46")
_SLOTS = ("agent", "uniform", "random", "cross", "magnitude")

_STYLE = {
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


def search_figure(
    metrics: Mapping[str, ArrayLike],
    budget_names: Sequence[str],
    limits: ArrayLike,
    units: Sequence[str] | None = None,
) -> Figure:
    """How the agent's search went: reward, cost against each budget, multipliers, per iteration.

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
        panels.append(("Held-out reward", lambda axes: _draw_lines(axes, lines)))
    if cost is not None:
        for index, name in enumerate(budget_names):
            values = cost.reshape(-1, count)[:, index]
            panels.append((f"Cost: {name}", _cost_panel(values, limits[index], index, units)))
    if "multiplier" in series:
        by_name = dict(zip(budget_names, series["multiplier"].reshape(-1, count).T, strict=True))
        panels.append(("Multipliers", lambda axes: _draw_lines(axes, by_name)))
    if "feasible_fraction" in series:
        share = {"": series["feasible_fraction"]}
        panels.append(("Candidates within every budget", lambda axes: _percent_lines(axes, share)))
    with mpl.rc_context(_STYLE):
        figure, grid = _grid(len(panels), height=2.35)
        for axes, (title, draw) in zip(grid, panels, strict=True):
            axes.set_title(title)
            draw(axes)
            axes.set_xlabel("iteration")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return figure


def layers_figure(
    names: Sequence[str], sizes: Sequence[int], kept: Mapping[str, Sequence[int]]
) -> Figure:
    """How many units each layer keeps, side by side per method, the dense layer as an outline.

    Args:
        names: G groups in depth order.
        sizes: G sizes of the dense groups.
        kept: per method the G numbers of kept units.
    """
    positions, dense = np.arange(len(names)), np.asarray(sizes, float)
    width = 0.8 / max(len(kept), 1)
    rotate = len(names) > 6 or max(map(len, names), default=0) > 12
    with mpl.rc_context(_STYLE):
        figure, grid = _grid(2, height=2.3, columns=1, sharex=True)
        for axes, title, scale in zip(
            grid,
            ("Units kept", "Share of the layer kept"),
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
                    number = [
                        f"{v:.0f}" if scale[0] == 1 else f"{100 * v:.0f}" for v in bars.datavalues
                    ]
                    axes.bar_label(bars, number, fontsize=7.5, color=colour, padding=1)
            axes.grid(axis="x", visible=False)
            axes.set_xticks(
                positions, names, rotation=40 if rotate else 0, ha="right" if rotate else "center"
            )
            axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
        grid[1].yaxis.set_major_formatter(_PERCENT)
        handles = [Patch(facecolor=colour_of(method, kept), label=method) for method in kept]
        handles.append(Patch(fill=False, edgecolor=MUTED, label="dense"))
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False)
        return figure


def candidates_figure(
    histories: Mapping[str, Mapping[str, ArrayLike]],
    budget_names: Sequence[str],
    limits: ArrayLike,
    units: Sequence[str] | None = None,
    delivered: Mapping[str, tuple[float, ArrayLike]] | None = None,
) -> Figure:
    """Reward against cost of every candidate that any method tried, one panel per budget.

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
    with mpl.rc_context(_STYLE):
        figure, grid = _grid(len(limits), height=3.6, columns=2, sharey=True)
        for index, axes in enumerate(grid):
            for method, (reward, cost) in clean.items():
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
            axes.axvline(limits[index], color=INK, linestyle=(0, (4, 3)), linewidth=1.1)
            for method, (value, where) in (delivered or {}).items():
                place = np.asarray(where, float).reshape(-1)[index]
                colour = colour_of(method, clean)
                axes.scatter(place, value, s=46, marker="D", color=colour, edgecolors=INK, zorder=5)
            _scale_axis(axes.xaxis, index, units)
            _focus(axes, rewards, costs[:, index], limits[index])
            axes.set_title(f"{budget_names[index]} ≤ {_amount(limits[index], index, units)}")
            axes.set_xlabel(_axis_name(budget_names[index], index, units))
            _note_if_empty(axes, len(rewards) == 0)
        grid[0].set_ylabel("held-out reward")
        handles = [Patch(color=colour_of(method, clean), label=method) for method in clean]
        if handles:
            figure.legend(
                handles=handles, loc="outside upper right", ncols=len(handles), frameon=False
            )
        return figure


def progress_figure(
    histories: Mapping[str, Mapping[str, ArrayLike]], limits: ArrayLike, log: bool = True
) -> Figure:
    """Best reward within every budget against the number of evaluations, a line per method.

    Args:
        histories: as in `candidates_figure`, in the order of evaluation.
        limits: f[K].
        log: whether evaluations are drawn on a logarithmic axis.
    """
    limits = np.asarray(limits, float).reshape(-1)
    with mpl.rc_context(_STYLE):
        figure, (axes,) = _grid(1, height=3.4)
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
        _label_ends(axes, [end for end in ends if np.isfinite(end[1])])
        missing = [end[2] for end in ends if not np.isfinite(end[1])]
        if missing:
            axes.text(
                0.01, 0.02, "\n".join(missing), transform=axes.transAxes, color=MUTED, va="bottom"
            )
        axes.set_title("Best reward within every budget")
        axes.set_xlabel("candidates evaluated")
        axes.set_ylabel("held-out reward")
        _note_if_empty(axes, not ends)
        return figure


def figure_svg(figure: Figure, prefix: str) -> str:
    """A figure as an ``<svg>`` element for a page that defines ``--ink``, ``--series-0`` and so on.

    Args:
        figure: one of this module's; of another, colours that we do not know stay as they are.
        prefix: put before every id, so that several figures can stand in one page.
    """
    buffer = io.StringIO()
    style = {"svg.fonttype": "none", "svg.hashsalt": prefix, "font.family": "sans-serif"}
    with mpl.rc_context(style):
        figure.savefig(buffer, format="svg", dpi=160, transparent=True, metadata={"Date": None})
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


def colour_of(method: str, methods: Any) -> str:
    """A method's colour, the same in every figure: known methods have theirs, others what is left.

    Args:
        method: name of the method.
        methods: names of all methods of the figure, in order.
    """
    known = {
        name: SERIES[slot]
        for name in methods
        for slot, word in enumerate(_SLOTS)
        if word in name.lower()
    }
    # Two variants of one method, such as two agents, must not look alike.
    colours: dict[str, str] = {}
    for name in methods:
        if name in known and known[name] not in colours.values():
            colours[name] = known[name]
    reserved = set(known.values())
    left = [colour for colour in SERIES if colour not in reserved] or [MUTED]
    for index, name in enumerate(name for name in methods if name not in colours):
        colours[name] = left[index % len(left)]
    return colours[method]


_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g} %")


def _page_colours() -> dict[str, str]:
    named = {f"--series-{index}": colour for index, colour in enumerate(SERIES)}
    return {"--ink": INK, "--muted": MUTED, "--faint": FAINT, **named}


def _grid(
    count: int, height: float, columns: int = 3, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    columns = max(min(columns, count), 1)
    rows = max(-(-count // columns), 1)
    figure = Figure(figsize=(_WIDTH, height * rows + 0.25), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    for axes in grid.flat[max(count, 0) :]:
        axes.set_axis_off()
    return figure, list(grid.flat[:count])


def _draw_lines(axes: Axes, lines: Mapping[str, np.ndarray]) -> None:
    ends = []
    for index, (name, values) in enumerate(lines.items()):
        steps = np.arange(1, len(values) + 1)
        seen = np.isfinite(values)
        colour = SERIES[index % len(SERIES)]
        marker = "o" if seen.sum() == 1 else None
        axes.plot(steps[seen], values[seen], color=colour, marker=marker)
        if seen.any() and name:
            ends.append((steps[seen][-1], values[seen][-1], name, colour))
    _label_ends(axes, ends)
    _note_if_empty(axes, not any(np.isfinite(values).any() for values in lines.values()))


def _percent_lines(axes: Axes, lines: Mapping[str, np.ndarray]) -> None:
    _draw_lines(axes, lines)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(_PERCENT)


def _cost_panel(
    values: np.ndarray, limit: float, index: int, units: Sequence[str] | None
) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        _draw_lines(axes, {"": values})
        axes.axhline(limit, color=INK, linestyle=(0, (4, 3)), linewidth=1.1)
        axes.annotate(
            f"limit {_amount(limit, index, units)}",
            (1, limit),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
        )
        finite = values[np.isfinite(values)]
        top = max([1.25 * limit, *(1.08 * finite)])
        axes.set_ylim(0, top if top > 0 else 1)
        _scale_axis(axes.yaxis, index, units)

    return draw


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names at the right ends of lines, pushed apart where they would overlap."""
    if not ends:
        return
    axes.margins(y=0.1)
    axes.autoscale_view()
    low, high = axes.get_ylim()
    points = axes.get_figure().get_figheight() * 72 * 0.6
    rows = axes.get_subplotspec().get_gridspec().nrows if axes.get_subplotspec() else 1
    gap = 11.0 * rows / points
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


def _flat(
    history: Mapping[str, ArrayLike], count: int, keep_missing: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards f[M] and costs f[M, K] of a history, without candidates that have no number."""
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


def _focus(axes: Axes, rewards: np.ndarray, costs: np.ndarray, limit: float) -> None:
    """Leaves the worst tenth out of sight where it would squeeze what matters."""
    if not len(rewards):
        axes.set_xlim(0, 2 * limit)
        return
    low, high = np.quantile(rewards, 0.05), rewards.max()
    pad = 0.06 * max(high - low, 1e-6)
    axes.set_ylim(low - pad, high + 2 * pad)
    right = max(1.3 * limit, min(costs.max(), max(np.quantile(costs, 0.98), limit)))
    axes.set_xlim(max(0.0, min(costs.min(), limit) - 0.05 * right), 1.04 * right)


def _is_fraction(index: int, units: Sequence[str] | None) -> bool:
    return units is None or units[index] in ("fraction", "")


def _amount(value: float, index: int, units: Sequence[str] | None) -> str:
    if _is_fraction(index, units):
        return f"{100 * value:.3g} %"
    return f"{value:.3g} {units[index]}" if units else f"{value:.3g}"


def _axis_name(name: str, index: int, units: Sequence[str] | None) -> str:
    unit = "of dense" if _is_fraction(index, units) else units[index] if units else ""
    return f"{name} ({unit})"


def _scale_axis(axis: Any, index: int, units: Sequence[str] | None) -> None:
    if _is_fraction(index, units):
        axis.set_major_formatter(_PERCENT)


def _note_if_empty(axes: Axes, empty: bool) -> None:
    if empty:
        axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, ha="center", color=MUTED)
