"""Train a network from many seeds: all in one program, or one after the other."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require, require_count
from rlprune_jax.devices import is_out_of_memory
from rlprune_jax.runs import CompileClock, DivergenceError
from rlprune_jax.training.loops import TrainState
from rlprune_jax.training.task import Batch, Task
from rlprune_jax.types import Gates, Variables
from rlprune_jax.workflow.keys import stage_key
from rlprune_jax.workflow.learning import (
    TrainingProgram,
    start_training,
    steps_at_once,
    train_dense,
    train_steps,
    trained_variables,
)
from rlprune_jax.workflow.network import Network
from rlprune_jax.workflow.recipes import DenseRecipe, FastRecipe

Way = Literal["one by one", "together"]
"""One seed after the other, or all of them in one program."""


class TrainedSeeds(NamedTuple):
    """Hold a network trained from several seeds.

    Attributes:
        networks: one for each seed.
        way: that the library chose.
        why: a sentence that says so, with what was measured.
    """

    networks: tuple[Network, ...]
    way: Way
    why: str


class _Seeds(NamedTuple):
    """What is trained: the program, its data, and a key for each seed."""

    learner: TrainingProgram
    data: Batch
    keys: tuple[jax.Array, ...]
    steps: int

    def one(self, state: TrainState, place: int, count: int) -> TrainState:
        """Train one seed for some steps."""
        total = jnp.float32(self.steps)
        state, metrics = train_steps(
            self.learner, state, None, total, self.data, self.keys[place], steps=count
        )
        check_finite(metrics["loss"])
        return state

    def all(self, states: TrainState, count: int) -> TrainState:
        """Train all seeds, stacked, for some steps."""
        total, keys = jnp.float32(self.steps), jnp.stack(self.keys)
        states, losses = _together(self.learner, states, None, total, self.data, keys, steps=count)
        check_finite(losses)
        return states


def check_finite(losses: jax.Array) -> None:
    """Refuse losses that are NaN or infinite.

    Raises:
        DivergenceError: one is.
    """
    if not np.isfinite(np.asarray(losses)).all():
        raise DivergenceError("the loss became NaN or infinite; lower the recipe's rate")


def train_seeds(
    network: Network, task: Task, recipe: DenseRecipe | FastRecipe, seeds: Sequence[int]
) -> TrainedSeeds:
    """Train a network from many seeds, the faster way.

    Use it for means and deviations over seeds. Each network is what ``train_dense`` gives for its
    seed, from fresh variables where the network can be initialised. One program for all of them
    keeps an accelerator busy where networks are small; where convolutions are large their weights,
    one set a seed, make grouped convolutions, which are slow. So both ways are timed on the way,
    where what is left is long enough to win back a second compilation, and the faster one goes on.

    Args:
        network: initialised or not.
        task: what it is to do.
        recipe: of each training.
        seeds: each of its own.

    Raises:
        ValueError: no seeds, or one twice.
        DivergenceError: a loss became NaN or infinite.
    """
    require(bool(seeds), "seeds", seeds, "at least one")
    for seed in seeds:
        require_count("seeds", seed, 0)
    require(len(set(seeds)) == len(seeds), "seeds", seeds, "all different")
    task = task.on_device()
    starts = [network.replace(variables_of(network, seed)) for seed in seeds]
    if len(seeds) == 1 or task.is_streamed("train"):
        pairs = zip(starts, seeds, strict=True)
        networks = tuple(train_dense(start, task, recipe, seed) for start, seed in pairs)
        why = "one seed" if len(seeds) == 1 else "data that come batch by batch"
        return TrainedSeeds(networks, "one by one", f"seeds were trained one by one: {why}")
    definition = network.definition
    program = TrainingProgram(definition=definition, objective=task.objective, recipe=recipe)
    keys = tuple(stage_key(seed, "dense") for seed in seeds)
    states = [start_training(recipe, start.variables) for start in starts]
    states, way, why = _trained(_Seeds(program, task.train, keys, recipe.steps), states)
    networks = tuple(network.replace(trained_variables(recipe, state)) for state in states)
    return TrainedSeeds(networks, way, why)


def variables_of(network: Network, seed: int) -> Variables:
    """Return fresh variables, the network's own without an initialisation."""
    init = network.definition.init
    return network.variables if init is None else init(stage_key(seed, "init"))


def _trained(seeds: _Seeds, states: list[TrainState]) -> tuple[list[TrainState], Way, str]:
    """Train all states to the end, after timing both ways on part of it."""
    chunk = steps_at_once(seeds.steps)
    with CompileClock() as clock:
        states[0] = seeds.one(states[0], 0, chunk)
    times = []
    for place in range(1, len(states)):
        began = time.perf_counter()
        states[place] = seeds.one(states[place], place, chunk)
        times.append(time.perf_counter() - began)
    alone = float(np.median(times)) * len(states)
    done, chunks_left = chunk, (seeds.steps - chunk) // chunk
    # One chunk is needed to measure; a third of the time is what one program may well save.
    if chunks_left < 2 or alone * chunks_left / 3 < clock.seconds:
        why = (
            f"seeds were trained one by one: {alone * chunks_left:.1f} s were left, too few for "
            f"another compilation of {clock.seconds:.1f} s"
        )
        return _go_on(seeds, states, done, None), "one by one", why
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    try:
        stacked, done = seeds.all(stacked, chunk), done + chunk
        if chunks_left > 2:  # the first call has compiled
            began = time.perf_counter()
            stacked, done = seeds.all(stacked, chunk), done + chunk
            together = time.perf_counter() - began
        else:
            together = alone
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        together = float("inf")
    way: Way = "together" if together < alone else "one by one"
    why = (
        f"seeds were trained {way}: {chunk} steps of {len(states)} seeds took {together:.2f} s in "
        f"one program and {alone:.2f} s one after the other"
    )
    if way == "together":
        return _go_on(seeds, states, done, stacked), way, why
    states = [jax.tree.map(lambda leaf, n=n: leaf[n], stacked) for n in range(len(states))]
    return _go_on(seeds, states, done, None), way, why


def _go_on(
    seeds: _Seeds, states: list[TrainState], done: int, stacked: TrainState | None
) -> list[TrainState]:
    """Train to the last step, together where there is a stacked state."""
    chunk, count = steps_at_once(seeds.steps), len(states)
    for start in range(done, seeds.steps, chunk):
        steps = min(chunk, seeds.steps - start)
        if stacked is None:
            states = [seeds.one(state, place, steps) for place, state in enumerate(states)]
        else:
            stacked = seeds.all(stacked, steps)
    if stacked is None:
        return states
    return [jax.tree.map(lambda leaf, n=n: leaf[n], stacked) for n in range(count)]


@partial(jax.jit, static_argnames=("learner", "steps"))
def _together(
    learner: TrainingProgram,
    states: TrainState,
    gates: Gates | None,
    total: jax.Array,
    data: Batch,
    keys: jax.Array,
    steps: int,
) -> tuple[TrainState, jax.Array]:
    def one(state: TrainState, key: jax.Array) -> tuple[TrainState, jax.Array]:
        state, metrics = train_steps(learner, state, gates, total, data, key, steps=steps)
        return state, metrics["loss"]

    return jax.vmap(one)(states, keys)
