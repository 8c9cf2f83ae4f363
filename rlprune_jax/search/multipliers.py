"""Update Lagrange multipliers from costs.

One multiplier per budget, from how far the mean cost is off its limit.

Each rule is an ``(init, update)`` pair of pure functions in the manner of optax; hyper-parameters
may be traced arrays, and the state holds arrays only. K budgets are updated at once.
With ``relative`` the error is ``(cost - limit) / limit``, so that the gains carry over from one
unit of cost to another; else it is ``cost - limit``, as in the published codes.
"""

from typing import NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rlprune_jax.types import PyTree


class InitDual(Protocol):
    """Start a rule."""

    def __call__(self, num_budgets: int, /) -> PyTree:
        """Return the state for K budgets."""


class UpdateDual(Protocol):
    """Move the multipliers once."""

    def __call__(self, state: PyTree, cost: jax.Array, limit: jax.Array, /) -> PyTree:
        """Return the next state, from mean costs f32[K] and limits f32[K]."""


class DualUpdate(NamedTuple):
    """Bundle a rule for the multipliers.

    Attributes:
        init: ``(num_budgets) -> state``.
        update: ``(state, cost f32[K], limit f32[K]) -> state``; every state has ``multiplier``,
            f32[K], never negative.
    """

    init: InitDual
    update: UpdateDual


class PidState(NamedTuple):
    """Hold the state of `pid`.

    All f32[K] but ``past``, f32[delay, K], oldest first.
    """

    multiplier: jax.Array
    integral: jax.Array
    smooth_error: jax.Array
    smooth_cost: jax.Array
    past: jax.Array


class GradientState(NamedTuple):
    """Hold the state of `projected_gradient`."""

    multiplier: jax.Array


class AdamState(NamedTuple):
    """Hold the state of the Adam rules.

    ``parameter`` f32[K] is what Adam moves.
    """

    multiplier: jax.Array
    parameter: jax.Array
    moments: optax.OptState


def _error(cost: jax.Array, limit: jax.Array, relative: bool) -> jax.Array:
    chex.assert_rank([cost, limit], 1)
    chex.assert_equal_shape([cost, limit])
    return (cost - limit) / limit if relative else cost - limit


def pid(
    proportional_gain: ArrayLike = 0.1,
    integral_gain: ArrayLike = 0.01,
    derivative_gain: ArrayLike = 0.01,
    maximum: ArrayLike = 100.0,
    initial: ArrayLike = 0.0,
    proportional_smoothing: ArrayLike = 0.0,
    derivative_smoothing: ArrayLike = 0.0,
    delay: int = 1,
    derivative_of_error: bool = False,
    relative: bool = True,
) -> DualUpdate:
    """Control multipliers by proportional, integral and derivative terms.

    The default rule of the agent: steady where a gradient rule swings (Stooke et al. 2020,
    arXiv 2007.03964).

    ``multiplier = clip(Kp * e + I + Kd * max(0, rise), 0, maximum)`` with
    ``I = clip(I + Ki * e, 0, maximum)``: the integral cannot wind up past what can be used, nor
    below zero. ``rise`` is by how much the smoothed cost grew in ``delay`` updates.

    Args:
        proportional_gain: Kp.
        integral_gain: Ki.
        derivative_gain: Kd.
        maximum: cap of the multiplier and of the integral.
        initial: first value of the integral.
        proportional_smoothing: decay of the moving average of the error, 0 for none.
        derivative_smoothing: decay of the moving average of the cost, 0 for none.
        delay: updates over which the derivative is taken, static.
        derivative_of_error: the first rise is counted from the limit, else from zero cost.
        relative: see the module.

    Example:
        >>> rule = pid(proportional_gain=1.0, integral_gain=0.5, derivative_gain=0.0)
        >>> state = rule.update(rule.init(1), jnp.array([1.5]), jnp.array([1.0]))
        >>> state.multiplier.tolist()
        [0.75]
    """

    def init(num_budgets: int) -> PidState:
        zeros = jnp.zeros(num_budgets)
        start = jnp.full(num_budgets, initial, jnp.float32)
        return PidState(
            multiplier=start,
            integral=start,
            smooth_error=zeros,
            smooth_cost=zeros,
            past=jnp.zeros((delay, num_budgets)),
        )

    def update(state: PidState, cost: jax.Array, limit: jax.Array) -> PidState:
        error = _error(cost, limit, relative)
        level = error if derivative_of_error else error + (1.0 if relative else limit)
        integral = jnp.clip(state.integral + integral_gain * error, 0.0, maximum)
        smooth_error = optax.incremental_update(
            error, state.smooth_error, 1.0 - jnp.asarray(proportional_smoothing)
        )
        smooth_cost = optax.incremental_update(
            level, state.smooth_cost, 1.0 - jnp.asarray(derivative_smoothing)
        )
        rise = jnp.maximum(smooth_cost - state.past[0], 0.0)
        wanted = proportional_gain * smooth_error + integral + derivative_gain * rise
        past = jnp.concatenate([state.past[1:], smooth_cost[None]])
        multiplier = jnp.clip(wanted, 0.0, maximum)
        return PidState(
            multiplier=multiplier,
            integral=integral,
            smooth_error=smooth_error,
            smooth_cost=smooth_cost,
            past=past,
        )

    return DualUpdate(init=init, update=update)


