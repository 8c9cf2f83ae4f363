"""Hold the structure and the numbers of the agent."""

import dataclasses
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rlprune_jax.checks import require, require_choice, require_count, require_flag, require_range

Granularity = Literal["coarse", "fine"]
"""A keep ratio per group, or one Bernoulli per unit."""

ConstraintHandling = Literal["multiplier", "projection", "both"]
"""How budgets are met: a multiplier learns it, every candidate is put on them, or both."""

DualRule = Literal["pid", "projected_gradient", "adam_clip", "softplus_adam"]
"""The rule that moves the multipliers, a function of ``search.multipliers``."""

PolicyKind = Literal["table", "network"]
"""A learned number per group and unit, or a network of what is observed beside them."""

Shaping = Literal["standardise", "rank", "elite"]
"""What the policy learns from: the combined advantage, its ranks, or the best of its ranks."""

CHOICES: dict[str, tuple[str, ...]] = {
    "granularity": get_args(Granularity),
    "constraint": get_args(ConstraintHandling),
    "policy": get_args(PolicyKind),
    "dual": get_args(DualRule),
    "shaping": get_args(Shaping),
}
"""The choices of each field of `AgentConfig`, as its types state them."""

POSITIVE = ("clip_epsilon", "target_kl", "max_grad_norm", "initial_std")
FRACTIONS = ("gamma", "gae_lambda")
ANY_SIGN = ("action_clip_slope",)


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """Choose the structure of the agent's program.

    Every number that may vary without compiling is in `HParams`.

    Attributes:
        granularity: "coarse", a keep ratio per group, or "fine", one Bernoulli per unit.
        constraint: "both" puts every candidate on the budgets, while multipliers hold what is
            sampled near them; "projection" does so and learns no multiplier; "multiplier" evaluates
            what is sampled and learns to meet the budgets (PPO-Lagrangian).
        candidates: N per iteration; at least 2 without a critic, since one candidate alone has
            nothing to be better than.
        epochs: passes over a batch of candidates.
        minibatches: parts of a batch, must divide ``candidates``.
        policy: "table", a learned number per group and per unit, which reads no state; "network"
            adds a network of what is observed.
        hidden_sizes: of a policy that is a network and of the critics, nothing without either;
            () makes them linear.
        dual: rule of the multipliers.
        critic: learn values as baselines; else the mean of the other candidates.
        shaping: of the combined advantage: as it is, by rank, or by the best part of the ranks.
        standardise_cost: divide cost advantages by their deviation; else only centre them.
        normalise_observations: by running mean and deviation.
        normalise_returns: critics learn rewards and costs over their running deviation.
        iterations: length of the run, for the action-clip and deviation schedules; None for none.

    Raises:
        TypeError: a flag that is neither True nor False.
        ValueError: an unknown choice, a count below its least value, parts that do not divide, a
            choice that does nothing beside the others.

    Example:
        >>> config = AgentConfig(granularity="fine", candidates=32)
        >>> config.constraint, len(config.live_numbers)
        ('both', 12)
    """

    granularity: Granularity = "coarse"
    constraint: ConstraintHandling = "both"
    candidates: int = 16
    epochs: int = 8
    minibatches: int = 1
    policy: PolicyKind = "table"
    hidden_sizes: tuple[int, ...] = (64, 64)
    dual: DualRule = "pid"
    critic: bool = False
    shaping: Shaping = "standardise"
    standardise_cost: bool = True
    normalise_observations: bool = False
    normalise_returns: bool = True
    iterations: int | None = None

    def __post_init__(self) -> None:
        for field, choices in CHOICES.items():
            require_choice(field, getattr(self, field), choices)
        for field in ("candidates", "epochs", "minibatches"):
            require_count(field, getattr(self, field))
        if self.iterations is not None:
            require_count("iterations", self.iterations)
        for field in ("critic", "standardise_cost", "normalise_observations", "normalise_returns"):
            require_flag(field, getattr(self, field))
        sizes: object = self.hidden_sizes
        require(isinstance(sizes, tuple | list), "hidden_sizes", sizes, "a tuple of integers")
        for width in self.hidden_sizes:
            require_count("hidden_sizes", width)
        # A list would do, but a configuration is part of what compiled programs are found by.
        object.__setattr__(self, "hidden_sizes", tuple(self.hidden_sizes))
        require(
            self.candidates % self.minibatches == 0,
            "minibatches",
            self.minibatches,
            f"a divisor of candidates={self.candidates}",
        )
        require(
            self.candidates > 1 or self.critic,
            "candidates",
            self.candidates,
            "at least 2; one alone has nothing to be better than, unless critic=True",
        )
        require(
            not self.critic or self.shaping == "standardise",
            "shaping",
            self.shaping,
            "'standardise' with a critic; ranks are of whole candidates, so set critic=False",
        )
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, (use, way_out) in self._dead().items():
            value = getattr(self, name)
            require(value == defaults[name], name, value, f"{use}; {way_out}")

    @property
    def has_multiplier(self) -> bool:
        """Return whether multipliers are learned."""
        return self.constraint != "projection"

    @property
    def projects(self) -> bool:
        """Return whether every candidate is put on the budgets."""
        return self.constraint != "multiplier"

    @property
    def has_network(self) -> bool:
        """Return whether the policy is a network."""
        return self.policy == "network"

    @property
    def live_numbers(self) -> tuple[str, ...]:
        """Return the numbers of ``HParams`` that do anything here."""
        fine = self.granularity == "fine"
        of_rule = ("kp", "ki", "kd") if self.dual == "pid" else ("learning_rate",)
        live = {
            "learning_rate": self.has_network or self.critic,
            "unit_learning_rate": fine,
            "std_learning_rate": not fine,
            "value_coef": self.critic,
            "gamma": self.critic,
            "gae_lambda": self.critic,
            "initial_std": not fine,
            "minimum_std": not fine,
            "sharpness": fine,
            "action_clip_start": not fine,
            "action_clip_slope": not fine and self.iterations is not None,
            "multiplier_max": self.has_multiplier,
            **{
                name: self.has_multiplier and name.removeprefix("dual_") in (*of_rule, "initial")
                for name in HParams._fields
                if name.startswith("dual_")
            },
        }
        return tuple(name for name in HParams._fields if live.get(name, True))

    def _dead(self) -> dict[str, tuple[str, str]]:
        """Return the fields that do nothing beside the others, and what would use them."""
        dead = {}
        if not self.has_multiplier:
            text = "left out with constraint='projection', which learns no multiplier"
            for name in ("dual", "standardise_cost"):
                dead[name] = (text, "choose constraint='both' or 'multiplier'")
        reads = self.critic or (self.has_network and self.granularity == "coarse")
        if not reads:
            text = "left out where nothing reads observations"
            dead["normalise_observations"] = (text, "choose critic=True, or a coarse network")
        if not self.critic:
            text = "left out without a critic"
            dead["normalise_returns"] = (text, "choose critic=True")
        return dead


