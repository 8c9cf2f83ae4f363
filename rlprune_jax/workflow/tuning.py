"""Finetune masked networks: short to compare candidates, long for what is delivered."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.graph.gating import gated
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.runs import DivergenceError, Run
from rlprune_jax.training.recalibration import recalibrate
from rlprune_jax.training.task import Batch, Data, Task, count_examples
from rlprune_jax.types import Apply, Gates, PyTree, Variables
from rlprune_jax.units.repair import repair
from rlprune_jax.workflow.candidates import masked_training
from rlprune_jax.workflow.keys import stage_key
from rlprune_jax.workflow.learning import Training, run_training
from rlprune_jax.workflow.network import Definition
from rlprune_jax.workflow.pruning import Pruning, repair_inputs
from rlprune_jax.workflow.recipes import finetune_recipe


class Finetune(Protocol):
    """Train a masked network in the user's way."""

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


class MaskedFunction:
    """Apply a masked network in a user's training loop.

    Attributes:
        train: ``(variables, *inputs, key=None) -> (outputs, updates)``, in training mode.
    """

    def __init__(self, definition: Definition, gates: Gates) -> None:
        own = definition.own_apply
        self._masked = definition.masked if own is None else gated(own, definition.graph)
        self._gates = gates
        self.train = masked_training(definition, gates)

    def __call__(self, variables: Variables, /, *inputs: PyTree, **options: PyTree) -> PyTree:
        """Return what the network's own function returns, of the masked network."""
        return self._masked(variables, self._gates, *inputs, **options)


@dataclasses.dataclass(frozen=True, eq=False)
class Tuner:
    """Finetune a method's candidates, by our training or the user's.

    Attributes:
        pruning: the problem.
        method: whose candidates they are; stages of the run are named after it.
        own: training of the user's own, or None.
        run: where checkpoints and metrics go.
    """

    pruning: Pruning
    method: str
    own: Finetune | None
    run: Run

    def short(self, number: int, gates: Gates) -> Variables:
        """Return variables to compare a candidate by.

        Trained without held-out data; repaired alone where there are no steps.

        Raises:
            DivergenceError: the loss or the variables became NaN or infinite.
        """
        return self._tune(f"rerank{number}", gates, int(self.pruning.config.rerank_steps or 0))

    def last(self, gates: Gates, repair: int = 0) -> Variables:
        """Return the variables to deliver.

        Trained with the held-out data too; repaired alone where there are no steps.

        Args:
            gates: of the network.
            repair: number of the repair that this finetune belongs to, 0 for the first of all.

        Raises:
            DivergenceError: the loss or the variables became NaN or infinite.
        """
        stage = f"finetune-repair{repair}" if repair else "finetune"
        return self._tune(stage, gates, int(self.pruning.config.finetune_steps or 0))

    def control(self, stage: str, gates: Gates, steps: int, start: Variables) -> Variables:
        """Return variables trained from a start of one's own.

        Otherwise as the delivered ones are.

        Raises:
            DivergenceError: the loss or the variables became NaN or infinite.
        """
        return self._tune(stage, gates, steps, start)

    def _tune(
        self, stage: str, gates: Gates, steps: int, start: Variables | None = None
    ) -> Variables:
        task, config = self.pruning.task, self.pruning.config
        start = self._start(gates, steps) if start is None else start
        network = self.pruning.network.replace(start)
        if steps == 0:
            return start
        key = stage_key(config.seed, "deploy")
        if self.own is not None:
            apply: Apply = MaskedFunction(network.definition, gates)
            tuned = self.own(apply, network.variables, steps, jax.random.fold_in(key, steps))
            check_tuned(network.variables, tuned)
            return tuned
        training = Training(
            name=f"{stage}-{self.method}",
            network=network,
            objective=task.objective,
            data=self._train_data if stage.startswith("rerank") else self._all_data,
            recipe=finetune_recipe(config),
            steps=steps,
            gates=gates,
            others=(int(config.rerank_steps or 0), int(config.finetune_steps or 0)),
        )
        return run_training(training, key, self.run, config.save_seconds)

    def _start(self, gates: Gates, steps: int) -> Variables:
        """Return what training starts from, or what is delivered without any."""
        network, config = self.pruning.network, self.pruning.config
        if config.repair:
            inputs = repair_inputs(self.pruning)
            return repaired(network.definition, network.variables, gates, inputs)
        if steps == 0 and network.definition.apply_train is not None:
            return recalibrated(network.definition, network.variables, gates, self._calibration)
        return network.variables

    @cached_property
    def _calibration(self) -> tuple[PyTree, ...]:
        task, images = self.pruning.task, int(self.pruning.config.calibration_images or 0)
        return task.objective.network_inputs(task.sample("train", images))

    @cached_property
    def _train_data(self) -> Data:
        return training_data(self.pruning.task, False, self.pruning.config.batch_size)

    @cached_property
    def _all_data(self) -> Data:
        return training_data(self.pruning.task, True, self.pruning.config.batch_size)


