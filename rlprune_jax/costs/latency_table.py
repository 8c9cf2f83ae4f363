"""Latency of a network as a sum over its layers, each measured alone at a few widths.

A layer is a convolution or a dot, timed with some of its input and of its output channels; between
the measured widths the time is bilinear in the two numbers of channels. Measured once per kind of
layer on a kind of device and kept in a file. Times of the network's other operations (norms,
activations, pooling) are not in it, and XLA may fuse what is timed apart here: compare with the
measured latency of the whole. Real devices are not monotone in widths; the table is made so, by the
running maximum, as searches rely on a smaller network costing no more.
"""

import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.costs.extents import Axes, exact_extents, traced_extents
from rlprune_jax.costs.latency import Latency, measure_latency
from rlprune_jax.files import write_atomically
from rlprune_jax.graph import primitives
from rlprune_jax.graph.contractions import Contraction
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.matching import match
from rlprune_jax.graph.program import Equation, Literal
from rlprune_jax.graph.specialise import Alive, specialise
from rlprune_jax.provenance import describe_device
from rlprune_jax.types import Apply, Gates, Variables

LEVELS = (0.0, 0.25, 0.5, 1.0)
"""Shares of a layer's channels that are measured; 0 stands for a single unit."""

_FORMAT = "rlprune_jax.latency/1"


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Milliseconds by channels, of each contraction of a network.

    Attributes:
        graph: of the network.
        names: of the L layers.
        reads: per layer the axes that it contracts.
        makes: per layer the axes of its output that hold units.
        grid: f64[L, 2, P], numbers of contracted and of produced channels that were measured.
        milliseconds: f64[L, P, P], never falling along either.
        noise: f64[L, P, P], the distance of the quartiles over the median.
        overhead: milliseconds of a call that does next to nothing, taken off every layer.
    """

    graph: Graph
    names: tuple[str, ...]
    reads: tuple[Axes, ...]
    makes: tuple[Axes, ...]
    grid: np.ndarray
    milliseconds: np.ndarray
    noise: np.ndarray
    overhead: float

    def exact(self, gates: Gates | None = None) -> float:
        """Return the milliseconds of the network that concrete gates leave.

        Raises:
            ValueError: the gates do not fit the graph.
        """
        sizes = [math.prod(each) for each in exact_extents(self.graph, self._axes, gates)]
        counts = np.array(sizes, np.float64).reshape(2, -1)
        return self.overhead + float(
            sum(
                _bilinear(np, self.grid[i], self.milliseconds[i], counts[0, i], counts[1, i])
                for i in range(len(self.names))
            )
        )

    def traced(self) -> Callable[[Gates], jax.Array]:
        """Return the traceable function gates -> f32[] milliseconds."""
        extents = traced_extents(self.graph, self._axes)
        grid = jnp.asarray(self.grid, jnp.float32)
        table = jnp.asarray(self.milliseconds, jnp.float32)
        interpolate = jax.vmap(lambda *layer: _bilinear(jnp, *layer))

        def milliseconds(gates: Gates) -> jax.Array:
            counts = jnp.prod(extents(gates), axis=-1).reshape(2, -1)
            return self.overhead + jnp.sum(interpolate(grid, table, counts[0], counts[1]))

        return milliseconds

    @property
    def _axes(self) -> tuple[Axes, ...]:
        return (*self.reads, *self.makes)


def _bilinear(xp: Any, grid: Any, table: Any, reads: Any, makes: Any) -> Any:
    """Interpolate f[P, P]; beyond the grid its edge holds. ``xp`` is numpy or jax.numpy."""

    def place(levels: Any, count: Any) -> tuple[Any, Any]:
        lower = xp.clip(xp.sum(levels <= count) - 1, 0, len(levels) - 2)
        width = levels[lower + 1] - levels[lower]
        share = (count - levels[lower]) / xp.where(width > 0, width, 1)
        return lower, xp.where(width > 0, xp.clip(share, 0, 1), 0)

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
    """Time every kind of layer of a network on the present device, or read what was timed before.

    Args:
        apply: ``(variables, *inputs) -> outputs``, in evaluation mode.
        graph: of the network.
        variables: dense arrays or their ``jax.ShapeDtypeStruct``.
        *inputs: arrays or ``jax.ShapeDtypeStruct``, of the batch that is timed.
        levels: rising shares of channels to measure, the last 1; 0 stands for one unit.
        repeats: timed calls of each.
        cache: folder of the files, or None to measure anew. Their name is a hash of the device's
            kind, JAX's version, the layer's operation and shapes, the levels and the repeats.

    Raises:
        ValueError: the levels do not rise from 0 or above to 1, or the variables do not fit.
    """
    if len(levels) < 1 or list(levels) != sorted(set(levels)) or levels[0] < 0 or levels[-1] != 1:
        raise ValueError(f"levels={tuple(levels)} must rise, from 0 or above to 1")
    matched = match(apply, graph, variables, inputs)
    reads, makes, grids, medians, noises = [], [], [], [], []
    overhead = _Timed(cache, repeats).overhead()
    timed = _Timed(cache, repeats)
    for each in matched.contractions:
        equation = matched.program.equations[each.equation]
        if any(isinstance(atom, Literal) for atom in equation.inputs):
            raise ValueError(f"a {equation.name} of a scalar cannot be timed by channels")
        operands = [matched.units[slot] for slot in equation.inputs]
        output = matched.units[equation.outputs[0]]
        contracted = _contracted(equation, each)
        layer = _Layer(graph, equation, matched.program.avals, operands, output, contracted)
        found = timed.layer(layer, levels)
        reads.append(tuple(operands[0][axis] for axis in contracted[0]))
        makes.append(tuple(owners for owners in output if (owners >= 0).any()))
        grids.append(found["grid"])
        medians.append(found["median"])
        noises.append((found["upper"] - found["lower"]) / np.maximum(found["median"], 1e-9))
    net = np.maximum(np.array(medians) - overhead, 0.0)
    net = np.maximum.accumulate(np.maximum.accumulate(net, axis=1), axis=2)
    return LatencyTable(
        graph,
        tuple(layer.name for layer in graph.layers),
        tuple(reads),
        tuple(makes),
        np.array(grids),
        net,
        np.array(noises),
        overhead,
    )


def _contracted(equation: Equation, each: Contraction) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return which axes of both operands are summed over; none of a depthwise convolution."""
    if each.kind == "dot":
        left, right = equation.params["dimension_numbers"][0]
        return tuple(left), tuple(right)
    if not each.axis:
        return (), ()
    _, kernel, _ = primitives.convolution_axes(equation.name, equation.params)
    return each.axis, (kernel[1],)


