"""The page of a study: its figures, and a table of settings that sorts and filters."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rlprune_jax.files import to_json
from rlprune_jax.report.page import Table, metric_text, render_report, write_report
from rlprune_jax.report.study_figures import correlation_figure, effects_figure, front_figure

Values = Sequence[bool | int | float | str]
"""The values of one hyper-parameter in all settings."""


class Drawing(NamedTuple):
    """Hold a figure with its title and its caption."""

    title: str
    figure: Figure
    caption: str


class StudyPage(NamedTuple):
    """Hold what the page of a study shows.

    Attributes:
        settings: H values per hyper-parameter.
        summary: of the metric that settings are ranked by: ``rank`` i[H], ``mean``, ``low`` and
            ``high`` f[H].
        metrics: f[H, S] by name.
        result: what ``result.json`` holds.
        config: the options of the study, as plain JSON or with paths.
        drawings: in order.
    """

    settings: Mapping[str, Values]
    summary: Mapping[str, np.ndarray]
    metrics: Mapping[str, np.ndarray]
    result: Mapping[str, object]
    config: Mapping[str, object]
    drawings: Sequence[Drawing]


def write_study_page(folder: str | os.PathLike, page: StudyPage) -> Path:
    """Write ``report.html``, and the figures as PNG files.

    Args:
        folder: where the page goes; figures go into ``figures`` below.
        page: what it shows.

    Returns:
        The file of the page.

    Raises:
        UnwritableError: the place cannot be written.
    """
    figures = Path(folder) / "figures"
    figures.mkdir(exist_ok=True)
    for drawing in page.drawings:
        file = figures / f"{drawing.title.lower().replace(' ', '-')}.png"
        drawing.figure.savefig(file, dpi=110, facecolor="white")
    result = page.result
    html = render_report(
        f"Study of {result['study']}: {result['model']} on {result['dataset']}",
        headline(page),
        [settings_table(page)],
        page.drawings,
        {
            "configuration": to_json(page.config),
            "result": {k: v for k, v in result.items() if k not in ("versions", "device")},
            "versions": result["versions"],
            "device": result["device"],
        },
        lead=(
            f"{_number(result['seconds']):.0f} seconds, "
            f"{_number(result['compile_seconds']):.0f} of them compiling."
        ),
    )
    path = Path(folder) / "report.html"
    write_report(path, html)
    return path


def headline(page: StudyPage) -> dict[str, object]:
    """Return the numbers at the top of the page."""
    metric = str(page.result["metric"])
    count, seeds = page.metrics[metric].shape
    best = int(np.argmin(page.summary["rank"]))
    low, mean, high = (float(page.summary[name][best]) for name in ("low", "mean", "high"))
    name, dense = str(page.result["task_metric"]), _number(page.result["dense_accuracy"])
    note = f"{low:.4f} to {high:.4f}" if seeds > 1 else "one seed"
    return {
        "settings × seeds": f"{count} × {seeds}",
        f"best {metric}": (f"{mean:.4f}", note),
        f"dense test {name.replace('_', ' ')}": metric_text(dense, name),
    }


def settings_table(page: StudyPage) -> Table:
    """Return the table of settings, the best first."""
    metric = str(page.result["metric"])
    others = {name: each.mean(1) for name, each in page.metrics.items() if name != metric}
    rows = [
        [
            int(page.summary["rank"][index]),
            *(values[index] for values in page.settings.values()),
            *(float(page.summary[name][index]) for name in ("mean", "low", "high")),
            *(float(means[index]) for means in others.values()),
        ]
        for index in np.argsort(page.summary["rank"], kind="stable")
    ]
    return Table(
        "Settings",
        ["rank", *page.settings, metric, "low", "high", *others],
        rows,
        caption="Means over seeds. Click a column's name to sort.",
        interactive=True,
    )


def effects(
    settings: Mapping[str, Values], mean: ArrayLike, metric: str, log: Sequence[str]
) -> Drawing:
    """Draw the effect of each hyper-parameter on a metric.

    Args:
        settings: H values per hyper-parameter.
        mean: f[H] of the metric.
        metric: its name.
        log: hyper-parameters on logarithmic axes.
    """
    columns = {name: list(values) for name, values in settings.items()}
    return Drawing(
        title="Effect of each hyper-parameter",
        figure=effects_figure(columns, mean, metric, log),
        caption="A dot per setting, and the mean over the others by value or fifth of the range.",
    )


def front(
    fronts: Mapping[str, Mapping[str, ArrayLike]], axes: tuple[str, str], dense: float
) -> Drawing:
    """Draw a metric against the limit of a cost.

    Each method is a line.

    Args:
        fronts: per method ``cost``, ``mean``, ``low`` and ``high``, f[B].
        axes: names of the cost and of the metric.
        dense: test accuracy of the dense network.
    """
    cost, metric = axes
    return Drawing(
        title=f"Front of {metric}",
        figure=front_figure(fronts, cost, metric, dense),
        caption="Mean over seeds, bootstrap interval shaded; dashed: the dense network's test "
        "accuracy.",
    )


def correlations(
    means: Mapping[str, np.ndarray], target: str, found: Mapping[str, Mapping[str, float]]
) -> Drawing:
    """Draw a metric against each of its predictors.

    Args:
        means: f[H] by name.
        target: name of what is to be predicted.
        found: rank correlation ``value``, ``low`` and ``high`` of each predictor.
    """
    predictors = {
        name: (
            means[name],
            f"rho {each['value']:.2f} [{each['low']:.2f}, {each['high']:.2f}]",
        )
        for name, each in found.items()
    }
    return Drawing(
        title=f"Reward against finetuned {target}",
        figure=correlation_figure(predictors, means[target]),
        caption="A dot per candidate; rho is Spearman's rank correlation with its 95 % bootstrap "
        "interval over candidates.",
    )


def _number(value: object) -> float:
    return float("nan") if value is None else float(str(value))
