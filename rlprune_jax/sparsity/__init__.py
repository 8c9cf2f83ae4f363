"""Prune single weights by how sparse a network already is.

A weight mask is a bool pytree congruent to the parameters. ``make_mask`` makes one, a pruner
(``sap``, ``lottery_ticket``, ``one_shot``, ``gradual``, ``random_pruning``) takes weights out of
it, ``apply_mask`` sets them to 0 and ``masked_updates`` keeps them there in training::

    mask = make_mask(params)
    pruner = sap(p=0.5, q=1.0)
    state = pruner.init(params, mask)
    mask, state = pruner.update(params, mask, state)
    optimizer = optax.chain(optax.sgd(0.1), masked_updates(mask))

``pq_index`` and ``gini`` measure sparsity, ``pq_bound`` how many weights are enough. Everything is
pure, jittable and vmappable. ``rlprune_jax.prune_iteratively`` runs the whole loop of training and
pruning.
"""

from rlprune_jax.sparsity.masks import (
    Density,
    Prunable,
    apply_mask,
    density_report,
    intersect_masks,
    make_mask,
    total_density,
)
from rlprune_jax.sparsity.pqi import gini, pq_bound, pq_index, pq_index_grid
from rlprune_jax.sparsity.pruners import (
    Pruner,
    Score,
    cubic_schedule,
    gradual,
    lottery_ticket,
    magnitude,
    one_shot,
    random_pruning,
    sap,
)
from rlprune_jax.sparsity.scopes import Scope, count_live
from rlprune_jax.sparsity.selection import drop_smallest
from rlprune_jax.sparsity.updates import every, mask_moments, masked_updates, replace_mask

__all__ = [
    "Density",
    "Prunable",
    "Pruner",
    "Scope",
    "Score",
    "apply_mask",
    "count_live",
    "cubic_schedule",
    "density_report",
    "drop_smallest",
    "every",
    "gini",
    "gradual",
    "intersect_masks",
    "lottery_ticket",
    "magnitude",
    "make_mask",
    "mask_moments",
    "masked_updates",
    "one_shot",
    "pq_bound",
    "pq_index",
    "pq_index_grid",
    "random_pruning",
    "replace_mask",
    "sap",
    "total_density",
]