class _Layer:
    """A contraction that can be run with some of its channels."""

    def __init__(
        self,
        graph: Graph,
        equation: Equation,
        avals: list[Any],
        operands: list[Axes],
        output: Axes,
        contracted: tuple[tuple[int, ...], tuple[int, ...]],
    ) -> None:
        self.equation, self.contracted = equation, contracted
        self.avals = [avals[slot] for slot in equation.inputs]
        self._operands, self._output = operands, output
        self._size = np.append(np.repeat(graph.sizes, graph.sizes), 1)
        firsts = np.repeat([group.first for group in graph.groups], graph.sizes)
        self._rank = np.append(np.arange(graph.units) - firsts, 0)

    def alive(self, read: float, make: float) -> tuple[list[Alive], Alive]:
        """Which indices of operands and output remain at these shares of channels."""
        operands = [
            tuple(
                self._kept(owners, read if axis in summed else make)
                for axis, owners in enumerate(axes)
            )
            for axes, summed in zip(self._operands, self.contracted, strict=True)
        ]
        return operands, tuple(self._kept(owners, make) for owners in self._output)

    def _kept(self, owners: np.ndarray, share: float) -> np.ndarray:
        least = np.maximum(np.ceil(share * self._size[owners]), 1)
        return (owners < 0) | (self._rank[owners] < least)

    def counts(self, read: float, make: float) -> tuple[int, int]:
        """Numbers of contracted and of produced channels at these shares."""
        operands, output = self.alive(read, make)
        held = [kept for kept, owners in zip(output, self._output, strict=True) if max(owners) >= 0]
        summed = [operands[0][axis] for axis in self.contracted[0]]
        return tuple(math.prod(int(kept.sum()) for kept in axes) for axes in (summed, held))  # type: ignore[return-value]

    def time(self, read: float, make: float, repeats: int) -> Latency:
        operands, output = self.alive(read, make)
        arrays = [
            jnp.full([int(kept.sum()) for kept in alive], 0.5, aval.dtype)
            for alive, aval in zip(operands, self.avals, strict=True)
        ]
        function = jax.jit(lambda *each: specialise(self.equation, list(each), operands, [output]))
        return measure_latency(function, *arrays, repeats=repeats)


