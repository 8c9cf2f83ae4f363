"""Latency of the slim network itself, measured on the present device."""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from rlprune_jax.costs.cost import Cost, Measured, NetworkLike
from rlprune_jax.costs.host import call_checked
from rlprune_jax.costs.interpolation import interpolate_uniform
from rlprune_jax.costs.latency import Latency, fill, measure_latency
from rlprune_jax.costs.options import CostOptions
from rlprune_jax.graph.groups import Graph, ones_gates
from rlprune_jax.graph.slim import compact, respecialise
from rlprune_jax.types import Apply, Gates, PyTree, Variables
from rlprune_jax.units.gates import keep_first, widths

ROUNDS = 3
"""Measurements that have to be within a limit before one counts as within it."""


class SlimLatency:
    """Measure the latency of slim networks by their widths.

    Each network is compiled and timed once.

    In a search widths are rounded up to ``steps`` per group, and at most ``programs`` different
    networks are compiled; after that the nearest measured one answers. An estimate scales what was
    measured to the widths asked for. What is delivered is measured at its own widths.
    """

    def __init__(
        self,
        apply: Apply,
        graph: Graph,
        variables: Variables,
        *inputs: PyTree,
        options: CostOptions | None = None,
    ) -> None:
        """Prepare without measuring anything.

        Args:
            apply: ``(variables, *inputs) -> outputs``.
            graph: of the network.
            variables: dense arrays or their ``jax.ShapeDtypeStruct``; values do not matter.
            *inputs: pytrees of arrays or ``jax.ShapeDtypeStruct``, of the batch that is timed.
            options: ``steps``, ``programs``, ``repeats`` and ``time_limit`` of them count.

        Raises:
            ValueError: a number below 1, or a time limit of 0.
        """
        options = CostOptions() if options is None else options
        for argument in ("steps", "programs", "repeats"):
            value = getattr(options, argument)
            if value < 1:
                raise ValueError(f"{argument}={value} must be at least 1")
        if not options.time_limit > 0:
            raise ValueError(f"time_limit={options.time_limit} must be above 0 seconds")
        self._apply, self._graph, self._options = apply, graph, options
        # Only shapes are kept: the arrays may be large, and this is remembered with the graph.
        self._shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.result_type(leaf)),
            (variables, inputs),
        )
        self.measured: dict[tuple[int, ...], Latency] = {}

    def exact(self, gates: Gates) -> Latency:
        """Return the latency at the widths of the gates.

        Args:
            gates: group name -> f32[units], concrete; a unit counts as kept from 0.5.

        Raises:
            CostError: the network cannot be compiled or timed, or not in time.
        """
        return self._measure(tuple(widths(self._graph, gates).values()))

    def again(self, gates: Gates, limit: float = math.inf) -> Latency:
        """Measure the latency at these widths anew.

        What was measured before is forgotten: of several measurements the lucky ones are not kept.
        One whose upper quartile is within a limit is repeated, and the slowest counts.

        Args:
            gates: group name -> f32[units], concrete; a unit counts as kept from 0.5.
            limit: in milliseconds.

        Raises:
            CostError: the network cannot be compiled or timed, or not in time.
        """
        wanted = tuple(widths(self._graph, gates).values())
        self.measured.pop(wanted, None)
        return self._measure(wanted, limit)

    def in_search(self, gates: Gates, estimate: Callable[[Gates], jax.Array]) -> float:
        """Return the latency measured at widths nearby.

        It is the upper quartile, which has to be within a limit in what is delivered too.

        Args:
            gates: group name -> f32[units], concrete; a unit counts as kept from 0.5.
            estimate: of the latency, gates -> f32[] in any unit: its ratio between two networks
                scales the time of one to that of the other.

        Raises:
            CostError: the network cannot be compiled or timed, or not in time.
        """
        wanted = tuple(widths(self._graph, gates).values())
        at = self._rounded(wanted)
        if at not in self.measured and len(self.measured) >= self._options.programs:
            known = np.log(np.array(list(self.measured), float))
            at = list(self.measured)[int(np.square(known - np.log(at)).sum(-1).argmin())]
        upper = self._measure(at).upper_quartile
        if at == wanted:
            return upper
        return upper * float(estimate(self._kept(wanted))) / float(estimate(self._kept(at)))

    def _rounded(self, widths: Sequence[int]) -> tuple[int, ...]:
        steps = [max(1, math.ceil(size / self._options.steps)) for size in self._graph.sizes]
        return tuple(
            min(size, -(-width // step) * step)
            for width, step, size in zip(widths, steps, self._graph.sizes, strict=True)
        )

    def _kept(self, widths: Sequence[int]) -> Gates:
        return keep_first(self._graph, dict(zip(self._graph.names, widths, strict=True)))

    def _measure(self, widths: tuple[int, ...], limit: float = math.inf) -> Latency:
        if widths not in self.measured:
            named = dict(zip(self._graph.names, widths, strict=True))
            found: list[Latency] = []

            def measure() -> float:
                gates = keep_first(self._graph, named)
                variables, inputs = fill(self._shapes)
                slim = compact(self._graph, variables, gates)
                function = jax.jit(respecialise(self._apply, self._graph, gates))
                repeats = self._options.repeats
                rounds = ROUNDS if math.isfinite(limit) else 1
                while len(found) < rounds and (not found or found[-1].upper_quartile <= limit):
                    found.append(measure_latency(function, slim, *inputs, repeats=repeats))
                return found[0].median

            call_checked("latency", measure, named, self._options.time_limit)
            self.measured[widths] = max(found, key=lambda each: each.upper_quartile)
        return self.measured[widths]


def latency_cost(network: NetworkLike, options: CostOptions) -> Cost:
    """Return the cost of latency, measured on slim networks."""
    graph = network.graph
    latency = SlimLatency(
        network.apply, graph, network.variables, *network.example, options=options
    )

    def exact(gates: Gates) -> Measured:
        return Measured(*latency.exact(gates))

    dense = exact(ones_gates(graph)).value
    # At their own widths: rounded ones would give the time of a wider network.
    estimate = interpolate_uniform(graph, lambda gates: latency.exact(gates).median, dense)
    return Cost(
        unit="ms",
        dense=dense,
        estimate=estimate,
        exact=exact,
        in_search=lambda gates: latency.in_search(gates, estimate),
        again=lambda gates, limit: Measured(*latency.again(gates, limit)),
        asks=options.latency_asks,
    )
