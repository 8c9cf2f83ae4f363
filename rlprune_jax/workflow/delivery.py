"""From what a search found to a finetuned network within its budgets."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.costs import count_macs, count_params, measured_costs
from rlprune_jax.runs import MemoryRun, Run
from rlprune_jax.search import check_archive
from rlprune_jax.training.loops import evaluate
from rlprune_jax.training.task import Data, Evaluation, Objective
from rlprune_jax.types import Gates, PyTree, Variables
from rlprune_jax.workflow.fitting import best_of, deliverable
from rlprune_jax.workflow.learning import (
    Finetune,
    MaskedFunction,
    Training,
    finetune_recipe,
    run_training,
    training_data,
)
from rlprune_jax.workflow.methods import METHODS
from rlprune_jax.workflow.network import Definition, Network
from rlprune_jax.workflow.pruning import Pruning, stage_key
from rlprune_jax.workflow.searches import Search

EVALUATION_BATCH = 500
"""Examples a forward pass of an evaluation."""


@dataclasses.dataclass(frozen=True, eq=False)
class Delivered:
    """Hold a method's final network.

    Attributes:
        pruning: the problem.
        method: its name.
        gates: that it delivers, within every budget.
        variables: dense, finetuned with the gates.
        metric: of the masked network on the test data.
        loss: of the masked network on the test data.
        ratings: held-out metrics of the re-ranked candidates.
    """

    pruning: Pruning
    method: str
    gates: Gates
    variables: Variables
    metric: float
    loss: float
    ratings: list[float]

    @property
    def params(self) -> int:
        """Parameters of the slim network."""
        return count_params(self.pruning.graph, self.gates)

    @property
    def macs(self) -> int:
        """MACs of the slim network for one example."""
        return count_macs(self.pruning.graph, self.gates)

    @property
    def kept(self) -> dict[str, int]:
        """Units kept in each group."""
        return {name: int(np.asarray(gate).sum()) for name, gate in self.gates.items()}

    @property
    def network(self) -> Network:
        """The slim network."""
        return self.pruning.network.replace(self.variables).slim(self.gates)

    def budget_rows(self) -> list[dict[str, PyTree]]:
        """Return each budget with what was achieved, in the unit of its limit and absolute.

        ``quartiles`` are those around a measured latency, in the unit of the limit.
        """
        constraints = self.pruning.constraints
        rows = []
        for each, found in zip(constraints, measured_costs(constraints, self.gates), strict=True):
            row: dict[str, PyTree] = {
                "name": each.budget.name,
                "limit": each.budget.limit,
                "achieved": found.value,
                "unit": each.unit,
                "count": each.cost.exact(self.gates).value,
                "satisfied": bool(found.value <= each.budget.limit),
            }
            if found.lower < found.upper:
                row["quartiles"] = [found.lower, found.upper]
            rows.append(row)
        return rows


@partial(jax.jit, static_argnums=(0, 1))
def _evaluate_masked(
    definition: Definition, objective: Objective, variables: Variables, gates: Gates, data: Data
) -> Evaluation:
    def apply(variables: Variables, /, *inputs: PyTree, **options: PyTree) -> PyTree:
        return definition.masked(variables, gates, *inputs)

    return evaluate(apply, variables, objective, data, batch_size=EVALUATION_BATCH)


def evaluate_masked(
    network: Network, objective: Objective, variables: Variables, gates: Gates, data: Data
) -> Evaluation:
    """Return loss and metric of a masked network over all examples.

    Args:
        network: whose definition counts.
        objective: of the task.
        variables: dense.
        gates: group name -> f32[units].
        data: arrays or a source of batches.
    """
    whole = partial(_evaluate_masked, network.definition, objective, variables, gates)
    return _over_batches(whole, data)


def evaluate_network(network: Network, objective: Objective, data: Data) -> Evaluation:
    """Return loss and metric of a network over all examples.

    Args:
        network: dense or slim.
        objective: of the task.
        data: arrays or a source of batches.
    """
    whole = partial(_evaluate_network, network.definition, objective, network.variables)
    return _over_batches(whole, data)


@partial(jax.jit, static_argnums=(0, 1))
def _evaluate_network(
    definition: Definition, objective: Objective, variables: Variables, data: Data
) -> Evaluation:
    return evaluate(definition.apply, variables, objective, data, batch_size=EVALUATION_BATCH)


def _over_batches(whole: Callable[[Data], Evaluation], data: Data) -> Evaluation:
    """Evaluate arrays at once, and a source batch by batch."""
    if not callable(data):
        return whole(data)
    totals, count = np.zeros(2), 0
    for batch in data():
        size = len(jax.tree.leaves(batch)[0])
        totals += size * np.asarray(jax.device_get(tuple(whole(batch))), np.float64)
        count += size
    if not count:
        raise ValueError("the data have no batch; return a new iterator at each call")
    return Evaluation(*(jnp.float32(total / count) for total in totals))


def deliver(
    pruning: Pruning, search: Search, finetune: Finetune | None = None, run: Run | None = None
) -> Delivered:
    """Bring what a search found within the budgets and finetune the best of it.

    The first candidates are re-ranked by their held-out metric after a short finetune; the winner
    is finetuned on all training data and evaluated once on the test data.

    Args:
        pruning: the problem.
        search: what was found.
        finetune: training of the user's own in place of ours.
        run: where checkpoints and metrics go; None keeps them in memory.

    Raises:
        EmptyArchiveError: every reward was NaN or infinite, so there is nothing to choose from.
        DivergenceError: finetuning diverged.
        ValueError: no mask meets the budgets.
    """
    check_archive(search.archive)
    run = MemoryRun() if run is None else run
    config, network, task = pruning.config, pruning.network, pruning.task
    assert config.rerank_steps is not None and config.finetune_steps is not None
    fill = METHODS[search.method](pruning).fill
    candidates = deliverable(
        pruning.env, pruning.constraints, search.archive, config.rerank, fill=fill
    )
    key = stage_key(config.seed, "deploy")

    def tune(stage: str, gates: Gates, held_out: bool, steps: int) -> Variables:
        if finetune is not None:
            apply = MaskedFunction(network.definition, gates)
            return finetune(apply, network.variables, steps, jax.random.fold_in(key, steps))
        training = Training(
            name=f"{stage}-{search.method}",
            network=network,
            objective=task.objective,
            data=training_data(task, held_out),
            recipe=finetune_recipe(config),
            steps=steps,
            gates=gates,
        )
        return run_training(training, key, run, config.save_seconds)

    def rate(number: int) -> float:
        gates = candidates[number]
        tuned = tune(f"rerank{number}", gates, False, int(config.rerank_steps or 0))
        found = evaluate_masked(network, task.objective, tuned, gates, task.held_out)
        return float(found.metric)

    ratings: list[float] = []
    best = 0
    if len(candidates) > 1:
        best, ratings = best_of(range(len(candidates)), rate)
    gates = candidates[best]
    tuned = tune("finetune", gates, True, config.finetune_steps)
    found = evaluate_masked(network, task.objective, tuned, gates, task.test)
    return Delivered(
        pruning=pruning,
        method=search.method,
        gates=gates,
        variables=tuned,
        metric=float(found.metric),
        loss=float(found.loss),
        ratings=ratings,
    )
