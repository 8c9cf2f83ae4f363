"""Improve a policy on one batch of episodes.

Clipped surrogate, critics, and a stop by divergence as a masked scan.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rlprune_jax.search.config import AgentConfig, HParams
from rlprune_jax.search.critics import Critics
from rlprune_jax.search.policy import (
    Normaliser,
    Policy,
    PolicySettings,
    Taken,
    Trajectory,
    offset_by,
)
from rlprune_jax.search.searcher import Metrics
from rlprune_jax.types import PyTree


class Acting(NamedTuple):
    """Hold what a policy acted under, besides its parameters."""

    settings: PolicySettings
    normaliser: Normaliser


class Batch(NamedTuple):
    """Hold what an improvement learns from.

    Attributes:
        trajectory: N episodes.
        advantages: f32[G, N] of what was executed: rewards and costs told, combined.
        priced: f32[G, N], advantages of the costs of what was proposed; None where they are not
            counted apart.
        returns: f32[G, N, 1 + K], targets of the critics.
        acting: under what the policy acted.
    """

    trajectory: Trajectory
    advantages: jax.Array
    priced: jax.Array | None
    returns: jax.Array
    acting: Acting


class Learner(NamedTuple):
    """Hold what learns, and by which numbers.

    Attributes:
        config: structure of the program.
        hparams: its numbers.
        policy: what acts.
        critics: what predicts outcomes.
    """

    config: AgentConfig
    hparams: HParams
    policy: Policy
    critics: Critics


def clipped_surrogate(
    log_ratio: jax.Array, advantages: jax.Array, clip_epsilon: ArrayLike
) -> jax.Array:
    """Return the pessimistic objective of PPO per action.

    ``min(r A, clip(r, 1 - e, 1 + e) A)`` (Schulman et al. 2017, arXiv 1707.06347).

    Args:
        log_ratio: f32[..., D], new less old log-probability of each action.
        advantages: f32[...], shared by the D actions of a step.
        clip_epsilon: e, scalar.

    Returns:
        f32[..., D]. At ratio 1 its gradient is that of ``log_prob * advantage``.
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip_epsilon, 1.0 + clip_epsilon)
    return jnp.minimum(ratio * advantages[..., None], clipped * advantages[..., None])


def optimizer(hparams: HParams) -> optax.GradientTransformation:
    """Make Adam with a rate for each kind of parameter.

    Rebuilt from numbers wherever it is used, so that no closure has to live in a state.
    """

    def rate(path: tuple, leaf: jax.Array) -> jax.Array:
        name = path[1].key if path[0].key == "policy" else "network"
        rates = {
            "group_logit": hparams.group_learning_rate,
            "unit_logit": hparams.unit_learning_rate,
            "log_std": hparams.std_learning_rate,
        }
        return jnp.asarray(rates.get(name, hparams.learning_rate))

    def scale(updates: PyTree, _: PyTree = None) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, x: -rate(path, x) * x, updates)

    return optax.chain(
        optax.clip_by_global_norm(hparams.max_grad_norm),
        optax.scale_by_adam(b2=0.99, eps=1e-5),
        optax.stateless(scale),
    )


