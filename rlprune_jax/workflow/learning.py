"""Train in a run: steps over arrays and batches, resumable and stopped by NaN."""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_range, require_seed, require_type
from rlprune_jax.runs import MemoryRun, Run, StageOptions, run_stage
from rlprune_jax.training.averaging import averaged, start_averaging
from rlprune_jax.training.loops import (
    Metrics,
    StepFunction,
    TrainState,
    init_train_state,
    make_train_step,
    passes,
    train,
)
from rlprune_jax.training.task import Batch, Data, Objective, Task, count_examples
from rlprune_jax.types import Gates, Variables
from rlprune_jax.wording import NEGATIVE
from rlprune_jax.workflow.candidates import masked_training
from rlprune_jax.workflow.keys import stage_key
from rlprune_jax.workflow.network import Definition, Network
from rlprune_jax.workflow.precision import in_precision
from rlprune_jax.workflow.recipes import (
    DenseRecipe,
    FastRecipe,
    Recipe,
    arrangement,
    trained_on,
)

STEPS_AT_ONCE = 60
"""Most steps of training between two looks at the clock."""


def steps_at_once(steps: int, others: Sequence[int] = ()) -> int:
    """Return how many steps one compiled program takes.

    It divides them all, unless that would make it short: a remainder is a second program. Where it
    can it divides those of other trainings too, which then run in the same program.

    Args:
        steps: of a training.
        others: steps of trainings that differ in length alone.

    Example:
        >>> steps_at_once(1000), steps_at_once(100), steps_at_once(997)
        (50, 50, 60)
        >>> steps_at_once(1500), steps_at_once(1500, others=(100,))
        (60, 50)
    """
    fewest = STEPS_AT_ONCE // 2
    even = [count for count in range(STEPS_AT_ONCE, fewest, -1) if steps % count == 0]
    shared = [count for count in even if not any(other % count for other in others)]
    return min(steps, next(iter(shared + even), STEPS_AT_ONCE))


class TrainingProgram(NamedTuple):
    """Hold the static structure of one training.

    Compiled programs are found by it.

    Attributes:
        definition: of the network.
        objective: of the task.
        recipe: of the optimizer.
    """

    definition: Definition
    objective: Objective
    recipe: Recipe

    def step_function(
        self, gates: Gates | None, total: jax.Array, is_placed: bool = False
    ) -> StepFunction:
        """Return one step of training, masked where there are gates."""
        definition = self.definition
        apply = definition.training_mode if gates is None else masked_training(definition, gates)
        apply = in_precision(apply, self.recipe.precision)
        objective = trained_on(self.recipe, self.objective, is_placed)
        step = make_train_step(apply, self.recipe.optimizer(total), objective)
        if isinstance(self.recipe, FastRecipe):
            return averaged(step, self.recipe.decay)
        return step


