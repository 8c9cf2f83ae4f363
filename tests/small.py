"""Small networks and problems that several test files stand on."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlprune_jax import Graph, trace_graph
from rlprune_jax.models import ModelFunctions, create_model, model_functions
from rlprune_jax.types import Gates, Variables
from rlprune_jax.workflow.candidates import CandidateData


class Small(NamedTuple):
    """A narrow CNN with batch norm on 8x8 images, initialised, with random data."""

    functions: ModelFunctions
    variables: Variables
    graph: Graph
    data: CandidateData


@functools.cache
def small_cnn() -> Small:
    """Make the network once per session."""
    functions = model_functions(create_model("cnn", 4, widths=(4, 6, 8, 8)))
    keys = jax.random.split(jax.random.key(0), 4)
    calibration = jax.random.normal(keys[0], (16, 8, 8, 1))
    images = jax.random.normal(keys[1], (12, 8, 8, 1))
    labels = jax.random.randint(keys[2], (12,), 0, 4)
    variables = functions.init(keys[3], images)
    graph = trace_graph(functions.apply, variables, images)
    return Small(functions, variables, graph, CandidateData(calibration, images, labels))


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