class HParams(NamedTuple):
    """Hold every number of the agent.

    Each is a scalar, and may be traced or batched by ``jax.vmap``. The rates, the clip, the
    divergence and the sharpness were found by studies on two data sets (README, "The agent's
    defaults").

    Attributes:
        learning_rate: of the networks (Adam).
        group_learning_rate: of the learned number per group.
        unit_learning_rate: of the learned number per unit.
        std_learning_rate: of the coarse log deviation.
        clip_epsilon: PPO's clip of the likelihood ratio.
        entropy_coef: weight of the mean entropy of an action.
        value_coef: weight of the critics' squared error.
        gamma: discount per step; 1, for episodes of fixed length with one reward at the end.
        gae_lambda: decay of the advantage's trace.
        target_kl: an iteration stops updating at 1.5 times this mean divergence per action.
        max_grad_norm: clip of the gradient's norm.
        initial_std: of the coarse action, in logit space.
        minimum_std: floor of it.
        sharpness: slope of the fine starting logits.
        dual_initial: first multiplier (or integral); at 1, where standardised advantages balance,
            costs do not drift off before it has learned.
        dual_kp: proportional gain, per relative error.
        dual_ki: integral gain.
        dual_kd: derivative gain.
        dual_learning_rate: of the gradient and Adam rules.
        multiplier_max: cap of each multiplier.
        action_clip_start: largest prune ratio at the start; 1 for no clip.
        action_clip_slope: added to it over the run.

    Example:
        >>> HParams(unit_learning_rate=0.2).group_learning_rate
        0.087
    """

    learning_rate: ArrayLike = 1.3e-3
    group_learning_rate: ArrayLike = 0.087
    unit_learning_rate: ArrayLike = 0.11
    std_learning_rate: ArrayLike = 0.02
    clip_epsilon: ArrayLike = 0.53
    entropy_coef: ArrayLike = 0.0
    value_coef: ArrayLike = 0.5
    gamma: ArrayLike = 1.0
    gae_lambda: ArrayLike = 0.95
    target_kl: ArrayLike = 0.12
    max_grad_norm: ArrayLike = 10.0
    initial_std: ArrayLike = 0.5
    minimum_std: ArrayLike = 0.05
    sharpness: ArrayLike = 2.5
    dual_initial: ArrayLike = 1.0
    dual_kp: ArrayLike = 1.0
    dual_ki: ArrayLike = 0.1
    dual_kd: ArrayLike = 0.1
    dual_learning_rate: ArrayLike = 0.1
    multiplier_max: ArrayLike = 100.0
    action_clip_start: ArrayLike = 1.0
    action_clip_slope: ArrayLike = 0.0


