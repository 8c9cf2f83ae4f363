"""Structure and numbers of the constrained policy gradient."""

import dataclasses
from typing import NamedTuple

from jax.typing import ArrayLike

from rlprune_jax.search.searcher import check_positive

CHOICES = {
    "granularity": ("coarse", "fine"),
    "constraint": ("multiplier", "projection", "both"),
    "dual": ("pid", "projected_gradient", "adam_clip", "softplus_adam"),
    "shaping": ("standardise", "rank", "elite"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What shapes the program; every number that may vary without compiling is in ``HParams``.

    Attributes:
        granularity: "coarse", a keep ratio per group, or "fine", one Bernoulli per unit.
        constraint: "multiplier" learns to meet the budgets; "projection" puts every candidate on
            them; "both" projects, while multipliers hold the unprojected policy near them.
        candidates: N per iteration.
        epochs: passes over a batch of candidates.
        minibatches: parts of a batch, must divide ``candidates``.
        hidden_sizes: of the policy and the critics.
        dual: rule of the multipliers.
        critic: learn values as baselines; else the mean of the other candidates.
        shaping: of the combined advantage: as it is, by rank, or by the best share of ranks.
        standardise_cost: divide cost advantages by their deviation; else only centre them.
        normalise_observations: by running mean and deviation.
        normalise_returns: critics learn rewards and costs over their running deviation.
        iterations: length of the run, for the action-clip and deviation schedules; None for none.
    """

    granularity: str = "coarse"
    constraint: str = "projection"
    candidates: int = 16
    epochs: int = 8
    minibatches: int = 1
    hidden_sizes: tuple[int, ...] = (64, 64)
    dual: str = "pid"
    critic: bool = False
    shaping: str = "standardise"
    standardise_cost: bool = True
    normalise_observations: bool = False
    normalise_returns: bool = True
    iterations: int | None = None

    def __post_init__(self) -> None:
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"{field}={getattr(self, field)!r}: choose one of {choices}")
        for field in ("candidates", "epochs", "minibatches"):
            check_positive(field, getattr(self, field))
        if self.iterations is not None:
            check_positive("iterations", self.iterations)
        if self.candidates % self.minibatches:
            raise ValueError(
                f"minibatches={self.minibatches} must divide candidates={self.candidates}"
            )
        if self.critic and self.shaping != "standardise":
            raise ValueError(f"shaping={self.shaping!r} ranks whole candidates: set critic=False")


class HParams(NamedTuple):
    """Every number of the agent, each a scalar (or traced, or batched by vmap).

    The rates, the clip, the divergence and the sharpness were found by studies on two data sets
    (README, "The agent's defaults").

    Attributes:
        learning_rate: of the networks (Adam).
        table_learning_rate: of the learned offset per group.
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
    """

    learning_rate: ArrayLike = 1.3e-3
    table_learning_rate: ArrayLike = 0.087
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
