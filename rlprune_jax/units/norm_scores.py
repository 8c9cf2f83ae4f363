"""Score units by the scales of their norms (network slimming)."""

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.graph.groups import FOLLOWER, Graph, Group
from rlprune_jax.graph.matching import Inputs, check_variables, match
from rlprune_jax.graph.program import Literal, Program
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.types import Apply, Gates, PyTree, Variables
from rlprune_jax.units.weight_scores import SlotReduction, magnitude_scores, reduce_slots

_MOVING = frozenset(
    {
        *("broadcast_in_dim", "convert_element_type", "copy", "copy_p", "expand_dims"),
        *("reshape", "squeeze", "transpose"),
    }
)
"""What may stand between a scale and its product."""


def norm_scale_scores(
    apply: Apply,
    graph: Graph,
    variables: Variables,
    inputs: Inputs,
    *,
    reduction: SlotReduction = "sum",
) -> Gates:
    """Score units by the absolute scales of their norms.

    The scale of a batch norm (or another norm) is a parameter, one number a unit, that multiplies
    what the unit gives. It is found by what the program does with it, whatever it is called. Groups
    without any score as ``magnitude_scores``, times the mean scale of the network, so that they
    are neither first nor last to go.

    Args:
        apply: pure function ``(variables, *inputs) -> outputs``.
        graph: of the network.
        variables: dense.
        inputs: of ``apply``; only shapes and dtypes matter.
        reduction: over the norms of coupled units.

    Returns:
        Group name -> f32[units].

    Raises:
        ValueError: no group has a norm with a scale, or an unknown reduction.

    Reference:
        Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming".

    Example:
        >>> import jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return (x @ variables["a"] * variables["scale"]) @ variables["b"]
        >>> scale = jnp.array([-3.0, 1.0])
        >>> variables = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 1)), "scale": scale}
        >>> graph = trace_graph(apply, variables, jnp.ones((1, 2)))
        >>> norm_scale_scores(apply, graph, variables, (jnp.ones((1, 2)),))["a"].tolist()
        [3.0, 1.0]
    """
    check_variables(graph, variables)
    flat = flatten_with_paths(variables)
    program = match(apply, graph, variables, inputs).program
    slots = dict(zip(flat, program.inputs, strict=False))
    readers = _readers(program)
    scales = {path for path in graph.parameters if _only_multiplies(program, readers, slots[path])}
    found = {group.name: _scales(group, flat, scales, reduction) for group in graph.groups}
    known = [each for each in found.values() if each is not None]
    if not known:
        raise ValueError(
            "score='norm_scale' needs norms with a scale for each unit (batch norm), and the "
            "network has none; choose another score, such as 'fisher' or 'magnitude'"
        )
    level = jnp.concatenate(known).mean()
    norms = magnitude_scores(graph, variables)
    return {name: norms[name] * level if each is None else each for name, each in found.items()}


def _readers(program: Program) -> dict[int, list[int]]:
    """Return slot -> numbers of the equations that read it, and -1 of an output."""
    found: dict[int, list[int]] = {}
    for number, equation in enumerate(program.equations):
        for atom in equation.inputs:
            if not isinstance(atom, Literal):
                found.setdefault(atom, []).append(number)
    for atom in program.outputs:
        if not isinstance(atom, Literal):
            found.setdefault(atom, []).append(-1)
    return found


def _only_multiplies(program: Program, readers: dict[int, list[int]], slot: int) -> bool:
    """Tell whether a value is moved and multiplied, and nothing else."""
    numbers = readers.get(slot, [])
    for number in numbers:
        if number < 0:
            return False
        equation = program.equations[number]
        if equation.name in _MOVING:
            if not _only_multiplies(program, readers, equation.outputs[0]):
                return False
        elif equation.name != "mul":
            return False
    return bool(numbers)


def _scales(
    group: Group, flat: dict[str, PyTree], scales: set[str], reduction: SlotReduction
) -> jax.Array | None:
    """Return the absolute scales of a group's units, f32[units], or None without any."""
    own = [
        slot
        for slot in group.slots_of(FOLLOWER)
        if slot.path in scales and np.ndim(flat[slot.path]) == 1
    ]
    if not own:
        return None
    values = [jnp.abs(jnp.asarray(flat[slot.path], jnp.float32))[slot.indices] for slot in own]
    return reduce_slots([each.mean(1) for each in values], reduction)
