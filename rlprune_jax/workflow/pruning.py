"""What every stage of a run takes: network, task, budgets bound to it, and the decision process."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_type
from rlprune_jax.costs import (
    Budget,
    Constraint,
    CostOptions,
    Tile,
    check_reachable,
    constrain,
    estimate_costs,
    limits,
)
from rlprune_jax.graph.groups import Graph
from rlprune_jax.places import default_cache_dir
from rlprune_jax.search import CostFunction, Environment, make_environment
from rlprune_jax.training.metrics import SoftmaxCrossEntropy, labels_of
from rlprune_jax.training.recalibration import find_statistics
from rlprune_jax.training.task import SPLITS, Task, TaskError
from rlprune_jax.types import Apply, Gates, PyTree, Variables
from rlprune_jax.units.descriptors import layer_descriptors
from rlprune_jax.units.gates import least_kept
from rlprune_jax.units.repair import RepairMethod, repair_reach
from rlprune_jax.workflow.candidates import CandidateData, reference_of
from rlprune_jax.workflow.config import PruneConfig, Rule, overrides, resolve
from rlprune_jax.workflow.network import Definition, Network, check_weights
from rlprune_jax.workflow.precision import check_precision
from rlprune_jax.workflow.scoring import score_units

Budgets = Sequence[Budget | str] | Budget | str
"""One budget or several, as text (``"params=0.1"``) or as ``Budget``."""

RETENTION = 3.0
"""How much retention counts in the reward beside an accuracy, unless told."""

REWARD_ROWS = 2048
"""Rows that a contraction of a candidate is fitted on."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pruning:
    """A problem to search, deliver and ship.

    Made by ``make_pruning``; every stage takes it and one thing more.

    Attributes:
        network: dense and trained.
        task: what it is to do, its arrays on the device.
        constraints: the budgets, bound to the network.
        env: the decision process.
        config: all defaults filled in.
    """

    network: Network
    task: Task
    constraints: tuple[Constraint, ...]
    env: Environment
    config: PruneConfig

    @property
    def graph(self) -> Graph:
        """Of the network."""
        return self.network.graph


def bind_budgets(network: Network, budgets: Budgets, config: PruneConfig) -> tuple[Constraint, ...]:
    """Bind budgets to a network.

    Those that no pruning can meet are refused. The values of its weights do not matter, so this can
    come before any training. Times are measured here.

    Raises:
        ValueError: a budget that is not understood or cannot be met, with the least value that can.
        CostError: a cost function failed.
    """
    inputs = repeated(network.example, config.latency_batch)
    options = CostOptions(
        tile=Tile(*config.tile),
        cache=default_cache_dir() / "latency",
        steps=config.latency_steps,
        programs=config.latency_programs,
        kv_layers=config.kv_layers,
        time_limit=config.cost_seconds,
        answers=config.cost_answers,
        function_asks=config.cost_asks,
        latency_asks=config.latency_asks,
    )
    seen = _Timed(network.apply, network.graph, network.variables, inputs)
    constraints = constrain(seen, budgets, options)
    check_reachable(
        network.graph,
        constraints,
        overrides(config, "min_keep"),
        overrides(config, "round_to"),
    )
    return constraints


@dataclasses.dataclass(frozen=True)
class _Timed:
    """What costs read of a network, with inputs of the batch that is timed."""

    apply: Apply
    graph: Graph
    variables: Variables
    example: tuple[PyTree, ...]


def repeated(inputs: tuple[PyTree, ...], count: int) -> tuple[PyTree, ...]:
    """Return inputs with ``count`` examples, repeated or cut.

    Args:
        inputs: arrays, or ``jax.ShapeDtypeStruct`` where the values do not matter.
        count: of examples.
    """

    def resized(leaf: PyTree) -> jax.Array:
        shape = np.shape(leaf)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            leaf = jnp.zeros(shape, leaf.dtype)
        return jnp.resize(jnp.asarray(leaf), (count, *shape[1:])) if shape else jnp.asarray(leaf)

    return jax.tree.map(resized, inputs)


def make_pruning(
    network: Network,
    task: Task,
    budgets: Budgets,
    config: PruneConfig | None = None,
) -> Pruning:
    """Make the problem of pruning a trained network to budgets.

    Use it to call ``search``, ``deliver`` and ``ship`` one by one; ``prune`` does it all.

    Args:
        network: dense and trained.
        task: what it is to do.
        budgets: as text (``"params=0.1"``) or as ``Budget``.
        config: settings; defaults where None.

    Raises:
        NetworkError: weights that are not finite.
        TaskError: outputs that do not fit the task's loss or metric.
        ValueError: a setting that cannot be, or budgets that cannot be met.
    """
    config = PruneConfig() if config is None else config
    return pose(check_problem(network, task, budgets, config))


