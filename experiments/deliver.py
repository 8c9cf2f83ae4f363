"""From a finished search to a finetuned network within its budgets, and the agent's as files."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from problem import EVALUATION_BATCH, Images, Jobs, Problem

from rlprune_jax.costs.budget import Budget, cost_of, measured_costs
from rlprune_jax.costs.counts import count_macs, count_params
from rlprune_jax.costs.latency import Latency, measure_latency
from rlprune_jax.export.export import export_stablehlo, make_plan, save_weights, write_plan
from rlprune_jax.export.restore import PLAN, WEIGHTS
from rlprune_jax.files import write_atomically
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.slim import compact, respecialise
from rlprune_jax.runs.run_directory import RunDirectory
from rlprune_jax.runs.stages import run_stage
from rlprune_jax.search import Archive, Environment
from rlprune_jax.training.augmentation import Prepare
from rlprune_jax.training.loops import evaluate
from rlprune_jax.types import Apply, Gates, Variables
from rlprune_jax.units.gates import widths
from rlprune_jax.workflow.deliver import best_of, deliverable, equivalence

STEPS_AT_ONCE = 60
BATCHES = (1, 128)
"""Images a call that latency is reported for."""

TOLERANCE = 1e-3
"""Of slim against masked logits, relative to the largest; rounding makes some 1e-6."""


class Delivered(NamedTuple):
    """A method's final network.

    Attributes:
        gates: that it delivers, within every budget.
        variables: dense, finetuned with the gates.
        accuracy: fraction, of the masked network on the test images.
        params: of the slim network.
        macs: of the slim network, per example.
        ratings: held-out accuracies of the re-ranked candidates.
    """

    gates: Gates
    variables: Variables
    accuracy: float
    params: int
    macs: int
    ratings: list[float]

    def kept(self, graph: Graph) -> dict[str, int]:
        """Return the units kept in each group."""
        return widths(graph, self.gates)

    def budget_rows(self, graph: Graph, budgets: Sequence[Budget]) -> list[dict[str, Any]]:
        """Each budget with what was achieved, in the unit of its limit and absolute.

        ``quartiles`` are those around a measured latency, in the unit of the limit.
        """
        rows = []
        for budget, found in zip(budgets, measured_costs(graph, budgets, self.gates), strict=True):
            exact = cost_of(graph, budget).exact(self.gates)
            row: dict[str, Any] = {
                "name": budget.name,
                "limit": budget.limit,
                "achieved": found.value,
                "unit": f"fraction of dense {budget.unit}" if budget.relative else budget.unit,
                "count": exact[0] if isinstance(exact, tuple) else exact,
                "satisfied": found.value <= budget.limit,
            }
            if found.lower < found.upper:
                row["quartiles"] = [found.lower, found.upper]
            rows.append(row)
        return rows


def deliver_method(
    run: RunDirectory,
    problem: Problem,
    jobs: Jobs,
    variables: Variables,
    env: Environment,
    budgets: Sequence[Budget],
    method: str,
    archive: Archive,
    *,
    rerank: int,
    rerank_steps: int,
    finetune_steps: int,
    key: jax.Array,
    save_seconds: float,
) -> Delivered:
    """Bring a method's best under the budgets, re-rank them, finetune the winner, test it once."""
    candidates = deliverable(env, problem.graph, budgets, archive, rerank, fill=method != "uniform")

    def tune(name: str, gates: Gates, images: Any, total: int) -> Variables:
        def advance(state: Any, start: int, count: int) -> tuple[Any, list]:
            state, metrics = jobs.finetune(state, gates, jnp.float32(total), images, key, count)
            loss = float(jnp.mean(metrics["loss"]))
            return state, [(start + count, {"loss": loss})]

        state = jobs.finetune_state(variables)
        return run_stage(
            run,
            f"{name}-{method}",
            state,
            total,
            advance,
            chunk=STEPS_AT_ONCE,
            save_seconds=save_seconds,
            note=lambda values: f"loss {values['loss']:.3f}",
        ).variables

    numbers = {id(gates): number for number, gates in enumerate(candidates)}

    def rate(gates: Gates) -> float:
        tuned = tune(f"rerank{numbers[id(gates)]}", gates, problem.train, rerank_steps)
        return float(jobs.accuracy(tuned, gates, problem.held_out))

    gates, ratings = best_of(candidates, rate) if len(candidates) > 1 else (candidates[0], [])
    tuned = tune("finetune", gates, problem.everything, finetune_steps)
    return Delivered(
        gates,
        tuned,
        float(jobs.accuracy(tuned, gates, problem.test)),
        count_params(problem.graph, gates),
        count_macs(problem.graph, gates),
        ratings,
    )


