"""The part of a reward that says how much kept units still span of the dense activations."""

from functools import partial

import jax

from rlprune_jax.graph.groups import Graph
from rlprune_jax.search import Environment, masks_to_gates
from rlprune_jax.types import Gates, PyTree, Variables
from rlprune_jax.units.retention import Covariances, mean_retention, retention, unit_covariances
from rlprune_jax.workflow.network import Definition
from rlprune_jax.workflow.pruning import Pruning


def dense_covariances(pruning: Pruning) -> Covariances | None:
    """Return the covariances that rewards read.

    None where retention does not count, or where no group has any.

    Args:
        pruning: the problem; its calibration examples are read.
    """
    config, task, network = pruning.config, pruning.task, pruning.network
    if not config.reward_retention:
        return None
    assert config.calibration_images is not None
    inputs = task.objective.network_inputs(task.sample("train", config.calibration_images))
    found = _covariances(network.definition, network.variables, inputs)
    return found if found.of else None


@partial(jax.jit, static_argnums=0)
def _covariances(
    definition: Definition, variables: Variables, inputs: tuple[PyTree, ...]
) -> Covariances:
    return unit_covariances(definition.apply, definition.graph, variables, inputs)


def with_retention(
    pruning: Pruning, covariances: Covariances | None, rewards: jax.Array, masks: jax.Array
) -> jax.Array:
    """Return the mean of rewards and what masks retain.

    Weighted as the settings say.

    Args:
        pruning: the problem.
        covariances: of the dense network; None leaves rewards as they are.
        rewards: f32[N].
        masks: f32[N, G, Cmax].
    """
    if covariances is None:
        return rewards
    weight = pruning.config.reward_retention or 0.0
    found = _of_masks(pruning.graph, covariances, pruning.env, masks)
    return (rewards + weight * found) / (1.0 + weight)


@partial(jax.jit, static_argnums=0)
def _of_masks(
    graph: Graph, covariances: Covariances, env: Environment, masks: jax.Array
) -> jax.Array:
    return retained(graph, covariances, masks_to_gates(env, masks))


@partial(jax.jit, static_argnums=0)
def retained(graph: Graph, covariances: Covariances, gates: Gates) -> jax.Array:
    """Return the mean retention of several candidates, f32[N].

    Args:
        graph: of the network.
        covariances: of the dense network.
        gates: group name -> f32[N, units].
    """

    def one(gates: Gates) -> jax.Array:
        return mean_retention(retention(graph, covariances, gates))

    return jax.vmap(one)(gates)
