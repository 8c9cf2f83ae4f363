"""Random budgets and seeds: does every delivered network respect its budgets?

Command:  python benchmarks/check_budgets.py --pairs 20

Each pair draws a limit on parameters, one on MACs or both, a seed, and one way of searching, and
does a short run of `rlprune prune` on digits: every fourth with a CNN, the others with an MLP,
which compiles faster. The last line is JSON: how many networks were delivered, and how many respect
every budget, counted on the arrays that were written to disk.
"""

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import tyro

from rlprune_jax.cli.common import enable_compilation_cache
from rlprune_jax.cli.options import PruneOptions
from rlprune_jax.cli.prune import prune
from rlprune_jax.export import WEIGHTS, load_weights
from rlprune_jax.types import PyTree
from rlprune_jax.workflow.config import ConstraintHandling, Granularity
from rlprune_jax.workflow.results import PruneResult

WAYS: list[tuple[Granularity, ConstraintHandling]] = [
    ("coarse", "projection"),
    ("coarse", "multiplier"),
    ("fine", "projection"),
    ("fine", "multiplier"),
    ("coarse", "both"),
]


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """Options of the check."""

    pairs: int = 20
    """How many runs."""
    seed: int = 0
    """Of the draws."""
    runs_dir: str = "runs"
    """Where run directories go."""


def draw(rng: np.random.Generator, number: int, runs_dir: str) -> PruneOptions:
    """Draw a run: limits log-uniform from 0.03 to 0.6, a seed, the ways of searching in turn."""
    limits = {
        name: float(np.exp(rng.uniform(math.log(0.03), math.log(0.6))))
        for name in ("params", "macs")
    }
    chosen = (("params",), ("macs",), ("params", "macs"))[rng.integers(3)]
    granularity, constraint = WAYS[number % len(WAYS)]
    return PruneOptions().replace(
        budget=tuple(f"{name}={limits[name]:.4f}" for name in chosen),
        seed=int(rng.integers(1000)),
        model="cnn" if number % 4 == 0 else "mlp",
        widths=(8, 16, 32, 64) if number % 4 == 0 else (64, 128),
        granularity=granularity,
        constraint=constraint,
        baselines=(),
        dense_steps=100,
        evaluations=64,
        rerank=1,
        rerank_steps=20,
        finetune_steps=20,
        min_keep=1,
        runs_dir=runs_dir,
    )


def check(path: Path) -> dict[str, PyTree]:
    """Read a run back: its budgets, and parameters counted on the slim weights on disk."""
    result = PruneResult.read(path)
    weights = load_weights(path / "slim" / WEIGHTS)
    counted = sum(leaf.size for leaf in jax.tree.leaves(weights["params"]))
    row: dict[str, PyTree] = {
        "run": path.name,
        "counted": counted == result.pruned.params,
        "within": result.is_within_budgets,
        "max_abs_diff": result.max_abs_diff,
    }
    for budget in result.budgets:
        row[budget["name"]] = f"{budget['achieved']:.4f} of {budget['limit']:.4f}"
        if budget["name"] == "params":
            row["within"] &= counted <= budget["limit"] * result.dense.params
    return row


def main(options: CheckOptions) -> dict[str, PyTree]:
    """Run all pairs and print a line for each."""
    enable_compilation_cache()
    rng = np.random.default_rng(options.seed)
    rows = []
    for number in range(options.pairs):
        rows.append(check(prune(draw(rng, number, options.runs_dir))))
        print(json.dumps(rows[-1]))
        jax.clear_caches()
    line = {
        "pairs": options.pairs,
        "delivered_within_budget": sum(row["within"] and row["counted"] for row in rows),
        "largest_max_abs_diff": max((row["max_abs_diff"] for row in rows), default=0.0),
    }
    print(json.dumps(line))
    return line


if __name__ == "__main__":
    main(tyro.cli(CheckOptions, description=__doc__))
