"""Time that a function takes on the present device."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Latency(NamedTuple):
    """Milliseconds of one call: the median, and the quartiles around it."""

    median: float
    lower_quartile: float
    upper_quartile: float


def measure_latency(
    function: Callable[..., Any], *args: Any, repeats: int = 30, warm_up: int = 3
) -> Latency:
    """Time ``function(*args)``, compilation excluded, results waited for.

    Args:
        function: usually jitted; called ``warm_up + repeats`` times.
        *args: on the device already.
        repeats: calls that are timed.
        warm_up: calls before, of which the first compiles.

    Raises:
        ValueError: fewer than one repeat or warm-up call.
    """
    if repeats < 1 or warm_up < 1:
        raise ValueError(f"repeats={repeats} and warm_up={warm_up} must be at least 1")
    for _ in range(warm_up):
        jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(1e3 * (time.perf_counter() - start))
    return Latency(*(float(np.percentile(times, q)) for q in (50, 25, 75)))
