"""Latency of a network predicted from its segments, each measured alone at a few widths.

A segment is a contraction with the norms, activations and sums that XLA fuses behind it
(``costs/segments.py``). It is timed with some of the units that it reads and some of those that it
makes; between the measured widths the time is bilinear in the two. The sum over segments says how
networks of different widths compare; it is scaled to milliseconds by a few whole slim networks, of
uniform widths, timed in turn. Measured once per kind of segment on a kind of device and kept in
files.

Real devices are not monotone in widths. The table is made so, as searches rely on a smaller network
costing no more: each time lies halfway between the largest of all narrower and the smallest of all
wider ones. What a single width costs more than its neighbours is thereby lost.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_count
from rlprune_jax.costs.cost import Cost, NetworkLike, without_noise
from rlprune_jax.costs.latency import Latency, fill, measure_in_turn, measure_latency
from rlprune_jax.costs.options import LEVELS, CostOptions, check_levels
from rlprune_jax.costs.segments import (
    Segment,
    cut_into_segments,
    describe,
    runnable,
    slim_shape,
)
from rlprune_jax.costs.timings import Stopwatch, Timings
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.matching import Matched, match
from rlprune_jax.graph.slim import respecialise
from rlprune_jax.types import Apply, Gates, PyTree, Variables
from rlprune_jax.units.gates import kept_counts, widths


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Hold the milliseconds of segments by their widths.

    The network has L segments, each measured at P x P widths.

    Attributes:
        graph: of the network.
        names: of the segments: the contraction, or what comes first where there is none.
        weights: f64[L, 2, groups], what a kept unit adds to the fraction of units read and made.
        grid: f64[L, 2, P], fractions of units read and made that were measured.
        milliseconds: f64[L, P, P], of each segment alone, never falling along either.
        noise: f64[L, P, P], the distance of the quartiles over the median.
        overhead: milliseconds of a call that does next to nothing, taken off every segment.
        sums: f64[A], what the segments of a few whole networks add up to, rising.
        measured: f64[A], milliseconds that these networks took, never falling.
    """

    graph: Graph
    names: tuple[str, ...]
    weights: np.ndarray
    grid: np.ndarray
    milliseconds: np.ndarray
    noise: np.ndarray
    overhead: float
    sums: np.ndarray
    measured: np.ndarray

    def exact(self, gates: Gates | None = None) -> float:
        """Return the milliseconds of the network that the gates leave.

        Args:
            gates: group name -> f32[units], concrete; a unit counts as kept from 0.5. None keeps
                all.

        Raises:
            ValueError: the gates do not fit the graph.
        """
        counts = np.asarray(self.graph.sizes, np.float64)
        if gates is not None:
            counts = np.array(list(widths(self.graph, gates).values()), np.float64)
        return float(np.interp(self.sum_of(counts), self.sums, self.measured))

    def sum_of(self, counts: np.ndarray) -> float:
        """Return the sum of all segments at counts f64[groups]."""
        fractions = self.weights @ counts
        rows = zip(self.grid, self.milliseconds, *fractions.T, strict=True)
        return float(sum(_bilinear(np, *row) for row in rows))

    def traced(self) -> Callable[[Gates], jax.Array]:
        """Return the traceable function gates -> f32[] milliseconds."""
        weights, grid, table, sums, measured = (
            jnp.asarray(each, jnp.float32)
            for each in (self.weights, self.grid, self.milliseconds, self.sums, self.measured)
        )
        interpolate = jax.vmap(lambda *segment: _bilinear(jnp, *segment))

        def milliseconds(gates: Gates) -> jax.Array:
            counts = kept_counts(self.graph, gates)
            # At the default precision an accelerator would round counts to a few digits.
            fractions = jnp.einsum(
                "lrg,g->lr", weights, counts, precision=jax.lax.Precision.HIGHEST
            )
            total = jnp.sum(interpolate(grid, table, fractions[:, 0], fractions[:, 1]))
            return jnp.interp(total, sums, measured)

        return milliseconds


