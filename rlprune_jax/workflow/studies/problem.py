"""The network that a study searches in, trained once."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rlprune_jax.costs import parse_budgets
from rlprune_jax.runs import Run
from rlprune_jax.training.loops import init_train_state, make_train_step, train
from rlprune_jax.training.task import Batch, Task, count_examples
from rlprune_jax.types import Gates, PyTree, Variables
from rlprune_jax.workflow.building import Built, build_network, wanted_of
from rlprune_jax.workflow.candidates import masked_training
from rlprune_jax.workflow.delivery import evaluate_masked, evaluate_network
from rlprune_jax.workflow.learning import train_dense
from rlprune_jax.workflow.pruning import (
    Pruning,
    bind_budgets,
    candidate_data,
    check_arrays,
    check_problem,
    pose,
)
from rlprune_jax.workflow.recipes import DenseRecipe, finetune_recipe
from rlprune_jax.workflow.sources import usual_steps, with_usual_widths
from rlprune_jax.workflow.studies.base import Study
from rlprune_jax.workflow.studies.trained import TrainedStudy
from rlprune_jax.workflow.tuning import training_data


def build(study: Study) -> tuple[Built, Task]:
    """Load the data of a study and make its network.

    Raises:
        ValueError: a function of the user's that cannot be imported, raises, or returns something
            else; options or weights that do not fit.
        OSError: the data are missing.
    """
    task = study.task()
    network = with_usual_widths(study, study.dataset)
    return build_network(network, wanted_of(task, study.seed)), task


def prepare(
    study: TrainedStudy, budgets: Sequence[str], run: Run | None = None, *, finetune: bool = False
) -> Pruning:
    """Train the dense network and make the problem.

    A trained network is found.

    Args:
        study: whose data and network count.
        budgets: limits of one cost, each of which a setting may have; the problem has the first.
        run: where checkpoints of the training go; None keeps them in memory.
        finetune: whether settings are finetuned, for which all data have to be arrays.

    Raises:
        ValueError: a budget that is not understood or cannot be met; nothing is trained then.
        TaskError: the network does not fit the data, or they come batch by batch.
    """
    parsed = [parse_budgets([text])[0] for text in budgets]
    if len({budget.relative for budget in parsed}) > 1:
        raise ValueError(
            f"limits={[budget.limit for budget in parsed]} mix fractions of dense and absolute "
            "numbers; give one kind"
        )
    config = study.prune_config()
    (network, is_trained, _), task = build(study)
    if finetune:
        check_arrays(task, "a study that finetunes does")
    problem = check_problem(network, task, parsed[:1], config)
    for budget in parsed[1:]:
        bind_budgets(network, [budget], config)
    if not is_trained or study.dense_steps is not None:
        steps = study.dense_steps or usual_steps(study.dataset)[0]
        network = train_dense(network, task, DenseRecipe(steps=steps), study.seed, run)
    return pose(problem._replace(network=network))


def dense_accuracy(pruning: Pruning) -> float:
    """Evaluate the dense network on the test data."""
    task = pruning.task
    return float(evaluate_network(pruning.network, task.objective, task.test).metric)


def shared_arrays(pruning: Pruning, *, finetune: bool) -> dict[str, PyTree]:
    """Return what all settings of a study read.

    Args:
        pruning: the problem.
        finetune: whether settings are finetuned.
    """
    shared = {
        "variables": pruning.network.variables,
        "env": pruning.env,
        "data": candidate_data(pruning),
    }
    if finetune:
        shared["train"] = training_data(pruning.task, False)
        shared["all"] = training_data(pruning.task, True)
        shared["test"] = pruning.task.test
    return shared


def finetuned(
    pruning: Pruning, variables: Variables, gates: Gates, batch: Batch, steps: int, key: jax.Array
) -> Variables:
    """Return the masked network's variables after so many steps, traceably."""
    config = pruning.config
    recipe = finetune_recipe(config)
    optimizer = recipe.optimizer(jnp.float32(steps))
    masked = masked_training(pruning.network.definition, gates)
    step = make_train_step(masked, optimizer, pruning.task.objective)
    size = min(recipe.batch_size, count_examples(batch))
    state = init_train_state(variables, optimizer)
    return train(step, state, batch, batch_size=size, num_steps=steps, key=key)[0].variables


def finetuned_accuracy(
    pruning: Pruning, shared: dict[str, PyTree], gates: Gates, steps: int, key: jax.Array
) -> jax.Array:
    """Evaluate a network after finetuning, traceably.

    It is finetuned on training and held-out data, and evaluated on test data.
    """
    tuned = finetuned(pruning, shared["variables"], gates, shared["all"], steps, key)
    objective = pruning.task.objective
    return evaluate_masked(pruning.network, objective, tuned, gates, shared["test"]).metric
