"""From a delivered network to files: cut, compared, measured, written."""

import dataclasses
import os
import tempfile
import warnings
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
from rlprune_jax.sealed import write_sums
from rlprune_jax.training.task import positional
from rlprune_jax.types import PyTree, Variables
from rlprune_jax.workflow.delivery import Delivered, evaluate_network
from rlprune_jax.workflow.fitting import Equivalence, equivalence
from rlprune_jax.workflow.network import Network
from rlprune_jax.workflow.pruning import repeated

BATCHES = (1, 128)
"""Examples a call that latency is reported for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shipped:
    """Hold a slim network as it was written and measured.

    Attributes:
        network: slim.
        metric: of the slim network on the test data.
        equivalence: of the slim and the masked network; where it does not hold, the cut is wrong.
        dense_latency: milliseconds by number of examples.
        slim_latency: milliseconds by number of examples.
        dense_bytes: size of a file of the dense network's weights.
        slim_bytes: size of the file of the slim network's weights.
    """

    network: Network
    metric: float
    equivalence: Equivalence
    dense_latency: dict[int, Latency]
    slim_latency: dict[int, Latency]
    dense_bytes: int
    slim_bytes: int

    @property
    def max_abs_diff(self) -> float:
        """Return the difference of slim and masked outputs."""
        return self.equivalence.max_abs_diff


def ship(
    delivered: Delivered, path: str | os.PathLike | None = None, batches: Sequence[int] = BATCHES
) -> Shipped:
    """Cut a delivered network, measure and write it.

    It is compared with its masked twin. Where they differ, it is written all the same, and marked.

    Args:
        delivered: by ``deliver``.
        path: folder for weights, plan, StableHLO and a text that says how to load them; None
            writes nothing.
        batches: examples a call that latency is measured for.

    Raises:
        UnwritableError: the folder cannot be written.

    Warns:
        UserWarning: slim and masked outputs differ by more than rounding.
    """
    require_type("delivered", delivered, Delivered, "make it by deliver(pruning, search)")
    if path is not None:
        require_path("path", path)
    pruning = delivered.pruning
    dense = pruning.network.replace(delivered.variables)
    slim = delivered.network
    sample = pruning.task.objective.network_inputs(pruning.task.sample("test", max(BATCHES)))
    found = equivalence(dense, slim, delivered.gates, sample)
    if not found.holds:
        warnings.warn(defect_text(found.max_abs_diff), stacklevel=2)
    metric = float(evaluate_network(slim, pruning.task.objective, pruning.task.test).metric)
    if path is not None:
        save_slim(delivered, slim, path, None if found.holds else found.max_abs_diff)
    return Shipped(
        network=slim,
        metric=metric,
        equivalence=found,
        dense_latency=latencies(dense, sample, batches),
        slim_latency=latencies(slim, sample, batches),
        dense_bytes=weight_bytes(dense.variables),
        slim_bytes=weight_bytes(slim.variables),
    )


def defect_text(difference: float) -> str:
    """Return what is said of a slim network that differs."""
    return (
        f"the slim network's outputs differ from its masked twin's by {difference:g}, more than "
        "rounding does; this is a defect of rlprune_jax: use the masked network, and please "
        "report it"
    )


def save_slim(
    delivered: Delivered,
    slim: Network,
    path: str | os.PathLike,
    defect: float | None = None,
) -> None:
    """Write a slim network to a folder.

    Weights, plan, StableHLO, how to load them, and the checksums of all.

    Args:
        delivered: that it was cut from.
        slim: the network.
        path: of the folder.
        defect: by how much it differs from its masked twin, where it does; plan and text say so.

    Raises:
        UnwritableError: the folder cannot be written.
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
    if defect is not None:
        known["differs_from_masked_by"] = defect
    plan = make_plan(
        delivered.gates, delivered.variables, slim.variables, description=description, **known
    )
    save_weights(folder / WEIGHTS, slim.variables)
    write_plan(folder / PLAN, plan)
    write_atomically(folder / STABLEHLO, artifact.content)
    mark = "" if defect is None else f"WARNING: {defect_text(defect)}.\n\n"
    write_atomically(folder / README, mark + loading_text(description))
    write_sums(folder, (WEIGHTS, PLAN, STABLEHLO, README))


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
