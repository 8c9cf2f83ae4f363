"""What a cost of a network is, and what makes one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax

from rlprune_jax.costs.options import CostOptions
from rlprune_jax.graph.groups import Graph
from rlprune_jax.types import Apply, Gates, PyTree, Variables


class Measured(NamedTuple):
    """Hold a cost and the quartiles around it.

    Attributes:
        value: the cost, an integer where it is a count.
        lower: lower quartile of a measurement; the value itself of a cost without noise.
        upper: upper quartile, likewise.
    """

    value: float
    lower: float
    upper: float


def without_noise(value: float) -> Measured:
    """Return a cost that is known exactly.

    Example:
        >>> without_noise(7)
        Measured(value=7, lower=7, upper=7)
    """
    return Measured(value=value, lower=value, upper=value)


@dataclass(frozen=True, eq=False)
class Cost:
    """Describe a cost of one network by its gates.

    Attributes:
        unit: what is counted, as in ``"parameters"``.
        dense: cost of the dense network, in that unit.
        estimate: traceable function gates -> f32[], the cost over ``dense`` (over 1 where that is
            0). Exact up to rounding for counts; an estimate where only the host knows the cost.
        exact: cost of concrete gates, in ``unit``.
        in_search: of a cost that only the host knows, its value for a candidate of a search;
            None where ``estimate`` is the cost itself.
        again: of a cost with noise, gates and limit (in ``unit``) -> what ``exact`` is when
            measured anew, which then counts. It is measured until it is clear on which side of the
            limit the upper quartile lies; where that stays open, the upper quartile is given as
            above it. None where the cost is always the same.
        asks: networks that one delivered mask may ask ``exact`` for; None where that is cheap.
    """

    unit: str
    dense: float
    estimate: Callable[[Gates], jax.Array]
    exact: Callable[[Gates], Measured]
    in_search: Callable[[Gates], float] | None = None
    again: Callable[[Gates, float], Measured] | None = None
    asks: int | None = None


class NetworkLike(Protocol):
    """Describe what costs read of a network.

    Attributes:
        apply: ``(variables, *example) -> outputs``, in evaluation mode.
        graph: of that function.
        variables: dense arrays or their ``jax.ShapeDtypeStruct``; values do not matter.
        example: the inputs, a tuple of pytrees of arrays or ``jax.ShapeDtypeStruct`` whose first
            axis is the batch: the one that latency is measured with. Values do not matter.
    """

    @property
    def apply(self) -> Apply:
        """Return the function of variables and inputs."""
        ...

    @property
    def graph(self) -> Graph:
        """Return the graph."""
        ...

    @property
    def variables(self) -> Variables:
        """Return the dense variables."""
        ...

    @property
    def example(self) -> tuple[PyTree, ...]:
        """Return the inputs."""
        ...


class CostFactory(Protocol):
    """Make a cost of a network, registered in ``COSTS``."""

    def __call__(self, network: NetworkLike, options: CostOptions) -> Cost:
        """Return the cost of this network.

        Called once per network and options; what it returns is remembered on ``network.graph``.
        """
        ...
