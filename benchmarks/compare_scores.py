"""Scores of units beside one another: a network cut at once by each, without training.

Command:   python benchmarks/compare_scores.py --model cnn --budget params=0.05 --seeds 3
Hardware:  2 CPU cores
Minutes:   6
Expected:  digits, cnn: norm_scale by lamp about 0.79, magnitude by mean 0.52, taylor by mean 0.26

For each seed a dense network is trained, its units are scored in every way, and each score, as it
is normalised and by what groups are compared, cuts the network once to the budget. Printed is the
metric on held-out data after batch-norm recalibration, mean and standard deviation over seeds: how
well a score does *before* any finetuning. ``uniform`` keeps the same fraction of every group, so
that the score ranks units within groups alone. With ``--methods`` rivals that stand on scores are
searched too, at ``--evaluations``. The last line is JSON.
"""

import dataclasses
import json
import sys
import time
from typing import TYPE_CHECKING

from rlprune_jax.cli.common import run_command
from rlprune_jax.workflow.config import Lines, PruneConfig

if TYPE_CHECKING:
    import jax
    import numpy as np

    from rlprune_jax.workflow.pruning import Pruning

COLUMNS = ("none", "mean", "lamp", "cost", "isomorphic", "uniform")
"""Normalisers in the whole network, then the mean within scopes, then uniform widths."""

Cells = dict[tuple[str, str], float]
"""Score and column -> held-out metric."""

Found = tuple[float, int, float]
"""Best held-out metric, evaluations, seconds."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Say which network is cut, and how far."""

    model: str = "cnn"
    """Of the zoo: cnn with the usual widths, or any with --width."""
    width: float | None = None
    """Multiplier of its widths."""
    dataset: str = "digits"
    """A data set of ours."""
    budget: Lines = ()
    """As of rlprune prune; params=0.1 unless told."""
    dense_steps: int = 300
    """Of the dense training."""
    seeds: int = 3
    """Number of dense networks, from seed 0."""
    methods: tuple[str, ...] = ()
    """Methods that are searched beside the table."""
    evaluations: int = 768
    """That each of them may take."""


def problem(options: Options, seed: int) -> "Pruning":
    """Train a dense network and return the problem of pruning it."""
    from trained_problems import trained_problem

    from rlprune_jax.workflow.sources import DataOptions, NetworkOptions

    return trained_problem(
        NetworkOptions(model=options.model, width=options.width),
        DataOptions(dataset=options.dataset),
        options.dense_steps,
        options.budget,
        PruneConfig(seed=seed, evaluations=options.evaluations),
    )


def masks_of(pruning: "Pruning") -> "dict[tuple[str, str], jax.Array]":
    """Return score and column -> mask f32[G, Cmax] on the budgets."""
    import jax
    import jax.numpy as jnp

    from rlprune_jax.search import gates_to_masks, project_priorities, project_ratios
    from rlprune_jax.search import ratios_to_masks as to_masks
    from rlprune_jax.units import UNIT_SCORES
    from rlprune_jax.workflow.pruning import search_environment
    from rlprune_jax.workflow.scoring import normalised, raw_scores

    project = jax.jit(lambda env, rows: project_priorities(env, gates_to_masks(env, rows)))
    uniform = jax.jit(lambda env: to_masks(env, project_ratios(env, jnp.full(env.num_groups, 0.5))))
    found = {}
    for score in UNIT_SCORES:
        try:
            raw = raw_scores(pruning.network, pruning.task, _with(pruning, score=score))
        except ValueError as error:  # The network has nothing for it: no norms, say.
            print(f"{score} is left out: {error}", file=sys.stderr, flush=True)
            continue
        for column in COLUMNS:
            if column == "uniform":
                env = search_environment(pruning.graph, pruning.constraints, raw, pruning.config)
                found[score, column] = uniform(env)
                continue
            scope = "isomorphic" if column == "isomorphic" else "network"
            normaliser = "mean" if scope == "isomorphic" else column
            config = _with(pruning, score_normaliser=normaliser, score_scope=scope)
            scores = normalised(pruning.graph, raw, config, pruning.constraints)
            found[score, column] = project(pruning.env, scores)
    return found


