"""Does the latency table foretell? Random slim networks, foretold beside measured.

Command:  python benchmarks/check_latency_table.py --model resnet20 --width 0.5 --batch 128

Draws gates, foretells each slim network's latency by the table and measures the networks themselves
and the dense one in turn, round after round, so that whatever else the machine does slows all of
them alike. Printed are times as fractions of dense, which is what a budget like latency_table=0.7x
limits. The table is measured at the first start on a device, or with --fresh, and kept.

The last line is JSON: median and largest of |foretold - measured| in fractions of dense, and
Spearman's rank correlation over the draws.
"""

import dataclasses
import functools
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import tyro

from rlprune_jax import compact, count_macs, ones_gates, respecialise, trace_graph
from rlprune_jax.cli.common import enable_compilation_cache
from rlprune_jax.costs.latency import measure_in_turn
from rlprune_jax.costs.latency_table import measure_latency_table
from rlprune_jax.devices import describe_device
from rlprune_jax.graph.groups import Graph
from rlprune_jax.models import create_model, model_functions
from rlprune_jax.places import default_cache_dir
from rlprune_jax.types import Gates

SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the check."""

    model: str = "resnet20"
    """Any of the zoo."""
    width: float = 0.5
    """Multiplier of its widths, where it has one."""
    dataset: str = "cifar10"
    """Whose images' shape: digits, mnist, fashion_mnist, cifar10; no data are read."""
    batch: int = 128
    """Images a call."""
    draws: int = 8
    """Random networks."""
    repeats: int = 30
    """Rounds in which the networks are timed."""
    table_repeats: int = 30
    """Timed calls of each entry of the table; prune_rl.py takes 30."""
    seed: int = 0
    """Of the draws."""
    fresh: bool = False
    """Measure the table anew, and keep nothing of it."""


def draw(graph: Graph, generator: np.random.Generator) -> Gates:
    """Gates of a random network: a keep ratio per network, and one around it per group."""
    middle = generator.uniform(0.2, 0.9)
    gates = {}
    for group in graph.groups:
        ratio = np.clip(middle + generator.uniform(-0.3, 0.3), 0.05, 1.0)
        count = max(1, round(ratio * group.size))
        kept = generator.permutation(group.size) < count
        gates[group.name] = jnp.asarray(kept, jnp.float32)
    return gates


def check(config: Config) -> dict[str, Any]:
    """Measure the table and the draws, print them, and return the summary."""
    options = {} if config.width == 1.0 else {"width": config.width}
    functions = model_functions(create_model(config.model, 10, **options))
    x = jax.random.normal(jax.random.key(0), (config.batch, *SHAPES[config.dataset]))
    variables = functions.init(jax.random.key(1), x[:1])
    graph = trace_graph(functions.apply, variables, x[:1])
    began = time.perf_counter()
    cache = None if config.fresh else default_cache_dir() / "latency"
    table = measure_latency_table(
        functions.apply, graph, variables, x, repeats=config.table_repeats, cache=cache
    )
    seconds = time.perf_counter() - began
    print(f"table of {len(table.names)} segments in {seconds:.1f} s; dense {table.exact():.2f} ms")
    generator = np.random.default_rng(config.seed)
    networks = [ones_gates(graph), *(draw(graph, generator) for _ in range(config.draws))]
    calls = [
        functools.partial(
            jax.jit(respecialise(functions.apply, graph, gates)),
            jax.device_put(compact(graph, variables, gates)),
            x,
        )
        for gates in networks
    ]
    found = np.array(measure_in_turn(calls, repeats=config.repeats))
    foretold = np.array([table.exact(gates) for gates in networks])
    dense = found[0, 0]
    print("| MACs | foretold | measured (quartiles) | measured / foretold |")
    print("|---|---|---|---|")
    for gates, guess, (middle, low, high) in zip(networks, foretold, found, strict=True):
        share = count_macs(graph, gates) / count_macs(graph)
        guess = guess / foretold[0]
        print(
            f"| {share:.3f} | {guess:.3f} | {middle / dense:.3f} ({low / dense:.3f} to "
            f"{high / dense:.3f}) | {middle / dense / guess:.3f} |"
        )
    error = np.abs(foretold / foretold[0] - found[:, 0] / dense)[1:]
    rank = scipy.stats.spearmanr(foretold[1:], found[1:, 0]).statistic
    return {
        "median_error": float(np.median(error)),
        "largest_error": float(error.max()),
        "spearman": float(rank),
        "dense_ms": float(dense),
        "foretold_dense_ms": float(foretold[0]),
        "table_seconds": seconds,
        "draws": config.draws,
        "device": describe_device(),
    }


if __name__ == "__main__":
    enable_compilation_cache()
    print(json.dumps(check(tyro.cli(Config, description=__doc__))))
