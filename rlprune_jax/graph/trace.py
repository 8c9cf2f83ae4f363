"""From a function to its graph, by one trace and one walk over it."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rlprune_jax.checks import require, require_flag, require_function
from rlprune_jax.graph.branches import Branch, find_branches
from rlprune_jax.graph.gathering import Traced, gather
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.matching import remember
from rlprune_jax.graph.program import Literal, Program, trace_program
from rlprune_jax.graph.rules import Context
from rlprune_jax.graph.walk import Walk, resolve, variable_axes, walk_with
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.types import Apply, ApplyTrain, Variables


def trace_graph(
    apply: Apply,
    variables: Variables,
    *inputs: Any,
    ignore: Sequence[str] | str = (),
    apply_train: ApplyTrain | None = None,
    depth_groups: bool = False,
) -> Graph:
    """Find the units of a network that can be removed.

    Start here with any network. The graph says what each unit owns, and what is frozen and why. The
    function is traced to a jaxpr and walked once; nothing is computed. Units are indices of
    axes of variables that the program ties together: those that a unit's removal takes along.

    Args:
        apply: pure function ``(variables, *inputs) -> outputs``, in evaluation mode: every axis of
            an output is frozen, so it must return the predictions alone.
        variables: pytree of arrays, or of their ``jax.ShapeDtypeStruct``. With a top-level
            ``"params"``, what is below counts as parameters; otherwise everything does but random
            keys and counters (scalars of an integer type).
        *inputs: arrays or ``jax.ShapeDtypeStruct``; the first axis of the first is the batch. Any
            batch size does: the graph holds for others.
        ignore: regular expressions; variables whose path one of them matches from some place on
            (``re.search``) keep their shapes, and all units that own a part of them stay.
        apply_train: the same network in training mode, so that the graph holds for both. Needed
            where only training reads a variable, such as the hidden averages of Haiku's batch norm,
            or reads units that evaluation does not.
        depth_groups: whether residual branches are units too, of one more group, "depth". A branch
            that is pruned is computed no more, and its variables are left empty; one stays.

    Returns:
        The graph; ``print`` shows groups, what they own, and what is frozen and why.

    Raises:
        ValueError: nothing can be pruned; the message says why each axis is frozen. Or an
            expression of ``ignore`` is no regular expression or matches no path.
        TypeError: a leaf of ``variables`` is no array, or ``apply`` no function. What ``apply``
            raises itself passes as it is, with a note of the shapes it was called with.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
        >>> print(trace_graph(apply, variables, jnp.ones((1, 3))))
        1 groups with 5 units; 25 parameters, 25 MACs per example
          a     5 units  made by a[1]; read by b[0]
        frozen:
          b[1] 2 units: an output of the function
          and 1 other axes; graph.report() says why of each
    """
    require_function("apply", apply, "a function (variables, *inputs) -> outputs")
    if apply_train is not None:
        require_function("apply_train", apply_train, "a function as apply, or None")
    require_flag("depth_groups", depth_groups)
    _check_ignore(ignore)
    structure = flatten_with_paths(variables)
    for path, leaf in structure.items():
        if not hasattr(leaf, "dtype") and not np.isscalar(leaf):
            raise TypeError(
                f"variables hold a {type(leaf).__name__} at {path!r}; pass arrays alone and let "
                "apply put the rest back, as with equinox.partition or flax.nnx.split"
            )
    program, out_shape = trace_program(apply, variables, *inputs)
    context = Context(layers=depth_groups)
    shared = variable_axes(context, program, len(structure))
    found = walk_with(context, program, shared)
    context.equation = None
    for atom in program.outputs:
        if not isinstance(atom, Literal):
            for ids in found.axes[atom]:
                found.nodes.freeze(ids, "an output of the function")
    walks = [found]
    if apply_train is not None:
        # On the same nodes: what training ties and reads counts as what evaluation does.
        training, _ = trace_program(apply_train, variables, *inputs)
        walks.append(walk_with(context, training, shared))
    for path, expression in _ignored(structure, ignore).items():
        for ids in found.axes[program.inputs[list(structure).index(path)]]:
            found.nodes.freeze(ids, f"ignored by {expression!r}")
    resolve(context, walks)
    branches = _branches(program, found, structure, ignore) if depth_groups else []
    graph = gather(Traced(program, found, structure, branches, _batch_size(inputs), context.leasts))
    if not graph.groups:
        raise ValueError(
            "nothing in this network can be pruned: every axis is frozen\n" + str(graph)
        )
    remember(apply, graph, (variables, inputs), (program, out_shape, found, context))
    return graph


def _branches(
    program: Program, found: Walk, structure: dict[str, Any], ignore: Sequence[str] | str
) -> list[Branch]:
    """Return the residual branches that may be units, of which there are two or none."""
    paths = dict(zip(program.inputs, structure, strict=False))
    ignored = _ignored(structure, ignore)
    branches = [
        each
        for each in find_branches(program, len(structure), found.contracting())
        if not any(paths[slot] in ignored for slot in each.variables)
    ]
    return branches if len(branches) > 1 else []


def _ignored(structure: dict[str, Any], ignore: Sequence[str] | str) -> dict[str, str]:
    """Map each path that an expression matches to that expression."""
    matched: dict[str, str] = {}
    for expression in [ignore] if isinstance(ignore, str) else ignore:
        try:
            paths = [path for path in structure if re.search(expression, path)]
        except re.error as error:
            raise ValueError(f"ignore={expression!r} is no regular expression: {error}") from error
        if not paths:
            raise ValueError(
                f"ignore={expression!r} matches none of the paths {', '.join(structure)}"
            )
        matched |= {path: matched.get(path, expression) for path in paths}
    return matched


def _check_ignore(ignore: Sequence[str] | str) -> None:
    texts = [ignore] if isinstance(ignore, str) else ignore
    good = isinstance(texts, Sequence) and all(isinstance(each, str) for each in texts)
    require(good, "ignore", ignore, "a regular expression or a list of some")


def _batch_size(inputs: tuple[Any, ...]) -> int:
    leaves = jax.tree.leaves(inputs)
    if not leaves or not np.shape(leaves[0]) or np.shape(leaves[0])[0] == 0:
        raise ValueError(
            "inputs must start with an array whose first axis is a batch of at least one, got "
            f"shapes {[np.shape(leaf) for leaf in leaves]}"
        )
    return np.shape(leaves[0])[0]
