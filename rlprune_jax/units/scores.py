"""Score the importance of units: magnitude, Taylor, random.

Use Taylor to compare units of different groups; magnitudes only rank units within a group.
"""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from rlprune_jax.graph.groups import PRODUCER, Graph, Group, ones_gates
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.types import Gates, PyTree, Variables

UNIT_SCORES = ("taylor", "magnitude", "random")
"""Names of the scores of units."""


def magnitude_scores(graph: Graph, variables: Variables) -> Gates:
    """Score units by the norm of their weights.

    Groups with several producers (a residual stream) add up their squares. Filters' norms grow
    with fan-in, so across groups each is divided by the group's mean.

    Args:
        graph: of the network.
        variables: dense.

    Returns:
        Group name -> f32[units], the L2 norm over the mean of its group.

    Reference:
        Li et al. 2017, "Pruning Filters for Efficient ConvNets" (with L1).
    """
    flat = flatten_with_paths(variables)
    scores = {}
    for group in graph.groups:
        squares = jnp.zeros(group.size)
        for slot in group.slots_of(PRODUCER):
            weights = jnp.moveaxis(jnp.asarray(flat[slot.path]), slot.axis, 0)
            energy = jnp.sum(jnp.square(weights.reshape(weights.shape[0], -1)), axis=1)
            squares += jnp.sum(energy[slot.indices], axis=1)
        if group.are_layers:
            squares = _layer_energies(group, flat)
        if group.branches:
            squares = jnp.stack([_energy([flat[path] for path in each]) for each in group.branches])
        norms = jnp.sqrt(squares)
        scores[group.name] = norms / jnp.maximum(jnp.mean(norms), 1e-12)
    return scores


def _layer_energies(group: Group, flat: dict[str, PyTree]) -> jax.Array:
    """Return the mean square of the entries of each layer of a loop, f32[units]."""
    total, count = jnp.zeros(group.size), 0
    for slot in group.slots:
        layers = jnp.moveaxis(jnp.asarray(flat[slot.path], jnp.float32), slot.axis, 0)
        rows = layers[slot.indices[:, 0]].reshape(group.size, -1)
        total, count = total + jnp.sum(jnp.square(rows), axis=1), count + rows.shape[1]
    return total / max(count, 1)


def _energy(arrays: list[PyTree]) -> jax.Array:
    """Return the mean square of the entries of arrays, f32[]."""
    total = sum(jnp.sum(jnp.square(jnp.asarray(each, jnp.float32))) for each in arrays)
    return jnp.asarray(total / sum(jnp.size(each) for each in arrays))


class GatedLoss(Protocol):
    """Evaluate the loss of a masked network at gates."""

    def __call__(self, gates: Gates, batch: PyTree, /) -> jax.Array:
        """Return f32[], the mean over a minibatch."""


def taylor_scores(graph: Graph, loss: GatedLoss, batches: PyTree) -> Gates:
    """Score units by what the loss loses with them.

    The derivative of the loss by a unit's gate, squared and averaged over minibatches, is what the
    loss loses with the unit to first order; it compares units across groups.

    Args:
        graph: of the network.
        loss: ``(gates, batch) -> f32[]`` of the masked network, whatever its task.
        batches: pytree of arrays [M, B, ...], M minibatches.

    Returns:
        Group name -> f32[units], the mean squared first-order change of the loss.

    Reference:
        Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", eq. 8 with gates.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import gated, trace_graph
        >>> def apply(variables, x):
        ...     return (x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.eye(2, 3), "b": jnp.ones((3, 1))}
        >>> x = jnp.ones((1, 4, 2))
        >>> graph = trace_graph(apply, variables, x[0])
        >>> def loss(gates, batch):
        ...     return gated(apply, graph)(variables, gates, batch).mean()
        >>> taylor_scores(graph, loss, x)["a"].tolist()
        [1.0, 1.0, 0.0]
    """

    def squared(batch: PyTree) -> Gates:
        return jax.tree.map(jnp.square, jax.grad(loss)(ones_gates(graph), batch))

    return jax.tree.map(lambda each: each.mean(0), jax.lax.map(squared, batches))


def random_scores(graph: Graph, key: jax.Array) -> Gates:
    """Score units at random, the control of every other score.

    Args:
        graph: of the network.
        key: typed random key.

    Returns:
        Group name -> f32[units], uniform in [0, 1).
    """
    keys = jax.random.split(key, len(graph.groups))
    return {
        group.name: jax.random.uniform(group_key, (group.size,))
        for group, group_key in zip(graph.groups, keys, strict=True)
    }


def group_scores(
    graph: Graph, scores: Gates, reduce: Callable[[jax.Array], jax.Array] = jnp.sum
) -> jax.Array:
    """Reduce the scores of units to one per group.

    Args:
        graph: of the network.
        scores: group name -> f32[units].
        reduce: ``f32[units] -> f32[]``.

    Returns:
        f32[G], in depth order.
    """
    return jnp.stack([reduce(scores[name]) for name in graph.names])
