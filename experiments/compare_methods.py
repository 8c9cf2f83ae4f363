"""The agent beside its rivals over several seeds: one run of ``prune`` per seed, one table.

Command:   python experiments/compare_methods.py --seeds 5 --dataset digits --budget params=0.05
Hardware:  2 CPU cores
Minutes:   10
Expected:  with --reward-retention 0 the agent's best held-out reward 0.95, random search's 0.58

Every option of ``rlprune prune`` is taken; ``--evaluations`` may be several numbers, each of which
goes on from the one before, and ``--methods all`` runs every rival there is. Runs that are finished
are not done again. Printed: mean and standard deviation over seeds of the test metric and of the
best held-out reward, with the interval that the number of test images leaves; paired differences to
the best rival with a bootstrap interval over seeds; how many evaluations each method needed to
reach the reward that random search ends with; and the controls (``--no-controls`` leaves them out):
the dense network trained on for as many steps, and the agent's widths from fresh weights. The last
line is JSON.
"""

import dataclasses
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, get_args

from rlprune_jax.checks import refuse_unless
from rlprune_jax.cli.common import run_command
from rlprune_jax.cli.options import Flat, PruneOptions, resolved
from rlprune_jax.places import open_streams
from rlprune_jax.workflow.config import AGENT, DeliveryConfig, MethodName, SearchConfig

if TYPE_CHECKING:
    import numpy as np

    from rlprune_jax.types import PyTree
    from rlprune_jax.workflow.results import PruneResult

REFERENCE = "random_search"

TUNED = (
    "Tuned: the agent's settings were chosen on held-out images of digits and Fashion-MNIST "
    "(experiments/confirm_study.py), those of its rivals are as their sources give them; the "
    "finetune, which is the same for all, on held-out data with masks of agent, uniform and random "
    "(benchmarks/choose_finetune.py)."
)
"""Who was tuned on what, said under every table."""


@dataclasses.dataclass(frozen=True)
class ComparedSearch(SearchConfig):
    """How a network is searched for, at several numbers of evaluations."""

    evaluations: tuple[int, ...] = (768,)  # type: ignore[assignment]
    """Candidates that the agent, and each baseline, may evaluate; several numbers make a table of
    each."""


@dataclasses.dataclass(frozen=True)
class ComparedOptions(PruneOptions):
    """Say how a network is pruned by all methods."""

    search: Annotated[ComparedSearch, Flat] = dataclasses.field(default_factory=ComparedSearch)
    delivery: Annotated[DeliveryConfig, Flat] = dataclasses.field(
        default_factory=lambda: DeliveryConfig(controls=True)
    )

    def at(self, evaluations: int, methods: Sequence[str] = (), **changed: object) -> PruneOptions:
        """Return the options of runs with so many evaluations."""
        search = SearchConfig(**vars(self.search) | {"evaluations": evaluations})
        groups = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        options = PruneOptions(**groups | {"search": search})
        return options.replace(**changed, **({"baselines": tuple(methods)} if methods else {}))


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Options of the comparison."""

    prune: Annotated[ComparedOptions, Flat] = dataclasses.field(default_factory=ComparedOptions)
    """Of each run; its seed is the first."""
    seeds: int = 5
    """Number of runs, with seeds one after the other."""
    methods: tuple[str, ...] = ()
    """Rivals to run, in place of baselines; "all" for every one there is."""
    figure: Path | None = None
    """Where to draw best reward against evaluations (PNG or SVG), mean and range over seeds."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of evaluations, from the fewest on."""
        return tuple(sorted(set(self.prune.search.evaluations)))

    @property
    def rivals(self) -> tuple[str, ...]:
        """Rivals that ``methods`` names; none where the baselines are to run."""
        return get_args(MethodName) if self.methods == ("all",) else self.methods

    def of_run(self, evaluations: int, seed: int) -> PruneOptions:
        """Return the options of one run; controls belong to the longest search alone."""
        controls = self.prune.delivery.controls and evaluations == self.counts[-1]
        return self.prune.at(evaluations, self.rivals, seed=seed, controls=controls)


class Point(NamedTuple):
    """Hold the runs of one number of evaluations.

    Attributes:
        evaluations: that each method might use.
        results: of each seed.
        curves: best reward within the budgets after each evaluation, by seed and method.
    """

    evaluations: int
    results: "Sequence[PruneResult]"
    curves: "Sequence[Mapping[str, np.ndarray]]"


Table = Mapping[str, "Mapping[str, PyTree]"]


