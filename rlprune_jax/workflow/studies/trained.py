"""What the studies of one trained network share: a budget, and what candidates are rewarded on."""

import dataclasses

from rlprune_jax.checks import refuse_unless, require_count
from rlprune_jax.workflow.config import ConstraintHandling, Granularity, PruneConfig
from rlprune_jax.workflow.studies.base import Study


@dataclasses.dataclass(frozen=True)
class TrainedStudy(Study):
    """Hold the options of studies of one trained network.

    It is trained once, and pruned to a budget in every setting.
    """

    budget: str = "params=0.1"
    """Limit as NAME=FRACTION of the dense network. Measured latency and functions are not
    traceable, so a study cannot have them."""
    dense_steps: int | None = None
    """Steps of training the dense network; by default a few epochs, by data set."""
    reward_images: int = 256
    """Held-out images a candidate is rewarded on."""

    def check(self) -> None:
        """Refuse options that cannot be."""
        super().check()
        self.at_least("reward_images", 1)
        self.at_least("dense_steps", 1)
        check_budget(self.budget)

    def prune_config(self) -> PruneConfig:
        """Return the options as settings of a pruning."""
        few = min(self.reward_images, 256) if self.dataset == "digits" else self.reward_images
        return PruneConfig(seed=self.seed, reward_images=self.reward_images, calibration_images=few)


@dataclasses.dataclass(frozen=True)
class SearchingStudy(TrainedStudy):
    """Hold the options of studies whose settings are searches."""

    granularity: Granularity = "fine"
    """coarse: a keep ratio per group; fine: every unit by itself."""
    constraint: ConstraintHandling = "both"
    """both, projection or multiplier."""
    evaluations: int = 256
    """Candidates of each search."""
    candidates: int = 16
    """Candidates an iteration."""

    @property
    def most_candidates(self) -> int:
        """Candidates an iteration that a setting may have."""
        return self.candidates

    def check(self) -> None:
        """Refuse options that cannot be."""
        super().check()
        check_search(self.evaluations, self.candidates, self.most_candidates)

    def prune_config(self) -> PruneConfig:
        """Return the options as settings of a pruning."""
        return dataclasses.replace(
            super().prune_config(),
            granularity=self.granularity,
            constraint=self.constraint,
            evaluations=self.evaluations,
            candidates=self.candidates,
        )


def check_budget(text: str) -> None:
    """Refuse a budget that a study cannot take.

    It has a limit, and its cost is not measured on the host. Whether the name is known and the
    limit can be met is asked once JAX is there.

    Raises:
        ValueError: naming the budget and the way out.
    """
    name, found, limit = text.rpartition("=")
    refuse_unless("budget", repr(text), bool(found and name and limit), "must be NAME=LIMIT")
    refuse_unless(
        "budget",
        repr(text),
        name != "latency" and ":" not in name,
        "is measured on the host, which one program of many searches cannot do; use latency_table, "
        "params, macs or another traceable cost, or rlprune prune",
    )


def check_search(evaluations: int, candidates: int, most: int = 0) -> None:
    """Refuse a search that is too small.

    It needs a whole iteration, and two candidates in each.

    Args:
        evaluations: of a search.
        candidates: an iteration.
        most: candidates an iteration that a setting may have.

    Raises:
        ValueError: naming the option, its value and the way out.
    """
    require_count("evaluations", evaluations)
    text = "must be at least 2; the agent compares the candidates of an iteration"
    refuse_unless("candidates", candidates, candidates >= 2, text)
    text = f"an iteration exceed evaluations={evaluations}; lower candidates or raise evaluations"
    refuse_unless("candidates", candidates, candidates <= evaluations, text)
    text = f"is below the {most} candidates that a setting may have; raise evaluations"
    refuse_unless("evaluations", evaluations, most <= evaluations, text)
