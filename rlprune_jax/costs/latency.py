"""Time that a function takes on the present device."""

import time
from collections.abc import Callable, Sequence
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
    return measure_in_turn([lambda: function(*args)], repeats=repeats, warm_up=warm_up)[0]


def measure_in_turn(
    calls: Sequence[Callable[[], Any]], repeats: int = 30, warm_up: int = 3
) -> list[Latency]:
    """Time several calls one after the other, round after round.

    Whatever else the machine does slows all of them alike, so they can be compared.

    Args:
        calls: without arguments; each is called ``warm_up + repeats`` times.
        repeats: rounds that are timed.
        warm_up: rounds before, of which the first compiles.

    Raises:
        ValueError: fewer than one repeat or warm-up call.
    """
    if repeats < 1 or warm_up < 1:
        raise ValueError(f"repeats={repeats} and warm_up={warm_up} must be at least 1")
    for call in calls:
        for _ in range(warm_up):
            jax.block_until_ready(call())
    times = np.zeros((repeats, len(calls)))
    for row in times:
        for column, call in enumerate(calls):
            start = time.perf_counter()
            jax.block_until_ready(call())
            row[column] = 1e3 * (time.perf_counter() - start)
    return [Latency(*map(float, np.percentile(each, (50, 25, 75)))) for each in times.T]