def check(options: CompareOptions) -> None:
    """Refuse what cannot be run or drawn, before anything is.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    refuse_unless("seeds", options.seeds, options.seeds >= 1, "must be at least 1")
    refuse_unless(
        "evaluations", options.counts, bool(options.counts), "must be at least one number"
    )
    for evaluations in options.counts:
        resolved(options.of_run(evaluations, options.prune.run.seed))
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

    name, methods = results[0].metric_name, list(results[0].methods)
    metrics = {m: np.array([result.methods[m].metric for result in results]) for m in methods}
    rewards = {m: np.array([curve[m][-1] for curve in curves]) for m in methods}
    gains, reward_gains = gains_over_best_rival(metrics), gains_over_best_rival(rewards)
    table = {}
    for method in methods:
        row: dict[str, PyTree] = {
            **described(name, metrics[method], results[0].test_examples),
            "reward_mean": float(rewards[method].mean()),
            "reward_std": spread(rewards[method]),
            "params": float(np.mean([r.methods[method].params / r.dense.params for r in results])),
            f"{name}_gain": gains.get(method),
            "reward_gain": reward_gains.get(method),
        }
        if REFERENCE in curves[0]:
            reached = [curve for curve in curves if curve[method][-1] >= curve[REFERENCE][-1]]
            needed = [int(np.argmax(each[method] >= each[REFERENCE][-1])) + 1 for each in reached]
            row["reached_random"] = f"{len(needed)}/{len(curves)}"
            row["evaluations_to_random"] = float(np.median(needed)) if needed else None
        table[method] = row
    return table


def described(name: str, values: "np.ndarray", test_examples: int | None) -> "dict[str, PyTree]":
    """Return mean and deviation over seeds, and the interval that the test images leave."""
    from rlprune_jax.study import wilson_interval

    row: dict[str, PyTree] = {f"{name}_mean": float(values.mean()), f"{name}_std": spread(values)}
    # Of a metric that is no fraction of the images nothing is known but its mean.
    if name in ("accuracy", "top5_accuracy") and test_examples:
        found = wilson_interval(float(values.mean()), test_examples)
        row[f"{name}_interval"] = [found.low, found.high]
    return row


def gains_over_best_rival(values: "Mapping[str, np.ndarray]") -> "dict[str, PyTree]":
    """Return each method's paired difference to the rival of the highest mean.

    Mean, low and high, the interval by bootstrap over seeds; ends are None of a single seed. There
    are none without rivals. The best rival's own is None.
    """
    import numpy as np

    rivals = [method for method in values if not method.startswith(AGENT)]
    if not rivals:
        return {}
    best = max(rivals, key=lambda method: float(values[method].mean()))
    finite = {method: np.isfinite(each).all() for method, each in values.items()}
    return {
        method: None
        if method == best or not (finite[method] and finite[best])
        else difference(each, values[best])
        for method, each in values.items()
    }


def difference(first: "np.ndarray", second: "np.ndarray") -> "list[PyTree]":
    """Return mean, low and high of a paired difference, None where unknown."""
    import numpy as np

    from rlprune_jax.study import paired_difference

    return [value if np.isfinite(value) else None for value in paired_difference(first, second)]


def spread(values: "np.ndarray") -> float:
    """Return the standard deviation over seeds, 0 of a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def controls_of(results: "Sequence[PruneResult]") -> "dict[str, dict[str, PyTree]]":
    """Return dense network, agent and controls with the agent's paired lead over each."""
    import numpy as np

    name = results[0].metric_name
    names = [each for each in results[0].controls if all(each in r.controls for r in results)]
    if not names:
        return {}
    rows = {
        "dense": [result.dense.metric for result in results],
        AGENT: [result.pruned.metric for result in results],
        **{each: [result.controls[each]["metric"] for result in results] for each in names},
    }
    agent = np.array(rows[AGENT])
    table = {}
    for title, given in rows.items():
        values = np.array(given)
        table[title] = described(name, values, results[0].test_examples)
        table[title]["agent_gain"] = None if title == AGENT else difference(agent, values)
        if title in names:
            table[title]["steps"] = int(results[0].controls[title]["steps"])
    return table


def interval_text(gain: "Sequence[PyTree] | None", name: str) -> str:
    """Write a difference with its interval."""
    from rlprune_jax.wording import difference_text

    if gain is None:
        return "–"
    mean, low, high = gain
    text = difference_text(mean, name)
    if low is None or high is None:
        return text
    return f"{text} [{difference_text(low, name)}, {difference_text(high, name)}]"


def cell_of(row: "Mapping[str, PyTree]", name: str) -> str:
    """Write a metric: mean, deviation over seeds, interval over test images."""
    from rlprune_jax.wording import NEGATIVE, metric_text

    plain = name.removeprefix(NEGATIVE)
    text = f"{metric_text(row[f'{name}_mean'], name)} ± {metric_text(row[f'{name}_std'], plain)}"
    if ends := row.get(f"{name}_interval"):
        text += f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
    return text


