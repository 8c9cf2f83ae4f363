"""Dense networks trained for a benchmark, and the problems of pruning them."""

from collections.abc import Sequence

from rlprune_jax.workflow.building import build_network, build_task, wanted_of
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.learning import train_dense
from rlprune_jax.workflow.pruning import Pruning, make_pruning
from rlprune_jax.workflow.recipes import DenseRecipe
from rlprune_jax.workflow.sources import DataOptions, NetworkOptions, with_usual_widths


def trained_problem(
    named: NetworkOptions,
    data: DataOptions,
    dense_steps: int,
    budgets: Sequence[str],
    config: PruneConfig,
) -> Pruning:
    """Train a dense network and return the problem of pruning it.

    Args:
        named: the network; the usual widths where none are given.
        data: the data set.
        dense_steps: of its training.
        budgets: as of ``rlprune prune``; ``params=0.1`` where there are none.
        config: of the pruning; its seed is that of data and training too.
    """
    task = build_task(data, config.seed)
    network, _, _ = build_network(
        with_usual_widths(named, data.dataset), wanted_of(task, config.seed)
    )
    network = train_dense(network, task, DenseRecipe(steps=dense_steps), config.seed)
    return make_pruning(network, task, budgets or ("params=0.1",), config)
