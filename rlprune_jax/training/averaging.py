"""Average what training moves: an exponential moving average of weights and statistics."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlprune_jax.training.loops import Metrics, StepFunction, TrainState
from rlprune_jax.training.task import Batch
from rlprune_jax.types import PyTree, Variables

WARM = 10
"""Steps after which the average forgets nine tenths of what it began with."""


class Averaging(NamedTuple):
    """Hold the average beside the state of an optimizer.

    Attributes:
        opt_state: of the optimizer.
        variables: averaged.
    """

    opt_state: PyTree
    variables: Variables


def start_averaging(state: TrainState) -> TrainState:
    """Return the state before the first step of averaged training."""
    return state._replace(opt_state=Averaging(state.opt_state, state.variables))


def averaged(step: StepFunction, decay: float) -> StepFunction:
    """Return a step that averages the variables too.

    Use it where the last weights of a training jump from step to step. The average moves by
    ``1 - decay`` to each step's variables, and faster at first, so that it does not remember where
    training began. Running statistics are averaged with the weights; integers are those of the last
    step.

    Args:
        step: of states without the average.
        decay: what is kept of the average at each step, of [0, 1).

    Returns:
        A step of states made by ``start_averaging``.
    """

    def together(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        held: Averaging = state.opt_state
        following, metrics = step(state._replace(opt_state=held.opt_state), batch, key)
        kept = jnp.minimum(decay, (1.0 + state.step) / (WARM + state.step))

        def mix(average: jax.Array, value: jax.Array) -> jax.Array:
            if not jnp.issubdtype(value.dtype, jnp.inexact):
                return value
            return (value + kept * (average - value)).astype(value.dtype)

        average = jax.tree.map(mix, held.variables, following.variables)
        return following._replace(opt_state=Averaging(following.opt_state, average)), metrics

    return together