@partial(jax.jit, static_argnames=("learner", "steps"))
def train_steps(
    learner: TrainingProgram,
    state: TrainState,
    gates: Gates | None,
    total: jax.Array,
    data: Batch,
    key: jax.Array,
    steps: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take some steps of a training over arrays.

    Args:
        learner: its static structure.
        state: made by ``start_training``, or of an earlier call.
        gates: of the masked network; None for the dense one.
        total: f32[], steps of the whole training.
        data: all examples.
        key: of the whole training.
        steps: to take.

    Returns:
        The state afterwards, and what each step recorded.
    """
    step = learner.step_function(gates, total, is_placed=True)
    size = min(learner.recipe.batch_size, count_examples(data))
    arrange = arrangement(learner.recipe, learner.objective)
    return train(step, state, data, batch_size=size, num_steps=steps, key=key, arrange=arrange)


@partial(jax.jit, static_argnames="learner")
def _step(
    learner: TrainingProgram,
    state: TrainState,
    gates: Gates | None,
    total: jax.Array,
    batch: Batch,
    key: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    return learner.step_function(gates, total)(state, batch, key)


@partial(jax.jit, static_argnames="recipe")
def start_training(recipe: Recipe, variables: Variables) -> TrainState:
    """Return the state before a training's first step."""
    state = init_train_state(variables, recipe.optimizer(1))
    return start_averaging(state) if isinstance(recipe, FastRecipe) else state


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """Hold what one training trains, and how.

    Attributes:
        name: of the stage.
        network: to start from.
        objective: of the task.
        data: arrays or a source of batches.
        recipe: the optimizer.
        steps: of training.
        gates: of the masked network; None for the dense one.
        others: steps of trainings that differ in length alone, to share their program.
    """

    name: str
    network: Network
    objective: Objective
    data: Data
    recipe: Recipe
    steps: int
    gates: Gates | None = None
    others: tuple[int, ...] = ()

    @property
    def learner(self) -> TrainingProgram:
        """The static structure of it."""
        return TrainingProgram(
            definition=self.network.definition, objective=self.objective, recipe=self.recipe
        )


class _Take(Protocol):
    """Take some steps of training."""

    def __call__(self, state: TrainState, start: int, count: int, /) -> tuple[TrainState, Metrics]:
        """Return the state after ``count`` steps from step ``start``, and what each recorded."""


def _steps(training: Training, key: jax.Array) -> _Take:
    """Return steps over arrays, many in one program."""
    learner = training.learner
    total = jnp.float32(training.steps)

    def take(state: TrainState, start: int, count: int) -> tuple[TrainState, Metrics]:
        return train_steps(learner, state, training.gates, total, training.data, key, steps=count)

    return take


def _steps_of_source(training: Training, key: jax.Array) -> _Take:
    """Return steps over a source of batches, one at a time; steps done before are passed over."""
    learner = training.learner
    total, noise = jnp.float32(training.steps), jax.random.split(key)[1]
    stream = passes(training.data)
    passed = 0

    def take(state: TrainState, start: int, count: int) -> tuple[TrainState, Metrics]:
        nonlocal passed
        rows: list[Metrics] = []
        for batch in itertools.islice(stream, start - passed, start - passed + count):
            step_key = jax.random.fold_in(noise, start + len(rows))
            state, row = _step(learner, state, training.gates, total, batch, step_key)
            rows.append(row)
        passed = start + count
        return state, jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(rows))

    return take


def run_training(
    training: Training, key: jax.Array, run: Run | None = None, save_seconds: float = 20.0
) -> Variables:
    """Train as a stage of a run.

    It goes on from its last checkpoint.

    Raises:
        DivergenceError: the loss became NaN or infinite; nothing of it is saved.
    """
    run = MemoryRun() if run is None else run
    metric_name = training.objective.metric_name
    take = _steps_of_source(training, key) if callable(training.data) else _steps(training, key)

    def advance(state: TrainState, start: int, count: int) -> tuple[TrainState, list]:
        state, metrics = take(state, start, count)
        values = {name: float(np.mean(jax.device_get(each))) for name, each in metrics.items()}
        return state, [(start + count, {"loss": values["loss"], metric_name: values["metric"]})]

    state = run_stage(
        run,
        training.name,
        start_training(training.recipe, training.network.variables),
        training.steps,
        advance,
        StageOptions(
            chunk=steps_at_once(training.steps, training.others),
            save_seconds=save_seconds,
            note=partial(_note, metric_name),
        ),
    )
    return trained_variables(training.recipe, state)


def trained_variables(recipe: Recipe, state: TrainState) -> Variables:
    """Return what a training delivers of its last state."""
    return state.opt_state.variables if isinstance(recipe, FastRecipe) else state.variables


def _note(metric_name: str, row: dict[str, float]) -> str:
    """Say how far training is; a metric that is the loss with its sign turned is not repeated."""
    loss = f"loss {row['loss']:.3f}"
    if metric_name.startswith(NEGATIVE):
        return loss
    return f"{loss} {metric_name} {row[metric_name]:.3f}"


def train_dense(
    network: Network,
    task: Task,
    recipe: DenseRecipe | FastRecipe,
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
        TypeError: what is no ``Network``, ``Task`` or ``DenseRecipe``.
        ValueError: a seed that is no integer from 0 to 4294967295, or ``save_seconds`` below 0.
    """
    require_type("network", network, Network, "make it by Network.from_linen or its like")
    require_type("task", task, Task, "make it by classification, regression or their like")
    if not isinstance(recipe, FastRecipe):
        require_type("recipe", recipe, DenseRecipe, "make it by DenseRecipe(steps)")
    require_seed("seed", seed)
    require_range("save_seconds", save_seconds, 0.0)
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
