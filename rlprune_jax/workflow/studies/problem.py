"""The network that a study searches in, trained once."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlprune_jax.costs import parse_budgets
from rlprune_jax.models import create_model, model_functions
from rlprune_jax.runs import Run
from rlprune_jax.training import data
from rlprune_jax.training.image_task import image_task
from rlprune_jax.training.loops import init_train_state, make_train_step, train
from rlprune_jax.training.task import Batch, Task, count_examples
from rlprune_jax.types import Gates, PyTree, Variables
from rlprune_jax.workflow.candidates import masked_training
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.delivery import evaluate_masked, evaluate_network
from rlprune_jax.workflow.learning import (
    DenseRecipe,
    FinetuneRecipe,
    train_dense,
)
from rlprune_jax.workflow.network import Network
from rlprune_jax.workflow.pruning import (
    Pruning,
    bind_budgets,
    candidate_data,
    make_pruning,
    stage_key,
)
from rlprune_jax.workflow.studies.base import Study
from rlprune_jax.workflow.tuning import training_data

DENSE_STEPS = {"digits": 300, "mnist": 1000}
"""Steps of the dense training where the data set is known."""

MANY_STEPS = 2000
"""Steps of the dense training otherwise."""


def build_module(study: Study) -> tuple[nn.Module, Task]:
    """Load data and make the module of a network.

    Raises:
        ValueError: an unknown model, or options that it does not have.
        OSError: the data are missing.
    """
    dataset = data.load(study.dataset, study.data_dir, seed=study.seed)
    widths = study.widths
    if not widths and (study.dataset, study.model) == ("digits", "cnn"):
        widths = (32, 64, 128, 256)
    options: dict[str, PyTree] = {"widths": widths} if widths else {}
    try:
        module = create_model(study.model, dataset.num_classes, **options)
    except TypeError as error:
        raise ValueError(f"widths={widths}: {error}") from None
    return module, image_task(dataset)


def build(study: Study) -> tuple[Network, Task]:
    """Load the data of a study and initialise its network.

    Raises:
        ValueError: an unknown model, or options that it does not have.
        OSError: the data are missing.
    """
    module, task = build_module(study)
    example = task.objective.network_inputs(task.sample("train", 2))
    variables = model_functions(module).init(stage_key(study.seed, "init"), *example)
    return Network.from_linen(module, variables, example), task


def prepare(
    study: Study, budgets: Sequence[str], config: PruneConfig, run: Run | None = None
) -> Pruning:
    """Train the dense network and make the problem.

    A trained network is found.

    Args:
        study: whose data and network count.
        budgets: limits of one cost, each of which a setting may have; the problem has the first.
        config: of the pruning.
        run: where checkpoints of the training go; None keeps them in memory.

    Raises:
        ValueError: a budget that is not understood or cannot be met; nothing is trained then.
    """
    parsed = [parse_budgets([text])[0] for text in budgets]
    if len({budget.relative for budget in parsed}) > 1:
        raise ValueError(
            f"limits={[budget.limit for budget in parsed]} mix fractions of dense and absolute "
            "numbers; give one kind"
        )
    network, task = build(study)
    for budget in parsed:
        bind_budgets(network, [budget], config)
    steps = study.dense_steps or DENSE_STEPS.get(study.dataset, MANY_STEPS)
    network = train_dense(network, task, DenseRecipe(steps=steps), study.seed, run)
    return make_pruning(network, task, parsed[:1], config)


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
    recipe = FinetuneRecipe(rate=config.finetune_rate, batch_size=config.batch_size)
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
