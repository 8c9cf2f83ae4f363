"""From what a search found to a finetuned network within its budgets."""

import dataclasses

import numpy as np

from rlprune_jax.checks import require_function, require_type
from rlprune_jax.costs import count_macs, count_params, measured_costs
from rlprune_jax.runs import MemoryRun, Run
from rlprune_jax.runs.run import check_run
from rlprune_jax.search import check_archive, gates_to_masks
from rlprune_jax.training.loops import evaluate
from rlprune_jax.training.task import Data, Evaluation, Objective
from rlprune_jax.types import Gates, PyTree, Variables
from rlprune_jax.workflow.fitting import best_of, deliverable, fit_to_budgets
from rlprune_jax.workflow.network import Definition, Network
from rlprune_jax.workflow.pruning import Pruning
from rlprune_jax.workflow.searches import Search
from rlprune_jax.workflow.tuning import Finetune, Tuner

EVALUATION_BATCH = 500
"""Examples a forward pass of an evaluation."""

REPAIRS = 3
"""Times that what is over its budgets when measured again is shrunk, before a run says so."""


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
        """Return each budget with what was achieved.

        Both in the unit of its limit and absolute. ``quartiles`` are those around a cost with
        noise, in the unit of the limit; ``satisfied`` is whether the upper one is within it, as in
        what is delivered. What was measured last counts.
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
                "satisfied": bool(found.upper <= each.budget.limit),
            }
            if found.lower < found.upper:
                row["quartiles"] = [found.lower, found.upper]
            rows.append(row)
        return rows


@dataclasses.dataclass(frozen=True)
class _Masked:
    """The masked network as a function of variables and gates together.

    Equal for one definition, so that all its gates are evaluated by one program.
    """

    definition: Definition

    def __call__(self, given: tuple[Variables, Gates], /, *inputs: PyTree) -> PyTree:
        variables, gates = given
        return self.definition.masked(variables, gates, *inputs)


def evaluate_masked(
    network: Network, objective: Objective, variables: Variables, gates: Gates, data: Data
) -> Evaluation:
    """Evaluate a masked network on all examples.

    Args:
        network: whose definition counts.
        objective: of the task.
        variables: dense.
        gates: group name -> f32[units].
        data: arrays or a source of batches.
    """
    masked = _Masked(network.definition)
    return evaluate(masked, (variables, gates), objective, data, batch_size=EVALUATION_BATCH)


def evaluate_network(network: Network, objective: Objective, data: Data) -> Evaluation:
    """Return loss and metric of a network over all examples.

    Args:
        network: dense or slim.
        objective: of the task.
        data: arrays or a source of batches.
    """
    apply, variables = network.apply, network.variables
    return evaluate(apply, variables, objective, data, batch_size=EVALUATION_BATCH)


def deliver(
    pruning: Pruning, search: Search, finetune: Finetune | None = None, run: Run | None = None
) -> Delivered:
    """Bring a search within the budgets and finetune.

    The best of what it found is delivered. The first candidates are re-ranked by their held-out
    metric after a short finetune; the winner is finetuned on all training data and evaluated once
    on the test data.

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
    require_type("pruning", pruning, Pruning, "make it by make_pruning")
    require_type("search", search, Search, "make it by search(pruning)")
    if finetune is not None:
        require_function("finetune", finetune, "a function (apply, variables, steps, key)")
    check_run(run)
    check_archive(search.archive)
    network, task = pruning.network, pruning.task
    tuner = Tuner(pruning, search.method, finetune, MemoryRun() if run is None else run)
    candidates = deliverable(
        pruning.env,
        pruning.constraints,
        search.archive,
        pruning.config.rerank,
        fill=search.fill,
    )

    def rate(number: int) -> float:
        gates = candidates[number]
        tuned = tuner.short(number, gates)
        return float(evaluate_masked(network, task.objective, tuned, gates, task.held_out).metric)

    best, ratings = 0, list[float]()
    if len(candidates) > 1:
        best, ratings = best_of(range(len(candidates)), rate)
    # Measured again before it is trained long: of many that were measured, one that was lucky.
    return _finetuned(tuner, repaired(pruning, candidates[best]), ratings)


def _finetuned(tuner: Tuner, gates: Gates, ratings: list[float], repair: int = 0) -> Delivered:
    """Finetune gates and evaluate them once on the test data."""
    pruning = tuner.pruning
    network, task = pruning.network, pruning.task
    tuned = tuner.last(gates, repair)
    found = evaluate_masked(network, task.objective, tuned, gates, task.test)
    return Delivered(
        pruning=pruning,
        method=tuner.method,
        gates=gates,
        variables=tuned,
        metric=float(found.metric),
        loss=float(found.loss),
        ratings=ratings,
    )


def repaired(pruning: Pruning, gates: Gates) -> Gates:
    """Measure gates again, and shrink them where they are over.

    Counts are what they are; only costs with noise can be over.

    Args:
        pruning: the problem.
        gates: group name -> f32[units], within the budgets when they were measured last.

    Returns:
        Gates within every budget by what was measured last, unless ``REPAIRS`` were not enough or
        the smallest network is over by now.
    """
    constraints = pruning.constraints
    if not any(each.cost.again for each in constraints):
        return gates
    for left in range(REPAIRS, -1, -1):
        found = [each.measure_again(gates) for each in constraints]
        over = [not a.upper <= b.budget.limit for a, b in zip(found, constraints, strict=True)]
        if not any(over):
            return gates
        if left:
            mask = gates_to_masks(pruning.env, gates)
            try:
                gates = fit_to_budgets(pruning.env, constraints, mask, fill=False)
            except ValueError:
                break  # even the smallest is over by now: what there is is kept, and said to be
    return gates


def confirm(
    delivered: Delivered, finetune: Finetune | None = None, run: Run | None = None
) -> Delivered:
    """Measure what was delivered again, and repair it.

    Use it at the end of a run. Repaired gates are finetuned anew and evaluated on the test data;
    what is still over then says so in ``budget_rows``.

    Args:
        delivered: by ``deliver``.
        finetune: training of the user's own in place of ours.
        run: where checkpoints and metrics go; None keeps them in memory.

    Raises:
        DivergenceError: finetuning diverged.
    """
    pruning = delivered.pruning
    tuner = Tuner(pruning, delivered.method, finetune, MemoryRun() if run is None else run)
    for repair in range(1, REPAIRS + 1):
        gates = repaired(pruning, delivered.gates)
        if all(np.array_equal(gates[name], delivered.gates[name]) for name in gates):
            break
        delivered = _finetuned(tuner, gates, delivered.ratings, repair)
    return delivered