def improve(
    learner: Learner, params: PyTree, moments: PyTree, batch: Batch, key: jax.Array
) -> tuple[PyTree, PyTree, Metrics]:
    """Run all epochs of one iteration.

    Once the divergence from the policy that acted passes 1.5 ``target_kl``, the remaining steps
    leave everything as it is: a scan of fixed length, so that it vmaps.

    Args:
        learner: what learns.
        params: ``{"policy": ..., "critics": ...}``.
        moments: state of `optimizer`.
        batch: what it learns from.
        key: for the order of the minibatches.

    Returns:
        Parameters, optimizer state, and ``policy_loss``, ``value_loss``, ``entropy``,
        ``approx_kl``, ``clip_fraction``, ``update_fraction`` of the last steps taken.
    """
    config, hparams, policy, critics = learner
    acting = batch.acting
    transform = optimizer(hparams)
    part = config.candidates // config.minibatches

    def objective(new: tuple[jax.Array, ...], taken: Taken, advantages: jax.Array):
        moved = offset_by(new, taken.offset)
        log_ratio = policy.log_prob(moved, taken.actions) - taken.log_probs
        gain = clipped_surrogate(log_ratio, advantages, hparams.clip_epsilon)
        # Summed over an episode's actions and averaged over episodes: the joint REINFORCE gradient.
        return policy.num_live * policy.mean_live(gain), log_ratio, moved

    def loss_fn(params: PyTree, chosen: jax.Array) -> tuple[jax.Array, Metrics]:
        episodes = _take(batch.trajectory, chosen)
        new = policy.describe(params["policy"], *acting, episodes)
        gain, log_ratio, moved = objective(new, episodes.executed, batch.advantages[:, chosen])
        if batch.priced is not None:
            # Costs depend on how many units a group keeps, so prices move groups alone.
            groups = policy.describe(_groups_alone(params["policy"]), *acting, episodes)
            gain += objective(groups, episodes.proposed, batch.priced[:, chosen])[0]
        entropy = policy.entropy(moved)
        values = critics.values(params["critics"], acting.normaliser(episodes.observations))
        value_loss = jnp.mean(jnp.square(values - batch.returns[:, chosen]))
        bonus = hparams.entropy_coef * entropy * policy.num_live
        loss = -gain + hparams.value_coef * value_loss * config.critic - bonus
        outside = jnp.abs(jnp.expm1(log_ratio)) > hparams.clip_epsilon
        return loss, {
            "policy_loss": -gain,
            "value_loss": value_loss,
            "entropy": entropy,
            "approx_kl": policy.divergence(episodes.executed.behaviour, moved),
            "clip_fraction": policy.mean_live(outside.astype(jnp.float32)),
        }

    def step(carry, chosen: jax.Array):
        params, moments, stopped = carry
        gradient, losses = jax.grad(loss_fn, has_aux=True)(params, chosen)
        stopped = stopped | (losses["approx_kl"] > 1.5 * hparams.target_kl)
        updates, new_moments = transform.update(gradient, moments, params)
        new_params = optax.apply_updates(params, updates)
        params, moments = jax.tree.map(
            lambda old, new: jnp.where(stopped, old, new),
            (params, moments),
            (new_params, new_moments),
        )
        return (params, moments, stopped), losses | {"update_fraction": 1.0 - stopped}

    order = _shuffle(config, key).reshape(config.epochs * config.minibatches, part)
    start = (params, moments, jnp.zeros((), bool))
    (params, moments, _), losses = jax.lax.scan(step, start, order)
    metrics = {name: series[-1] for name, series in losses.items()}
    metrics["update_fraction"] = losses["update_fraction"].mean()
    return params, moments, metrics


def _shuffle(config: AgentConfig, key: jax.Array) -> jax.Array:
    """Order i32[epochs, N] in which candidates are seen; a whole batch needs no shuffling."""
    if config.minibatches == 1:
        return jnp.tile(jnp.arange(config.candidates), (config.epochs, 1))
    keys = jax.random.split(key, config.epochs)
    return jax.vmap(lambda key: jax.random.permutation(key, config.candidates))(keys)


def _groups_alone(params: PyTree) -> PyTree:
    """Return the policy's parameters, of which gradients reach the numbers per group alone."""
    held = jax.lax.stop_gradient(params)
    return {**held, "group_logit": params["group_logit"]}


def _take(trajectory: Trajectory, chosen: jax.Array) -> Trajectory:
    """The chosen episodes; what is shared by all candidates stays as it is."""

    def of(leaf: jax.Array) -> jax.Array:
        return leaf[:, chosen] if leaf.shape[1] > 1 else leaf

    return trajectory._replace(
        observations=of(trajectory.observations),
        executed=jax.tree.map(of, trajectory.executed),
        proposed=jax.tree.map(of, trajectory.proposed),
        proposed_masks=trajectory.proposed_masks[chosen],
    )
