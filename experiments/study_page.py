"""The page of a study: front, effects or correlations, and a table that sorts and filters."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rlprune_jax.files import to_json
from rlprune_jax.report.page import Table, percent, render_report, write_report
from rlprune_jax.report.study_figures import correlation_figure, effects_figure, front_figure
from rlprune_jax.runs import RunDirectory
from rlprune_jax.study import StudyResult
from rlprune_jax.study.results import summarise


def write_page(
    run: RunDirectory,
    config: Any,
    found: StudyResult,
    result: Mapping[str, Any],
    cost: str,
    log: Sequence[str],
) -> None:
    """Write ``report.html``, and its figures as PNG files into ``figures/``.

    Args:
        run: where it goes.
        config: the dataclass of settings.
        found: the study's result.
        result: what goes into ``result.json``.
        cost: name of the budget.
        log: hyper-parameters on logarithmic axes.
    """
    metric = result["metric"]
    summary = found.summary(metric)
    columns = {name: list(values) for name, values in found.settings.columns.items()}
    figures = draw(found, result, cost, log)
    folder = run.path / "figures"
    folder.mkdir(exist_ok=True)
    for title, figure, _ in figures:
        file = folder / f"{title.lower().replace(' ', '-')}.png"
        figure.savefig(file, dpi=110, facecolor="white")
    order = np.argsort(summary["rank"], kind="stable")
    others = [name for name in found.metrics if name != metric]
    names = ["rank", *columns, metric, "low", "high", *others]
    means = {name: found.metrics[name].mean(1) for name in others}
    rows = [
        [
            int(summary["rank"][i]),
            *(columns[name][i] for name in columns),
            *(float(summary[name][i]) for name in ("mean", "low", "high")),
            *(float(means[name][i]) for name in others),
        ]
        for i in order
    ]
    page = render_report(
        f"Study of {result['study']}: {result['model']} on {result['dataset']}",
        {
            "settings × seeds": f"{len(found.settings)} × {len(found.seeds)}",
            f"best {metric}": (
                f"{result['best']['mean']:.4f}",
                f"{result['interval'][0]:.4f} to {result['interval'][1]:.4f}"
                if len(found.seeds) > 1
                else "one seed",
            ),
            "dense test accuracy": percent(result["dense_accuracy"], 2),
        },
        [
            Table(
                "Settings",
                names,
                rows,
                caption="Means over seeds. Click a column's name to sort.",
                interactive=True,
            )
        ],
        figures,
        {
            "configuration": to_json(dataclasses.asdict(config)),
            "result": {k: v for k, v in result.items() if k not in ("versions", "device")},
            "versions": result["versions"],
            "device": result["device"],
        },
        lead=f"{result['seconds']:.0f} seconds, {result['compile_seconds']:.0f} of them compiling.",
    )
    write_report(run.report, page)


def draw(
    found: StudyResult, result: Mapping[str, Any], cost: str, log: Sequence[str]
) -> list[tuple[str, Figure, str]]:
    """Title, figure and caption of all that a study of this kind has to show."""
    metric = result["metric"]
    if result["study"] == "proxy":
        accuracy = found.metrics["accuracy"].mean(1)
        proxies = {
            name: (
                found.metrics[name].mean(1),
                f"rho {value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]",
            )
            for name, value in result["correlations"].items()
        }
        caption = (
            "A dot per candidate; rho is Spearman's rank correlation with its 95 % bootstrap "
            "interval over candidates."
        )
        title = "Reward against finetuned accuracy"
        return [(title, correlation_figure(proxies, accuracy), caption)]
    figures: list[tuple[str, Figure, str]] = []
    if result["study"] == "budgets":
        caption = (
            "Mean over seeds, bootstrap interval shaded; dashed: the dense network's test accuracy."
        )
        # The reward is before any finetuning, the accuracy after it.
        for name in dict.fromkeys((metric, "reward")):
            fronts = _fronts(found, name, cost)
            figure = front_figure(fronts, cost, name, result["dense_accuracy"])
            figures.append((f"Front of {name}", figure, caption))
    columns = {name: list(values) for name, values in found.settings.columns.items()}
    effects = effects_figure(columns, found.metrics[metric].mean(1), metric, log)
    caption = "A dot per setting, and the mean over the others by value or fifth of the range."
    return [*figures, ("Effect of each hyper-parameter", effects, caption)]


def _fronts(found: StudyResult, metric: str, cost: str) -> dict[str, dict[str, Any]]:
    methods = found.settings.columns["method"]
    costs = np.asarray(found.settings.columns[cost], float)
    fronts = {}
    for method in dict.fromkeys(methods):
        chosen = np.asarray([name == method for name in methods])
        rows = summarise(found.metrics[metric][chosen])
        fronts[str(method)] = {"cost": costs[chosen]} | {
            name: rows[name] for name in ("mean", "low", "high")
        }
    return fronts