def check_live(config: AgentConfig, hparams: HParams) -> None:
    """Refuse numbers that do nothing in a structure.

    Values that are traced are taken as they come, and so are defaults.

    Raises:
        ValueError: naming the number, and what reads it.
    """
    live = config.live_numbers
    for name, value in hparams._asdict().items():
        if name in live or isinstance(value, jax.core.Tracer):
            continue
        default = HParams._field_defaults[name]
        same = np.ndim(value) == 0 and np.float32(value) == np.float32(default)
        require(
            bool(same),
            f"hparams.{name}",
            _plain(value),
            f"left at {default}: it does nothing with granularity={config.granularity!r}, "
            f"constraint={config.constraint!r}, policy={config.policy!r}, dual={config.dual!r}, "
            f"critic={config.critic}; what does something is {', '.join(live)}",
        )


def check_hparams(hparams: HParams) -> HParams:
    """Return the agent's numbers as float32 scalars, checked.

    Values that are traced are taken as they come, since they are not known yet.

    Raises:
        ValueError: a number that is none, not a scalar, or out of its range; the message names it.
    """
    require(isinstance(hparams, HParams), "hparams", hparams, "HParams(...)")
    checked = {}
    for name, value in zip(hparams._fields, hparams, strict=True):
        require(np.ndim(value) == 0, f"hparams.{name}", value, "a scalar; batch it by jax.vmap")
        if not isinstance(value, jax.core.Tracer):
            low = -np.inf if name in ANY_SIGN else 0.0
            high = 1.0 if name in FRACTIONS else np.inf
            number = require_range(f"hparams.{name}", _plain(value), low, high)
            require(name not in POSITIVE or number > 0, f"hparams.{name}", number, "above 0")
        checked[name] = jnp.asarray(value, jnp.float32)
    return HParams(**checked)


def _plain(value: ArrayLike) -> object:
    """Show an array as the number it is."""
    return value.item() if isinstance(value, jax.Array | np.ndarray | np.generic) else value