def projected_gradient(
    learning_rate: ArrayLike = 0.1,
    maximum: ArrayLike = 100.0,
    initial: ArrayLike = 0.0,
    relative: bool = True,
) -> DualUpdate:
    """Raise multipliers by projected gradient ascent.

    ``multiplier = clip(multiplier + rate * e, 0, maximum)``. Use it as the textbook rule.

    Example:
        >>> rule = projected_gradient(learning_rate=0.5)
        >>> state = rule.update(rule.init(1), jnp.array([2.0]), jnp.array([1.0]))
        >>> state.multiplier.tolist()
        [0.5]
    """

    def init(num_budgets: int) -> GradientState:
        return GradientState(jnp.full(num_budgets, initial, jnp.float32))

    def update(state: GradientState, cost: jax.Array, limit: jax.Array) -> GradientState:
        step = learning_rate * _error(cost, limit, relative)
        return GradientState(jnp.clip(state.multiplier + step, 0.0, maximum))

    return DualUpdate(init=init, update=update)


def adam_clip(
    learning_rate: ArrayLike = 0.035,
    maximum: ArrayLike = 100.0,
    initial: ArrayLike = 0.001,
    relative: bool = True,
) -> DualUpdate:
    """Move multipliers by Adam, clipped at zero.

    As in OmniSafe's PPO-Lagrangian.

    Adam divides by the size of the error, so a large violation is answered like a small one.
    """

    def init(num_budgets: int) -> AdamState:
        start = jnp.full(num_budgets, initial, jnp.float32)
        moments = optax.scale_by_adam().init(start)
        return AdamState(multiplier=start, parameter=start, moments=moments)

    def update(state: AdamState, cost: jax.Array, limit: jax.Array) -> AdamState:
        ascent, moments = optax.scale_by_adam().update(_error(cost, limit, relative), state.moments)
        parameter = jnp.clip(state.parameter + learning_rate * ascent, 0.0, maximum)
        return AdamState(multiplier=parameter, parameter=parameter, moments=moments)

    return DualUpdate(init=init, update=update)


def softplus_adam(
    learning_rate: ArrayLike = 0.1,
    maximum: ArrayLike = 100.0,
    initial: ArrayLike = 1.0,
    minimum: ArrayLike = 0.0,
    relative: bool = True,
) -> DualUpdate:
    """Move multipliers by Adam through a softplus.

    Adam moves x with ``multiplier = softplus(x)``, which constrained-RL pruning used.

    The published runs took a learning rate of 1 and absolute errors (arXiv 2110.08558).
    """

    def inverse(multiplier: ArrayLike) -> jax.Array:
        return jnp.log(jnp.maximum(jnp.expm1(jnp.asarray(multiplier, jnp.float32)), 1e-8))

    def init(num_budgets: int) -> AdamState:
        start = jnp.full(num_budgets, inverse(initial))
        moments = optax.scale_by_adam().init(start)
        return AdamState(multiplier=jax.nn.softplus(start), parameter=start, moments=moments)

    def update(state: AdamState, cost: jax.Array, limit: jax.Array) -> AdamState:
        slope = jax.nn.sigmoid(state.parameter) * _error(cost, limit, relative)
        ascent, moments = optax.scale_by_adam().update(slope, state.moments)
        # Above 20 softplus is the identity to float32, and exp would overflow for a large cap.
        top = jnp.where(jnp.asarray(maximum) > 20.0, maximum, inverse(jnp.minimum(maximum, 20.0)))
        parameter = jnp.clip(state.parameter + learning_rate * ascent, inverse(minimum), top)
        multiplier = jax.nn.softplus(parameter)
        return AdamState(multiplier=multiplier, parameter=parameter, moments=moments)

    return DualUpdate(init=init, update=update)
