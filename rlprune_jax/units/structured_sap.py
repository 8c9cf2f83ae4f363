"""Sparsity-informed pruning of whole units, by the PQ Index of their norms.

The result are gates, cut by ``compact`` like any others. What is a weight to the paper's SAP is a
unit here, and a layer is a group of coupled units.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rlprune_jax.graph.groups import Graph, check_gates, ones_gates
from rlprune_jax.kept import is_kept, rank
from rlprune_jax.per_group import PerGroup, per_group
from rlprune_jax.sparsity.pqi import pq_bound, pq_index
from rlprune_jax.sparsity.pruners import sap
from rlprune_jax.types import Gates, Variables
from rlprune_jax.units.weight_scores import magnitude_scores


class GroupSparsity(NamedTuple):
    """Hold the sparsity of G groups in depth order.

    Attributes:
        pq_index: f32[G], of the norms of each group's kept units.
        keep_ratio: f32[G], the fraction of them that SAP keeps at most (the bound over d).
    """

    pq_index: jax.Array
    keep_ratio: jax.Array


def structured_sap(
    graph: Graph,
    variables: Variables,
    gates: Gates,
    *,
    p: ArrayLike = 0.5,
    q: ArrayLike = 1.0,
    eta_r: ArrayLike = 0.0,
    gamma: ArrayLike = 1.0,
    beta: ArrayLike = 0.9,
    scope: str = "layer",
    min_keep: PerGroup = 1,
) -> Gates:
    """Prune units of small norm by their PQ Index.

    Jittable and vmappable over the variables, the gates and every number.

    Args:
        graph: of the network.
        variables: dense, as traced.
        gates: group name -> f32[units]; a unit that they do not keep (``is_kept``) stays pruned.
        p, q, eta_r, gamma, beta: as in ``sap``.
        scope: ``"layer"``, every group by itself, or ``"global"``, all units together, their norms
            over the mean of their group.
        min_keep: units that each group keeps, at least 1; a smaller group keeps all it has.

    Returns:
        Gates, 0 or 1, that keep at most the units that were kept.

    Raises:
        ValueError: gates or ``min_keep`` that do not fit the graph, a number out of its range, or a
            scope other than the two.

    Reference:
        Diao et al., ICLR 2023, Algorithm 1, on units in place of weights; ours.
    """
    if scope not in ("layer", "global"):
        raise ValueError(f"scope={scope!r} is unknown for units; choose from layer, global")
    check_gates(graph, gates)
    least = per_group(graph.names, "min_keep", min_keep)
    norms = magnitude_scores(graph, variables)
    mask = {name: is_kept(gates[name]) for name in norms}
    spared = {name: _greatest(norms[name], mask[name], least[name]) for name in norms}
    # Spared units go last, so that they cost the others nothing; then they come back.
    scores = {name: jnp.where(spared[name], jnp.inf, norms[name]) for name in norms}
    pruner = sap(p, q, eta_r, gamma, beta, scope)
    kept, _ = pruner.update(norms, mask, pruner.init(norms, mask), scores=scores)
    return {name: (kept[name] | spared[name]).astype(jnp.float32) for name in norms}


def structured_sap_scores(
    graph: Graph,
    variables: Variables,
    *,
    p: ArrayLike = 0.5,
    q: ArrayLike = 1.0,
    eta_r: ArrayLike = 0.0,
    gamma: ArrayLike = 1.0,
    beta: ArrayLike = 0.9,
    steps: int = 30,
) -> Gates:
    """Score units by how long structured SAP keeps them.

    Cut by this score where a budget says how far. It takes steps of ``structured_sap`` on every
    group by itself, without training between them. A unit scores the steps it outlives, and below 1
    for its place by norm among those of its group that the same step removes, so that a threshold
    between two steps takes about the same fraction of all groups.

    Args:
        graph, variables, p, q, eta_r, gamma, beta: as in ``structured_sap``.
        steps: taken at most; what they leave is ordered by norm.

    Returns:
        Group name -> f32[units], from 0 to below ``steps + 1``; a unit of smaller norm never
        scores higher than one of its own group.

    Raises:
        ValueError: ``steps`` below 1, or as ``structured_sap``.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")

    def step(gates: Gates, _: None) -> tuple[Gates, Gates]:
        left = structured_sap(
            graph, variables, gates, p=p, q=q, eta_r=eta_r, gamma=gamma, beta=beta
        )
        return left, left

    _, kept = jax.lax.scan(step, ones_gates(graph), length=steps)
    norms = magnitude_scores(graph, variables)

    def score(norm: jax.Array, outlived: jax.Array) -> jax.Array:
        order = jnp.lexsort((norm, outlived))
        place = jnp.zeros(len(norm), jnp.int32).at[order].set(jnp.arange(len(norm)))
        ascending = outlived[order]
        first = jnp.searchsorted(ascending, outlived, side="left")
        behind = jnp.searchsorted(ascending, outlived, side="right")
        return outlived + (place - first) / (behind - first)

    return {name: score(norms[name], kept[name].sum(0)) for name in norms}


def group_sparsity(
    graph: Graph,
    variables: Variables,
    gates: Gates | None = None,
    *,
    p: ArrayLike = 0.5,
    q: ArrayLike = 1.0,
    eta_r: ArrayLike = 0.0,
) -> GroupSparsity:
    """Return the PQ Index of each group's unit norms.

    With it comes the fraction of the units that SAP would keep.

    Args:
        graph: of the network.
        variables: dense.
        gates: which units count, those kept (``is_kept``); all by default.
        p, q, eta_r: as in ``pq_bound``.

    Returns:
        The index and the keep ratio of every group, f32[G] each; a group without kept units has 0
        and 1.

    Raises:
        ValueError: as ``pq_bound``, or gates that do not fit the graph.
    """
    norms = magnitude_scores(graph, variables)
    if gates is not None:
        check_gates(graph, gates)
    mask = {
        name: jnp.ones(len(norm), bool) if gates is None else is_kept(gates[name])
        for name, norm in norms.items()
    }
    index = pq_index(norms, mask, p=p, q=q, scope="layer")
    bound = pq_bound(norms, mask, p=p, q=q, eta_r=eta_r, scope="layer")
    live = jnp.stack([jnp.sum(mask[name]) for name in graph.names])
    bounds = jnp.stack([bound[name] for name in graph.names])
    ratio = jnp.where(live > 0, bounds / jnp.maximum(live, 1), 1.0)
    return GroupSparsity(jnp.stack([index[name] for name in graph.names]), ratio)


def _greatest(norms: jax.Array, live: jax.Array, count: int) -> jax.Array:
    """Return flags of the ``count`` live units of greatest norm, or of all live ones."""
    return (rank(jnp.where(live, norms, -jnp.inf)) < count) & live
