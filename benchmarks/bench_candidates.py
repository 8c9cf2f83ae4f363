"""Candidates per second: gates, at once and in chunks, against a plain forward and other ways.

Command:  python benchmarks/bench_candidates.py [--quick]

All are timed in turn in one run; the medians of the ratios are printed. Last comes JSON:
``gates_over_plain_forward`` (the rate of images through gated candidates, in chunks of the size
that `evaluate_candidates` picks, over that of the network without gates on as many images in one
batch), ``gates_over_mapped_forward`` (the same network without gates, one batch after the other),
``gates_over_all_at_once`` (all candidates under one vmap), ``gates_over_weight_masks`` and
``gates_over_python_loop``; and ``all_at_once_over_plain_forward``, the price of gating alone. More
than 1 means that the first named is faster.

Measured on 2 quiet cores of an AMD EPYC, JAX 0.10.2, 20 seconds (2026-11-21), 16 candidates of 64
images of 32x32: 2.10 times a plain forward in one batch, 1.46 mapped, 2.42 all at once, 3.42 weight
masks, 1.87 a Python loop; all at once is 0.86 of the plain forward.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from rlprune_jax import gated, trace_graph
from rlprune_jax.devices import describe_device
from rlprune_jax.models import create_model, model_functions
from rlprune_jax.workflow.candidates import chunk_for_memory


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    quick: bool = False
    """A smaller network and fewer repeats: half a minute."""
    candidates: int = 16
    """Candidates evaluated at once."""
    batch: int = 64
    """Images each candidate sees."""
    repeats: int = 7
    """Times each pair is measured."""


def seconds(function: Callable[..., Any], *args: Any) -> float:
    """Time one call that has been compiled before."""
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


def main(config: Config) -> dict[str, Any]:
    """Measure, print, and return the last line."""
    size, widths = (16, (16, 32, 32, 64)) if config.quick else (32, (32, 64, 64, 128))
    candidates = 8 if config.quick else config.candidates
    repeats = 3 if config.quick else config.repeats
    functions = model_functions(create_model("cnn", 10, widths=widths))
    x = jax.random.normal(jax.random.key(0), (config.batch, size, size, 3))
    variables = functions.init(jax.random.key(1), x)
    graph = trace_graph(functions.apply, variables, x)
    keys = jax.random.split(jax.random.key(2), len(graph.groups))
    gates = {
        group.name: jax.random.bernoulli(key, 0.5, (candidates, group.size)).astype(jnp.float32)
        for group, key in zip(graph.groups, keys, strict=True)
    }
    # One mask per weight and candidate: a kernel's outputs and inputs times their units' gates.
    masks = {
        path: jax.random.bernoulli(jax.random.key(3), 0.5, (candidates, *shape.shape))
        for path, shape in graph.variables.items()
        if path.startswith("params/") and len(shape.shape) > 1
    }

    chunk = min(candidates, chunk_for_memory(functions.apply, variables, (x,)))
    plain = jax.jit(functions.apply)
    one = jax.jit(gated(functions.apply, graph))
    together = jax.jit(jax.vmap(gated(functions.apply, graph), in_axes=(None, 0, None)))

    @jax.jit
    def chunked(variables: Any, gates: Any, x: jax.Array) -> jax.Array:
        masked = gated(functions.apply, graph)
        return jax.lax.map(
            lambda gate: masked(variables, gate, x), gates, batch_size=chunk if chunk > 1 else None
        )

    @jax.jit
    def mapped(variables: Any, batches: jax.Array) -> jax.Array:
        return jax.lax.map(lambda batch: functions.apply(variables, batch), batches)

    def with_mask(variables: Any, masks: Any, x: jax.Array) -> jax.Array:
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                leaf
                * masks.get("params/" + jax.tree_util.keystr(path, simple=True, separator="/"), 1)
            ),
            variables["params"],
        )
        return functions.apply({**variables, "params": params}, x)

    by_weights = jax.jit(jax.vmap(with_mask, in_axes=(None, 0, None)))
    many = jnp.concatenate([x] * candidates)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], gates) for i in range(candidates)]

    def loop(variables: Any, x: jax.Array) -> list[jax.Array]:
        return [one(variables, gate, x) for gate in each]

    jobs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "gates": (chunked, (variables, gates, x)),
        "all_at_once": (together, (variables, gates, x)),
        "plain_forward": (plain, (variables, many)),
        "mapped_forward": (mapped, (variables, many.reshape(candidates, *x.shape))),
        "weight_masks": (by_weights, (variables, masks, x)),
        "python_loop": (loop, (variables, x)),
    }
    for function, args in jobs.values():
        seconds(function, *args)
    rows = [
        {name: seconds(function, *args) for name, (function, args) in jobs.items()}
        for _ in range(repeats)
    ]
    for name in jobs:
        rate = candidates / np.median([row[name] for row in rows])
        print(f"{name:>14}  {rate:9.1f} candidates of {config.batch} images per second")
    line: dict[str, Any] = {
        f"gates_over_{name}": round(float(np.median([r[name] / r["gates"] for r in rows])), 3)
        for name in list(jobs)[1:]
    }
    line["all_at_once_over_plain_forward"] = round(
        float(np.median([row["plain_forward"] / row["all_at_once"] for row in rows])), 3
    )
    line |= {
        "candidates": candidates,
        "chunk": chunk,
        "batch": config.batch,
        "device": describe_device(),
    }
    print(json.dumps(line))
    return line


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
