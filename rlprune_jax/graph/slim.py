"""The slim network, its cut variables and any function of them."""

from typing import Any

import jax
import numpy as np

from rlprune_jax.graph.cutting import Alive, cut, is_cut, spread
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.matching import (
    Matched,
    check_variables,
    dense_variables,
    flat_arguments,
    match,
)
from rlprune_jax.graph.program import Atom, Call, Literal, Value, evaluate
from rlprune_jax.graph.specialise import specialise
from rlprune_jax.graph.widths import check_widths, kept_units, widths_to_kept
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.types import Apply, Gates, PyTree, Variables


def compact(
    graph: Graph, variables: Variables, gates: Gates, *, opt_state: PyTree = None
) -> PyTree:
    """Cut every variable to the units that ``gates`` keep.

    Arrays keep their dtype and their place. One under a ``NamedSharding`` is cut shard by shard and
    never gathered on a device; the slim one has the same mesh and ``PartitionSpec``. An axis whose
    slim size is no multiple of its number of parts is divided by fewer mesh axes, at worst by none;
    widths rounded to a multiple (``units.round_gates``) stay divided.

    Args:
        graph: of the network.
        variables: dense, as traced.
        gates: group name -> f32[units], concrete, every gate 0 or 1.
        opt_state: optionally an optimizer's state. A leaf whose path ends in that of a variable (or
            of one below ``"params"``), as moments do, is cut like it, along its last axes where it
            has more (a history of gradients). Other leaves of at most one axis (counts, learning
            rates) stay as they are.

    Returns:
        The slim variables, dense arrays of smaller shapes; with ``opt_state`` the pair
        ``(slim variables, slim opt_state)``.

    Raises:
        TypeError: gates are traced, or no dictionary of arrays.
        ValueError: gates or variables do not fit the graph, a gate is neither 0 nor 1, a group
            would lose all its units, a leaf of ``opt_state`` goes with a variable that is cut but
            has another shape (factored moments), or one of two axes or more goes with no variable
            (the state of another network). Or shards are held by other processes: cut inside of
            ``jax.jit``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
        >>> graph = trace_graph(apply, variables, jnp.ones((1, 3)))
        >>> slim = compact(graph, variables, {"a": jnp.array([1.0, 0.0, 0.0, 0.0, 1.0])})
        >>> slim["a"].shape, slim["b"].shape
        ((3, 2), (2, 2))
    """
    kept = kept_units(graph, gates)
    check_variables(graph, variables)
    slim = [
        cut(leaf, tuple(kept[units] for units in graph.owners[path]))
        for path, leaf in flatten_with_paths(variables).items()
    ]
    variables_out = jax.tree.unflatten(jax.tree.structure(variables), slim)
    if opt_state is None:
        return variables_out
    return variables_out, _cut_state(graph, opt_state, kept)


def _cut_state(graph: Graph, state: PyTree, kept: np.ndarray) -> PyTree:
    endings = {path.removeprefix("params/"): path for path in graph.variables}
    endings |= {path: path for path in graph.variables}

    def followed(path: str) -> str | None:
        parts = path.split("/")
        tails = ("/".join(parts[i:]) for i in range(len(parts) + 1))
        return next((endings[tail] for tail in tails if tail in endings), None)

    leaves = []
    for path, leaf in flatten_with_paths(state).items():
        variable = followed(path)
        if variable is None and np.ndim(leaf) > 1:
            raise ValueError(
                f"opt_state leaf {path!r} of shape {np.shape(leaf)} goes with none of the "
                "variables; pass the state of this network, or start the slim one with a fresh one"
            )
        if variable is None or np.size(leaf) <= 1:
            leaves.append(leaf)
            continue
        alive = tuple(kept[units] for units in graph.owners[variable])
        dense = graph.variables[variable].shape
        leading = max(np.ndim(leaf) - len(dense), 0)
        if np.shape(leaf)[leading:] == dense:
            leaf = cut(leaf, (np.ones(1, bool),) * leading + alive)
        elif is_cut(alive) and variable:
            raise ValueError(
                f"opt_state leaf {path!r} has shape {np.shape(leaf)} but goes with variable "
                f"{variable!r} of shape {dense}, so it cannot be cut; "
                "start the slim network with a fresh optimizer state"
            )
        leaves.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def respecialise(apply: Apply, graph: Graph, gates: Gates | None = None) -> Apply:
    """Run any function of the dense variables on slim ones.

    The function is traced with dense shapes and its program evaluated on the slim arrays: shapes
    written into the program follow the units that are kept. Inputs of other shapes than the graph
    was traced with do, wherever the function itself takes them.

    Args:
        apply: pure function ``(variables, *inputs, **keywords) -> outputs``, in evaluation or train
            mode.
        graph: of the network.
        gates: the gates the variables were cut with; only needed where a kept unit's place matters,
            that is for constants written into the function, random draws of the dense shape, and
            units that are not side by side (half a group before another, as where a shortcut pads
            channels on both sides). Without them each group's width is read off the variables and
            its first units stand for those kept.

    Returns:
        ``(slim variables, *inputs, **keywords) -> outputs``, differentiable, for jit, vmap and
        export. Keyword arguments are passed on as those of ``gated``.

    Raises:
        ValueError: (on call) the variables have paths or widths that fit no choice of units, or
            ``gates`` are needed and not given.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import compact, trace_graph
        >>> def apply(variables, x, shift=0):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"] + shift
        >>> variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
        >>> graph = trace_graph(apply, variables, jnp.ones((1, 3)))
        >>> slim = compact(graph, variables, {"a": jnp.array([1.0, 0.0, 0.0, 0.0, 1.0])})
        >>> respecialise(apply, graph)(slim, jnp.ones((1, 3)), shift=1).tolist()
        [[7.0, 7.0]]
    """

    def slim_apply(variables: Variables, *inputs: PyTree, **keywords: Any) -> PyTree:
        kept = widths_to_kept(graph, variables) if gates is None else kept_units(graph, gates)
        check_widths(graph, variables, kept)
        matched = match(apply, graph, dense_variables(graph, variables), inputs, keywords)
        alive = [tuple(kept[each] for each in units) for units in matched.units]
        if gates is None:
            _check_places(matched, alive)
            _check_order(graph, matched, kept)
        outputs = _evaluate(matched, flat_arguments(variables, inputs, keywords), alive)
        return jax.tree.unflatten(jax.tree.structure(matched.out_shape), outputs)

    return slim_apply


