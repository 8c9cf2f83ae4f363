"""Selection, PQ Index and the optax link against sorts, reads of memory and plain training.

Command:  python benchmarks/bench_select.py [--quick]

Each pair is timed in turn in one run; ratios are medians. The last line is JSON; every key says
whose time is divided by whose, so that more than 1 means ours is faster. Aims on CPU:
``select_11m_over_argsort`` 20, ``select_11m_over_partition`` 0.33, ``link_step_over_adam`` 0.97,
``vmapped_link_step_over_adam`` 0.91 (a step that refreshes nothing, though it could).

Measured on 2 quiet cores of an AMD EPYC, JAX 0.10.2, half a minute (2026-11-21): selection at 0.27,
11 and 25 M weights 85, 60 and (not run) times faster than argsort, 2.5, 1.6 and 1.5 times faster
than ``np.partition``; a step with the link 0.96 of plain Adam's speed, vmapped over 8 models 1.01
(refreshable: 0.93 and 1.03). PQ Index of 25 M: 16.2 ms at (0.5, 1), 13.9 ms at (1, 2), a read 3.7,
so 4.4 and 3.8 reads; on one core 3.6 and 3.0.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from rlprune_jax import drop_smallest, lottery_ticket, make_mask, masked_updates, pq_index
from rlprune_jax.devices import describe_device
from rlprune_jax.sparsity.updates import every

Jobs = dict[str, Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    quick: bool = False
    """0.27 and 2 M weights in place of 0.27, 11 and 25, and fewer repeats."""
    repeats: int = 5
    """Times each pair is measured."""
    models: int = 8
    """Models trained at once under vmap."""


def seconds(function: Callable[[], Any]) -> float:
    """Time one call that has been compiled before."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def measure(jobs: Jobs, repeats: int, once: tuple[str, ...] = ()) -> dict[str, float]:
    """Median time of every job, each measured in turn; those in ``once`` a single time."""
    for name, job in jobs.items():
        if name not in once:
            seconds(job)
    rows: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(repeats):
        for name, job in jobs.items():
            if name not in once or repeat == 0:
                rows[name].append(seconds(job))
    return {name: float(np.median(times)) for name, times in rows.items()}


