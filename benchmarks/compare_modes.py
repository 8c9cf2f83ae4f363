"""The agent's ways to meet budgets beside one another, and its policies.

Command:   python benchmarks/compare_modes.py --seeds 3 --runs 4
Hardware:  2 CPU cores
Minutes:   10
Expected:  digits, cnn 8-16-32-64, params=0.1: projection about 0.73, both 0.72, multiplier 0.65

For each seed a dense network is trained; each row searches it ``--runs`` times at ``--evaluations``
candidates. Printed is the best held-out reward within the budget, before any finetuning: its mean,
the standard error over runs, and the difference to the first row with its interval over networks
and runs, which share their random keys. The last line is JSON.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rlprune_jax.cli.common import run_command
from rlprune_jax.workflow.config import Lines, PruneConfig

if TYPE_CHECKING:
    import numpy as np

    from rlprune_jax.workflow.pruning import Pruning


@dataclasses.dataclass(frozen=True)
class Way:
    """Hold how the agent goes about a problem.

    Attributes:
        settings: of the pruning.
        numbers: of the agent, by the names of ``HParams``.
        critic: whether it learns values.
    """

    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    critic: bool = False


PAPER = {"dual_learning_rate": 1.0}
"""What constrained-RL pruning took (arXiv 2110.08558), with relative errors here."""

PROJECTED = {"constraint": "projection"}
MULTIPLIED = {"constraint": "multiplier"}

WAYS: dict[str, Way] = {
    "projection": Way(PROJECTED),
    "both": Way(),
    "multiplier, PID": Way(MULTIPLIED),
    "multiplier, projected gradient": Way({**MULTIPLIED, "dual": "projected_gradient"}),
    "multiplier, Adam clipped": Way({**MULTIPLIED, "dual": "adam_clip"}),
    "multiplier, softplus-Adam": Way({**MULTIPLIED, "dual": "softplus_adam"}),
    "multiplier, softplus-Adam at rate 1": Way({**MULTIPLIED, "dual": "softplus_adam"}, PAPER),
    "projection, critic": Way(PROJECTED, critic=True),
    "both, critic": Way(critic=True),
    "projection, network": Way({**PROJECTED, "policy": "network"}),
    "projection, network and critic": Way({**PROJECTED, "policy": "network"}, critic=True),
    "coarse, projection": Way({**PROJECTED, "granularity": "coarse"}),
    "coarse, both": Way({"granularity": "coarse"}),
    "coarse, multiplier, PID": Way({**MULTIPLIED, "granularity": "coarse"}),
    "coarse, projection, network": Way({**PROJECTED, "granularity": "coarse", "policy": "network"}),
    "coarse, projection, network and critic": Way(
        {**PROJECTED, "granularity": "coarse", "policy": "network"}, critic=True
    ),
}
"""The rows; all are compared with the first. What is not named is as by default."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Say which networks are searched, and how long."""

    model: str = "cnn"
    """Of the zoo."""
    widths: tuple[int, ...] = (8, 16, 32, 64)
    """Of its groups; none for the usual ones."""
    width: float | None = None
    """Multiplier of the usual widths, where none are given."""
    dataset: str = "digits"
    """A data set of ours."""
    data_dir: str | None = None
    """Where it is prepared."""
    budget: Lines = ()
    """As of rlprune prune; params=0.1 unless told."""
    dense_steps: int = 300
    """Of the dense training."""
    evaluations: int = 384
    """Candidates of a search."""
    reward_images: int = 128
    """Held-out images that a candidate is rewarded on."""
    seeds: int = 3
    """Number of dense networks, from seed 0."""
    runs: int = 4
    """Searches of each."""
    ways: tuple[str, ...] = tuple(WAYS)
    """Rows of the table."""
    quick: bool = False
    """One network, one run, few evaluations: to see that it works."""


def problem(options: Options, seed: int) -> "Pruning":
    """Train a dense network and return the problem of pruning it."""
    from trained_problems import trained_problem

    from rlprune_jax.workflow.sources import DataOptions, NetworkOptions

    config = PruneConfig(
        seed=seed, evaluations=options.evaluations, reward_images=options.reward_images
    )
    widths = options.widths if options.width is None else ()
    return trained_problem(
        NetworkOptions(model=options.model, widths=widths, width=options.width),
        DataOptions(dataset=options.dataset, data_dir=options.data_dir),
        options.dense_steps,
        options.budget,
        config,
    )


def searched(pruning: "Pruning", way: Way, run: int) -> float:
    """Return the best reward of one search."""
    from rlprune_jax.runs import MemoryRun
    from rlprune_jax.search import HParams, ppo_lagrangian, search_method
    from rlprune_jax.workflow.methods import METHODS, agent_config
    from rlprune_jax.workflow.searches import run_strategy

    config = dataclasses.replace(pruning.config, seed=1000 + run, **way.settings)  # type: ignore[arg-type]
    strategy = METHODS["agent"](dataclasses.replace(pruning, config=config))
    structure = dataclasses.replace(agent_config(config), critic=way.critic)
    strategy = dataclasses.replace(
        strategy,
        method=search_method(ppo_lagrangian, config=structure),
        hparams=HParams(**way.numbers),
    )
    asked = dataclasses.replace(pruning, config=config)
    found = run_strategy(asked, strategy, "search-agent", MemoryRun())
    return float(found.archive.feasible.rewards[0])


def table(options: Options) -> "dict[str, np.ndarray]":
    """Return the best rewards of every row, [networks, runs]."""
    import jax
    import numpy as np

    found: dict[str, list[list[float]]] = {name: [] for name in options.ways}
    for seed in range(options.seeds):
        pruning = problem(options, seed)
        for name in options.ways:
            row = [searched(pruning, WAYS[name], run) for run in range(options.runs)]
            found[name].append(row)
            print(f"seed {seed} {name}: {np.mean(row):.4f}", file=sys.stderr, flush=True)
        jax.clear_caches()
    return {name: np.array(rows) for name, rows in found.items()}


def compare(options: Options) -> str:
    """Search by every way, print the table and return the line of JSON."""
    if options.quick:
        options = dataclasses.replace(
            options, seeds=1, runs=1, evaluations=32, dense_steps=30, ways=options.ways[:2]
        )
    unknown = [name for name in options.ways if name not in WAYS]
    if unknown:
        raise ValueError(f"ways={unknown} must be among {', '.join(WAYS)}")
    import numpy as np

    from rlprune_jax.devices import describe_device
    from rlprune_jax.study.intervals import paired_difference

    began = time.perf_counter()
    found = table(options)
    first = found[options.ways[0]]
    print("| way | best held-out reward | difference to the first, 95 % |\n|---|---|---|")
    rows = {}
    for name, values in found.items():
        error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else float("nan")
        rows[name] = {
            "mean": float(values.mean()),
            "error": float(error) if values.size > 1 else None,
            "all": values.tolist(),
        }
        line = f"| {name} | {values.mean():.3f} ± {error:.3f} |"
        if values is not first and values.size > 1:
            gap = paired_difference(values.ravel(), first.ravel())
            line += f" {gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
        print(f"{line} |")
    return json.dumps(
        {"ways": rows, "seconds": time.perf_counter() - began, "device": describe_device()}
    )


if __name__ == "__main__":
    run_command(compare, Options, __doc__, prog="compare_modes.py", args=sys.argv[1:])
