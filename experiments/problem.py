"""A data set, a network and its graph, with the jitted jobs that every stage of a run calls."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlprune_jax.graph.gating import gated
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.trace import trace_graph
from rlprune_jax.models import ModelFunctions
from rlprune_jax.training.augmentation import Prepare, make_prepare
from rlprune_jax.training.data import Dataset
from rlprune_jax.training.loops import TrainState, evaluate, make_train_step, train
from rlprune_jax.training.optimizers import make_optimizer
from rlprune_jax.types import Gates, Variables
from rlprune_jax.workflow.candidates import CandidateData, Judgement, judge_candidates

AUGMENTATION: dict[str, dict[str, Any]] = {
    "digits": {"pad": 1},
    "mnist": {"pad": 2},
    "fashion_mnist": {"pad": 2, "flip": True},
    "cifar10": {"pad": 4, "flip": True},
    "cifar100": {"pad": 4, "flip": True},
}
"""Random crops and flips in training, by data set."""

EVALUATION_BATCH = 500


class Images(NamedTuple):
    """Images uint8[n, H, W, C] and labels i32[n] on the device."""

    images: jax.Array
    labels: jax.Array


class Problem(NamedTuple):
    """What a run prunes.

    Attributes:
        functions: the network as plain functions.
        graph: of the network.
        variables: as initialised.
        prepare: from raw images to input.
        train: what the dense network and the short finetunes learn from.
        held_out: what searches are rewarded on.
        everything: train and held-out images, for the last finetune.
        test: read once a network.
    """

    functions: ModelFunctions
    graph: Graph
    variables: Variables
    prepare: Prepare
    train: Images
    held_out: Images
    everything: Images
    test: Images


def make_problem(dataset: Dataset, functions: ModelFunctions, key: jax.Array) -> Problem:
    """Put ``dataset`` on the device, initialise the network and trace its graph.

    Raises:
        ValueError: the network cannot take images of this size, or nothing in it can be pruned.
    """
    prepare = make_prepare(
        jnp.array(dataset.mean), jnp.array(dataset.std), **AUGMENTATION[dataset.name]
    )
    splits = [
        Images(jnp.asarray(split.images), jnp.asarray(split.labels))
        for split in (dataset.train, dataset.held_out, dataset.test)
    ]
    sample = prepare(splits[0].images[:2])
    variables = functions.init(key, sample)
    everything = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), splits[0], splits[1])
    # As many rows as `everything`, the surplus repeated: one compiled program finetunes on either.
    surplus = jnp.arange(len(everything.labels)) % len(splits[0].labels)
    return Problem(
        functions,
        trace_graph(functions.apply, variables, sample),
        variables,
        prepare,
        jax.tree.map(lambda rows: rows[surplus], splits[0]),
        splits[1],
        everything,
        splits[2],
    )


class Jobs(NamedTuple):
    """Jitted jobs on one problem; each compiles once.

    Attributes:
        train_dense: ``(state, images, key, steps) -> (state, metrics [steps])``.
        finetune: ``(state, gates, total, images, key, steps) -> (state, metrics [steps])`` of the
            masked network, the learning rate falling to 0 over ``total`` steps.
        finetune_state: ``(variables) -> state`` to finetune from.
        accuracy: ``(variables, gates, images) -> accuracy`` of the masked network.
        dense_accuracy: ``(variables, images) -> accuracy``.
        judge: ``(variables, gates [N], data, key, finetune_steps) -> Judgement [N]``.
    """

    train_dense: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    dense_state: Callable[[Variables], TrainState]
    finetune: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    finetune_state: Callable[[Variables], TrainState]
    accuracy: Callable[..., jax.Array]
    dense_accuracy: Callable[..., jax.Array]
    judge: Callable[..., Judgement]


def make_jobs(
    problem: Problem,
    *,
    batch_size: int,
    dense_rate: float,
    dense_steps: int,
    finetune_rate: float,
    chunk: int | None,
) -> Jobs:
    """Make the jobs of ``problem``; see ``Jobs``."""
    apply, apply_train, graph = (
        problem.functions.apply,
        problem.functions.apply_train,
        problem.graph,
    )
    batch_size = min(batch_size, len(problem.train.labels))
    dense_optimizer = make_optimizer(
        "sgd",
        learning_rate=dense_rate,
        num_steps=dense_steps,
        schedule="cosine",
        warmup=dense_steps // 10,
        momentum=0.9,
        weight_decay=5e-4,
    )
    dense_step = make_train_step(apply_train, dense_optimizer, problem.prepare)

    def finetuner(total: Any) -> optax.GradientTransformation:
        # The length is traced, so that short and long finetunes are one program.
        def rate(count: jax.Array) -> jax.Array:
            return finetune_rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(count / total, 1.0)))

        return optax.adam(rate)

    def masked_train(gates: Gates) -> Callable[..., Any]:
        return lambda variables, x: gated(apply_train, graph)(variables, gates, x)

    @partial(jax.jit, static_argnames="steps")
    def train_dense(state: TrainState, images: Images, key: jax.Array, steps: int) -> Any:
        return train(dense_step, state, *images, batch_size=batch_size, num_steps=steps, key=key)

    @partial(jax.jit, static_argnames="steps")
    def finetune(
        state: TrainState,
        gates: Gates,
        total: jax.Array,
        images: Images,
        key: jax.Array,
        steps: int,
    ) -> Any:
        step = make_train_step(masked_train(gates), finetuner(total), problem.prepare)
        return train(step, state, *images, batch_size=batch_size, num_steps=steps, key=key)

    def state_of(optimizer: optax.GradientTransformation) -> Callable[[Variables], TrainState]:
        def init(variables: Variables) -> TrainState:
            return TrainState(
                variables, optimizer.init(variables["params"]), jnp.zeros((), jnp.int32)
            )

        return jax.jit(init)

    def batch_of(images: Images) -> int:
        return min(EVALUATION_BATCH, len(images.labels))

    @jax.jit
    def accuracy(variables: Variables, gates: Gates, images: Images) -> jax.Array:
        masked = gated(apply, graph)
        return evaluate(
            lambda variables, x: masked(variables, gates, x),
            variables,
            *images,
            batch_size=batch_of(images),
            prepare=problem.prepare,
        )[1]

    @jax.jit
    def dense_accuracy(variables: Variables, images: Images) -> jax.Array:
        return evaluate(
            apply, variables, *images, batch_size=batch_of(images), prepare=problem.prepare
        )[1]

    @partial(jax.jit, static_argnames="finetune_steps")
    def judge(
        variables: Variables,
        gates: Gates,
        data: CandidateData,
        key: jax.Array,
        finetune_steps: int = 0,
    ) -> Judgement:
        def short_finetune(variables: Variables, gates: Gates, key: jax.Array) -> Variables:
            optimizer = optax.adam(3e-4)
            step = make_train_step(masked_train(gates), optimizer, problem.prepare)
            state = state_of(optimizer)(variables)
            return train(
                step,
                state,
                *problem.train,
                batch_size=min(batch_size, 64),
                num_steps=finetune_steps,
                key=key,
            )[0].variables

        return judge_candidates(
            apply,
            apply_train,
            graph,
            variables,
            gates,
            data,
            key,
            chunk=chunk,
            finetune=short_finetune if finetune_steps else None,
        )

    return Jobs(
        train_dense,
        state_of(dense_optimizer),
        finetune,
        state_of(finetuner(1)),
        accuracy,
        dense_accuracy,
        judge,
    )
