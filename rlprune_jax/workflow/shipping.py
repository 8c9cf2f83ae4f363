"""From a delivered network to files: cut, compared, measured, written."""

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from rlprune_jax.checks import require_path, require_type
from rlprune_jax.costs import Latency, measure_latency
from rlprune_jax.export import (
    PLAN,
    README,
    STABLEHLO,
    WEIGHTS,
    export_stablehlo,
    loading_text,
    make_plan,
    save_weights,
    write_plan,
)
from rlprune_jax.files import unwritable, write_atomically
from rlprune_jax.training.task import positional
from rlprune_jax.types import PyTree, Variables
from rlprune_jax.workflow.delivery import Delivered, evaluate_network
from rlprune_jax.workflow.fitting import equivalence
from rlprune_jax.workflow.network import Network
from rlprune_jax.workflow.pruning import repeated

BATCHES = (1, 128)
"""Examples a call that latency is reported for."""

TOLERANCE = 1e-3
"""Of slim against masked outputs, relative to the largest; rounding makes some 1e-6."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shipped:
    """Hold a slim network as it was written and measured.

    Attributes:
        network: slim.
        metric: of the slim network on the test data.
        max_abs_diff: between the outputs of the slim and of the masked network.
        dense_latency: milliseconds by number of examples.
        slim_latency: milliseconds by number of examples.
        dense_bytes: size of a file of the dense network's weights.
        slim_bytes: size of the file of the slim network's weights.
    """

    network: Network
    metric: float
    max_abs_diff: float
    dense_latency: dict[int, Latency]
    slim_latency: dict[int, Latency]
    dense_bytes: int
    slim_bytes: int


def ship(
    delivered: Delivered, path: str | os.PathLike | None = None, batches: Sequence[int] = BATCHES
) -> Shipped:
    """Cut a delivered network, measure and write it.

    It is compared with its masked twin.

    Args:
        delivered: by ``deliver``.
        path: folder for weights, plan, StableHLO and a text that says how to load them; None
            writes nothing.
        batches: examples a call that latency is measured for.

    Raises:
        RuntimeError: slim and masked outputs differ by more than rounding; nothing is written.
        UnwritableError: the folder cannot be written.
    """
    require_type("delivered", delivered, Delivered, "make it by deliver(pruning, search)")
    if path is not None:
        require_path("path", path)
    pruning = delivered.pruning
    dense = pruning.network.replace(delivered.variables)
    slim = delivered.network
    sample = pruning.task.objective.network_inputs(pruning.task.sample("test", max(BATCHES)))
    difference, largest = equivalence(dense, slim, delivered.gates, sample)
    if not difference <= TOLERANCE * max(1.0, largest):
        raise RuntimeError(
            f"the slim network's outputs differ from its masked twin's by {difference:g}; this is "
            "a defect of rlprune_jax, and nothing was written: please report the network"
        )
    metric = float(evaluate_network(slim, pruning.task.objective, pruning.task.test).metric)
    if path is not None:
        save_slim(delivered, slim, path)
    return Shipped(
        network=slim,
        metric=metric,
        max_abs_diff=difference,
        dense_latency=latencies(dense, sample, batches),
        slim_latency=latencies(slim, sample, batches),
        dense_bytes=weight_bytes(dense.variables),
        slim_bytes=weight_bytes(slim.variables),
    )


def save_slim(delivered: Delivered, slim: Network, path: str | os.PathLike) -> None:
    """Write a slim network to a folder.

    Weights, plan, StableHLO and how to load them.
    """
    folder, task = Path(path), delivered.pruning.task
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    known = dict(task.description)
    names = known.pop("class_names", None)
    artifact = export_stablehlo(
        slim.apply, slim.variables, *raw_inputs(delivered), prepare=task.prepare
    )
    description = artifact.description._replace(
        class_names=None if names is None else tuple(map(str, names))
    )
    describe = getattr(task.prepare, "describe", None)
    if describe is not None:
        description = description._replace(prepare=describe())
    plan = make_plan(
        delivered.gates, delivered.variables, slim.variables, description=description, **known
    )
    save_weights(folder / WEIGHTS, slim.variables)
    write_plan(folder / PLAN, plan)
    write_atomically(folder / STABLEHLO, artifact.content)
    write_atomically(folder / README, loading_text(description))


def raw_inputs(delivered: Delivered) -> tuple[PyTree, ...]:
    """Return the raw inputs of a few test examples.

    As they are before any preparation.
    """
    objective = delivered.pruning.task.objective
    return positional(objective.inputs(delivered.pruning.task.sample("test", 2)))


def latencies(
    network: Network, sample: tuple[PyTree, ...], batches: Sequence[int]
) -> dict[int, Latency]:
    """Return milliseconds of one call by number of examples."""
    return {
        count: measure_latency(
            network.definition.jitted, network.variables, *repeated(sample, count)
        )
        for count in batches
    }


def weight_bytes(variables: Variables) -> int:
    """Return the size of a file of weights."""
    with tempfile.TemporaryDirectory() as folder:
        save_weights(Path(folder) / WEIGHTS, jax.tree.map(jnp.asarray, variables))
        return (Path(folder) / WEIGHTS).stat().st_size
