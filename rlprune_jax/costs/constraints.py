"""Constraints: budgets on the costs of one network."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import shown
from rlprune_jax.costs.budgets import Budget, format_number, parse_budgets
from rlprune_jax.costs.cost import Cost, CostFactory, Measured, NetworkLike
from rlprune_jax.costs.host import UserFunction, import_function, user_cost
from rlprune_jax.costs.memo import remember
from rlprune_jax.costs.options import CostOptions, check_options
from rlprune_jax.costs.registry import COSTS, OWN_UNIT
from rlprune_jax.graph.groups import Graph
from rlprune_jax.per_group import PerGroup
from rlprune_jax.types import Gates, PyTree
from rlprune_jax.units.gates import round_gates, smallest_gates


class Constraint(NamedTuple):
    """Hold a budget and the cost that it limits.

    Attributes:
        budget: what the user wrote.
        cost: of the network.
    """

    budget: Budget
    cost: Cost

    @property
    def is_measured(self) -> bool:
        """Return whether only the host knows the cost."""
        return self.cost.in_search is not None

    @property
    def unit(self) -> str:
        """Return the unit of the limit, such as ``"ms"``."""
        return f"fraction of dense {self.cost.unit}" if self.budget.relative else self.cost.unit

    def measure(self, gates: Gates) -> Measured:
        """Return the exact cost in the unit of the limit."""
        return self.in_unit(self.cost.exact(gates))

    def measure_again(self, gates: Gates) -> Measured:
        """Measure the cost anew.

        In the unit of the limit, until it is clear on which side of it the upper quartile lies.
        From then on it is what ``measure`` returns. A cost without noise is the same as before.
        """
        again = self.cost.again
        if again is None:
            return self.measure(gates)
        scale = self.cost.dense if self.budget.relative else 1.0
        return self.in_unit(again(gates, self.budget.limit * scale))

    def in_unit(self, found: Measured) -> Measured:
        """Return a cost in the unit of the limit."""
        if not self.budget.relative:
            return found
        return Measured(*(each / self.cost.dense for each in found))


def constrain(
    network: NetworkLike,
    budgets: str | Budget | Sequence[str | Budget],
    options: CostOptions | None = None,
) -> tuple[Constraint, ...]:
    """Bind budgets to a network.

    Latency is measured and users' functions are called here, a few times: for the dense network,
    and at uniform keep ratios for an estimate. Costs are remembered on ``network.graph``, so equal
    names, options, inputs and functions give the same ``Cost`` object and nothing is measured or
    compiled twice.

    Args:
        network: with ``apply``, ``graph``, ``variables`` and ``example``, a tuple of inputs.
        budgets: as ``parse_budget`` takes them.
        options: of the costs.

    Raises:
        TypeError: no network, or no options.
        ValueError: a budget that ``parse_budgets`` refuses, an option that cannot be, a function
            that cannot be imported, or a fraction of a cost that is 0.
        CostError: a cost fails on the dense network.

    Example:
        >>> import types
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> variables, x = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}, jnp.ones((1, 3))
        >>> network = types.SimpleNamespace(
        ...     apply=apply,
        ...     graph=trace_graph(apply, variables, x),
        ...     variables=variables,
        ...     example=(x,),
        ... )
        >>> constraints = constrain(network, ["params=0.5", "macs=12"])
        >>> gates = {"a": jnp.array([1.0, 1, 0, 0, 0])}
        >>> exact_costs(constraints, gates), satisfies(constraints, gates)
        ([0.4, 10], True)
    """
    options = CostOptions() if options is None else options
    check_options(options)
    if not hasattr(network, "example") or not hasattr(network, "graph"):
        raise TypeError(f"network={shown(network)} must be a Network, or have its attributes")
    if not isinstance(network.example, tuple):
        raise ValueError(
            f"network.example is a {type(network.example).__name__}; it must be a tuple of inputs"
        )
    constraints = tuple(
        Constraint(budget=budget, cost=_bind(network, budget, options))
        for budget in parse_budgets(budgets)
    )
    for budget, cost in constraints:
        if budget.relative and not cost.dense > 0:
            raise ValueError(
                f"budget {budget.name!r}={budget.text}: the cost of the dense network is 0, so no "
                "fraction can be taken of it; give the limit in the cost's own unit"
            )
    return constraints


def _bind(network: NetworkLike, budget: Budget, options: CostOptions) -> Cost:
    made_by: CostFactory | UserFunction
    if budget.is_function:
        made_by = budget.function or import_function(budget.name)
        factory = user_cost(budget.name, made_by)
    else:
        made_by = factory = COSTS[budget.name]
    key = (
        *("cost", budget.name, options),
        *(_identity(made_by), _identity(network.apply), _structure(network.example)),
    )
    # The functions are kept with the cost, so that no other object gets the identity of one.
    kept = (made_by, network.apply)
    cost, _ = remember(network.graph, key, lambda: (factory(network, options), kept))
    return cost


def _identity(function: Callable[..., object]) -> Hashable:
    """Return the function itself, as bound methods are equal, or its id if unhashable."""
    try:
        hash(function)
    except TypeError:
        return id(function)
    return function


def _structure(example: PyTree) -> Hashable:
    leaves, treedef = jax.tree.flatten(example)
    return treedef, tuple((np.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in leaves)


def limits(constraints: Sequence[Constraint]) -> np.ndarray:
    """Return the limits f32[K] in the order of the constraints."""
    return np.asarray([constraint.budget.limit for constraint in constraints], np.float32)


def estimate_costs(constraints: Sequence[Constraint]) -> Callable[[Gates], jax.Array]:
    """Return the traceable costs in the units of the limits.

    Use it inside of jit, to propose and to project candidates. Costs that only the host knows are
    estimates there; ``search_costs`` asks for the costs themselves. Constraints that differ in
    their limits alone give the same function object, so that programs are compiled once.

    Args:
        constraints: K of them, on one network.

    Returns:
        Function gates -> f32[K].
    """
    costs = tuple(constraint.cost for constraint in constraints)
    relative = tuple(constraint.budget.relative for constraint in constraints)
    if not costs:
        return _no_costs

    def make() -> Callable[[Gates], jax.Array]:
        scales = [
            1.0 if fraction else cost.dense or 1.0
            for fraction, cost in zip(relative, costs, strict=True)
        ]
        return lambda gates: jnp.stack(
            [scale * cost.estimate(gates) for scale, cost in zip(scales, costs, strict=True)]
        )

    return remember(costs[0], ("estimate", costs, relative), make)


def _no_costs(gates: Gates) -> jax.Array:
    return jnp.zeros(0)


def search_costs(constraints: Sequence[Constraint]) -> Callable[[Gates], np.ndarray]:
    """Return the costs of many candidates, for the host.

    Traceable costs come from one jitted call; the others are asked for one candidate at a time.

    Args:
        constraints: K of them, on one network.

    Returns:
        Function gates f32[N, units] per group -> f32[N, K]. It raises ``CostError`` when a cost
        fails on a candidate.
    """
    estimate = estimate_costs(constraints)
    traced = remember(estimate, "over candidates", lambda: jax.jit(jax.vmap(estimate)))
    asked = [(k, constraint) for k, constraint in enumerate(constraints) if constraint.is_measured]

    def costs(gates: Gates) -> np.ndarray:
        table = np.array(traced(gates))
        rows = {name: np.asarray(gate) for name, gate in gates.items()}
        for k, (budget, cost) in asked:
            assert cost.in_search is not None
            for n in range(len(table)):
                value = cost.in_search({name: gate[n] for name, gate in rows.items()})
                table[n, k] = value / cost.dense if budget.relative else value
        return table

    return costs


def measured_costs(constraints: Sequence[Constraint], gates: Gates) -> list[Measured]:
    """Return the exact costs with their noise.

    Args:
        constraints: on the network of the gates.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5.

    Raises:
        ValueError: the gates do not fit the network.
        CostError: a cost fails on this candidate.
    """
    return [constraint.measure(gates) for constraint in constraints]


def exact_costs(constraints: Sequence[Constraint], gates: Gates) -> list[float]:
    """Return the exact costs, in the units of the limits.

    Args:
        constraints: on the network of the gates.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5.

    Raises:
        ValueError: the gates do not fit the network.
        CostError: a cost fails on this candidate.
    """
    return [cost.value for cost in measured_costs(constraints, gates)]


def satisfies(constraints: Sequence[Constraint], gates: Gates) -> bool:
    """Return whether the exact costs respect every limit.

    Of a cost measured with noise the upper quartile has to. What is measured comes last, and only
    where all else is respected.

    Args:
        constraints: on the network of the gates.
        gates: group name -> f32[units], concrete; a unit counts as kept from 0.5.

    Raises:
        ValueError: the gates do not fit the network.
        CostError: a cost fails on this candidate.
    """
    in_order = sorted(constraints, key=lambda constraint: constraint.is_measured)
    return all(each.measure(gates).upper <= each.budget.limit for each in in_order)


def check_reachable(
    graph: Graph,
    constraints: Sequence[Constraint],
    min_keep: PerGroup = 1,
    round_to: PerGroup = 1,
) -> None:
    """Refuse limits that no pruning can meet.

    Call it before any training: it counts or measures the smallest network that the options allow.

    Args:
        graph: of the network.
        constraints: to meet.
        min_keep: units that each group keeps, for all groups or by group name.
        round_to: multiples that kept units are rounded up to; a smaller group keeps all.

    Raises:
        ValueError: naming the budget and the smallest cost that ``min_keep`` leaves; or
            ``min_keep`` is not an integer of at least 1 per group.
        CostError: a cost fails on the smallest network.
    """
    gates = smallest_gates(graph, min_keep)
    gates = round_gates(graph, gates, round_to=round_to, towards="more")
    rounded = "" if round_to == 1 else f" and round_to={round_to}"
    for constraint in constraints:
        budget, unit = constraint.budget, constraint.cost.unit
        # The upper quartile of what is measured, as ``satisfies`` will ask for it.
        least = constraint.measure(gates).upper
        if least > budget.limit:
            reachable = budget._replace(limit=_round_up(least)).text
            left = f"{least:.4g}" if least != int(least) else format_number(least)
            if budget.relative:
                left += " of the " + ("dense cost" if unit == OWN_UNIT else unit)
            else:
                left += f" {unit}"
            raise ValueError(
                f"budget {budget.name!r}={budget.text} cannot be met: min_keep={min_keep}{rounded} "
                f"leave{'' if rounded else 's'} {left}; raise the budget to at least {reachable} "
                f"or lower min_keep{rounded and ' or round_to'}"
            )


def _round_up(value: float) -> float:
    return value if value == int(value) else math.ceil(value * 10000) / 10000
