"""Training in a run: the dense network, and what is left of it; resumable, and stopped by NaN."""

import dataclasses
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlprune_jax.runs import MemoryRun, Run, StageOptions, run_stage
from rlprune_jax.training.loops import (
    TrainState,
    init_train_state,
    make_train_step,
    passes,
    train,
)
from rlprune_jax.training.optimizers import make_optimizer
from rlprune_jax.training.task import Batch, Data, Objective, Task, count_examples
from rlprune_jax.types import Apply, Gates, PyTree, Variables
from rlprune_jax.workflow.candidates import masked_training
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.network import Definition, Network
from rlprune_jax.workflow.pruning import stage_key

STEPS_AT_ONCE = 60
"""Steps of training between two looks at the clock."""


class Finetune(Protocol):
    """Train a masked network further, in a way of the user's own."""

    def __call__(
        self, apply: Apply, variables: Variables, steps: int, key: jax.Array, /
    ) -> Variables:
        """Return the variables after so many steps.

        Args:
            apply: the masked network. It takes what the network's own function takes: for Linen
                ``apply(variables, x, training=True, mutable=["batch_stats"], rngs=...)``; for all
                others ``apply(variables, x)`` in evaluation mode and
                ``apply.train(variables, x, key=key) -> (outputs, updates)``.
            variables: dense ones to start from.
            steps: of training.
            key: for order and dropout.
        """


@dataclasses.dataclass(frozen=True)
class DenseRecipe:
    """Hold how a dense network is trained: SGD with momentum, warm-up and cosine.

    Attributes:
        steps: of training.
        rate: peak learning rate.
        batch_size: examples a step.
        weight_decay: of kernels.
    """

    steps: int
    rate: float = 0.1
    batch_size: int = 128
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"rate={self.rate} must be finite and above 0")

    def optimizer(self, total: jax.Array | int) -> optax.GradientTransformation:
        """Return the optimizer; its length is the recipe's own."""
        return make_optimizer(
            "sgd",
            learning_rate=self.rate,
            num_steps=self.steps,
            schedule="cosine",
            warmup=self.steps // 10,
            momentum=0.9,
            weight_decay=self.weight_decay,
        )


@dataclasses.dataclass(frozen=True)
class FinetuneRecipe:
    """Hold how a masked network is finetuned: Adam with cosine.

    Attributes:
        rate: peak learning rate.
        batch_size: examples a step.
    """

    rate: float = 1e-3
    batch_size: int = 128

    def optimizer(self, total: jax.Array | int) -> optax.GradientTransformation:
        """Return the optimizer, whose rate falls to 0 over a total that may be traced.

        Short and long finetunes are therefore one program.
        """

        def rate(count: jax.Array) -> jax.Array:
            return self.rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(count / total, 1.0)))

        return optax.adam(rate)


Recipe = DenseRecipe | FinetuneRecipe


