"""The network that a study searches in, trained once, and the job that studies run on it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from problem import Jobs, Problem, make_jobs
from prune_rl import build, train_dense
from searching import make_search_environment, score_units
from settings import Config, resolve, stage_key

from rlprune_jax.costs import Constraint
from rlprune_jax.runs.run_directory import RunDirectory
from rlprune_jax.search import (
    AgentConfig,
    Environment,
    HParams,
    archive_best,
    archive_init,
    baselines,
    feasible,
    masks_to_gates,
    ppo_lagrangian,
    project_ratios,
    run_search,
)
from rlprune_jax.types import PyTree, Variables
from rlprune_jax.workflow.candidates import CandidateData, judge_candidates

AGENT_FIELDS = tuple(HParams._fields)
STRUCTURE = ("method", "granularity", "constraint", "dual", "shaping", "epochs", "candidates")


class Prepared(NamedTuple):
    """A trained network with what a search in it needs."""

    config: Config
    problem: Problem
    jobs: Jobs
    variables: Variables
    env: Environment
    sample: CandidateData
    constraint: Constraint


def prepare(config: Config, run: RunDirectory) -> Prepared:
    """Train the dense network (or find it trained), score its units, make the environment."""
    config = resolve(config)
    problem, constraints = build(config)
    assert config.dense_steps is not None
    jobs = make_jobs(
        problem,
        batch_size=config.batch_size,
        dense_rate=config.dense_rate,
        dense_steps=config.dense_steps,
        finetune_rate=config.finetune_rate,
        chunk=config.chunk,
    )
    variables = train_dense(config, run, problem, jobs)
    scores = score_units(config, problem, variables)
    env = make_search_environment(config, problem, constraints, scores, variables)
    held_out = problem.held_out
    rewarded = min(config.reward_images, len(held_out.labels))
    sample = CandidateData(
        problem.prepare(problem.train.images[: config.calibration_images]),
        problem.prepare(held_out.images[:rewarded]),
        held_out.labels[:rewarded],
    )
    return Prepared(config, problem, jobs, variables, env, sample, constraints[0])


def shared_arrays(prepared: Prepared) -> PyTree:
    """What all settings of a study read, as arguments: constants would be folded for minutes."""
    return {
        "variables": prepared.variables,
        "env": prepared.env,
        "sample": prepared.sample,
        "train": prepared.problem.train,
        "everything": prepared.problem.everything,
        "test": prepared.problem.test,
    }


def search_job(
    prepared: Prepared, evaluations: int, candidates: int, finetune_steps: int = 0
) -> Callable[..., dict[str, jax.Array]]:
    """A whole search as one scan: ``(hparams, key, shared, **structure) -> metrics``.

    Hyper-parameters are the agent's numbers and, by the name of the first budget, its limit.
    Metrics: ``reward``, the best held-out accuracy within the budget; ``area``, the mean over
    evaluations of the best so far, 0 before there is one; ``feasible_fraction``; ``cost`` of the
    best; with ``finetune_steps`` also ``accuracy`` on the test images after finetuning.
    """
    functions, graph, jobs = prepared.problem.functions, prepared.problem.graph, prepared.jobs
    assert prepared.config.constraint is not None
    defaults = AgentConfig(
        granularity=prepared.config.granularity,
        constraint=prepared.config.constraint,
        dual=prepared.config.dual,
        candidates=candidates,
    )

    def job(
        hparams: Mapping[str, jax.Array],
        key: jax.Array,
        shared: PyTree,
        method: str = "agent",
        **structure: Any,
    ) -> dict[str, jax.Array]:
        config = dataclasses.replace(defaults, **structure)
        iterations = max(1, evaluations // config.candidates)
        config = dataclasses.replace(config, iterations=iterations)
        env = shared["env"]
        numbers = {name: hparams[name] for name in AGENT_FIELDS if name in hparams}
        if prepared.constraint.budget.name in hparams:
            env = with_limit(env, hparams[prepared.constraint.budget.name])
        searcher = {
            "agent": lambda: ppo_lagrangian(env, config),
            "random_search": lambda: baselines.random_search(
                env, config.candidates, config.granularity
            ),
            "cross_entropy": lambda: baselines.cross_entropy(
                env, config.candidates, granularity=config.granularity
            ),
        }[method]()

        def evaluate(masks: jax.Array, key: jax.Array) -> jax.Array:
            return judge_candidates(
                functions.apply,
                functions.apply_train,
                graph,
                shared["variables"],
                masks_to_gates(env, masks),
                shared["sample"],
                key,
                chunk=config.candidates,
            ).accuracy

        init_key, search_key, finetune_key = jax.random.split(key, 3)
        state = searcher.init(HParams(**numbers), init_key)
        found = run_search(
            searcher,
            evaluate,
            env.limits,
            state,
            archive_init(env, 4),
            iterations,
            search_key,
            cost_fn=env.cost_fn,
        )
        rewards = found.history.rewards.reshape(-1)
        costs = found.history.costs.reshape(-1, env.num_budgets)
        good = feasible(costs, env.limits) & jnp.isfinite(rewards)
        curve = jax.lax.cummax(jnp.where(good, rewards, 0.0))
        best = archive_best(found.archive)
        metrics = {
            "reward": jnp.where(best.valid, best.rewards, jnp.nan),
            "area": curve.mean(),
            "feasible_fraction": good.mean(),
            "cost": jnp.where(best.valid, best.costs[0], jnp.nan),
        }
        if finetune_steps:
            gates = masks_to_gates(env, best.masks.astype(jnp.float32))
            tuned = finetuned(jobs, shared, gates, "everything", finetune_steps, finetune_key)
            accuracy = jobs.accuracy(tuned, gates, shared["test"])
            metrics["accuracy"] = jnp.where(best.valid, accuracy, jnp.nan)
        return metrics

    return job


def with_limit(env: Environment, limit: jax.Array) -> Environment:
    """The environment with another, traced, first limit and the uniform start that meets it."""
    env = dataclasses.replace(env, limits=env.limits.at[0].set(limit))
    start = project_ratios(env, jnp.full(env.num_groups, 0.5))
    return dataclasses.replace(env, initial_keep=start)


def finetuned(
    jobs: Jobs, shared: PyTree, gates: PyTree, images: str, steps: int, key: jax.Array
) -> Variables:
    """The masked network's variables after so many steps."""
    state = jobs.finetune_state(shared["variables"])
    total = jnp.asarray(steps, jnp.float32)
    return jobs.finetune(state, gates, total, shared[images], key, steps=steps)[0].variables


