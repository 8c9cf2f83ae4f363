"""Score units by the derivatives of the loss by their gates: Taylor, per-sample Fisher."""

from typing import Protocol

import jax
import jax.numpy as jnp

from rlprune_jax.graph.groups import Graph, ones_gates
from rlprune_jax.types import Gates, PyTree


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


def fisher_scores(
    graph: Graph, loss: GatedLoss, batches: PyTree, gates: Gates | None = None
) -> Gates:
    """Score units by the Fisher information of their gates.

    The derivative of *each example's* loss by the gate, times the gate, squared and averaged. A
    gate multiplies all that its unit owns, so coupled slots are summed before they are squared. As
    ``taylor_scores``, but without the mean over a minibatch before the square, which cancels what
    examples want of a unit: of a trained network nearly all.

    Args:
        graph: of the network.
        loss: ``(gates, batch) -> f32[]`` of the masked network, the mean over a batch; called with
            batches of one example.
        batches: pytree of arrays [M, B, ...]; B examples are differentiated at once.
        gates: at which the loss is differentiated; all 1 by default. Pruned units score 0.

    Returns:
        Group name -> f32[units].

    Reference:
        Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning"; Liu et
        al. 2021, "Group Fisher Pruning", eq. 4.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import gated, trace_graph
        >>> def apply(variables, x):
        ...     return (x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.eye(2), "b": jnp.ones((2, 1))}
        >>> x = jnp.array([[[1.0, 3.0], [-1.0, 3.0]]])
        >>> graph = trace_graph(apply, variables, x[0])
        >>> def loss(gates, batch):
        ...     return gated(apply, graph)(variables, gates, batch).mean()
        >>> fisher_scores(graph, loss, x)["a"].tolist(), taylor_scores(graph, loss, x)["a"].tolist()
        ([1.0, 9.0], [0.0, 9.0])
    """
    at = ones_gates(graph) if gates is None else gates

    def squared(batch: PyTree) -> Gates:
        examples = jax.tree.map(lambda leaf: leaf[:, None], batch)
        slopes = jax.vmap(jax.grad(loss), (None, 0))(at, examples)
        return {name: jnp.square(at[name] * slopes[name]).mean(0) for name in graph.names}

    return jax.tree.map(lambda each: each.mean(0), jax.lax.map(squared, batches))
