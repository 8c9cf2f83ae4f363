"""The page of a pruning run: what was found, at what cost, and how it compares."""

import os
from collections.abc import Mapping, Sequence

from numpy.typing import ArrayLike

from rlprune_jax.report.page import (
    Table,
    candidates_figure,
    layers_figure,
    percent,
    progress_figure,
    render_report,
    results_table,
    search_figure,
    write_report,
)
from rlprune_jax.types import PyTree
from rlprune_jax.wording import metric_text, metric_title

Json = Mapping[str, PyTree]
"""A JSON object."""

METRICS = ("reward_mean", "reward_best", "cost_mean", "multiplier", "feasible_fraction")
"""Records of the agent's search that are drawn."""

CAPTION = (
    "Searches had the same number of evaluations; uniform and global threshold are rules with "
    "1 and a few candidates. Re-ranking and finetuning are the same for all, and the test "
    "data were read once per delivered network."
)


def write_run_page(
    path: str | os.PathLike,
    result: Json,
    rows: Sequence[Json],
    history: Mapping[str, Mapping[str, ArrayLike]],
    settings: Json,
) -> None:
    """Write the page of a run.

    Args:
        path: of the file.
        result: the content of ``result.json``.
        rows: the metrics of the agent's search.
        history: per method ``rewards`` [M] and ``costs`` [M, K] of every evaluation.
        settings: of the run, shown folded.
    """
    dense, pruned, metric = result["dense"], result["pruned"], result["metric"]
    budgets = result["budgets"]
    page = render_report(
        title_of(result),
        {
            f"test {metric_title(metric)}": (
                metric_text(pruned[metric], metric),
                f"dense {metric_text(dense[metric], metric)}",
            ),
            "parameters": (
                pruned["params"],
                f"{percent(pruned['params'] / dense['params'], 2)} of {dense['params']:,}",
            ),
            "MACs": (pruned["macs"], f"{percent(pruned['macs'] / dense['macs'], 2)} of dense"),
            "latency, batch 128": (
                f"{pruned['latency_ms']['median']:.2f} ms",
                f"dense {dense['latency_ms']['median']:.2f} ms",
            ),
            equality_title(result): equality_text(result),
        },
        [methods_table(result), sizes_table(dense, pruned), budgets_table(budgets)],
        figures(result, rows, history, settings.get("constraint") != "projection"),
        {
            "configuration": settings,
            "search": result["search"],
            "versions": result["versions"],
            "device": result["device"],
        },
        lead=f"Seed {result['seed']}, {result['seconds']:.0f} seconds in all.",
    )
    write_report(path, page)


def equality_title(result: Json) -> str:
    """Return what the page says of slim and masked."""
    return (
        "masked = slim" if result["equivalence"].get("equal", True) else "masked ≠ slim: a defect"
    )


def equality_text(result: Json) -> tuple[str, str]:
    """Return the largest difference and what it is."""
    found = result["equivalence"]
    by_default = found.get("default_max_abs_diff")
    largest = "not finite" if found["max_abs_diff"] is None else f"{found['max_abs_diff']:.1e}"
    if by_default is None or by_default == found["max_abs_diff"]:
        return largest, "largest difference"
    return largest, f"largest difference, in full float32; {by_default:.1e} at default precision"


def title_of(result: Json) -> str:
    """Return the heading, which names network, data and budgets."""
    limits = " and ".join(
        f"{budget['name']} ≤ {amount(budget, budget['limit'], 3)}" for budget in result["budgets"]
    )
    return f"{result['model']} on {result['dataset']}, pruned to {limits}"