def selection(weights: jax.Array, repeats: int, sort: bool) -> dict[str, float]:
    """Times of pruning a fifth of a vector by global magnitude, k traced."""
    mask, count = jnp.ones(len(weights), bool), jnp.asarray(len(weights) // 5)
    magnitudes = jnp.abs(weights)
    host = np.array(magnitudes)

    @jax.jit
    def by_argsort(scores: jax.Array, count: jax.Array) -> jax.Array:
        return (
            jnp.zeros(len(scores), bool)
            .at[jnp.argsort(scores)]
            .set(jnp.arange(len(scores)) >= count)
        )

    select = jax.jit(drop_smallest)

    def by_partition() -> np.ndarray:
        return host >= np.partition(host, int(count))[int(count)]

    kept = np.asarray(select(magnitudes, mask, count))
    assert kept.sum() == len(host) - int(count) and host[kept].min() >= host[~kept].max()
    jobs: Jobs = {
        "select": lambda: select(magnitudes, mask, count),
        "partition": by_partition,
    }
    if sort:
        compiled = by_argsort.lower(magnitudes, count).compile()
        jobs["argsort"] = lambda: compiled(magnitudes, count)
    return measure(jobs, repeats, once=("argsort",) if len(weights) > 10**6 else ())


def index(weights: jax.Array, repeats: int) -> dict[str, float]:
    """Times of the PQ Index and of one read of the weights."""
    tree = {"w": weights.reshape(-1, 1000)}
    read = jax.jit(lambda tree: jnp.sum(tree["w"]))
    jobs: Jobs = {"read": lambda: read(tree)}
    for name, p, q in (("half_one", 0.5, 1.0), ("one_two", 1.0, 2.0)):
        function = jax.jit(lambda tree, p=p, q=q: pq_index(tree, p=p, q=q))
        jobs[name] = lambda function=function: function(tree)  # type: ignore[misc]
    return measure(jobs, repeats)


def training(models: int, width: int, repeats: int) -> dict[str, float]:
    """Times of one step of Adam on an MLP: plain, with the link, and with one that could refresh.

    Args:
        models: trained at once under ``vmap``; 1 is without.
        width: units of the hidden layers.
        repeats: measurements.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = (784, width, width, 10)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {
            f"w{i}": jax.random.normal(k, (a, b)) / a**0.5
            for i, (k, a, b) in enumerate(
                zip(jax.random.split(key, 3), sizes[:-1], sizes[1:], strict=True)
            )
        }

    x = jax.random.normal(keys[0], (128, 784))
    y = jax.random.randint(keys[1], (128,), 0, 10)

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        hidden = jax.nn.relu(jax.nn.relu(x @ params["w0"]) @ params["w1"])
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["w2"], y).mean()

    first = init(keys[2])
    mask = make_mask(first)
    optimizers = {
        "adam": optax.with_extra_args_support(optax.adam(1e-3)),
        "link": optax.chain(optax.adam(1e-3), masked_updates(mask)),
        "refreshing": optax.chain(
            optax.adam(1e-3), masked_updates(mask, lottery_ticket(0.1), every(10**6, begin=10**6))
        ),
    }

    def job(optimizer: optax.GradientTransformationExtraArgs) -> Callable[[], Any]:
        def step(params: Any, state: Any, number: jax.Array) -> Any:
            updates, state = optimizer.update(jax.grad(loss)(params), state, params, step=number)
            return optax.apply_updates(params, updates), state

        params: Any = first
        state = optimizer.init(first)
        if models > 1:
            copy = lambda leaf: jnp.stack([leaf] * models)  # noqa: E731
            params, state = jax.tree.map(copy, (params, state))
            step = jax.vmap(step, in_axes=(0, 0, None))
        jitted = jax.jit(step, donate_argnums=(0, 1))
        held = [jax.tree.map(jnp.copy, (params, state))]

        def advance() -> Any:
            # Ten steps, so that dispatch does not drown the difference.
            for number in range(10):
                held[0] = jitted(*held[0], number)
            return held[0]

        return advance

    return measure({name: job(optimizer) for name, optimizer in optimizers.items()}, repeats)


def main(config: Config) -> dict[str, Any]:
    """Measure, print, and return the last line."""
    repeats = 3 if config.quick else config.repeats
    sizes = {"270k": 270_000, "2m": 2_000_000} if config.quick else {"270k": 270_000}
    sizes |= {} if config.quick else {"11m": 11_000_000, "25m": 25_000_000}
    line: dict[str, Any] = {}
    for name, size in sizes.items():
        weights = jax.random.normal(jax.random.key(0), (size,))
        times = selection(weights, repeats, sort=size <= 11_000_000)
        print(name, {job: f"{1e3 * each:.1f} ms" for job, each in times.items()})
        for other in ("argsort", "partition"):
            if other in times:
                line[f"select_{name}_over_{other}"] = times[other] / times["select"]
        if size == max(sizes.values()):
            times = index(weights, repeats)
            print(f"PQ Index {name}", {job: f"{1e3 * each:.1f} ms" for job, each in times.items()})
            for pair in ("half_one", "one_two"):
                line[f"pq_index_{pair}_{name}_over_read"] = times["read"] / times[pair]
    width = 256 if config.quick else 1024
    for prefix, models in (("", 1), ("vmapped_", config.models)):
        times = training(models, width if models == 1 else width // 4, 3 * repeats)
        print(f"{models} models, a step", {job: f"{1e2 * t:.2f} ms" for job, t in times.items()})
        line[f"{prefix}link_step_over_adam"] = times["adam"] / times["link"]
        line[f"{prefix}refreshable_step_over_adam"] = times["adam"] / times["refreshing"]
    line = {name: round(value, 3) for name, value in line.items()}
    line["device"] = describe_device()
    print(json.dumps(line))
    return line


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