class _Timed:
    """Timings of layers on this device, kept in files."""

    def __init__(self, cache: Path | None, repeats: int) -> None:
        self._cache, self._repeats = cache, repeats
        device = describe_device()
        names = [str(device[name]) for name in ("platform", "kind", "processor", "cores")]
        self._where = [*names, f"jax {jax.__version__}", f"{repeats} repeats"]

    def overhead(self) -> float:
        """Milliseconds of a call that does next to nothing."""

        def measure() -> dict[str, np.ndarray]:
            latency = measure_latency(jax.jit(lambda x: x + 1), jnp.zeros(8), repeats=100)
            return {"median": np.array(latency.median)}

        return float(self._remembered(["overhead"], measure, ())["median"])

    def layer(self, layer: _Layer, levels: Sequence[float]) -> dict[str, np.ndarray]:
        """Grid f64[2, P] and median, lower and upper quartile f64[P, P] of a layer."""
        # An axis whose channels are all frozen has one width.
        points = [[*levels] * 2 if len(levels) == 1 else [*levels] for _ in range(2)]
        count = len(points[0])
        grid = np.array(
            [
                [layer.counts(read, 1.0)[0] for read in points[0]],
                [layer.counts(1.0, make)[1] for make in points[1]],
            ],
            np.float64,
        )
        # Memory addresses of functions in parameters differ between processes.
        operation = re.sub(r"0x[0-9a-f]+", "", f"{layer.equation.name} {layer.equation.params}")
        shapes = [f"{aval.dtype}{list(aval.shape)}" for aval in layer.avals]
        alive = [
            [[int(kept.sum()) for kept in axes] for axes in layer.alive(share, share)[0]]
            for share in levels
        ]
        key = [operation, *shapes, f"contracted {layer.contracted}", f"alive {alive}"]

        def measure() -> dict[str, np.ndarray]:
            known: dict[tuple[int, ...], Latency] = {}
            rows = np.zeros((3, count, count))
            for i, read in enumerate(points[0]):
                for j, make in enumerate(points[1]):
                    counts = layer.counts(read, make)
                    if counts not in known:
                        known[counts] = layer.time(read, make, self._repeats)
                    rows[:, i, j] = known[counts]
            return dict(zip(("median", "lower", "upper"), rows, strict=True))

        return {"grid": grid} | self._remembered(key, measure, (count, count))

    def _remembered(
        self, key: list[str], measure: Callable[[], dict[str, np.ndarray]], shape: tuple[int, ...]
    ) -> dict[str, np.ndarray]:
        record = {"format": _FORMAT, "device": self._where, "layer": key}
        if self._cache is None:
            return measure()
        name = hashlib.sha256(json.dumps(record).encode()).hexdigest()[:24]
        path = self._cache / f"{name}.json"
        stored = _read(path, record, shape)
        if stored is not None:
            return stored
        found = measure()
        content = record | {name: values.tolist() for name, values in found.items()}
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(content) + "\n")
        except OSError as error:
            warnings.warn(
                f"timings of layers cannot be kept in {self._cache} ({error}); they will be "
                "measured again next time; set RLPRUNE_CACHE_DIR to a writable folder",
                RuntimeWarning,
                stacklevel=2,
            )
        return found


def _read(
    path: Path, record: dict[str, Any], shape: tuple[int, ...]
) -> dict[str, np.ndarray] | None:
    """Read timings of this very record; None where there are none, or not whole ones."""
    try:
        stored = json.loads(path.read_text())
        if {name: stored.pop(name) for name in record} != record:
            return None
        arrays = {name: np.array(values, np.float64) for name, values in stored.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    whole = "median" in arrays and all(
        values.shape == shape and (values >= 0).all() for values in arrays.values()
    )
    return arrays if whole and (not shape or len(arrays) == 3) else None
