"""The slim network, its cut variables and any function of them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_function
from rlprune_jax.graph.bodies import run_bodies
from rlprune_jax.graph.cutting import Alive, cut, is_cut, spread
from rlprune_jax.graph.groups import Graph, check_graph
from rlprune_jax.graph.matching import (
    Matched,
    check_variables,
    dense_variables,
    flat_arguments,
    match,
)
from rlprune_jax.graph.moving import Permutation
from rlprune_jax.graph.program import Atom, Call, Equation, Literal, Program, Value, evaluate
from rlprune_jax.graph.reductions import Length
from rlprune_jax.graph.rules import Picked, picked
from rlprune_jax.graph.specialise import pick, specialise
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
        cut(leaf, graph.alive(path, kept)) for path, leaf in flatten_with_paths(variables).items()
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
        if (not hasattr(leaf, "dtype") and not np.isscalar(leaf)) or isinstance(leaf, str):
            raise ValueError(
                f"opt_state holds a {type(leaf).__name__} at {path!r}; pass the state that "
                "optimizer.init and update give"
            )
        if variable is None and np.ndim(leaf) > 1:
            raise ValueError(
                f"opt_state leaf {path!r} of shape {np.shape(leaf)} goes with none of the "
                "variables; pass the state of this network, or start the slim one with a fresh one"
            )
        if variable is None or np.size(leaf) <= 1:
            leaves.append(leaf)
            continue
        alive = graph.alive(variable, kept)
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
        TypeError: ``apply`` is no function or ``graph`` no graph.
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
    check_graph(graph)
    require_function("apply", apply, "a function (variables, *inputs) -> outputs")

    def slim_apply(variables: Variables, *inputs: PyTree, **keywords: Any) -> PyTree:
        kept = widths_to_kept(graph, variables) if gates is None else kept_units(graph, gates)
        check_widths(graph, variables, kept)
        matched = match(apply, graph, dense_variables(graph, variables), inputs, keywords)
        if gates is None:
            _check_places(matched, kept)
            _check_order(graph, matched, kept)
        outputs = _evaluate(matched, kept, flat_arguments(variables, inputs, keywords))
        return jax.tree.unflatten(jax.tree.structure(matched.out_shape), outputs)

    return slim_apply


def _check_places(matched: Matched, kept: np.ndarray) -> None:
    """Refuse programs that treat one unit otherwise than its neighbour."""
    program, alive = matched.program, alive_of(matched, kept)
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
    for bodies in matched.bodies.values():
        for body in bodies:
            _check_places(body, kept)


def _all_units(matched: Matched) -> Iterator[np.ndarray]:
    """Yield the units of every axis, those inside of bodies too."""
    yield from (axis for axes in matched.units for axis in axes)
    for bodies in matched.bodies.values():
        for body in bodies:
            yield from _all_units(body)


def _check_order(graph: Graph, matched: Matched, kept: np.ndarray) -> None:
    """Refuse programs in which it matters which units are kept, and not only how many.

    Each axis is laid out for the first, the last and spread units of every group; where units of a
    group lie side by side, or are repeated together, their ranks come in the same order.
    """
    layouts = [_ranks(graph, choice) for choice in _choices(graph, kept)]
    seen = set()
    for units in _all_units(matched):
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


def alive_of(matched: Matched, kept: np.ndarray) -> list[Alive]:
    """Return for each slot and axis which indices are kept.

    Args:
        matched: the program.
        kept: bool[units + 1], which units remain; the last entry is True.
    """
    return [tuple(kept[units] for units in axes) for axes in matched.units]


class SlimStep:
    """Evaluate one equation of a program on slim operands.

    Args:
        matched: the program.
        kept: bool[units + 1], which units remain; the last entry is True.
    """

    def __init__(self, matched: Matched, kept: np.ndarray) -> None:
        self._matched, self._kept = matched, kept
        self.alive = alive_of(matched, kept)
        self._permuted = {
            number: each
            for number, each in matched.permutations.items()
            if not self.alive[each.source][each.axis].all()
        }
        self.program = _with_sources(matched.program, self._permuted)
        self._between = {
            number
            for number, (slot, axis) in matched.between.items()
            if not self.alive[slot][axis].all()
        }
        self._factors = {
            length.equation: (length, _factor(length, units, kept))
            for length, units in matched.lengths
            if not all(kept[each].all() for each in units)
        }
        self.changed = [
            number in self._factors
            or any(map(is_cut, self._alive(equation.inputs) + self._alive(equation.outputs)))
            for number, equation in enumerate(self.program.equations)
        ]
        self._gone = [each for each, unit in matched.branches if not kept[unit]]
        self.skipped = {number for each in self._gone for number in each.body}
        self._summed = {each.equation: each.operand for each in self._gone}
        readers = [each.equation for each in matched.contractions]
        readers += [each.equation for each in matched.reductions]
        self.mixing = {
            number
            for number in readers
            if any(map(is_cut, self._alive(self.program.equations[number].inputs)))
        } | set(self._factors)

    def _alive(self, atoms: Sequence[Atom]) -> list[Alive]:
        return [() if isinstance(atom, Literal) else self.alive[atom] for atom in atoms]

    def __call__(self, number: int, operands: list[Value]) -> list[Value]:
        """Return the slim outputs of equation ``number``."""
        matched = self._matched
        equation = self.program.equations[number]
        if number in self._between or number in self.skipped:
            return [None] * len(equation.outputs)
        if number in self._summed:
            return [operands[1 - self._summed[number]]]
        if number in self._permuted:
            return [_permute(operands[0], self._permuted[number], self.alive)]
        if not self.changed[number]:
            return equation.bind(*operands)
        if number in self._factors:
            length, factor = self._factors[number]
            constant = jnp.asarray(operands[length.operand])
            operands = list(operands)
            operands[length.operand] = jnp.asarray(constant * factor, constant.dtype)
        if equation.bodies:
            runs = [partial(_evaluate, body, self._kept) for body in matched.bodies[number]]
            return run_bodies(equation, runs, operands)
        inputs, outputs = self._alive(equation.inputs), self._alive(equation.outputs)
        if equation.name == "gather" and (places := self._places(equation, inputs)) is not None:
            return [pick(equation, operands[0], *places, inputs[0])]
        return specialise(equation, operands, inputs, outputs)

    def _places(self, equation: Equation, inputs: list[Alive]) -> Picked | None:
        known = {
            position: self._matched.known[atom]
            for position, atom in enumerate(equation.inputs)
            if not isinstance(atom, Literal) and atom in self._matched.known
        }
        places = picked(equation, known, tuple(map(len, inputs[0])))
        return places if places is not None and not inputs[0][places[0]].all() else None


def _with_sources(program: Program, permuted: Mapping[int, Permutation]) -> Program:
    """Return a program in which what permutes an axis reads the value it takes it from."""
    if not permuted:
        return program
    equations = list(program.equations)
    for number, each in permuted.items():
        equations[number] = equations[number]._replace(inputs=(each.source,))
    return program._replace(equations=equations)


def _permute(value: Value, permutation: Permutation, alive: list[Alive]) -> Value:
    """Take the kept units of a permuted axis from the value that has them in order."""
    kept = alive[permutation.source][permutation.axis]
    places = (np.cumsum(kept) - 1)[permutation.places][kept[permutation.places]]
    return jnp.transpose(jnp.take(value, places, axis=permutation.axis), permutation.order)


def _factor(length: Length, units: tuple[np.ndarray, ...], kept: np.ndarray) -> float:
    """Return what a constant that counts units is multiplied by."""
    shares = [kept[each].sum() / len(each) for each in units]
    return float(math.prod(shares)) ** length.exponent


def _evaluate(matched: Matched, kept: np.ndarray, leaves: Sequence[Value]) -> list[Value]:
    step = SlimStep(matched, kept)
    program = step.program
    constants = {slot: cut(value, step.alive[slot]) for slot, value in program.constants.items()}

    def call(item: Call, operands: list[Value]) -> list[Value] | None:
        body = range(item.first, item.last)
        if step.skipped.issuperset(body):
            return [None] * len(item.equation.outputs)
        if not any(step.changed[number] for number in body):
            return item.equation.bind(*operands)
        if item.is_remat or any(number in step.mixing for number in body):
            return None
        if any(program.equations[number].bodies for number in body):
            return None
        if _is_relu(item):
            return [jax.nn.relu(operands[0])]

        def alive(atoms: tuple[Atom, ...]) -> list[Alive]:
            return [() if isinstance(atom, Literal) else step.alive[atom] for atom in atoms]

        # The rule of its gradient knows the dense shape alone; units do not mix here.
        dense = item.equation.bind(*map(spread, operands, alive(item.equation.inputs)))
        outputs = alive(item.equation.outputs)
        return [cut(value, each) for value, each in zip(dense, outputs, strict=True)]

    outputs = evaluate(program, leaves, constants, step, call)
    return [
        _nothing(program, atom) if value is None else value
        for atom, value in zip(program.outputs, outputs, strict=True)
    ]


def _nothing(program: Program, atom: Atom) -> Value:
    """Return the empty array that stands for a statistic of a branch that is gone."""
    aval = program.avals[atom]
    return jnp.zeros((0,) * len(aval.shape), aval.dtype)


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
