"""Time that a function takes on the present device."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require, require_count, require_function
from rlprune_jax.types import PyTree


class Latency(NamedTuple):
    """Hold the milliseconds of one call.

    Attributes:
        median: of the timed calls.
        lower_quartile: of the timed calls.
        upper_quartile: of the timed calls.
    """

    median: float
    lower_quartile: float
    upper_quartile: float


def measure_latency(
    function: Callable[..., object], *args: PyTree, repeats: int = 30, warm_up: int = 3
) -> Latency:
    """Measure the time of ``function(*args)`` without its compilation.

    Every result is waited for, so that what JAX does in the background is timed too.

    Args:
        function: usually jitted; called ``warm_up + repeats`` times.
        *args: on the device already.
        repeats: calls that are timed.
        warm_up: calls before, of which the first compiles.

    Raises:
        ValueError: fewer than one repeat or warm-up call.

    Example:
        >>> found = measure_latency(jax.jit(lambda x: x + 1), jnp.zeros(8), repeats=5)
        >>> 0 < found.lower_quartile <= found.median <= found.upper_quartile
        True
    """
    require_function("function", function, "a function of the arguments that follow")
    return measure_in_turn([lambda: function(*args)], repeats=repeats, warm_up=warm_up)[0]


def measure_in_turn(
    calls: Sequence[Callable[[], object]], repeats: int = 30, warm_up: int = 3
) -> list[Latency]:
    """Measure several calls in turn, round after round.

    Use it to compare them: whatever else the machine does slows all of them alike.

    Args:
        calls: without arguments; each is called ``warm_up + repeats`` times.
        repeats: rounds that are timed.
        warm_up: rounds before, of which the first compiles.

    Raises:
        ValueError: fewer than one repeat or warm-up call.
    """
    require_count("repeats", repeats)
    require_count("warm_up", warm_up)
    require(len(calls) > 0, "calls", calls, "one function or more")
    for call in calls:
        require_function("function", call, "a function without arguments left")
        for _ in range(warm_up):
            jax.block_until_ready(call())
    times = np.zeros((repeats, len(calls)))
    for row in times:
        for column, call in enumerate(calls):
            start = time.perf_counter()
            jax.block_until_ready(call())
            row[column] = 1e3 * (time.perf_counter() - start)
    return [Latency(*map(float, np.percentile(each, (50, 25, 75)))) for each in times.T]


def fill(tree: PyTree) -> PyTree:
    """Return arrays where only shapes are given.

    Use it to time a network whose values do not matter. Numbers are one half, integers 0, made on
    the host, so that nothing is compiled.

    Args:
        tree: pytree of arrays, kept as they are, and of ``jax.ShapeDtypeStruct``.

    Example:
        >>> fill({"x": jax.ShapeDtypeStruct((2,), jnp.float32), "y": 3})
        {'x': Array([0.5, 0.5], dtype=float32), 'y': 3}
    """

    def filled(leaf: PyTree) -> PyTree:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(np.full(leaf.shape, 0.5).astype(leaf.dtype))

    return jax.tree.map(filled, tree)