class Shipped(NamedTuple):
    """The slim network, measured.

    Attributes:
        accuracy: fraction, of the slim network on the test images.
        max_abs_diff: between the logits of the slim and of the masked network.
        dense_latency: milliseconds by number of images.
        slim_latency: milliseconds by number of images.
        dense_bytes: size of the file of the dense network's weights.
        slim_bytes: size of the file of the slim network's weights.
    """

    accuracy: float
    max_abs_diff: float
    dense_latency: dict[int, Latency]
    slim_latency: dict[int, Latency]
    dense_bytes: int
    slim_bytes: int


def ship(
    run: RunDirectory, problem: Problem, delivered: Delivered, batches: Sequence[int] = BATCHES
) -> Shipped:
    """Cut the network to its kept units, compare, measure and write it to ``slim/``."""
    apply, graph = problem.functions.apply, problem.graph
    slim_variables = compact(graph, delivered.variables, delivered.gates)
    slim_apply = respecialise(apply, graph, delivered.gates)
    x = problem.prepare(problem.test.images[: max(BATCHES)])
    accuracy = accuracy_of(slim_apply, slim_variables, problem.prepare, problem.test)
    difference, largest = equivalence(
        apply, graph, delivered.variables, slim_variables, delivered.gates, x
    )
    if not difference <= TOLERANCE * max(1.0, largest):
        raise RuntimeError(
            f"the slim network's logits differ from its masked twin's by {difference:g}; this is a "
            "defect of rlprune_jax, and nothing was written: please report the network"
        )
    run.slim.mkdir(exist_ok=True)
    save_weights(run.slim / WEIGHTS, slim_variables)
    plan = make_plan(delivered.gates, delivered.variables, slim_variables)
    write_plan(run.slim / PLAN, plan)
    content = export_stablehlo(slim_apply, slim_variables, x.shape[1:])
    write_atomically(run.slim / "model.stablehlo", content)
    with tempfile.TemporaryDirectory() as folder:
        save_weights(Path(folder) / WEIGHTS, delivered.variables)
        dense_bytes = (Path(folder) / WEIGHTS).stat().st_size

    def latencies(function: Apply, variables: Variables) -> dict[int, Latency]:
        jitted = jax.jit(function)
        rows = [jnp.resize(x, (batch, *x.shape[1:])) for batch in batches]
        return {len(each): measure_latency(jitted, variables, each) for each in rows}

    return Shipped(
        accuracy,
        difference,
        latencies(apply, delivered.variables),
        latencies(slim_apply, slim_variables),
        dense_bytes,
        (run.slim / WEIGHTS).stat().st_size,
    )


def accuracy_of(apply: Apply, variables: Variables, prepare: Prepare, images: Images) -> float:
    """Accuracy of a network on all images, as a fraction."""

    @jax.jit
    def accuracy(variables: Variables, images: Images) -> jax.Array:
        size = min(EVALUATION_BATCH, len(images.labels))
        return evaluate(apply, variables, *images, batch_size=size, prepare=prepare)[1]

    return float(accuracy(variables, images))