def proxy_job(prepared: Prepared, finetune_steps: int) -> Callable[..., dict[str, jax.Array]]:
    """One candidate's rewards by four recipes, and its test accuracy after the long finetune."""
    functions, graph, jobs = prepared.problem.functions, prepared.problem.graph, prepared.jobs

    def job(
        hparams: Mapping[str, jax.Array], key: jax.Array, shared: PyTree
    ) -> dict[str, jax.Array]:
        masks = shared["masks"][hparams["candidate"]]
        gates = masks_to_gates(shared["env"], masks)
        short_key, long_key = jax.random.split(key)

        def reward(variables: Variables, recalibration: bool = True) -> jax.Array:
            return judge_candidates(
                functions.apply,
                functions.apply_train,
                graph,
                variables,
                jax.tree.map(lambda gate: gate[None], gates),
                shared["sample"],
                key,
                chunk=1,
                recalibration=recalibration,
            ).accuracy[0]

        rewards = {
            "no_recalibration": reward(shared["variables"], recalibration=False),
            "recalibration": reward(shared["variables"]),
        }
        for steps in (32, 128):
            tuned = finetuned(jobs, shared, gates, "train", steps, short_key)
            rewards[f"finetune_{steps}"] = reward(tuned)
        tuned = finetuned(jobs, shared, gates, "everything", finetune_steps, long_key)
        return rewards | {"accuracy": jobs.accuracy(tuned, gates, shared["test"])}

    return job


def random_candidates(prepared: Prepared, count: int) -> jax.Array:
    """Different random masks [count, G, Cmax] within the budgets, in units of whole channels."""
    searcher = baselines.random_search(prepared.env, 4 * count, "coarse")
    state = searcher.init(None, jax.random.key(0))
    masks = searcher.ask(state, stage_key(prepared.config, "proxy"))[0].masks
    flat = masks.reshape(len(masks), -1)
    same = (flat[:, None] == flat[None]).all(-1)
    first = [index for index in range(len(masks)) if int(jnp.argmax(same[index])) == index]
    if len(first) < count:
        raise ValueError(
            f"candidates={count}: only {len(first)} different ones were found; raise the budget"
        )
    return masks[jnp.asarray(first[:count])]
