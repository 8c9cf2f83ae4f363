"""The run's page: what was found, at what cost, and how it compares."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rlprune_jax.files import to_json
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
from rlprune_jax.runs import RunDirectory

METRICS = ("reward_mean", "reward_best", "cost_mean", "multiplier", "feasible_fraction")


def write_page(
    run: RunDirectory, config: Any, result: Mapping[str, Any], history: Mapping[str, Any]
) -> None:
    """Write ``report.html``.

    Args:
        run: whose metrics are drawn.
        config: the dataclass of settings.
        result: what goes into ``result.json``.
        history: per method ``rewards`` [M] and ``costs`` [M, K] of every evaluation.
    """
    names = [budget["name"] for budget in result["budgets"]]
    limits = [budget["limit"] for budget in result["budgets"]]
    units = ["fraction" if is_share(budget) else budget["unit"] for budget in result["budgets"]]
    dense, pruned = result["dense"], result["pruned"]
    rows = run.metrics("search-agent")
    metrics = {name: [row[name] for row in rows] for name in METRICS if name in rows[0]}
    kept = {
        "agent": list(pruned["kept"].values()),
        **{
            name: list(result["baselines"][name]["kept"].values())
            for name in ("uniform",)
            if name in result["baselines"]
        },
    }
    methods = {
        "agent": pruned
        | {
            "evaluations": result["search"]["evaluations"],
            "latency_ms": pruned["latency_ms"]["median"],
        },
        **{name: baseline for name, baseline in result["baselines"].items()},
    }
    if getattr(config, "constraint", "") == "projection":
        metrics.pop("multiplier", None)
    caption = (
        "Searches had the same number of evaluations; uniform and global threshold are rules with "
        "1 and a few candidates. Re-ranking and finetuning are the same for all, and the test "
        "images were read once per delivered network."
    )
    budgets = Table(
        "Budgets",
        ("budget", "limit", "achieved", "counted", "respected"),
        [
            (
                budget["name"],
                amount(budget, budget["limit"]),
                amount(budget, budget["achieved"]),
                budget["count"],
                budget["satisfied"],
            )
            for budget in result["budgets"]
        ],
    )
    page = render_report(
        f"{result['model']} on {result['dataset']}, pruned to "
        + " and ".join(
            f"{budget['name']} ≤ {amount(budget, budget['limit'], 3)}"
            for budget in result["budgets"]
        ),
        {
            "test accuracy": (
                percent(pruned["accuracy"], 2),
                f"dense {percent(dense['accuracy'], 2)}",
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
            "masked = slim": (f"{result['equivalence']['max_abs_diff']:.1e}", "largest difference"),
        },
        [
            results_table(
                dense | {"latency_ms": dense["latency_ms"]["median"]}, methods, caption=caption
            ),
            sizes_table(dense, pruned),
            budgets,
        ],
        [
            (
                "The search",
                search_figure(metrics, names, limits, units),
                "Per iteration of the agent.",
            ),
            (
                "Units kept per layer",
                layers_figure(list(result["groups"]), list(result["groups"].values()), kept),
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
        ],
        {
            "configuration": to_json(dataclasses.asdict(config)),
            "search": result["search"],
            "versions": result["versions"],
            "device": result["device"],
        },
        lead=f"Seed {result['seed']}, {result['seconds']:.0f} seconds in all.",
    )
    write_report(run.report, page)


def is_share(budget: Mapping[str, Any]) -> bool:
    """Whether a budget's limit is a fraction of dense."""
    return budget["unit"].startswith("fraction of dense")


def amount(budget: Mapping[str, Any], value: float, digits: int = 4) -> str:
    """A limit or what was achieved, in the unit of the budget."""
    if is_share(budget):
        return f"{100 * value:.{digits}g} %"
    unit = "" if budget["unit"] == "of its own unit" else f" {budget['unit']}"
    return f"{value:.{digits}g}{unit}"


def sizes_table(dense: Mapping[str, Any], pruned: Mapping[str, Any]) -> Table:
    """The dense network beside the slim one, and how many times smaller or faster."""
    rows = [
        (title, dense[key], pruned[key], f"{dense[key] / pruned[key]:.2f} times")
        for key, title in (
            ("params", "parameters"),
            ("macs", "MACs an image"),
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
    """Median and quartiles."""
    low, high = latency["lower_quartile"], latency["upper_quartile"]
    return f"{latency['median']:.3g} ({low:.3g} to {high:.3g})"
