"""Latency of the slim network itself, measured on the present device."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rlprune_jax.costs.host import call_checked
from rlprune_jax.costs.latency import Latency, measure_latency
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.slim import compact, respecialise
from rlprune_jax.types import Apply, Gates, Variables
from rlprune_jax.units.gates import keep_first, widths


class MeasuredLatency:
    """Milliseconds of one call of the slim network, by its widths; each width is compiled once.

    In a search widths are rounded up to ``levels`` steps per group, and at most ``programs``
    different ones are compiled; after that the nearest measured one answers. An estimate carries
    what was measured over to the widths asked for. What is delivered is measured at its own widths.
    """

    def __init__(
        self,
        apply: Apply,
        graph: Graph,
        variables: Variables,
        *inputs: Any,
        levels: int = 4,
        programs: int = 64,
        repeats: int = 30,
        time_limit: float = 60.0,
    ) -> None:
        """Prepare; nothing is measured yet.

        Args:
            apply: ``(variables, *inputs) -> outputs``.
            graph: of the network.
            variables: dense arrays; their values do not matter.
            *inputs: arrays, of the batch that is timed.
            levels: steps of a group's width in a search.
            programs: how many networks a search may compile.
            repeats: timed calls of each.
            time_limit: seconds that compiling and timing one network may take.

        Raises:
            ValueError: a number below 1, or a time limit of 0.
        """
        for argument, value in (("levels", levels), ("programs", programs), ("repeats", repeats)):
            if value < 1:
                raise ValueError(f"{argument}={value} must be at least 1")
        if not time_limit > 0:
            raise ValueError(f"time_limit={time_limit} must be above 0 seconds")
        self._apply, self._graph = apply, graph
        self._variables, self._inputs = variables, inputs
        self._levels, self._programs = levels, programs
        self._repeats, self._time_limit = repeats, time_limit
        self.measured: dict[tuple[int, ...], Latency] = {}

    def exact(self, gates: Gates) -> Latency:
        """Return the latency at the widths of concrete gates.

        Raises:
            CostError: the network cannot be compiled or timed, or not in time.
        """
        return self._measure(tuple(widths(self._graph, gates).values()))

    def in_search(self, gates: Gates, share: Callable[[Gates], Any]) -> float:
        """Return the median at the widths of ``gates``, from a measurement at widths nearby.

        Args:
            gates: concrete.
            share: an estimate of the latency, in any unit: its ratio between two networks scales
                the time of one to that of the other.

        Raises:
            CostError: the network cannot be compiled or timed, or not in time.
        """
        wanted = tuple(widths(self._graph, gates).values())
        at = self._rounded(wanted)
        if at not in self.measured and len(self.measured) >= self._programs:
            known = np.log(np.array(list(self.measured), float))
            at = list(self.measured)[int(np.square(known - np.log(at)).sum(-1).argmin())]
        median = self._measure(at).median
        if at == wanted:
            return median
        return median * float(share(self._kept(wanted))) / float(share(self._kept(at)))

    def _rounded(self, widths: Sequence[int]) -> tuple[int, ...]:
        steps = [max(1, math.ceil(size / self._levels)) for size in self._graph.sizes]
        return tuple(
            min(size, -(-width // step) * step)
            for width, step, size in zip(widths, steps, self._graph.sizes, strict=True)
        )

    def _kept(self, widths: Sequence[int]) -> Gates:
        return keep_first(self._graph, dict(zip(self._graph.names, widths, strict=True)))

    def _measure(self, widths: tuple[int, ...]) -> Latency:
        if widths not in self.measured:
            named = dict(zip(self._graph.names, widths, strict=True))
            found: list[Latency] = []

            def measure() -> float:
                gates = keep_first(self._graph, named)
                slim = compact(self._graph, self._variables, gates)
                function = jax.jit(respecialise(self._apply, self._graph, gates))
                found.append(measure_latency(function, slim, *self._inputs, repeats=self._repeats))
                return found[0].median

            call_checked("latency", measure, named, self._time_limit)
            self.measured[widths] = found[0]
        return self.measured[widths]