class Problem(NamedTuple):
    """Hold what can be pruned, before its units are scored.

    Attributes:
        network: trained, or yet to be.
        task: what it is to do.
        constraints: the budgets, bound to the network.
        config: all defaults filled in.
    """

    network: Network
    task: Task
    constraints: tuple[Constraint, ...]
    config: PruneConfig


def pose(problem: Problem) -> Pruning:
    """Make the problem of a checked one, its network trained.

    Use it where training comes between the check and the search.

    Raises:
        NetworkError: weights that are not finite.
    """
    network, _, constraints, config = problem
    check_weights(network.variables)
    task = problem.task.on_device()
    scores = score_units(network, task, config, constraints)
    env = search_environment(network.graph, constraints, scores, config)
    return Pruning(network=network, task=task, constraints=constraints, env=env, config=config)


def check_problem(network: Network, task: Task, budgets: Budgets, config: PruneConfig) -> Problem:
    """Refuse what cannot be pruned.

    Nothing is trained or written here, so that a wrong argument costs seconds.

    Raises:
        TypeError: what is given is no ``Network`` or no ``Task``.
        NetworkError: weights that are not finite.
        TaskError: outputs that do not fit the task's loss or metric.
        ValueError: a setting that cannot be, nothing that can be pruned, or budgets that cannot be
            met.
    """
    if not isinstance(network, Network):
        raise TypeError(
            f"network is a {type(network).__name__}, not a Network; make one by "
            "Network.from_linen, from_nnx, from_equinox or Network(apply, variables, example)"
        )
    if not isinstance(task, Task):
        raise TypeError(
            f"task is a {type(task).__name__}, not a Task; make one by classification, "
            "regression, next_token or Task(loss, metric, train, held_out, test)"
        )
    require_type("config", config, PruneConfig, "make it by PruneConfig(...)")
    filled = resolve(config)
    check_precision(filled.precision)
    if config.finetune_rule is None:
        config = dataclasses.replace(config, finetune_rule=usual_rule(network.definition))
    if config.reward_retention is None:
        config = dataclasses.replace(config, reward_retention=usual_retention(config, task))
    check_weights(network.variables)
    check_fit(network, task, filled)
    constraints = bind_budgets(network, budgets, filled)
    return Problem(network=network, task=task, constraints=constraints, config=resolve(config))


def usual_retention(config: PruneConfig, task: Task) -> float:
    """Return how much retention counts in the reward unless told.

    Beside an accuracy, whose scale is known, of what is finetuned.
    """
    is_accuracy = "accuracy" in task.objective.metric_name and config.reward != "loss"
    return RETENTION if is_accuracy and config.finetune_steps != 0 else 0.0


def usual_rule(definition: Definition) -> Rule:
    """Return how a network of unknown training is finetuned.

    Running statistics tell convolutional networks with batch norm, which SGD trains; transformers
    have none.
    """
    train = definition.apply_train
    if train is None:
        return "adam"
    found = find_statistics(train, definition.shapes, *definition.example)
    return "sgd" if found else "adam"


TAKEN_NAMES = ("loss", "stage", "step", "params", "macs", "kept", "latency_ms", "evaluations")
"""Names beside which a metric is stored."""


def check_fit(network: Network, task: Task, config: PruneConfig) -> None:
    """Refuse a task that does not fit a network.

    Nothing is computed.

    Raises:
        TaskError: the network does not take the task's inputs, or loss or metric do not take its
            outputs, or a reward is asked that the task cannot answer.
    """
    objective = task.objective
    if config.reward == "accuracy" and "accuracy" not in objective.metric_name:
        raise TaskError(
            f"reward='accuracy': the task's metric is {objective.metric_name!r}; use "
            "reward='metric', or a task with an accuracy"
        )
    if objective.metric_name in TAKEN_NAMES:
        raise TaskError(
            f"metric_name={objective.metric_name!r} has another meaning in metrics.jsonl and "
            "result.json; give the task another metric_name"
        )
    for split in SPLITS:
        _check_split(network, task, split)
    _check_alike(task)


def _check_split(network: Network, task: Task, split: str) -> None:
    """Refuse examples that network, loss or metric do not take."""
    objective = task.objective
    batch = task.sample(split, 2)
    try:
        inputs = jax.eval_shape(lambda batch: objective.network_inputs(batch), batch)
        outputs = jax.eval_shape(network.apply, network.variables, *inputs)
    except Exception as error:
        raise TaskError(
            f"{split}: the network does not take the task's inputs, found in a batch "
            f"{_text(batch)}: {_first_line(error)}; give the task inputs=function(batch) or "
            "prepare=function(*inputs)"
        ) from error
    for name in ("loss", "metric"):
        function = getattr(objective, name)
        try:
            found = jax.eval_shape(function, outputs, batch)
        except Exception as error:
            raise TaskError(
                f"{split}: the network's outputs {_text(outputs)} do not fit the task's {name} "
                f"with a batch {_text(batch)}: {_first_line(error)}"
            ) from error
        if getattr(found, "shape", None) != ():
            raise TaskError(
                f"the task's {name} returns {_text(found)}, not a scalar; take the mean over "
                "the batch"
            )
    if isinstance(task.loss, SoftmaxCrossEntropy) and not task.is_streamed(split):
        _check_class_numbers(split, labels_of(getattr(task, split)), outputs.shape[-1])


