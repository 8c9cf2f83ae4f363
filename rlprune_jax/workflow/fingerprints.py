"""What tells the data and the functions of a run from others."""

from collections.abc import Sequence

from rlprune_jax.costs import Budget
from rlprune_jax.origin import function_digest
from rlprune_jax.pytree import tree_hash
from rlprune_jax.sealed import digest_json
from rlprune_jax.training.task import SPLITS, Task
from rlprune_jax.workflow.network import Network


def fingerprint(task: Task, split: str) -> str:
    """Return what tells a split's data from others.

    Arrays count whole; of data that come batch by batch the first examples and their number.

    Args:
        task: whose data.
        split: ``"train"``, ``"held_out"`` or ``"test"``.
    """
    if task.is_streamed(split):
        return tree_hash(task.sample(split, 256)) + f"/{task.size(split)}"
    return tree_hash(getattr(task, split))


def data_digest(task: Task) -> str:
    """Return ten hexadecimal digits of all data of a task."""
    return digest_json([fingerprint(task, split) for split in SPLITS])[:10]


def functions_digest(
    network: Network, task: Task, budgets: Sequence[Budget], more: object = None
) -> str:
    """Return digits of the functions that a pruning calls.

    Those of the network, of the task, of budgets that are functions, and of one more.

    Args:
        network: dense.
        task: what it is to do.
        budgets: parsed.
        more: another function, such as that of the user's finetuning.
    """
    definition, objective = network.definition, task.objective
    own = (
        *(definition.apply, definition.own_apply, definition.apply_train),
        *(objective.loss, objective.metric, objective.inputs),
        *(objective.prepare, objective.augment, more),
        *(budget.function for budget in budgets),
    )
    found = function_digest(own)
    return f"{found.code}{found.values}"
