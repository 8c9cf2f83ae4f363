"""From a finished search to a finetuned network within its budgets, and the agent's as files."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from problem import Jobs, Problem
from stages import run_stage

from rlprune_jax.costs.budget import COSTS, Budget, exact_costs
from rlprune_jax.costs.counts import count_macs, count_params
from rlprune_jax.costs.latency import Latency, measure_latency
from rlprune_jax.export import export_stablehlo, make_plan, save_weights, write_plan
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.slim import compact, respecialise
from rlprune_jax.run_directory import RunDirectory
from rlprune_jax.search import Archive, Environment
from rlprune_jax.search.deploy import best_of, deliverable, equivalence
from rlprune_jax.training import evaluate
from rlprune_jax.types import Gates, Variables

STEPS_AT_ONCE = 60
LATENCY_BATCH = 128


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
        """Units kept in each group."""
        return {name: int(np.asarray(self.gates[name]).sum()) for name in graph.names}

    def budget_rows(self, graph: Graph, budgets: Sequence[Budget]) -> list[dict[str, Any]]:
        """Each budget with what was achieved, as fractions of dense and absolute."""
        return [
            {
                "name": budget.name,
                "limit": budget.limit,
                "achieved": achieved,
                "unit": f"fraction of dense {budget.unit}",
                "count": COSTS[budget.name].count(graph, self.gates),
                "satisfied": achieved <= budget.limit,
            }
            for budget, achieved in zip(
                budgets, exact_costs(graph, budgets, self.gates), strict=True
            )
        ]


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
        dense_latency: milliseconds for 128 images.
        slim_latency: milliseconds for 128 images.
    """

    accuracy: float
    max_abs_diff: float
    dense_latency: Latency
    slim_latency: Latency


def ship(run: RunDirectory, problem: Problem, delivered: Delivered) -> Shipped:
    """Cut the network to its kept units, compare, measure and write it to ``slim/``."""
    apply, graph = problem.functions.apply, problem.graph
    slim_variables = compact(graph, delivered.variables, delivered.gates)
    slim_apply = respecialise(apply, graph)
    x = problem.prepare(problem.test.images[:LATENCY_BATCH])
    test = problem.test
    accuracy = jax.jit(
        lambda variables, images, labels: evaluate(
            slim_apply,
            variables,
            images,
            labels,
            batch_size=min(500, len(test.labels)),
            prepare=problem.prepare,
        )[1]
    )(slim_variables, *test)
    run.slim.mkdir(exist_ok=True)
    save_weights(run.slim / "weights.safetensors", slim_variables)
    write_plan(run.slim / "plan.json", make_plan(delivered.gates, delivered.variables))
    (run.slim / "model.stablehlo").write_bytes(
        export_stablehlo(slim_apply, slim_variables, x.shape[1:])
    )
    return Shipped(
        float(accuracy),
        equivalence(apply, graph, delivered.variables, slim_variables, delivered.gates, x),
        measure_latency(jax.jit(apply), delivered.variables, x),
        measure_latency(jax.jit(slim_apply), slim_variables, x),
    )
