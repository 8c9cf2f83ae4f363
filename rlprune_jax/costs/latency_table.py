"""Latency of a network foretold from its segments, each measured alone at a few widths.

A segment is a contraction with the norms, activations and sums that XLA fuses behind it
(``costs/segments.py``). It is timed with some of the units that it reads and some of those that it
makes; between the measured widths the time is bilinear in the two. The sum over segments says how
networks of different widths compare; what it stands for in milliseconds is told by a few whole slim
networks, of uniform widths, timed in turn. Measured once per kind of segment on a kind of device
and kept in files.

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

from rlprune_jax.costs.latency import Latency, measure_in_turn, measure_latency
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
from rlprune_jax.types import Apply, Gates, Variables
from rlprune_jax.units.gates import kept_counts, widths

LEVELS = (0.0, 0.3, 0.65, 1.0)
"""Shares of the units that are measured; 0 stands for a single one."""


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Milliseconds of a network by the widths of its L segments.

    Attributes:
        graph: of the network.
        names: of the segments: the contraction, or what comes first where there is none.
        weights: f64[L, 2, groups], what a kept unit adds to the share of units read and made.
        grid: f64[L, 2, P], shares of units read and made that were measured.
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
        """Return the milliseconds of the network that concrete gates leave.

        Raises:
            ValueError: the gates do not fit the graph.
        """
        counts = np.asarray(self.graph.sizes, np.float64)
        if gates is not None:
            counts = np.array(list(widths(self.graph, gates).values()), np.float64)
        return float(np.interp(self.sum_of(counts), self.sums, self.measured))

    def sum_of(self, counts: np.ndarray) -> float:
        """Return what the segments add up to, of networks with counts[groups] kept units."""
        shares = self.weights @ counts
        rows = zip(self.grid, self.milliseconds, *shares.T, strict=True)
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
            shares = jnp.einsum("lrg,g->lr", weights, counts, precision=jax.lax.Precision.HIGHEST)
            total = jnp.sum(interpolate(grid, table, shares[:, 0], shares[:, 1]))
            return jnp.interp(total, sums, measured)

        return milliseconds


def _bilinear(xp: Any, grid: Any, table: Any, reads: Any, makes: Any) -> Any:
    """Interpolate f[P, P]; beyond the grid its edge holds. ``xp`` is numpy or jax.numpy."""

    def place(levels: Any, share: Any) -> tuple[Any, Any]:
        lower = xp.clip(xp.sum(levels <= share) - 1, 0, len(levels) - 2)
        width = levels[lower + 1] - levels[lower]
        between = (share - levels[lower]) / xp.where(width > 0, width, 1)
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
    *inputs: Any,
    levels: Sequence[float] = LEVELS,
    repeats: int = 20,
    cache: Path | None = None,
) -> LatencyTable:
    """Time every kind of segment of a network on the present device, or read what was timed before.

    Args:
        apply: ``(variables, *inputs) -> outputs``, in evaluation mode.
        graph: of the network.
        variables: dense arrays or their ``jax.ShapeDtypeStruct``.
        *inputs: arrays or ``jax.ShapeDtypeStruct``, of the batch that is timed.
        levels: rising shares of units to measure, the last 1; 0 stands for one unit.
        repeats: timed calls of each.
        cache: folder of the files, or None to measure anew; see ``Stopwatch``.

    Raises:
        ValueError: the levels do not rise from 0 or above to 1, or the variables do not fit.
    """
    if len(levels) < 2 or list(levels) != sorted(set(levels)) or levels[0] < 0 or levels[-1] != 1:
        raise ValueError(f"levels={tuple(levels)} must rise, from 0 or above to 1, two at least")
    stopwatch = Stopwatch(cache, repeats)
    overhead = float(stopwatch.remembered(["overhead"], _time_overhead, ()).median)
    matched = match(apply, graph, variables, inputs)
    segments = cut_into_segments(graph, matched)
    widths = np.stack([_widths(graph, share) for share in levels])
    weights = np.stack([_weights(graph, each) for each in segments])
    # Reads run along the first axis of the table of a segment, what is made along the second.
    choices = [
        [[np.where(each.reads > 0, read, make) for make in widths] for read in widths]
        for each in segments
    ]
    timings = [
        _time_segment(stopwatch, graph, matched, segment, chosen, repeats)
        for segment, chosen in zip(segments, choices, strict=True)
    ]
    net = [_monotone(np.maximum(each.median - overhead, 0.0)) for each in timings]
    noise = [(each.upper - each.lower) / np.maximum(each.median, 1e-9) for each in timings]
    whole = _time_whole(stopwatch, apply, graph, matched, variables, inputs, widths, repeats)
    table = LatencyTable(
        graph,
        tuple(matched.program.equations[each.head].name for each in segments),
        weights,
        np.einsum("lrg,pg->lrp", weights, widths),
        np.stack(net),
        np.stack(noise),
        overhead,
        np.zeros(0),
        _monotone(whole.median),
    )
    sums = np.array([table.sum_of(counts) for counts in widths])
    # Sums that are equal, as where the clock sees nothing, would be no places to put times at.
    return replace(table, sums=sums + 1e-9 * np.arange(len(sums)))


def _widths(graph: Graph, share: float) -> np.ndarray:
    """Units i64[groups] at a share of each group, one at least."""
    return np.maximum(np.ceil(share * np.asarray(graph.sizes)), 1).astype(int)


def _weights(graph: Graph, segment: Segment) -> np.ndarray:
    """What a kept unit adds to the shares f64[2, groups] of units read and made."""
    both = np.stack([segment.reads, segment.makes])
    return both / np.maximum(both @ np.asarray(graph.sizes), 1e-300)[:, None]


def _monotone(times: np.ndarray) -> np.ndarray:
    """Halfway between the least array above ``times`` and the largest below that never fall."""
    above, below = times, times
    for axis in range(times.ndim):
        above = np.maximum.accumulate(above, axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis), axis)
    return (above + below) / 2


def _kept(graph: Graph, counts: np.ndarray) -> np.ndarray:
    """Keep the first counts[groups] units of each group: bool[units + 1]."""
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
    repeats: int,
) -> Timings:
    """Time a segment at choices[P][P] of units kept in each group."""
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
                        jax.jit(run), *map(_filled, shapes[i][j]), repeats=repeats
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
    variables: Variables,
    inputs: tuple[Any, ...],
    widths: np.ndarray,
    repeats: int,
) -> Timings:
    """Time slim networks with widths[P, groups] units, in turn."""
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
            leaves = [_filled(each) for each in row]
            slim = jax.tree.unflatten(jax.tree.structure((variables, *inputs)), leaves)
            function = jax.jit(respecialise(apply, graph, gates))
            calls.append(functools.partial(function, *slim))
        return Timings(*np.array(measure_in_turn(calls, repeats=repeats)).T)

    text = describe(program, range(len(program.equations)), program.outputs)
    digest = hashlib.sha256("\n".join(text).encode()).hexdigest()
    key = ["a whole network", digest, *(str([each.shape for each in row]) for row in shapes)]
    return stopwatch.remembered(key, measure, (len(widths),))


def _filled(aval: Any) -> jax.Array:
    """An array of one half, where its type has it; made on the host, so nothing is compiled."""
    return jnp.asarray(np.full(aval.shape, 0.5).astype(aval.dtype))
