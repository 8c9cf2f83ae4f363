"""The agent beside its rivals over several seeds: one run of ``prune`` per seed, one table.

Command:   python experiments/compare_methods.py --seeds 5 --dataset digits --budget params=0.05
Hardware:  2 CPU cores
Minutes:   10
Expected:  the agent's best held-out reward 0.95, random search's 0.58

Every option of ``rlprune prune`` is taken. Runs that are finished are not done again. Printed: mean
and standard deviation over seeds of the test metric and the best held-out reward, and how many
evaluations each method needed to reach the reward that random search ends with. The last line is
JSON.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rlprune_jax.checks import refuse_unless
from rlprune_jax.cli.common import run_command
from rlprune_jax.cli.options import Flat, PruneOptions, resolved

if TYPE_CHECKING:
    import numpy as np

    from rlprune_jax.types import PyTree
    from rlprune_jax.workflow.results import PruneResult

REFERENCE = "random_search"


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Options of the comparison."""

    prune: Annotated[PruneOptions, Flat] = dataclasses.field(default_factory=PruneOptions)
    """Of each run; its seed is the first."""
    seeds: int = 5
    """Number of runs, with seeds one after the other."""
    figure: Path | None = None
    """Where to draw best reward against evaluations (PNG or SVG), mean and range over seeds."""


def check(options: CompareOptions) -> None:
    """Refuse what cannot be run or drawn, before anything is.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    refuse_unless("seeds", options.seeds, options.seeds >= 1, "must be at least 1")
    resolved(options.prune)
    figure = options.figure
    if figure is None:
        return
    good = figure.suffix in (".png", ".svg", ".pdf")
    refuse_unless("figure", figure, good, "must end in .png, .svg or .pdf")
    try:
        figure.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"figure={figure} cannot be written: {error.strerror}") from error
    refuse_unless("figure", figure, os.access(figure.parent, os.W_OK), "cannot be written")


def best_so_far(rewards: "np.ndarray", costs: "np.ndarray", limits: "np.ndarray") -> "np.ndarray":
    """Return the best reward f[M] within every budget after each evaluation, -inf before one."""
    import numpy as np

    good = (costs <= limits).all(-1) & np.isfinite(rewards)
    return np.maximum.accumulate(np.where(good, rewards, -np.inf))


def summarise(
    results: "Sequence[PruneResult]", curves: "Sequence[Mapping[str, np.ndarray]]"
) -> "dict[str, dict[str, PyTree]]":
    """Return per method test metrics, rewards, and evaluations to the reference's last reward."""
    import numpy as np

    name = results[0].metric_name
    table = {}
    for method in results[0].methods:
        chosen = [result.methods[method] for result in results]
        metrics = np.array([each.metric for each in chosen])
        rewards = np.array([curve[method][-1] for curve in curves])
        row: dict[str, PyTree] = {
            f"{name}_mean": float(metrics.mean()),
            f"{name}_std": spread(metrics),
            "reward_mean": float(rewards.mean()),
            "reward_std": spread(rewards),
            "params": float(np.mean([r.methods[method].params / r.dense.params for r in results])),
        }
        if REFERENCE in curves[0]:
            reached = [curve for curve in curves if curve[method][-1] >= curve[REFERENCE][-1]]
            needed = [int(np.argmax(each[method] >= each[REFERENCE][-1])) + 1 for each in reached]
            row["reached_random"] = f"{len(needed)}/{len(curves)}"
            row["evaluations_to_random"] = float(np.median(needed)) if needed else None
        table[method] = row
    return table


def spread(values: "np.ndarray") -> float:
    """Return the standard deviation over seeds, 0 of a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def text_of(
    table: "Mapping[str, Mapping[str, PyTree]]", dense: float, name: str, seeds: int
) -> str:
    """Return the table in Markdown."""
    from rlprune_jax.wording import NEGATIVE, metric_text, metric_title

    lines = [
        f"dense {metric_text(dense, name)} over {seeds} seeds",
        f"| method | test {metric_title(name)} | best held-out reward | "
        "evaluations to random's best |",
        "|---|---|---|---|",
    ]
    for method, row in table.items():
        needed = row.get("evaluations_to_random")
        lines.append(
            f"| {method.replace('_', ' ')} | {metric_text(row[f'{name}_mean'], name)} ± "
            f"{metric_text(row[f'{name}_std'], name.removeprefix(NEGATIVE))} | "
            f"{row['reward_mean']:.4f} ± {row['reward_std']:.4f} | "
            f"{'–' if needed is None else f'{needed:.0f}'} ({row.get('reached_random', '–')}) |"
        )
    return "\n".join(lines)


def draw(path: Path, curves: "Sequence[Mapping[str, np.ndarray]]", title: str) -> None:
    """Draw the best held-out reward against evaluations: mean over seeds, and range."""
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for method in curves[0]:
        rows = np.stack([curve[method] for curve in curves])
        if rows.shape[1] < 2:
            continue
        steps = np.arange(1, rows.shape[1] + 1)
        seen = np.isfinite(rows).all(0)
        mean = np.where(seen, rows, 0).mean(0)
        (line,) = axes.plot(steps[seen], mean[seen], label=method.replace("_", " "))
        low, high = rows.min(0)[seen], rows.max(0)[seen]
        colour = line.get_color()
        axes.fill_between(steps[seen], low, high, alpha=0.15, color=colour, linewidth=0)
    axes.set(xscale="log", xlabel="evaluations", ylabel="best held-out reward", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def compare(options: CompareOptions) -> str:
    """Run, summarise, draw and print; return the line of JSON."""
    check(options)
    import jax
    import numpy as np

    from rlprune_jax.cli.prune import prune
    from rlprune_jax.devices import describe_device
    from rlprune_jax.workflow.results import PruneResult

    results, curves = [], []
    first = options.prune.run.seed
    for seed in range(first, first + options.seeds):
        path = prune(options.prune.replace(seed=seed))
        result = PruneResult.read(path)
        limits = np.array([budget["limit"] for budget in result.budgets], np.float32)
        with np.load(path / "history.npz") as stored:
            curves.append(
                {
                    method: best_so_far(
                        stored[f"{method}/rewards"], stored[f"{method}/costs"], limits
                    )
                    for method in result.methods
                }
            )
        results.append(result)
        jax.clear_caches()
    table = summarise(results, curves)
    name = results[0].metric_name
    dense = float(np.mean([result.dense.metric for result in results]))
    print(text_of(table, dense, name, len(results)))
    if options.figure is not None:
        named = options.prune
        budgets = ", ".join((*named.budgets.budget, *named.budgets.budget_fn))
        draw(options.figure, curves, f"{named.network.model} on {named.data.dataset}, {budgets}")
    return json.dumps(
        {
            "methods": table,
            f"dense_{name}": dense,
            "seeds": len(results),
            "seconds": float(sum(result.seconds for result in results)),
            "device": describe_device(),
        }
    )


if __name__ == "__main__":
    run_command(compare, CompareOptions, __doc__, prog="compare_methods.py", args=sys.argv[1:])