def figures(
    result: Json,
    rows: Sequence[Json],
    history: Mapping[str, Mapping[str, ArrayLike]],
    multiplied: bool,
) -> list[tuple[str, PyTree, str]]:
    """Return the figures with their titles and captions.

    Args:
        result: the content of ``result.json``.
        rows: the metrics of the agent's search.
        history: of every method.
        multiplied: whether the multipliers say anything.
    """
    budgets = result["budgets"]
    names = [budget["name"] for budget in budgets]
    limits = [budget["limit"] for budget in budgets]
    units = ["fraction" if is_fraction(budget) else budget["unit"] for budget in budgets]
    drawn = [name for name in METRICS if name in rows[0] and (multiplied or name != "multiplier")]
    kept = {
        method: list(found["kept"].values())
        for method, found in {"agent": result["pruned"], **result["baselines"]}.items()
        if method in ("agent", "uniform")
    }
    groups = result["groups"]
    return [
        (
            "The search",
            search_figure(
                {name: [row[name] for row in rows] for name in drawn}, names, limits, units
            ),
            "Per iteration of the agent.",
        ),
        (
            "Units kept per layer",
            layers_figure(list(groups), list(groups.values()), kept),
            "The dense layer is the outline.",
        ),
        (
            "Reward against evaluations",
            progress_figure(history, limits),
            "Best held-out reward among candidates within every budget.",
        ),
        (
            "Reward against cost",
            candidates_figure(history, names, limits, units),
            "Every candidate that any method evaluated, before finetuning.",
        ),
    ]


def methods_table(result: Json) -> Table:
    """Return the table of all methods beside the dense network."""

    def with_median(found: Json) -> Json:
        times = found.get("latency_ms")
        return {**found, "latency_ms": times["median"]} if times else found

    return results_table(
        with_median(result["dense"]),
        {"agent": with_median(result["pruned"]), **result["baselines"]},
        caption=CAPTION,
        metric=result["metric"],
    )


def budgets_table(budgets: Sequence[Json]) -> Table:
    """Return the table of budgets and what was achieved."""
    rows = [
        (
            budget["name"],
            amount(budget, budget["limit"]),
            amount(budget, budget["achieved"]),
            budget["count"],
            budget["satisfied"],
        )
        for budget in budgets
    ]
    heads = ("budget", "limit", "achieved", "counted", "respected")
    if not any("measured" in budget for budget in budgets):
        return Table("Budgets", heads, rows)
    measured = [
        amount(budget, budget["measured"]) if "measured" in budget else "" for budget in budgets
    ]
    longer = [(*row, each) for row, each in zip(rows, measured, strict=True)]
    return Table("Budgets", (*heads, "measured"), longer)


def is_fraction(budget: Json) -> bool:
    """Return whether a budget's limit is a fraction of dense."""
    return budget["unit"].startswith("fraction of dense")


def amount(budget: Json, value: float, digits: int = 4) -> str:
    """Return a cost as text, in the budget's unit.

    Example:
        >>> amount({"unit": "fraction of dense parameters"}, 0.1), amount({"unit": "ms"}, 2.5)
        ('10 %', '2.5 ms')
    """
    if is_fraction(budget):
        return f"{100 * value:.{digits}g} %"
    unit = "" if budget["unit"] == "of its own unit" else f" {budget['unit']}"
    whole = float(value).is_integer()
    return (f"{value:,.0f}" if whole else f"{value:.{digits}g}") + unit


def sizes_table(dense: Json, pruned: Json) -> Table:
    """Return the table of dense beside slim."""
    rows = [
        (title, dense[key], pruned[key], f"{dense[key] / max(pruned[key], 1):.2f} times")
        for key, title in (
            ("params", "parameters"),
            ("macs", "MACs an example"),
            ("file_bytes", "file of weights (bytes)"),
        )
    ]
    for batch, before in dense["latency_ms_by_batch"].items():
        after = pruned["latency_ms_by_batch"][batch]
        quick = f"{before['median'] / after['median']:.2f} times"
        rows.append((f"latency, batch {batch} (ms)", spread(before), spread(after), quick))
    return Table(
        "Dense beside slim",
        ("", "dense", "slim", "ratio"),
        rows,
        caption="Latency: median of 30 calls on this device, quartiles in brackets.",
    )


def spread(latency: Mapping[str, float]) -> str:
    """Return median and quartiles."""
    low, high = latency["lower_quartile"], latency["upper_quartile"]
    return f"{latency['median']:.3g} ({low:.3g} to {high:.3g})"