@partial(jax.jit, static_argnames=("definition", "objective", "recipe", "steps"))
def _train(
    definition: Definition,
    objective: Objective,
    recipe: Recipe,
    state: TrainState,
    gates: Gates | None,
    total: jax.Array,
    data: Batch,
    key: jax.Array,
    steps: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    apply_train = definition.training_mode if gates is None else masked_training(definition, gates)
    step = make_train_step(apply_train, recipe.optimizer(total), objective)
    size = min(recipe.batch_size, count_examples(data))
    return train(step, state, data, batch_size=size, num_steps=steps, key=key)


@partial(jax.jit, static_argnames=("definition", "objective", "recipe"))
def _step(
    definition: Definition,
    objective: Objective,
    recipe: Recipe,
    state: TrainState,
    gates: Gates | None,
    total: jax.Array,
    batch: Batch,
    key: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    apply_train = definition.training_mode if gates is None else masked_training(definition, gates)
    return make_train_step(apply_train, recipe.optimizer(total), objective)(state, batch, key)


@partial(jax.jit, static_argnames="recipe")
def _start(recipe: Recipe, variables: Variables) -> TrainState:
    return init_train_state(variables, recipe.optimizer(1))


@dataclasses.dataclass(frozen=True)
class Training:
    """Hold one training: what is trained, on what, how and for how long.

    Attributes:
        name: of the stage.
        network: to start from.
        objective: of the task.
        data: arrays or a source of batches.
        recipe: the optimizer.
        steps: of training.
        gates: of the masked network; None for the dense one.
    """

    name: str
    network: Network
    objective: Objective
    data: Data
    recipe: Recipe
    steps: int
    gates: Gates | None = None


def run_training(
    training: Training, key: jax.Array, run: Run | None = None, save_seconds: float = 20.0
) -> Variables:
    """Train as a stage of a run, from its last checkpoint on.

    Raises:
        DivergenceError: the loss became NaN or infinite; nothing of it is saved.
    """
    run = MemoryRun() if run is None else run
    definition, objective = training.network.definition, training.objective
    total = jnp.float32(training.steps)
    metric_name = objective.metric_name
    stream: Iterator[Batch] | None = None

    def advance(state: TrainState, start: int, count: int) -> tuple[TrainState, list]:
        fixed = (definition, objective, training.recipe)
        if callable(training.data):
            found = []
            step_key = jax.random.split(key)[1]
            nonlocal stream
            if stream is None:
                stream = itertools.islice(passes(training.data), start, None)
            for number in range(start, start + count):
                batch, noise = next(stream), jax.random.fold_in(step_key, number)
                state, row = _step(*fixed, state, training.gates, total, batch, noise)
                found.append(row)
            metrics = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
        else:
            state, metrics = _train(
                *fixed, state, training.gates, total, training.data, key, steps=count
            )
        values = {name: float(jnp.mean(each)) for name, each in metrics.items()}
        return state, [(start + count, {"loss": values["loss"], metric_name: values["metric"]})]

    state = run_stage(
        run,
        training.name,
        _start(training.recipe, training.network.variables),
        training.steps,
        advance,
        StageOptions(
            chunk=min(STEPS_AT_ONCE, training.steps),
            save_seconds=save_seconds,
            note=lambda row: f"loss {row['loss']:.3f} {metric_name} {row[metric_name]:.3f}",
        ),
    )
    return state.variables


def train_dense(
    network: Network,
    task: Task,
    recipe: DenseRecipe,
    seed: int = 0,
    run: Run | None = None,
    save_seconds: float = 20.0,
) -> Network:
    """Return the network trained on the task's training data.

    Use it where there is no trained network yet; one that is trained is not to be trained again.

    Args:
        network: as initialised.
        task: what it is to do.
        recipe: for how long and how fast.
        seed: of order, augmentation and dropout.
        run: where checkpoints and metrics go; None keeps them in memory.
        save_seconds: between two checkpoints.

    Raises:
        DivergenceError: the loss became NaN or infinite.
    """
    task = task.on_device()
    training = Training(
        name="dense",
        network=network,
        objective=task.objective,
        data=task.train,
        recipe=recipe,
        steps=recipe.steps,
    )
    return network.replace(run_training(training, stage_key(seed, "dense"), run, save_seconds))


class MaskedFunction:
    """A masked network for a training loop of the user's own.

    Attributes:
        train: ``(variables, *inputs, key=None) -> (outputs, updates)``, in training mode.
    """

    def __init__(self, definition: Definition, gates: Gates) -> None:
        from rlprune_jax.graph.gating import gated

        own = definition.own_apply
        self._masked = definition.masked if own is None else gated(own, definition.graph)
        self._gates = gates
        self.train = masked_training(definition, gates)

    def __call__(self, variables: Variables, /, *inputs: PyTree, **options: PyTree) -> PyTree:
        """Return what the network's own function returns, of the masked network."""
        return self._masked(variables, self._gates, *inputs, **options)


def training_data(task: Task, held_out: bool) -> Data:
    """Return what is finetuned on: the training data, with or without the held-out ones.

    As many rows in both cases, the surplus repeated: one compiled program finetunes on either.
    """
    if task.is_streamed("train") or task.is_streamed("held_out"):
        if not held_out:
            return task.train
        return lambda: (batch for split in ("train", "held_out") for batch in batches(task, split))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), task.train, task.held_out)
    if held_out:
        return both
    rows = jnp.arange(count_examples(both)) % count_examples(task.train)
    return jax.tree.map(lambda leaf: leaf[rows], task.train)


def batches(task: Task, split: str, size: int = 128) -> PyTree:
    """Yield the batches of one pass over a split."""
    data = getattr(task, split)
    if callable(data):
        yield from data()
        return
    for start in range(0, count_examples(data), size):
        yield jax.tree.map(lambda leaf: np.asarray(leaf[start : start + size]), data)  # noqa: B023


def finetune_recipe(config: PruneConfig) -> FinetuneRecipe:
    """Return the recipe that settings name."""
    return FinetuneRecipe(rate=config.finetune_rate, batch_size=config.batch_size)