def _check_places(matched: Matched, alive: list[Alive]) -> None:
    """Refuse programs that treat one unit otherwise than its neighbour."""
    program = matched.program
    placed = [
        slot
        for equation in program.equations
        if equation.name == "iota"
        for slot in equation.outputs
        if not alive[slot][equation.params["dimension"]].all()
    ]
    placed += [slot for slot, value in program.constants.items() if _varies(value, alive[slot])]
    if placed:
        raise ValueError(
            "apply holds a constant whose entries belong to single units; pass the gates: "
            "respecialise(apply, graph, gates)"
        )


def _check_order(graph: Graph, matched: Matched, kept: np.ndarray) -> None:
    """Refuse programs in which it matters which units are kept, and not only how many.

    Each axis is laid out for the first, the last and spread units of every group; where units of a
    group lie side by side, or are repeated together, their ranks come in the same order.
    """
    layouts = [_ranks(graph, choice) for choice in _choices(graph, kept)]
    seen = set()
    for units in (axis for axes in matched.units for axis in axes):
        if len(units) < 2 or units.tobytes() in seen:
            continue
        seen.add(units.tobytes())
        first, *others = [ranks[units][ranks[units] > -2] for ranks in layouts]
        if not all(np.array_equal(first, other) for other in others):
            names = sorted({graph.names[graph.group_of_unit[unit]] for unit in units[units >= 0]})
            raise ValueError(
                f"the kept units of {', '.join(names)} cannot be told from widths alone, for they "
                "do not lie side by side; pass the gates: respecialise(apply, graph, gates)"
            )


def _choices(graph: Graph, kept: np.ndarray) -> list[np.ndarray]:
    """Choices bool[units + 1] of as many units per group: the first, the last, spread ones."""
    last, spread_out = kept.copy(), kept.copy()
    for group in graph.groups:
        units = slice(group.first, group.first + group.size)
        width = int(kept[units].sum())
        last[units] = kept[units][::-1]
        spread_out[units] = False
        spread_out[group.first + np.arange(width) * group.size // width] = True
    return [kept, last, spread_out]


def _ranks(graph: Graph, kept: np.ndarray) -> np.ndarray:
    """Place int[units + 1] of each unit among those kept, over all groups; -2 of one that is gone.

    The last entry, of indices without a unit, is -1.
    """
    ranks = np.where(kept, np.cumsum(kept) - 1, -2)
    ranks[-1] = -1
    return ranks


def _varies(value: Value, alive: Alive) -> bool:
    if not is_cut(alive):
        return False
    if isinstance(value, jax.core.Tracer):
        return True
    array = np.asarray(value)
    return any(
        not each.all()
        and not np.array_equal(array, np.broadcast_to(array.take([0], axis), array.shape))
        for axis, each in enumerate(alive)
    )


def _evaluate(matched: Matched, leaves: list[Value], alive: list[Alive]) -> list[Value]:
    program = matched.program
    constants = {slot: cut(value, alive[slot]) for slot, value in program.constants.items()}

    def alive_of(atoms: tuple[Atom, ...]) -> list[Alive]:
        return [() if isinstance(atom, Literal) else alive[atom] for atom in atoms]

    changed = [
        any(map(is_cut, alive_of((*equation.inputs, *equation.outputs))))
        for equation in program.equations
    ]
    contracting = {
        each.equation
        for each in matched.contractions
        if any(map(is_cut, alive_of(program.equations[each.equation].inputs)))
    }

    def step(number: int, operands: list[Value]) -> list[Value]:
        equation = program.equations[number]
        if not changed[number]:
            return equation.bind(*operands)
        return specialise(equation, operands, alive_of(equation.inputs), alive_of(equation.outputs))

    def call(item: Call, operands: list[Value]) -> list[Value] | None:
        body = range(item.first, item.last)
        if not any(changed[number] for number in body):
            return item.equation.bind(*operands)
        if item.is_remat or any(number in contracting for number in body):
            return None
        if _is_relu(item):
            return [jax.nn.relu(operands[0])]
        # The rule of its gradient knows the dense shape alone; units do not mix here.
        inputs = alive_of(item.equation.inputs)
        dense = item.equation.bind(*map(spread, operands, inputs))
        return [
            cut(value, each)
            for value, each in zip(dense, alive_of(item.equation.outputs), strict=True)
        ]

    return evaluate(program, leaves, constants, step, call)


def _is_relu(item: Call) -> bool:
    if item.equation.name != "custom_jvp_call":
        return False
    own = jax.make_jaxpr(jax.nn.relu)(jax.ShapeDtypeStruct((), np.float32)).eqns[0]
    sources = [
        eqn.params["call_jaxpr"].jaxpr.debug_info.func_src_info
        for eqn in (item.equation, own)
        if "call_jaxpr" in eqn.params
    ]
    return len(sources) == 2 and sources[0] == sources[1]