def _check_class_numbers(split: str, labels: jax.Array, classes: int) -> None:
    """Refuse labels beyond the classes that a classifying network tells apart."""
    largest = int(np.asarray(labels).max())
    if largest >= classes:
        raise TaskError(
            f"{split}: labels hold {largest}; the network tells {classes} classes apart, 0 to "
            f"{classes - 1}"
        )


def _check_alike(task: Task) -> None:
    """Refuse training and held-out arrays that cannot be joined, as the last finetune does."""
    if task.is_streamed("train") or task.is_streamed("held_out"):
        return
    one, other = (
        jax.tree.map(lambda leaf: str((np.shape(leaf)[1:], jax.dtypes.result_type(leaf))), data)
        for data in (task.train, task.held_out)
    )
    if one != other:
        raise TaskError(
            f"train and held_out hold examples of different kinds, {_text(task.sample('train', 1))}"
            f" and {_text(task.sample('held_out', 1))}; the last finetune uses both"
        )


def check_arrays(task: Task, reader: str) -> None:
    """Refuse data that come batch by batch.

    Args:
        task: whose data.
        reader: what does not take them, with its verb: ``"iterative pruning does"``.

    Raises:
        TaskError: naming the split.
    """
    for split in SPLITS:
        if task.is_streamed(split):
            raise TaskError(
                f"{split} comes batch by batch, which {reader} not take; give it as arrays"
            )


def _text(tree: PyTree) -> str:
    shapes = jax.tree.map(
        lambda leaf: f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else str(leaf),
        tree,
    )
    return str(shapes).replace("'", "")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def search_environment(
    graph: Graph, constraints: tuple[Constraint, ...], scores: Gates, config: PruneConfig
) -> Environment:
    """Return the decision process of a pruning."""
    return make_environment(
        dict(zip(graph.names, graph.sizes, strict=True)),
        {name: np.asarray(score) for name, score in scores.items()},
        layer_descriptors(graph),
        limits(constraints),
        min_keep=least_kept(graph, overrides(config, "min_keep")),
        round_to=overrides(config, "round_to"),
        cost_fn=mask_costs(graph, constraints),
        measured=[each.is_measured for each in constraints],
    )


@dataclasses.dataclass(frozen=True)
class _MaskCosts:
    """Costs of a mask; equal where graph and costs are, so that programs are shared."""

    graph: Graph
    estimate: Callable[[Gates], jax.Array]

    def __call__(self, masks: jax.Array) -> jax.Array:
        names, sizes = self.graph.names, self.graph.sizes
        gates = {
            name: masks[index, :size]
            for index, (name, size) in enumerate(zip(names, sizes, strict=True))
        }
        return self.estimate(gates)


def mask_costs(graph: Graph, constraints: tuple[Constraint, ...]) -> CostFunction:
    """Return the costs as functions of masks.

    Traceable, ``masks f32[G, Cmax] -> f32[K]``, in the units of the limits.
    """
    return _MaskCosts(graph, estimate_costs(constraints))


def candidate_data(pruning: Pruning, train: bool = False) -> CandidateData:
    """Return what candidates of a search are evaluated on."""
    network, task, config = pruning.network, pruning.task, pruning.config
    assert config.calibration_images is not None
    calibration = task.sample("train", config.calibration_images)
    method = reward_repair(pruning)
    return CandidateData(
        calibration=task.objective.network_inputs(calibration),
        batch=task.sample("held_out", config.reward_images),
        train=(
            (task.sample("train", 10_000) if task.is_streamed("train") else task.train)
            if train
            else None
        ),
        reference=(
            None
            if method is None
            else reference_of(network.definition, method, network.variables, repair_inputs(pruning))
        ),
    )


def reward_repair(pruning: Pruning) -> RepairMethod | None:
    """Return how candidates are repaired before a reward.

    None where they are not, or where there is nothing that could be refitted.
    """
    network, kind = pruning.network, pruning.config.repair_reward
    if kind == "none":
        return None
    reach = repair_reach(network.apply, network.graph, network.variables, network.example)
    return RepairMethod(kind, rows=REWARD_ROWS) if reach.refitted else None


def repair_inputs(pruning: Pruning) -> tuple[PyTree, ...]:
    """Return the network's inputs that repairs are fitted on."""
    task = pruning.task
    return task.objective.network_inputs(task.sample("train", pruning.config.repair_images))
