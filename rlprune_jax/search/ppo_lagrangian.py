"""Search by PPO with one Lagrange multiplier per budget.

The clipped surrogate is that of Schulman et al. 2017 (arXiv 1707.06347), taken per action and
summed, so that at ratio 1 its gradient is REINFORCE's however many units act at once. Multipliers
and their error relative to the budget are those of ``multipliers``.

What an iteration does, in order: N candidates are sampled (and projected); they are told; the
multipliers move by the mean costs of these candidates; the policy then takes up to ``epochs`` steps
on the same candidates at the new multipliers. Each step's divergence from the policy that acted is
looked at before the step: the first one that finds it above 1.5 ``target_kl`` is not taken, nor any
after it, so a long step before may have passed it by far.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlprune_jax.checks import require_key, require_type
from rlprune_jax.search import multipliers
from rlprune_jax.search.advantages import (
    episode_advantages,
    leave_one_out,
    normalise,
    rank_utilities,
)
from rlprune_jax.search.config import AgentConfig, HParams, check_hparams, check_live
from rlprune_jax.search.critics import (
    Running,
    make_critics,
    running_init,
    running_std,
    running_update,
)
from rlprune_jax.search.environment import Environment, candidate_costs, check_environment
from rlprune_jax.search.policy import (
    Normaliser,
    PolicySettings,
    coarse_policy,
    fine_policy,
    observation_size,
)
from rlprune_jax.search.searcher import (
    Candidates,
    Metrics,
    Searcher,
    batch_metrics,
    check_told,
    worst_for_missing,
    worst_for_missing_costs,
)
from rlprune_jax.search.surrogate import Acting, Batch, Learner, improve, optimizer
from rlprune_jax.types import PyTree

ELITE_FRACTION = 0.5  # CMA-ES gives the better half of a batch its logarithmic weights


class AgentState(NamedTuple):
    """Hold everything the agent knows, arrays only.

    Attributes:
        hparams: the numbers it was started with, f32 scalars.
        params: policy and critics.
        moments: optimizer state.
        dual: state of the multipliers' rule.
        iteration: i32, tells seen.
        observations: running statistics f32[F'].
        outcomes: running statistics f32[1 + K] of the reward and the costs.
    """

    hparams: HParams
    params: PyTree
    moments: PyTree
    dual: PyTree
    iteration: jax.Array
    observations: Running
    outcomes: Running


def ppo_lagrangian(env: Environment, config: AgentConfig) -> Searcher:
    """Make the constrained policy-gradient agent.

    Use it where hundreds of candidates can be evaluated; `global_threshold` needs one.

    Args:
        env: the problem; projection needs its ``cost_fn``.
        config: the structure of the program.

    Returns:
        A searcher whose ``init(hparams, key)`` takes ``HParams``.

    Raises:
        ValueError: projection without traceable costs; in ``init``, a number out of its range or
            no typed key.
        TypeError: ``env`` or ``config`` is something else.

    Reference:
        The clipped surrogate is that of Schulman et al. 2017 (arXiv 1707.06347).

    Example:
        >>> from rlprune_jax.search import make_environment
        >>> env = make_environment([2, 3], [[1., 2.], [3., 1., 2.]], [[0.], [1.]], limits=0.5,
        ...                        cost_fn=lambda masks: masks.sum()[None] / 5)
        >>> agent = ppo_lagrangian(env, AgentConfig(candidates=4, epochs=1))
        >>> state = agent.init(HParams(), jax.random.key(0))
        >>> candidates, state = agent.ask(state, jax.random.key(1))
        >>> rewards = candidates.masks[:, 1].sum(-1)  # yours, such as a network's accuracy
        >>> costs = jax.vmap(env.cost_fn)(candidates.masks)  # or measured on the host
        >>> state, metrics = agent.tell(state, candidates, rewards, costs)
        >>> float(metrics["feasible_fraction"])
        1.0
    """
    check_environment(env)
    require_type("config", config, AgentConfig, "make it by AgentConfig(...)")
    if config.constraint != "multiplier" and env.cost_fn is None:
        raise ValueError(
            f"constraint={config.constraint!r} must be 'multiplier' where env.cost_fn is None;"
            " projection needs traceable costs"
        )
    make_policy = coarse_policy if config.granularity == "coarse" else fine_policy
    policy = make_policy(env, config)
    critics = make_critics(env, config)
    told = jnp.asarray(env.measured or (False,) * env.num_budgets)

    def init(hparams: HParams, key: jax.Array) -> AgentState:
        given, hparams = hparams, check_hparams(hparams)
        check_live(config, given)
        require_key("key", key)
        policy_key, critic_key = jax.random.split(key)
        params = {"policy": policy.init(policy_key), "critics": critics.init(critic_key)}
        return AgentState(
            hparams=hparams,
            params=params,
            moments=optimizer(hparams).init(params),
            dual=_dual(config, hparams).init(env.num_budgets),
            iteration=jnp.int32(0),
            observations=running_init(observation_size(env)),
            outcomes=running_init(1 + env.num_budgets),
        )

    def ask(state: AgentState, key: jax.Array) -> tuple[Candidates, AgentState]:
        require_key("key", key)
        act_key, shuffle_key = jax.random.split(key)
        settings = _settings(config, state)
        normaliser = _normaliser(config, state.observations)
        masks, trajectory = policy.act(state.params["policy"], settings, normaliser, act_key)
        return Candidates(masks=masks, trajectory=(trajectory, shuffle_key)), state

    def tell(
        state: AgentState, candidates: Candidates, rewards: jax.Array, costs: jax.Array
    ) -> tuple[AgentState, Metrics]:
        rewards, costs = check_told(candidates.masks, rewards, costs, env.num_budgets)
        metrics = batch_metrics(rewards, costs, env.limits)
        trajectory, shuffle_key = candidates.trajectory
        hparams = state.hparams
        rewards = worst_for_missing(rewards)
        if config.constraint == "both":
            # What the host was asked of the projected candidate is known of no other.
            costs = jnp.where(told, costs, candidate_costs(env, trajectory.proposed_masks))
        costs = worst_for_missing_costs(costs, env.limits) / env.limits
        dual = state.dual
        if config.has_multiplier:
            target = jnp.ones(env.num_budgets)
            dual = _dual(config, hparams).update(dual, costs.mean(0), target)
        multiplier = dual.multiplier * config.has_multiplier
        outcomes = running_update(state.outcomes, jnp.column_stack([rewards, costs]))
        normaliser = _normaliser(config, state.observations)
        scale = running_std(outcomes) if config.normalise_returns else jnp.ones(1 + env.num_budgets)
        results = jnp.column_stack([rewards, costs]) / scale
        values = critics.values(state.params["critics"], normaliser(trajectory.observations))
        raw = _raw_advantages(config, hparams, results, values)
        both = config.constraint == "both"
        batch = Batch(
            trajectory=trajectory,
            advantages=_combine(config, raw * scale, multiplier * told if both else multiplier),
            priced=_priced(config, raw * scale, multiplier * ~told) if both else None,
            returns=raw + values,
            acting=Acting(settings=_settings(config, state), normaliser=normaliser),
        )
        learner = Learner(config=config, hparams=hparams, policy=policy, critics=critics)
        params, moments, losses = improve(learner, state.params, state.moments, batch, shuffle_key)
        state = state._replace(
            params=params,
            moments=moments,
            dual=dual,
            iteration=state.iteration + 1,
            observations=running_update(
                state.observations, trajectory.observations.reshape(-1, observation_size(env))
            ),
            outcomes=outcomes,
        )
        found = _multiplier_metrics(config, hparams, multiplier, rewards, costs)
        found["proposed_cost_mean"] = costs.mean(0) * env.limits
        return state, metrics | losses | found

    def forget(state: AgentState) -> AgentState:
        # What scales the critics' targets; advantages compare the candidates of one batch.
        return state._replace(outcomes=running_init(1 + env.num_budgets))

    return Searcher(
        init=init,
        ask=ask,
        tell=tell,
        cost_fn=env.cost_fn,
        limits=env.limits,
        forget=forget,
    )


def _multiplier_metrics(
    config: AgentConfig,
    hparams: HParams,
    multiplier: jax.Array,
    rewards: jax.Array,
    costs: jax.Array,
) -> Metrics:
    """Return what the multipliers f32[K] amount to, with costs relative to their limits."""
    # What one relative unit of a budget is worth in reward: undoes the standardisation.
    spread = costs.std(0) if config.standardise_cost else jnp.ones_like(multiplier)
    price = multiplier * rewards.std() / jnp.maximum(spread, 1e-12) * (costs.std(0) > 0)
    weight = 1.0 / (1.0 + multiplier.sum())
    return {
        "multiplier": multiplier,
        "multiplier_capped": (multiplier >= hparams.multiplier_max).astype(jnp.float32),
        "shadow_price": price,
        "reward_weight": weight,
        "cost_weight": multiplier * weight,
    }


def _dual(config: AgentConfig, hparams: HParams) -> multipliers.DualUpdate:
    bounds = (hparams.multiplier_max, hparams.dual_initial)
    if config.dual == "pid":
        gains = (hparams.dual_kp, hparams.dual_ki, hparams.dual_kd)
        return multipliers.pid(*gains, *bounds)
    return getattr(multipliers, config.dual)(hparams.dual_learning_rate, *bounds)


def _settings(config: AgentConfig, state: AgentState) -> PolicySettings:
    """The policy's numbers at this point of the run."""
    hparams = state.hparams
    progress = state.iteration / config.iterations if config.iterations else 0.0
    largest_prune = hparams.action_clip_start + hparams.action_clip_slope * progress
    least_ratio = jnp.clip(1.0 - largest_prune, 0.0, 1.0)
    return PolicySettings(
        initial_std=hparams.initial_std,
        minimum_std=hparams.minimum_std,
        sharpness=hparams.sharpness,
        least_ratio=least_ratio,
    )


def _normaliser(config: AgentConfig, seen: Running) -> Normaliser:
    if config.normalise_observations:
        return Normaliser(mean=seen.mean, std=running_std(seen))
    return Normaliser(mean=jnp.zeros_like(seen.mean), std=jnp.ones_like(seen.mean))


def _raw_advantages(
    config: AgentConfig, hparams: HParams, results: jax.Array, values: jax.Array
) -> jax.Array:
    """Advantages f32[G, N, 1 + K] of rewards and costs f32[N, 1 + K]."""
    if not config.critic:
        return jnp.broadcast_to(leave_one_out(results), values.shape)
    estimate = jax.vmap(episode_advantages, in_axes=(-1, -1, None, None), out_axes=-1)
    return estimate(results, values, hparams.gamma, hparams.gae_lambda)


def _combine(config: AgentConfig, raw: jax.Array, multiplier: jax.Array) -> jax.Array:
    """``(A_r - sum_k lambda_k A_k) / (1 + sum_k lambda_k)``, f32[G, N], shaped."""
    reward = normalise(raw[..., 0])
    combined = (reward - _costs(config, raw) @ multiplier) / (1.0 + multiplier.sum())
    if config.shaping == "standardise":
        return combined
    fraction = ELITE_FRACTION if config.shaping == "elite" else None
    return jnp.broadcast_to(rank_utilities(combined[0], fraction), combined.shape)


def _priced(config: AgentConfig, raw: jax.Array, multiplier: jax.Array) -> jax.Array:
    """``-sum_k lambda_k A_k / (1 + sum_k lambda_k)``, f32[G, N]."""
    return -_costs(config, raw) @ multiplier / (1.0 + multiplier.sum())


def _costs(config: AgentConfig, raw: jax.Array) -> jax.Array:
    """Advantages f32[G, N, K] of the costs, standardised or centred."""
    centre_only = not config.standardise_cost
    return jax.vmap(lambda a: normalise(a, centre_only), in_axes=-1, out_axes=-1)(raw[..., 1:])
