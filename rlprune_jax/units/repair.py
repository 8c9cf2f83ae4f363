"""Repair a masked network: what remains makes up for what is gone, without training."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Literal as OneOf
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require, require_choice, require_count, require_range
from rlprune_jax.graph.gating import MaskedSteps, flat_gates, masked_steps
from rlprune_jax.graph.groups import Graph, check_gates, ones_gates
from rlprune_jax.graph.matching import Inputs, Matched, flat_arguments, match
from rlprune_jax.graph.program import Atom, Literal, Value
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.types import Apply, Gates, Variables
from rlprune_jax.units.least_squares import (
    Correction,
    DenseRows,
    Site,
    fit_bias,
    fit_weights,
    merge_channels,
    pick,
)
from rlprune_jax.units.repair_plan import (
    Origin,
    Refit,
    RepairSchedule,
    plan_repair,
    schedule_repair,
    to_variable,
)

RepairKind = OneOf["fold", "merge", "ridge"]

ROWS = 4096
"""Rows that a contraction is fitted on, unless told."""


def repair(
    apply: Apply,
    graph: Graph,
    variables: Variables,
    gates: Gates,
    inputs: Inputs,
    *,
    ridge: float = 1e-3,
    rows: int | None = ROWS,
) -> Variables:
    """Refit the weights that remain to the dense network's activations.

    Use it after a cut, before a finetune or in its place: a few hundred examples without labels,
    and no gradient. Dots and convolutions are taken in the order of the program. Each reads what
    the masked network, repaired so far, computes; its weights ``W`` change to those that come
    closest to what the dense network has as output of this contraction:

        min over D, b of  |X (W + D) + b - Y|^2 + d |D|^2

    with one row a position and example, of which ``rows`` are drawn, and ``d`` = ``ridge`` times
    the mean square of X. ``b`` goes to the variable that is added to the output (a bias) or
    subtracted (a running mean), if there is one. Damping pulls towards the weights as they are:
    with all gates 1 nothing changes, no system is singular, and no contraction's error on the rows
    grows for given X.

    Left as they are: dots of activations; weights that are read more than once (tied, recurrent) or
    computed from others (normalised); all that comes before the first gate.

    Args:
        apply: pure function ``(variables, *inputs) -> outputs``, in evaluation mode.
        graph: of the network.
        variables: dense.
        gates: group name -> f32[units]; may be traced, also under ``vmap``.
        inputs: of ``apply``, a few hundred examples.
        ridge: damping, relative to the features; more for fewer examples.
        rows: positions and examples, at most, that each contraction is fitted on; None for all.

    Returns:
        Variables of the dense shapes for the same gates, for ``gated`` or ``compact``.

    Raises:
        TypeError: gates are no dictionary of arrays.
        ValueError: no inputs, one without examples, or what does not fit the graph.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import gated, trace_graph
        >>> def apply(variables, x):
        ...     return (x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.array([[1.0, 1.0], [2.0, 0.0]]), "b": jnp.ones((2, 1))}
        >>> x = jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
        >>> graph = trace_graph(apply, variables, x)
        >>> gates = {"a": jnp.array([0.0, 1.0])}
        >>> repaired = repair(apply, graph, variables, gates, (x,), ridge=0.0)
        >>> masked = gated(apply, graph)
        >>> jnp.abs(masked(variables, gates, x) - apply(variables, x)).max().item()
        3.0
        >>> jnp.abs(masked(repaired, gates, x) - apply(variables, x)).max().item() < 1e-4
        True
    """
    method = RepairMethod("ridge", ridge=ridge, rows=rows)
    return _at_once(method, apply, graph, variables, gates, inputs)


def merge_units(
    apply: Apply,
    graph: Graph,
    variables: Variables,
    gates: Gates,
    inputs: Inputs,
    *,
    ridge: float = 1e-3,
    rows: int | None = ROWS,
) -> Variables:
    """Merge units that are gone into those that stay.

    Use it in place of ``repair`` where contractions sum over many positions of a window: each
    channel of the dense network is written as a combination of those that are kept, by ridge least
    squares, one combination for all positions of the window. The system is as large as there are
    channels, so that a 3x3 convolution is solved 729 times as fast; on a dot it is the same as
    ``repair``.

    Args:
        apply: pure function ``(variables, *inputs) -> outputs``, in evaluation mode.
        graph: of the network.
        variables: dense.
        gates: group name -> f32[units]; may be traced, also under ``vmap``.
        inputs: of ``apply``, a few hundred examples.
        ridge: damping, relative to the channels.
        rows: positions and examples, at most, that each contraction is fitted on; None for all.

    Returns:
        Variables of the dense shapes for the same gates.

    Raises:
        TypeError: gates are no dictionary of arrays.
        ValueError: no inputs, one without examples, or what does not fit the graph.
    """
    method = RepairMethod("merge", ridge=ridge, rows=rows)
    return _at_once(method, apply, graph, variables, gates, inputs)


def fold_means(
    apply: Apply, graph: Graph, variables: Variables, gates: Gates, inputs: Inputs
) -> Variables:
    """Add the mean of what removed units gave to biases.

    The cheapest repair: as ``repair``, but no weights change, only what is added to or subtracted
    from the output of a contraction, if anything is.

    Args:
        apply: pure function ``(variables, *inputs) -> outputs``, in evaluation mode.
        graph: of the network.
        variables: dense.
        gates: group name -> f32[units]; may be traced, also under ``vmap``.
        inputs: of ``apply``, a few examples.

    Returns:
        Variables of the dense shapes for the same gates.

    Raises:
        TypeError: gates are no dictionary of arrays.
        ValueError: no inputs, one without examples, or what does not fit the graph.
    """
    return _at_once(RepairMethod("fold"), apply, graph, variables, gates, inputs)


@dataclasses.dataclass(frozen=True)
class RepairMethod:
    """Hold how a masked network is repaired.

    Attributes:
        kind: ``"ridge"`` as ``repair``, ``"merge"`` as ``merge_units``, ``"fold"`` as
            ``fold_means``.
        ridge: damping, relative to what is fitted on.
        rows: positions and examples, at most, that each contraction is fitted on; None for all.
    """

    kind: RepairKind
    ridge: float = 1e-3
    rows: int | None = ROWS

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, ("fold", "merge", "ridge"))
        require_range("ridge", self.ridge, 0)
        if self.rows is not None:
            require_count("rows", self.rows)

    def fit(self, site: Site) -> Correction:
        """Return the change of a contraction."""
        if self.kind == "ridge":
            return fit_weights(site, self.ridge)
        if self.kind == "merge":
            return merge_channels(site, self.ridge)
        return fit_bias(site)


class DenseReference(NamedTuple):
    """Hold what a repair reads of the dense network.

    Attributes:
        inputs: of the network.
        rows: number of a contraction -> what it reads and makes.
        outside: slot -> what the masked network has from the dense one, before the first gate.
    """

    inputs: Inputs
    rows: dict[int, DenseRows]
    outside: dict[int, jax.Array]


def dense_reference(
    method: RepairMethod, apply: Apply, graph: Graph, variables: Variables, inputs: Inputs
) -> DenseReference:
    """Run the dense network for the repairs of many masks.

    Use it with ``repair_towards`` where many gates are repaired on the same examples.

    Args:
        method: how.
        apply: pure function ``(variables, *inputs) -> outputs``, in evaluation mode.
        graph: of the network.
        variables: dense.
        inputs: of ``apply``, a few hundred examples.

    Raises:
        ValueError: no inputs, or one without examples.
    """
    _check_inputs(inputs)
    matched = match(apply, graph, variables, inputs)
    schedule = _schedule(matched, graph, variables)
    program = matched.program
    values: dict[int, Value] = dict(
        zip(program.inputs, flat_arguments(variables, inputs), strict=True)
    )
    values.update(program.constants)
    rows = {}
    for number, equation in enumerate(program.equations):
        operands = [_value(values, atom) for atom in equation.inputs]
        values.update(zip(equation.outputs, equation.bind(*operands), strict=True))
        if number in schedule.refits:
            refit = schedule.refits[number]
            output = values[equation.outputs[0]]
            rows[number] = _dense_rows(method, refit, operands[refit.operand], output)
    outside = {slot: values[slot] for slot in schedule.outside}
    return DenseReference(inputs=inputs, rows=rows, outside=outside)


def _dense_rows(
    method: RepairMethod, refit: Refit, operand: jax.Array, output: jax.Array
) -> DenseRows:
    form = refit.form
    wide = jnp.promote_types(output.dtype, jnp.float32)
    numbers = jnp.asarray(pick(form.row_count, method.rows))
    points = None
    if method.kind == "merge":
        places = jnp.asarray(pick(form.point_count, method.rows))
        points = form.points(operand, places).astype(wide)
    return DenseRows(outputs=form.outputs(output, numbers).astype(wide), points=points)


def repair_towards(
    method: RepairMethod,
    apply: Apply,
    graph: Graph,
    variables: Variables,
    gates: Gates,
    reference: DenseReference,
) -> Variables:
    """Repair a masked network towards a dense reference.

    Args:
        method: how; that of the reference.
        apply: pure function ``(variables, *inputs) -> outputs``, in evaluation mode.
        graph: of the network.
        variables: those that the reference was made with.
        gates: group name -> f32[units]; may be traced, also under ``vmap``.
        reference: of the dense network.

    Returns:
        Variables of the dense shapes for the same gates.

    Raises:
        TypeError: gates are no dictionary of arrays.
        ValueError: what does not fit the graph.
    """
    check_gates(graph, gates)
    matched = match(apply, graph, variables, reference.inputs)
    schedule = _schedule(matched, graph, variables)
    run = _Run(matched, jax.tree.leaves(variables), flat_gates(graph, gates))
    run.start(schedule, reference.outside)
    for number in schedule.touched:
        run.step(number, schedule.refits.get(number), method, reference.rows.get(number))
    return jax.tree.unflatten(jax.tree.structure(variables), run.variables())


class Reach(NamedTuple):
    """Hold what a repair can refit of a network.

    Attributes:
        refitted: contractions behind a gate that it refits.
        skipped: reason -> contractions behind a gate that stay as they are.
    """

    refitted: int
    skipped: Mapping[str, int]


def repair_reach(apply: Apply, graph: Graph, variables: Variables, inputs: Inputs) -> Reach:
    """Count the contractions that a repair can refit.

    Use it to see what ``repair`` would leave as it is.

    Args:
        apply: pure function ``(variables, *inputs) -> outputs``, in evaluation mode.
        graph: of the network.
        variables: arrays or their ``jax.ShapeDtypeStruct``.
        inputs: arrays or their ``jax.ShapeDtypeStruct``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
        >>> graph = trace_graph(apply, variables, jnp.ones((1, 3)))
        >>> repair_reach(apply, graph, variables, (jnp.ones((1, 3)),))
        Reach(refitted=1, skipped={})
    """
    matched = match(apply, graph, variables, inputs)
    count = len(flatten_with_paths(variables))
    schedule = _schedule(matched, graph, variables)
    skipped = plan_repair(matched, count).skipped
    reasons = Counter(reason for number, reason in skipped.items() if number in schedule.touched)
    inside = sum(
        len(body.contractions)
        for number in schedule.touched
        for body in matched.bodies.get(number, ())
    )
    if inside:
        reasons["its weights are read in a loop or a function's body"] = inside
    return Reach(refitted=len(schedule.refits), skipped=dict(reasons))


def _at_once(
    method: RepairMethod,
    apply: Apply,
    graph: Graph,
    variables: Variables,
    gates: Gates,
    inputs: Inputs,
) -> Variables:
    reference = dense_reference(method, apply, graph, variables, inputs)
    return repair_towards(method, apply, graph, variables, gates, reference)


def _check_inputs(inputs: Inputs) -> None:
    require(
        isinstance(inputs, tuple),
        "inputs",
        type(inputs).__name__,
        "the tuple of what apply takes after the variables; pass (x,) for one array",
    )
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(inputs)]
    require(
        bool(shapes) and all(0 not in shape for shape in shapes),
        "inputs",
        shapes,
        "arrays that hold examples; a repair needs some to fit the weights to",
    )


def _schedule(matched: Matched, graph: Graph, variables: Variables) -> RepairSchedule:
    count = len(flatten_with_paths(variables))
    # Which equations read units does not depend on the gates.
    steps = masked_steps(matched, flat_gates(graph, ones_gates(graph)))
    return schedule_repair(matched, plan_repair(matched, count).refits, steps.is_changed, count)


def _value(values: Mapping[int, Value], atom: Atom) -> Value:
    return atom.value if isinstance(atom, Literal) else values[atom]


class _Run:
    """Run the masked network and refit it on the way."""

    def __init__(self, matched: Matched, variables: list[jax.Array], gates: jax.Array) -> None:
        self._program = matched.program
        self._slots = self._program.inputs[: len(variables)]
        self._values: dict[int, Value] = dict(zip(self._slots, variables, strict=True))
        self._values.update(self._program.constants)
        self._steps: MaskedSteps = masked_steps(matched, gates)

    def start(self, schedule: RepairSchedule, outside: Mapping[int, jax.Array]) -> None:
        """Evaluate what variables alone make, and take the rest from the dense network."""
        for number in schedule.of_variables:
            self._bind(number)
        self._values.update(outside)

    def variables(self) -> list[Value]:
        return [self._values[slot] for slot in self._slots]

    def step(
        self, number: int, refit: Refit | None, method: RepairMethod, dense: DenseRows | None
    ) -> None:
        """Evaluate an equation, its weights refitted before."""
        equation = self._program.equations[number]
        operands = self._steps.read(number, [self._value(atom) for atom in equation.inputs])
        if refit is not None and dense is not None:
            site = Site(
                form=refit.form,
                operand=operands[refit.operand],
                weights=refit.form.matrix(operands[refit.weight]),
                dense=dense,
                with_bias=refit.bias is not None,
            )
            self._correct(number, refit, method.fit(site))
            operands[refit.weight] = self._value(equation.inputs[refit.weight])
        outputs = self._steps.bind(number, operands)
        self._values.update(zip(equation.outputs, outputs, strict=True))

    def _value(self, atom: Atom) -> Value:
        return _value(self._values, atom)

    def _bind(self, number: int) -> None:
        equation = self._program.equations[number]
        outputs = equation.bind(*map(self._value, equation.inputs))
        self._values.update(zip(equation.outputs, outputs, strict=True))

    def _correct(self, number: int, refit: Refit, found: Correction) -> None:
        change = to_variable(self._program, refit.origin, refit.form.weights(found.weights))
        self._add(number, refit.origin, change)
        if refit.bias is not None:
            shift = refit.bias.sign * found.bias.reshape(-1)[refit.bias.order]
            self._add(number, refit.bias.origin, shift)

    def _add(self, number: int, origin: Origin, change: jax.Array) -> None:
        slot = self._program.inputs[origin.variable]
        old = self._values[slot]
        self._values[slot] = (old + change.reshape(old.shape)).astype(old.dtype)
        for each in origin.equations:
            if each < number:
                self._bind(each)