def text_of(tables: "Mapping[int, Table]", dense: float, name: str, seeds: int) -> str:
    """Return the table in Markdown; differences are those of the most evaluations."""
    from rlprune_jax.wording import metric_text, metric_title

    title, counts = metric_title(name), sorted(tables)
    last = tables[counts[-1]]
    many = len(counts) > 1
    heads = [f"test {title}{f' at {count}' if many else ''}" for count in counts]
    heads += [f"best held-out reward{f' at {count}' if many else ''}" for count in counts]
    heads += [f"{title}, to best rival", "reward, to best rival", "evaluations to random's best"]
    lines = [
        f"dense {metric_text(dense, name)} over {seeds} seeds",
        "| method | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for method, row in last.items():
        found = [tables[count][method] for count in counts if method in tables[count]]
        needed = row.get("evaluations_to_random")
        cells = [cell_of(each, name) for each in found]
        cells += [f"{each['reward_mean']:.4f} ± {each['reward_std']:.4f}" for each in found]
        cells += [
            interval_text(row.get(f"{name}_gain"), name),
            interval_text(row.get("reward_gain"), "reward"),
            f"{'–' if needed is None else f'{needed:.0f}'} ({row.get('reached_random', '–')})",
        ]
        lines.append(f"| {method.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def controls_text(controls: "Table", name: str) -> str:
    """Return the table of controls in Markdown, nothing without any."""
    from rlprune_jax.wording import metric_title
    from rlprune_jax.workflow.results import CONTROLS

    if not controls:
        return ""
    lines = [f"| | steps | test {metric_title(name)} | agent's lead |", "|---|---|---|---|"]
    for title, row in controls.items():
        called, lead = CONTROLS.get(title, title), interval_text(row["agent_gain"], name)
        lines.append(f"| {called} | {row.get('steps', '')} | {cell_of(row, name)} | {lead} |")
    return "\n".join(lines)


def remarks(results: "Sequence[PruneResult]", tables: "Mapping[int, Table]") -> str:
    """Say under a table what its numbers are."""
    test = results[0].test_examples
    lines = [
        "± is the deviation over seeds; differences are paired by seed, with a 95 % bootstrap "
        "interval over seeds"
        + (f"; [ ] is Wilson's 95 % interval over {test} test images." if test else "."),
        TUNED,
    ]
    if len(tables) > 1:
        lines.append("A longer search goes on from the shorter one.")
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


def run_seed(options: PruneOptions) -> "tuple[PruneResult, dict[str, np.ndarray]]":
    """Do one run, or find it, and return its result and curves."""
    import jax
    import numpy as np

    from rlprune_jax.cli.prune import prune
    from rlprune_jax.runs import read_of_run
    from rlprune_jax.workflow.results import PruneResult

    path = prune(options)
    result = PruneResult.read(path)
    limits = np.array([budget["limit"] for budget in result.budgets], np.float32)
    with np.load(io.BytesIO(read_of_run(path, "history.npz")), allow_pickle=False) as stored:
        curves = {
            method: best_so_far(stored[f"{method}/rewards"], stored[f"{method}/costs"], limits)
            for method in result.methods
        }
    jax.clear_caches()
    return result, curves


def compare(options: CompareOptions) -> str:
    """Run, summarise, draw and print; return the line of JSON."""
    check(options)
    import numpy as np

    from rlprune_jax.devices import describe_device

    first = options.prune.run.seed
    points = []
    for evaluations in options.counts:
        seeds = range(first, first + options.seeds)
        runs = [run_seed(options.of_run(evaluations, seed)) for seed in seeds]
        results, curves = zip(*runs, strict=True)
        points.append(Point(evaluations=evaluations, results=results, curves=curves))
    tables = {point.evaluations: summarise(point.results, point.curves) for point in points}
    results, curves = points[-1].results, points[-1].curves
    name, controls = results[0].metric_name, controls_of(results)
    dense = float(np.mean([result.dense.metric for result in results]))
    parts = (
        text_of(tables, dense, name, len(results)),
        remarks(results, tables),
        controls_text(controls, name),
    )
    print("\n\n".join(part for part in parts if part))
    if options.figure is not None:
        named = options.prune
        budgets = ", ".join((*named.budgets.budget, *named.budgets.budget_fn))
        draw(options.figure, curves, f"{named.network.model} on {named.data.dataset}, {budgets}")
    return json.dumps(
        {
            "methods": tables[options.counts[-1]],
            "by_evaluations": tables,
            "controls": controls,
            f"dense_{name}": dense,
            "test_examples": results[0].test_examples,
            "seeds": len(results),
            "seconds": float(sum(each.seconds for point in points for each in point.results)),
            "device": describe_device(),
        }
    )


if __name__ == "__main__":
    open_streams()
    run_command(compare, CompareOptions, __doc__, prog="compare_methods.py", args=sys.argv[1:])