def _with(pruning: "Pruning", **options: str) -> PruneConfig:
    return dataclasses.replace(pruning.config, **options)  # type: ignore[arg-type]


def one_shot(pruning: "Pruning") -> Cells:
    """Return the held-out metric of each mask."""
    import jax
    import jax.numpy as jnp

    from rlprune_jax.search import masks_to_gates
    from rlprune_jax.workflow.candidates import evaluate_candidates
    from rlprune_jax.workflow.pruning import candidate_data
    from rlprune_jax.workflow.searches import evaluator_of

    masks = masks_of(pruning)
    gates = masks_to_gates(pruning.env, jnp.stack(list(masks.values())))
    found = jax.jit(evaluate_candidates, static_argnums=0)(
        evaluator_of(pruning, 0),
        pruning.network.variables,
        gates,
        candidate_data(pruning),
        jax.random.key(0),
    )
    return {name: float(value) for name, value in zip(masks, found.metric, strict=True)}


def text_of(cells: "dict[tuple[str, str], np.ndarray]") -> str:
    """Return the table in Markdown, the best of each row in bold."""
    rows = ["| score | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for score in dict.fromkeys(name for name, _ in cells):
        own = {column: cells[score, column] for column in COLUMNS}
        best = max(own, key=lambda column: own[column].mean())
        texts = [
            f"{'**' * (column == best)}{values.mean():.3f}{'**' * (column == best)} "
            f"± {values.std(ddof=1) if len(values) > 1 else 0.0:.3f}"
            for column, values in own.items()
        ]
        rows.append(f"| {score} | " + " | ".join(texts) + " |")
    return "\n".join(rows)


def text_of_methods(rivals: list[dict[str, Found]]) -> str:
    """Return the table of methods in Markdown."""
    import numpy as np

    rows = ["| method | best held-out metric | evaluations | seconds |", "|---|---|---|---|"]
    for method in rivals[0]:
        best, evaluations, seconds = np.array([found[method] for found in rivals]).T
        spread = best.std(ddof=1) if len(best) > 1 else 0.0
        rows.append(
            f"| {method.replace('_', ' ')} | {best.mean():.3f} ± {spread:.3f} | "
            f"{evaluations.mean():.0f} | {seconds.mean():.0f} |"
        )
    return "\n".join(rows) if len(rows) > 2 else ""


def compare(options: Options) -> str:
    """Do all seeds, print the tables, and return the line of JSON."""
    import jax
    import numpy as np

    from rlprune_jax.devices import describe_device
    from rlprune_jax.workflow.searches import search

    began = time.perf_counter()
    tables, rivals = [], []
    for seed in range(options.seeds):
        pruning = problem(options, seed)
        tables.append(one_shot(pruning))
        found = {}
        for method in options.methods:
            start = time.perf_counter()
            done = search(pruning, method)
            found[method] = (done.best_reward, done.evaluations, time.perf_counter() - start)
            print(f"seed {seed} {method}: {done.best_reward:.4f}", file=sys.stderr, flush=True)
        rivals.append(found)
        jax.clear_caches()
        # Printed after each seed, so that a run that is cut leaves the seeds that it did.
        cells = {name: np.array([table[name] for table in tables]) for name in tables[0]}
        print(f"{len(tables)} seeds\n\n{text_of(cells)}\n\n{text_of_methods(rivals)}", flush=True)
    return json.dumps(
        {
            "metric": {f"{score}/{column}": row.tolist() for (score, column), row in cells.items()},
            "methods": {
                method: [found[method][0] for found in rivals] for method in options.methods
            },
            "seeds": options.seeds,
            "seconds": time.perf_counter() - began,
            "device": describe_device(),
        }
    )


if __name__ == "__main__":
    run_command(compare, Options, __doc__, prog="compare_scores.py", args=sys.argv[1:])