def _bilinear(xp: Any, grid: Any, table: Any, reads: Any, makes: Any) -> Any:
    """Interpolate a table f[P, P] bilinearly.

    Beyond the grid its edge holds. ``xp`` is numpy or jax.numpy.
    """

    def place(levels: Any, fraction: Any) -> tuple[Any, Any]:
        lower = xp.clip(xp.sum(levels <= fraction) - 1, 0, len(levels) - 2)
        width = levels[lower + 1] - levels[lower]
        between = (fraction - levels[lower]) / xp.where(width > 0, width, 1)
        return lower, xp.where(width > 0, xp.clip(between, 0, 1), 0)

    i, a = place(grid[0], reads)
    j, b = place(grid[1], makes)
    near = (1 - b) * table[i, j] + b * table[i, j + 1]
    far = (1 - b) * table[i + 1, j] + b * table[i + 1, j + 1]
    return (1 - a) * near + a * far


def measure_latency_table(
    apply: Apply,
    graph: Graph,
    variables: Variables,
    *inputs: PyTree,
    levels: Sequence[float] = LEVELS,
    repeats: int = 20,
    cache: Path | None = None,
) -> LatencyTable:
    """Measure the segments of a network on this device.

    Use it where a search asks for the latency of many candidates: the table is traceable. Timings
    that the cache holds are not measured again.

    Args:
        apply: ``(variables, *inputs) -> outputs``, in evaluation mode.
        graph: of the network.
        variables: dense arrays or their ``jax.ShapeDtypeStruct``.
        *inputs: pytrees of arrays or ``jax.ShapeDtypeStruct``, of the batch that is timed.
        levels: rising fractions of units to measure, the last 1; 0 stands for one unit.
        repeats: timed calls of each.
        cache: folder of the files, or None to measure anew; see ``Stopwatch``.

    Raises:
        ValueError: the levels do not rise from 0 or above to 1, or the variables do not fit.
    """
    check_levels(levels)
    require_count("repeats", repeats)
    stopwatch = Stopwatch(cache, repeats)
    overhead = float(stopwatch.remembered(["overhead"], _time_overhead, ()).median)
    matched = match(apply, graph, variables, inputs)
    segments = cut_into_segments(graph, matched)
    widths = np.stack([_widths(graph, fraction) for fraction in levels])
    weights = np.stack([_weights(graph, each) for each in segments])
    # Reads run along the first axis of the table of a segment, what is made along the second.
    choices = [
        [[np.where(each.reads > 0, read, make) for make in widths] for read in widths]
        for each in segments
    ]
    timings = [
        _time_segment(stopwatch, graph, matched, segment, chosen)
        for segment, chosen in zip(segments, choices, strict=True)
    ]
    net = [_monotone(np.maximum(each.median - overhead, 0.0)) for each in timings]
    noise = [(each.upper - each.lower) / np.maximum(each.median, 1e-9) for each in timings]
    whole = _time_whole(stopwatch, apply, graph, matched, (variables, *inputs), widths)
    table = LatencyTable(
        graph=graph,
        names=tuple(matched.program.equations[each.head].name for each in segments),
        weights=weights,
        grid=np.einsum("lrg,pg->lrp", weights, widths),
        milliseconds=np.stack(net),
        noise=np.stack(noise),
        overhead=overhead,
        sums=np.zeros(0),
        measured=_monotone(whole.median),
    )
    sums = np.array([table.sum_of(counts) for counts in widths])
    # Sums that are equal, as where the clock sees nothing, would be no places to put times at.
    return replace(table, sums=sums + 1e-9 * np.arange(len(sums)))


def latency_table_cost(network: NetworkLike, options: CostOptions) -> Cost:
    """Return the cost of latency as a table predicts it."""
    table = measure_latency_table(
        network.apply,
        network.graph,
        network.variables,
        *network.example,
        levels=options.levels,
        repeats=options.repeats,
        cache=options.cache,
    )
    dense, traced = table.exact(), table.traced()
    return Cost(
        unit="ms",
        dense=dense,
        estimate=lambda gates: traced(gates) / (dense or 1.0),
        exact=lambda gates: without_noise(table.exact(gates)),
    )


