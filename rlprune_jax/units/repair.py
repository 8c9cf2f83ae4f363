"""Repair a masked network: what remains makes up for what is gone, without training."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require, require_range
from rlprune_jax.graph.gating import flat_gates, masked_steps
from rlprune_jax.graph.groups import Graph, check_gates
from rlprune_jax.graph.matching import Inputs, Matched, flat_arguments, match
from rlprune_jax.graph.program import Atom, Literal, Value
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.types import Apply, Gates, Variables
from rlprune_jax.units.least_squares import Correction, MatrixForm, fit_bias, fit_weights
from rlprune_jax.units.repair_plan import Origin, Refit, plan_repair, to_variable

Fit = Callable[[MatrixForm, jax.Array, jax.Array, bool], Correction]
"""``(form, operand, residual, with_bias) -> correction`` of one contraction."""


def repair(
    apply: Apply,
    graph: Graph,
    variables: Variables,
    gates: Gates,
    inputs: Inputs,
    *,
    ridge: float = 1e-3,
) -> Variables:
    """Refit the weights that remain to the dense network's activations.

    Use it after a cut, before a finetune or in its place: a few hundred examples without labels,
    and no gradient. Dots and convolutions are taken in the order of the program. Each reads what
    the masked network, repaired so far, computes; its weights ``W`` change to those that come
    closest to what the dense network has as output of this contraction:

        min over D, b of  |X (W + D) + b - Y|^2 + d |D|^2

    with one row a position and example, and ``d`` = ``ridge`` times the mean square of X. ``b``
    goes to the variable that is added to the output (a bias) or subtracted (a running mean), if
    there is one. Damping pulls towards the weights as they are: with all gates 1 nothing changes,
    no system is singular, and no contraction's error on ``inputs`` grows for given X.

    Left as they are: dots of activations; weights that are read more than once (tied, recurrent) or
    computed from others (normalised); all that comes before the first gate.

    Args:
        apply: pure function ``(variables, *inputs) -> outputs``, in evaluation mode.
        graph: of the network.
        variables: dense.
        gates: group name -> f32[units]; may be traced, also under ``vmap``.
        inputs: of ``apply``, a few hundred examples.
        ridge: damping, relative to the features; more for fewer examples.

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
    require_range("ridge", ridge, 0)

    def fit(form: MatrixForm, operand: jax.Array, residual: jax.Array, bias: bool) -> Correction:
        return fit_weights(form, operand, residual, ridge, bias)

    return _repair(apply, graph, variables, gates, inputs, fit)


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

    def fit(form: MatrixForm, operand: jax.Array, residual: jax.Array, bias: bool) -> Correction:
        return fit_bias(form, operand, residual)

    return _repair(apply, graph, variables, gates, inputs, fit)


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


def _repair(
    apply: Apply, graph: Graph, variables: Variables, gates: Gates, inputs: Inputs, fit: Fit
) -> Variables:
    _check_inputs(inputs)
    check_gates(graph, gates)
    matched = match(apply, graph, variables, inputs)
    count = len(flatten_with_paths(variables))
    run = _Run(matched, flat_arguments(variables, inputs), flat_gates(graph, gates))
    refits = plan_repair(matched, count).refits
    for number in range(len(matched.program.equations)):
        run.step(number, refits.get(number), fit)
    leaves = [run.masked(slot) for slot in matched.program.inputs[:count]]
    return jax.tree.unflatten(jax.tree.structure(variables), leaves)


class _Run:
    """Run the dense and the masked network side by side.

    What no gate has touched is computed once.
    """

    def __init__(self, matched: Matched, arguments: list[Value], gates: jax.Array) -> None:
        self._program = matched.program
        self._dense: dict[int, Value] = dict(zip(self._program.inputs, arguments, strict=True))
        self._dense.update(self._program.constants)
        self._masked: dict[int, Value] = {}
        self._steps = masked_steps(matched, gates)

    def dense(self, atom: Atom) -> Value:
        return atom.value if isinstance(atom, Literal) else self._dense[atom]

    def masked(self, atom: Atom) -> Value:
        if isinstance(atom, Literal) or atom not in self._masked:
            return self.dense(atom)
        return self._masked[atom]

    def step(self, number: int, refit: Refit | None, fit: Fit) -> None:
        """Evaluate an equation in both, and refit its weights before."""
        equation = self._program.equations[number]
        operands = [self.dense(atom) for atom in equation.inputs]
        self._dense.update(zip(equation.outputs, equation.bind(*operands), strict=True))
        own = [self.masked(atom) for atom in equation.inputs]
        same = all(a is b for a, b in zip(operands, own, strict=True))
        if same and not self._steps.is_changed(number):
            return
        changed = self._steps.read(number, own)
        outputs = self._steps.bind(number, changed)
        if refit is not None:
            wide = jnp.promote_types(outputs[0].dtype, jnp.float32)
            residual = self._dense[equation.outputs[0]].astype(wide) - outputs[0].astype(wide)
            found = fit(refit.form, changed[refit.operand], residual, refit.bias is not None)
            self._correct(number, refit, found)
            changed[refit.weight] = self.masked(equation.inputs[refit.weight])
            outputs = self._steps.bind(number, changed)
        self._masked.update(zip(equation.outputs, outputs, strict=True))

    def _correct(self, number: int, refit: Refit, found: Correction) -> None:
        change = to_variable(self._program, refit.origin, refit.form.weights(found.weights))
        self._add(number, refit.origin, change)
        if refit.bias is not None:
            shift = refit.bias.sign * found.bias.reshape(-1)[refit.bias.order]
            self._add(number, refit.bias.origin, shift)

    def _add(self, number: int, origin: Origin, change: jax.Array) -> None:
        slot = self._program.inputs[origin.variable]
        old = self.masked(slot)
        self._masked[slot] = (old + change.reshape(old.shape)).astype(old.dtype)
        for each in origin.equations:
            if each < number:
                equation = self._program.equations[each]
                moved = equation.bind(self.masked(equation.inputs[0]))
                self._masked.update(zip(equation.outputs, moved, strict=True))
