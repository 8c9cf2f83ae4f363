"""Draw masks from stochastic policies.

The only module that imports distrax.

A policy describes an action per group and step: a keep ratio (coarse) or one Bernoulli per unit
(fine). Both answer the same few functions, so another granularity is one more ``Policy``: a ratio
over single weights would reuse the coarse one with other masks, a soft gate the fine one with a
continuous distribution.
Shapes: actions and log-probabilities are f32[G, N, D], D actions per group (1, or Cmax units).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rlprune_jax.search.config import AgentConfig
from rlprune_jax.search.credit import common_part, thresholds
from rlprune_jax.search.environment import (
    Environment,
    best_units,
    logit,
    masks_to_ratios,
    project_logits,
    project_priorities,
    ratios_to_masks,
    round_masks,
    starting_logits,
)
from rlprune_jax.types import PyTree


class PolicySettings(NamedTuple):
    """Hold the numbers that a policy reads besides parameters.

    All are scalars that may be traced.

    Attributes:
        initial_std: standard deviation of the coarse action before learning, in logit space.
        minimum_std: floor of it.
        sharpness: slope of the fine logits from the best to the worst unit of a group.
        least_ratio: keep ratio below which no coarse action goes.
    """

    initial_std: ArrayLike
    minimum_std: ArrayLike
    sharpness: ArrayLike
    least_ratio: ArrayLike


class Taken(NamedTuple):
    """Hold actions, and the distribution that their credit goes to.

    Attributes:
        actions: f32[G, N, D].
        offset: f32[G, N, D], or 1 in place of N or D, added to the location that the policy
            describes.
        behaviour: the parameters of the distribution that acted, with the offset.
        log_probs: f32[G, N, D] under it; 0 on padding.
    """

    actions: jax.Array
    offset: jax.Array
    behaviour: tuple[jax.Array, ...]
    log_probs: jax.Array


class Trajectory(NamedTuple):
    """Hold observations and actions of N episodes.

    Each episode has G steps.

    Attributes:
        observations: f32[G, N, F'], for the networks and the critics.
        executed: what was evaluated, for the credit of its reward and of costs told.
        proposed: what was sampled, before any projection; the same where there is none.
        proposed_masks: f32[N, G, Cmax], as sampled.
    """

    observations: jax.Array
    executed: Taken
    proposed: Taken
    proposed_masks: jax.Array


class Normaliser(NamedTuple):
    """Standardise observations by mean and deviation.

    Both are f32[F'].
    """

    mean: jax.Array
    std: jax.Array

    def __call__(self, observations: jax.Array) -> jax.Array:
        """Standardise f32[..., F'], clipped to ten deviations."""
        return jnp.clip((observations - self.mean) / self.std, -10.0, 10.0)


class InitPolicy(Protocol):
    """Draw a policy's parameters."""

    def __call__(self, key: jax.Array, /) -> PyTree:
        """Return parameters."""


class Act(Protocol):
    """Sample N episodes."""

    def __call__(
        self, params: PyTree, settings: PolicySettings, normaliser: Normaliser, key: jax.Array, /
    ) -> tuple[jax.Array, Trajectory]:
        """Return masks f32[N, G, Cmax] and how they came about."""


class Describe(Protocol):
    """Describe the distribution of actions that were taken, differentiably."""

    def __call__(
        self,
        params: PyTree,
        settings: PolicySettings,
        normaliser: Normaliser,
        trajectory: Trajectory,
        /,
    ) -> tuple[jax.Array, ...]:
        """Return the parameters of the distribution of actions, before any offset."""


class MakeDistribution(Protocol):
    """Make a distribution from its parameters."""

    def __call__(self, parameters: tuple[jax.Array, ...], /) -> distrax.Distribution:
        """Return one of batch shape [G, N, D]."""


class Policy(NamedTuple):
    """Bundle a policy as pure functions.

    Attributes:
        init: ``(key) -> params``.
        act: ``(params, settings, normaliser, key) -> (masks f32[N, G, Cmax], Trajectory)``.
        describe: ``(params, settings, normaliser, trajectory) -> parameters`` of the distribution
            of actions before any offset, the location first; differentiable.
        distribution: ``(parameters) -> distrax.Distribution`` of batch shape [G, N, D].
        live: bool[G, 1, D], False on padding.
        num_live: actions per episode that are not padding.
    """

    init: InitPolicy
    act: Act
    describe: Describe
    distribution: MakeDistribution
    live: jax.Array
    num_live: int

    def take(
        self, parameters: tuple[jax.Array, ...], offset: jax.Array, actions: jax.Array
    ) -> Taken:
        """Return actions taken under a moved distribution."""
        behaviour = offset_by(parameters, offset)
        return Taken(
            actions=actions,
            offset=offset,
            behaviour=behaviour,
            log_probs=self.log_prob(behaviour, actions),
        )

    def log_prob(self, parameters: tuple[jax.Array, ...], actions: jax.Array) -> jax.Array:
        """Return the log-probability of actions.

        f32[G, N, D], 0 on padding.
        """
        return jnp.where(self.live, self.distribution(parameters).log_prob(actions), 0.0)

    def entropy(self, parameters: tuple[jax.Array, ...]) -> jax.Array:
        """Return the mean entropy of live actions in nats."""
        return self.mean_live(self.distribution(parameters).entropy())

    def divergence(self, old: tuple[jax.Array, ...], new: tuple[jax.Array, ...]) -> jax.Array:
        """Return the mean divergence of two policies in nats.

        KL(old || new), averaged over live actions.
        """
        return self.mean_live(self.distribution(old).kl_divergence(self.distribution(new)))

    def mean_live(self, values: jax.Array) -> jax.Array:
        """Average over live actions.

        Of f32[G, N, D], or of one row for all candidates, without the padding.
        """
        return jnp.sum(jnp.where(self.live, values, 0.0).mean(1)) / self.num_live


def orthogonal(gain: float) -> nn.initializers.Initializer:
    """Make Flax's orthogonal initialiser safe under vmap.

    Keys that are vmapped are drawn one after the other.

    It factorises a random matrix by QR. Jaxlib's batched QR waits on the CPU for threads of the
    pool it runs in: two devices of a process at once can leave none, and hang (jaxlib 0.10.2).
    """
    draw = nn.initializers.orthogonal(gain)

    def initialise(key: jax.Array, shape: Sequence[int], dtype=jnp.float32, **_) -> jax.Array:
        one = jax.custom_batching.sequential_vmap(lambda key: draw(key, shape, dtype))
        return jnp.asarray(one(key))

    return initialise


class Mlp(nn.Module):
    """Map features through tanh layers to a linear head.

    Initialised orthogonally, with gain sqrt(2).

    Attributes:
        hidden_sizes: widths.
        outputs: width of the head.
        head_gain: gain of its initialisation: 0.01 for actions, 1 for values.
    """

    hidden_sizes: Sequence[int]
    outputs: int
    head_gain: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map f32[..., inputs] to f32[..., outputs]."""
        for size in self.hidden_sizes:
            x = nn.tanh(nn.Dense(size, kernel_init=orthogonal(np.sqrt(2)))(x))
        return nn.Dense(self.outputs, kernel_init=orthogonal(self.head_gain))(x)


def observation_size(env: Environment) -> int:
    """Return the number of features of an observation.

    F': descriptor, place in depth, one-hot group, last keep ratio, fraction kept so far.
    """
    return env.descriptors.shape[1] + env.num_groups + 3


def observe(env: Environment, step: ArrayLike, last_ratio: jax.Array, kept: jax.Array) -> jax.Array:
    """Return the observation before acting on a group.

    f32[..., F'].

    Args:
        env: the problem.
        step: i32[], the group.
        last_ratio: f32[...], keep ratio of the group before; 1 at the first.
        kept: f32[...], units kept so far over all units.
    """
    place = jnp.asarray(step, jnp.float32)[None] / max(env.num_groups - 1, 1)
    fixed = jnp.concatenate([env.descriptors[step], place, jax.nn.one_hot(step, env.num_groups)])
    fixed = jnp.broadcast_to(fixed, (*last_ratio.shape, fixed.size))
    return jnp.concatenate([fixed, last_ratio[..., None], kept[..., None]], axis=-1)


def observe_ratios(env: Environment, ratios: jax.Array) -> jax.Array:
    """Return the observations of finished episodes.

    f32[G, N, F'] from keep ratios f32[N, G].
    """
    fraction = jnp.asarray(env.sizes, jnp.float32) / sum(env.sizes)
    before = jnp.cumsum(ratios * fraction, axis=1) - ratios * fraction
    last = jnp.concatenate([jnp.ones_like(ratios[:, :1]), ratios[:, :-1]], axis=1)
    steps = jnp.arange(env.num_groups)
    return jax.vmap(lambda step, *past: observe(env, step, *past))(steps, last.T, before.T)


def offset_by(parameters: tuple[jax.Array, ...], offset: jax.Array) -> tuple[jax.Array, ...]:
    """Add an offset to the location, the first parameter."""
    return (parameters[0] + offset, *parameters[1:])


def coarse_policy(env: Environment, config: AgentConfig) -> Policy:
    """Make a policy over one keep ratio per group.

    A squashed Gaussian; the action is the Gaussian before squashing. Use it for few decisions and
    whole channels of one order.

    Its mean is ``logit(initial_keep)`` plus a learned number per group; a policy that is a network
    adds one of what was observed. Projection shifts all ratios of a candidate together in logit
    space, so what its actions share takes no credit.

    Args:
        env: the problem.
        config: which policy, how many candidates, and whether they are projected.
    """
    network = Mlp(config.hidden_sizes, 1, 0.01)
    groups, count = env.num_groups, config.candidates

    def init(key: jax.Array) -> PyTree:
        table = {"group_logit": jnp.zeros(groups), "log_std": jnp.zeros(groups)}
        if not config.has_network:
            return table
        return table | {"network": network.init(key, jnp.zeros(observation_size(env)))}

    def step_parameters(params, settings, normaliser, step, observations):
        mean = starting_logits(env)[step] + params["group_logit"][step]
        mean = jnp.broadcast_to(mean, observations.shape[:-1])
        if config.has_network:
            seen = normaliser(observations)
            mean += jnp.asarray(network.apply(params["network"], seen))[..., 0]
        std = settings.initial_std * jnp.exp(params["log_std"][step])
        return mean, jnp.broadcast_to(jnp.maximum(std, settings.minimum_std), mean.shape)

    def squash(action: jax.Array, settings: PolicySettings) -> jax.Array:
        return jnp.maximum(jax.nn.sigmoid(action), settings.least_ratio)

    def act(params, settings, normaliser, key):
        fraction = jnp.asarray(env.sizes, jnp.float32) / sum(env.sizes)

        def step(carry, inputs):
            last_ratio, kept = carry
            group, step_key = inputs
            observations = observe(env, group, last_ratio, kept)
            parameters = step_parameters(params, settings, normaliser, group, observations)
            action = _normal(parameters).sample(seed=step_key)
            ratio = squash(action, settings)
            return (ratio, kept + ratio * fraction[group]), (observations, action, parameters)

        start = (jnp.ones(count), jnp.zeros(count))
        steps = (jnp.arange(groups), jax.random.split(key, groups))
        _, (observations, actions, parameters) = jax.lax.scan(step, start, steps)
        ratios = squash(actions.T, settings)
        masks = proposed = ratios_to_masks(env, ratios)
        mean, std = parameters
        shared = jnp.zeros(count)
        if config.projects:
            masks, _ = project_logits(env, logit(ratios))
            if not config.has_network:  # whose later means follow what the first actions share
                shared = common_part(actions - mean, std)
        parameters = (mean[..., None], std[..., None])
        nothing = jnp.zeros((1, 1, 1))
        return masks, Trajectory(
            observations=observations,
            executed=policy.take(parameters, shared[None, :, None], actions[..., None]),
            proposed=policy.take(parameters, nothing, actions[..., None]),
            proposed_masks=proposed,
        )

    def describe(params, settings, normaliser, trajectory):
        def one(step, observations):
            return step_parameters(params, settings, normaliser, step, observations)

        parameters = jax.vmap(one)(jnp.arange(groups), trajectory.observations)
        return jax.tree.map(lambda leaf: leaf[..., None], parameters)

    policy = Policy(
        init=init,
        act=act,
        describe=describe,
        distribution=_normal,
        live=jnp.ones((groups, 1, 1), bool),
        num_live=groups,
    )
    return policy


def fine_policy(env: Environment, config: AgentConfig) -> Policy:
    """Make a policy over one Bernoulli per unit.

    Use it where which unit goes matters. It starts from the scores: the better a unit ranks, the
    likelier it is kept.

    Logits are ``sharpness * (initial_keep * C - rank) / C`` plus a learned number per group and one
    per unit; a policy that is a network adds one of (score, rank, descriptor) that all units share.
    Projection keeps units by falling ``logit + noise`` as the budgets allow: the sample is the
    same but for its threshold, 0 without projection.

    Args:
        env: the problem.
        config: which policy, how many candidates, and whether they are projected.
    """
    network = Mlp(config.hidden_sizes, 1, 0.01)
    sizes = jnp.asarray(env.sizes, jnp.float32)[:, None]
    rank = jnp.where(env.alive, env.ranks, 0).astype(jnp.float32)
    shape = (env.num_groups, env.num_units)
    described = jnp.broadcast_to(env.descriptors[:, None], (*shape, env.descriptors.shape[1]))
    features = jnp.concatenate(
        [env.scores[..., None], (rank / sizes)[..., None], described], axis=-1
    )

    def init(key: jax.Array) -> PyTree:
        table = {"group_logit": jnp.zeros(env.num_groups), "unit_logit": jnp.zeros(shape)}
        return table | {"network": network.init(key, features)} if config.has_network else table

    def logits_of(params, settings):
        start = env.initial_keep[:, None] - (rank + 0.5) / sizes
        learned = params["group_logit"][:, None] + params["unit_logit"]
        if config.has_network:
            learned += jnp.asarray(network.apply(params["network"], features))[..., 0]
        return settings.sharpness * start + learned

    def act(params, settings, normaliser, key):
        logits = logits_of(params, settings)
        priorities = logits + jax.random.logistic(key, (config.candidates, *shape))
        proposed = jnp.where(env.alive, (priorities > 0) | best_units(env, priorities), False)
        proposed = round_masks(env, proposed.astype(jnp.float32), priorities)
        masks = project_priorities(env, priorities) if config.projects else proposed

        def taken(masks: jax.Array, level: float | None) -> Taken:
            passed = thresholds(env, priorities, masks, level)
            offset, actions = -jnp.swapaxes(passed, 0, 1), jnp.swapaxes(masks, 0, 1)
            return policy.take((logits[:, None],), offset, actions)

        return masks, Trajectory(
            observations=observe_ratios(env, masks_to_ratios(env, masks)),
            executed=taken(masks, None if config.projects else 0.0),
            proposed=taken(proposed, 0.0),
            proposed_masks=proposed,
        )

    def describe(params, settings, normaliser, trajectory):
        return (logits_of(params, settings)[:, None],)

    policy = Policy(
        init=init,
        act=act,
        describe=describe,
        distribution=_bernoulli,
        live=env.alive[:, None],
        num_live=sum(env.sizes),
    )
    return policy


def _normal(parameters: tuple[jax.Array, ...]) -> distrax.Distribution:
    mean, std = parameters
    return distrax.Normal(mean, std)


def _bernoulli(parameters: tuple[jax.Array, ...]) -> distrax.Distribution:
    return distrax.Bernoulli(logits=parameters[0])