def _widths(graph: Graph, fraction: float) -> np.ndarray:
    """Return the units i64[groups] at a fraction, never 0."""
    return np.maximum(np.ceil(fraction * np.asarray(graph.sizes)), 1).astype(int)


def _weights(graph: Graph, segment: Segment) -> np.ndarray:
    """Return what a unit adds to both fractions, f64[2, groups]."""
    both = np.stack([segment.reads, segment.makes])
    return both / np.maximum(both @ np.asarray(graph.sizes), 1e-300)[:, None]


def _monotone(times: np.ndarray) -> np.ndarray:
    """Return times that never fall along any axis.

    They lie halfway between the least such array above ``times`` and the largest below.
    """
    above, below = times, times
    for axis in range(times.ndim):
        above = np.maximum.accumulate(above, axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis), axis)
    return (above + below) / 2


def _kept(graph: Graph, counts: np.ndarray) -> np.ndarray:
    """Return bool[units + 1] with the first counts[groups] units kept."""
    firsts = np.repeat([group.first for group in graph.groups], graph.sizes)
    return np.append(np.arange(graph.units) - firsts < counts[graph.group_of_unit], True)


def _time_overhead() -> Timings:
    found = measure_latency(jax.jit(lambda x: x + 1), jnp.zeros(8), repeats=100)
    return Timings(*map(np.array, found))


def _time_segment(
    stopwatch: Stopwatch,
    graph: Graph,
    matched: Matched,
    segment: Segment,
    choices: list[list[np.ndarray]],
) -> Timings:
    """Time a segment at choices[P][P] of kept units."""
    shapes = [
        [
            [slim_shape(matched, slot, _kept(graph, counts)) for slot in segment.inputs]
            for counts in row
        ]
        for row in choices
    ]

    def measure() -> Timings:
        known: dict[str, Latency] = {}
        for i, row in enumerate(choices):
            for j, counts in enumerate(row):
                if str(shapes[i][j]) not in known:
                    run = runnable(matched, segment, _kept(graph, counts))
                    known[str(shapes[i][j])] = measure_latency(
                        jax.jit(run), *fill(shapes[i][j]), repeats=stopwatch.repeats
                    )
        found = np.array([[known[str(each)] for each in row] for row in shapes])
        return Timings(*np.moveaxis(found, -1, 0))

    # Shapes tell which axes are pruned, in the first and in the last row and column.
    corners = [*shapes[0], *shapes[-1], *(row[0] for row in shapes), *(row[-1] for row in shapes)]
    key = [
        *describe(matched.program, segment.equations, segment.outputs),
        *(str([each.shape for each in row]) for row in corners),
    ]
    return stopwatch.remembered(key, measure, (len(choices), len(choices)))


def _time_whole(
    stopwatch: Stopwatch,
    apply: Apply,
    graph: Graph,
    matched: Matched,
    arguments: tuple[PyTree, ...],
    widths: np.ndarray,
) -> Timings:
    """Time slim networks with widths[P, groups] units, in turn.

    The arguments are the variables and the inputs; only their structure counts.
    """
    program = matched.program
    shapes = [
        [slim_shape(matched, slot, _kept(graph, counts)) for slot in program.inputs]
        for counts in widths
    ]

    def measure() -> Timings:
        calls = []
        for counts, row in zip(widths, shapes, strict=True):
            kept = _kept(graph, counts)
            gates = {
                each.name: jnp.asarray(kept[each.first : each.first + each.size], jnp.float32)
                for each in graph.groups
            }
            slim = jax.tree.unflatten(jax.tree.structure(arguments), fill(row))
            function = jax.jit(respecialise(apply, graph, gates))
            calls.append(functools.partial(function, *slim))
        return Timings(*np.array(measure_in_turn(calls, repeats=stopwatch.repeats)).T)

    text = describe(program, range(len(program.equations)), program.outputs)
    digest = hashlib.sha256("\n".join(text).encode()).hexdigest()
    key = ["a whole network", digest, *(str([each.shape for each in row]) for row in shapes)]
    return stopwatch.remembered(key, measure, (len(widths),))
