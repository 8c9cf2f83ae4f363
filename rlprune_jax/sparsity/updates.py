"""Keep pruned weights at exactly zero while an optimizer trains."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from rlprune_jax.checks import require_count, require_function, require_type
from rlprune_jax.pytree import flatten_with_paths, leaf_paths
from rlprune_jax.sparsity.masks import check_congruent
from rlprune_jax.sparsity.pruners import Pruner
from rlprune_jax.types import Mask, PyTree

Due = Callable[[jax.Array], ArrayLike]
"""``i32[] step -> bool[]``, whether the mask is refreshed at this step."""


class MaskedUpdatesState(NamedTuple):
    """Hold the mask and the state of the pruner.

    Attributes:
        mask: of the parameters.
        pruner: its state, ``()`` without one.
    """

    mask: Mask
    pruner: PyTree


def masked_updates(
    mask: Mask, pruner: Pruner | None = None, due: Due | None = None
) -> optax.GradientTransformationExtraArgs:
    """Make the link of a chain that masks updates.

    Use it wherever a pruned network is trained: ``u' = where(mask, u, -p)``, so that after
    ``optax.apply_updates`` pruned weights are exactly 0, whatever weight decay, momentum or noise
    stand before; updates of kept ones pass bit for bit. It goes last: after the learning rate, and
    outside of ``optax.MultiSteps`` where masks are refreshed, which would throw a refresh between
    two of its steps away. Parameters that hold NaN under the mask go through ``apply_mask`` once
    before.

    Schedule-free optimizers evaluate other weights than they train. There it goes inside, where it
    masks the steps of both: ``schedule_free(chain(adam(rate), masked_updates(mask)), rate)``, from
    parameters that went through ``apply_mask``. Last in the chain, after ``schedule_free_adamw``,
    it keeps the training weights at 0 and not those of ``schedule_free_eval_params``: evaluate
    ``apply_mask`` of them, which is the same network.

    With a pruner the mask is refreshed at the steps that are ``due``, from the parameters as they
    stand before the step. ``update`` then takes the number of the step as an argument of its own:
    under ``vmap`` over models it must be the same, un-batched number for all, so that selection
    runs at these steps only. A count in the state would be batched, and every step would pay.

    Args:
        mask: congruent to the parameters, True is kept; it lives in the state, where
            ``replace_mask`` exchanges it between two scans.
        pruner: that refreshes it.
        due: at which steps, such as ``every(100, begin=500, end=2000)``.

    Returns:
        An optax transformation, ``update(updates, state, params, step=None)``.

    Raises:
        ValueError: only one of ``pruner`` and ``due``; on init a mask that is not congruent; on
            update no parameters, or no ``step`` with a pruner.

    Example:
        >>> import jax.numpy as jnp
        >>> params, mask = jnp.array([0.0, 2.0]), jnp.array([False, True])
        >>> optimizer = optax.chain(optax.sgd(0.5), masked_updates(mask))
        >>> updates, _ = optimizer.update(jnp.ones(2), optimizer.init(params), params)
        >>> optax.apply_updates(params, updates).tolist()
        [0.0, 1.5]
    """
    if (pruner is None) != (due is None):
        raise ValueError("pruner and due go together: give both or neither")
    if pruner is not None:
        require_type("pruner", pruner, Pruner, "make it by sap, gradual or their like")
        require_function("due", due, "a function step -> bool, as every(...) gives")
    check_congruent(mask, mask)

    def init(params: PyTree) -> MaskedUpdatesState:
        check_congruent(params, mask)
        held = jax.tree.map(jnp.asarray, mask)
        return MaskedUpdatesState(held, () if pruner is None else pruner.init(params, held))

    def update(
        updates: PyTree,
        state: MaskedUpdatesState,
        params: PyTree = None,
        *,
        step: ArrayLike | None = None,
        **extra: object,
    ) -> tuple[PyTree, MaskedUpdatesState]:
        del extra
        if params is None:
            raise ValueError("masked_updates needs params: optimizer.update(grads, state, params)")
        if pruner is not None and due is not None:
            if step is None:
                raise ValueError(
                    "masked_updates with a pruner needs the number of the step: "
                    "optimizer.update(grads, state, params, step=step), un-batched under vmap"
                )
            update_mask = pruner.update
            state = jax.lax.cond(
                due(jnp.asarray(step)),
                lambda state: MaskedUpdatesState(*update_mask(params, state.mask, state.pruner)),
                lambda state: state,
                state,
            )
        leaves = [
            change if np.ndim(keep) == 0 else jnp.where(keep, change, -weights)
            for change, keep, weights in zip(
                jax.tree.leaves(updates),
                jax.tree.leaves(state.mask),
                jax.tree.leaves(params),
                strict=True,
            )
        ]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), state

    return optax.GradientTransformationExtraArgs(init, update)


def every(steps: int, *, begin: int = 0, end: int | None = None) -> Due:
    """Say at which steps a mask is refreshed.

    Args:
        steps: from one refresh to the next, at least 1.
        begin: the first step.
        end: no refresh from this step on, above ``begin``; None for no end.

    Raises:
        ValueError: ``steps`` below 1, ``begin`` negative, ``end`` not above it, or no integers.

    Example:
        >>> [step for step in range(10) if every(3, begin=2, end=8)(step)]
        [2, 5]
    """
    require_count("steps", steps)
    require_count("begin", begin, 0)
    if end is not None:
        require_count("end", end, begin + 1)

    def due(step: jax.Array) -> jax.Array:
        within = (step >= begin) & ((step - begin) % steps == 0)
        return within if end is None else within & (step < end)

    return due


def replace_mask(opt_state: PyTree, params: PyTree, mask: Mask) -> PyTree:
    """Exchange the mask in an optimizer's state.

    Use it to refresh between two scans: prune, mask the parameters, then this. What the optimizer
    remembers of pruned weights is forgotten.

    Args:
        opt_state: any optax state with one ``masked_updates`` or more in it, however nested.
        params: what the optimizer updates.
        mask: congruent to them.

    Returns:
        The state, of the same structure, shapes and types.

    Raises:
        ValueError: ``mask`` is not congruent, or there is no ``masked_updates`` in the state.

    Example:
        >>> import jax.numpy as jnp
        >>> params, mask = jnp.ones(2), jnp.ones(2, bool)
        >>> optimizer = optax.chain(optax.sgd(0.5), masked_updates(mask))
        >>> mask = jnp.array([True, False])
        >>> state = replace_mask(optimizer.init(params), params, mask)
        >>> optimizer.update(jnp.ones(2), state, params)[0].tolist()
        [-0.5, -1.0]
    """
    check_congruent(params, mask)
    found = []

    def exchange(node: PyTree) -> PyTree:
        if not isinstance(node, MaskedUpdatesState):
            return node
        found.append(node)
        return MaskedUpdatesState(jax.tree.map(jnp.asarray, mask), node.pruner)

    is_ours = lambda node: isinstance(node, MaskedUpdatesState)  # noqa: E731
    state = jax.tree.map(exchange, opt_state, is_leaf=is_ours)
    if not found:
        raise ValueError("opt_state holds no masked_updates; put it last in the chain")
    return mask_moments(state, params, mask)


def mask_moments(opt_state: PyTree, params: PyTree, mask: Mask) -> PyTree:
    """Forget what an optimizer remembers of pruned weights.

    Use it where a mask is refreshed: momentum, second moments and averages become 0. A leaf of the
    state belongs to a weight where its path ends in the weight's and it has the same shape; others
    stay, as factored moments do. NaN does not leak.

    Args:
        opt_state: any optax state.
        params: what the optimizer updates.
        mask: congruent to them.

    Returns:
        The state, of the same structure, shapes and types.

    Raises:
        ValueError: ``mask`` is not congruent to ``params``.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"w": jnp.ones(2)}
        >>> state = optax.trace(0.9).init(params)._replace(trace={"w": jnp.ones(2)})
        >>> mask_moments(state, params, {"w": jnp.array([True, False])}).trace["w"].tolist()
        [1.0, 0.0]
    """
    check_congruent(params, mask)
    masks = dict(zip(leaf_paths(params), jax.tree.leaves(mask), strict=True))

    def keep_of(path: str, leaf: jax.Array) -> jax.Array | None:
        parts = path.split("/")
        for start in range(len(parts) + 1):
            keep = masks.get("/".join(parts[start:]))
            if keep is not None:
                return keep if np.ndim(keep) and np.shape(keep) == np.shape(leaf) else None
        return None

    leaves = []
    for path, leaf in flatten_with_paths(opt_state).items():
        keep = keep_of(path, leaf)
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        leaves.append(
            jnp.where(keep, leaf, jnp.zeros_like(leaf)) if floating and keep is not None else leaf
        )
    return jax.tree.unflatten(jax.tree.structure(opt_state), leaves)