@partial(jax.jit, static_argnums=0)
def repaired(
    definition: Definition, variables: Variables, gates: Gates, inputs: tuple[PyTree, ...]
) -> Variables:
    """Return dense variables repaired for a mask.

    Args:
        definition: of the network.
        variables: dense.
        gates: group name -> f32[units].
        inputs: of the network, without labels.
    """
    return repair(definition.apply, definition.graph, variables, gates, inputs)


@partial(jax.jit, static_argnums=0)
def recalibrated(
    definition: Definition, variables: Variables, gates: Gates, inputs: tuple[PyTree, ...]
) -> Variables:
    """Return dense variables with statistics of the masked network.

    Args:
        definition: of the network.
        variables: dense.
        gates: group name -> f32[units].
        inputs: of the network.
    """
    return recalibrate(masked_training(definition, gates), variables, *inputs)


def check_tuned(before: Variables, after: Variables) -> None:
    """Refuse what is no trained variables.

    It is what a user's finetune returned.

    Raises:
        ValueError: other leaves or shapes than it was given.
        DivergenceError: a leaf is NaN or infinite.
    """
    given, found = flatten_with_paths(before), flatten_with_paths(after)
    for path in {**given, **found}:
        shapes = [np.shape(flat[path]) if path in flat else None for flat in (given, found)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"finetune returned variables whose leaf {path!r} has shape {shapes[1]}, and "
                f"{shapes[0]} before; return the variables as they came, with other values"
            )
    for path, leaf in found.items():
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and not jnp.isfinite(leaf).all():
            raise DivergenceError(
                f"finetune returned variables that are not finite at {path!r}; lower its "
                "learning rate"
            )


def training_data(task: Task, held_out: bool, batch_size: int = 128) -> Data:
    """Return the data that are finetuned on.

    The training data, with or without the held-out ones. As many rows in both cases, the surplus
    repeated: one compiled program finetunes on either.

    Args:
        task: whose data.
        held_out: whether its held-out data are among them.
        batch_size: of arrays that are joined with a source of batches.
    """
    if task.is_streamed("train") or task.is_streamed("held_out"):
        splits = ("train", "held_out") if held_out else ("train",)
        return lambda: (batch for split in splits for batch in batches(task, split, batch_size))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), task.train, task.held_out)
    if held_out:
        return both
    rows = jnp.arange(count_examples(both)) % count_examples(task.train)
    return jax.tree.map(lambda leaf: leaf[rows], task.train)


def batches(task: Task, split: str, size: int) -> Iterator[Batch]:
    """Yield the batches of one pass over a split."""
    data = getattr(task, split)
    if callable(data):
        yield from data()
        return
    for start in range(0, count_examples(data), size):
        rows = slice(start, start + size)
        yield jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf[rows]), data)
