"""Small networks and problems that several test files stand on."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rlprune_jax as rp
from rlprune_jax import Graph, Network, Task
from rlprune_jax.models import create_model
from rlprune_jax.training.task import Batch, BatchSource
from rlprune_jax.types import Gates, Variables
from rlprune_jax.workflow.candidates import CandidateData
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.pruning import Pruning, make_pruning


class Small(NamedTuple):
    """A network on random data, and what candidates are evaluated on."""

    network: Network
    task: Task
    data: CandidateData

    @property
    def graph(self) -> Graph:
        return self.network.graph

    @property
    def ones(self) -> Gates:
        return rp.ones_gates(self.graph)

    @property
    def variables(self) -> Variables:
        return self.network.variables


@functools.cache
def small_cnn() -> Small:
    """Make a narrow CNN with batch norm on 8x8 images, as initialised, once per session."""
    module = create_model("cnn", 4, widths=(4, 6, 8, 8))
    keys = jax.random.split(jax.random.key(0), 4)
    calibration = jax.random.normal(keys[0], (16, 8, 8, 1))
    images = jax.random.normal(keys[1], (12, 8, 8, 1))
    labels = jax.random.randint(keys[2], (12,), 0, 4)
    variables = jax.jit(functools.partial(module.init, train=False))(keys[3], images)
    network = Network.from_linen(module, variables, images)
    batch = (images, labels)
    task = rp.classification(batch, batch, batch)
    return Small(network, task, CandidateData((calibration,), batch))


def mlp_apply(variables: Variables, x: jax.Array) -> jax.Array:
    """Two hidden layers of 8 and 6 units."""
    hidden = jax.nn.relu(x @ variables["a"] + variables["a_bias"])
    hidden = jax.nn.relu(hidden @ variables["b"])
    return hidden @ variables["c"]


@functools.cache
def small_mlp() -> Small:
    """Make an MLP of 4 features, two groups and 3 classes that it tells apart without error.

    Parameters: 4 * 8 + 8 + 8 * 6 + 6 * 3 = 106; MACs: 98.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    variables = {
        "a": jax.random.normal(keys[0], (4, 8)),
        "a_bias": jnp.zeros(8),
        "b": jax.random.normal(keys[1], (8, 6)),
        "c": jax.random.normal(keys[2], (6, 3)),
    }
    network = Network(mlp_apply, variables, jnp.ones((2, 4)))
    x = np.asarray(jax.random.normal(keys[3], (96, 4)))
    y = np.asarray(network(x).argmax(-1), np.int32)
    splits = [(x[part], y[part]) for part in (slice(48), slice(48, 72), slice(72, 96))]
    return Small(network, rp.classification(*splits), CandidateData((x[:16],), splits[1]))


QUICK = {
    "evaluations": 16,
    "candidates": 8,
    "rerank": 2,
    "rerank_steps": 2,
    "finetune_steps": 4,
    "reward_images": 24,
    "calibration_images": 16,
    "reward_retention": 0.0,
    "repair_images": 48,
    "batch_size": 16,
}
"""Settings of the smallest run; one set of them, so that tests share what is compiled."""


def small_pruning(*budgets: str, task: Task | None = None, **settings: object) -> Pruning:
    """Make the problem of pruning the MLP, to half of its parameters unless told."""
    small = small_mlp()
    config = PruneConfig(**{**QUICK, **settings})
    return make_pruning(small.network, task or small.task, budgets or "params=0.5", config)


@contextlib.contextmanager
def count_compilations() -> Iterator[list[str]]:
    """Collect the names of the programs that JAX lowers inside the block."""
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if message.startswith("Compiling "):
                found.append(message.split(" with ")[0].removeprefix("Compiling "))

    logger, handler = logging.getLogger("jax"), Collect()
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        with jax.log_compiles():
            yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def in_batches(data: Batch, size: int) -> BatchSource:
    """Return a source of batches that goes through arrays in their order."""

    def source() -> Iterator[Batch]:
        for start in range(0, len(jax.tree.leaves(data)[0]), size):
            yield jax.tree.map(lambda leaf: leaf[start : start + size], data)  # noqa: B023

    return source


def random_gates(graph: Graph, count: int, key: jax.Array, keep: float = 0.6) -> Gates:
    """Draw gates [count, units], at least the first unit of each group kept."""
    keys = jax.random.split(key, len(graph.groups))
    return {
        group.name: jax.random.bernoulli(k, keep, (count, group.size))
        .astype(jnp.float32)
        .at[:, 0]
        .set(1.0)
        for group, k in zip(graph.groups, keys, strict=True)
    }
