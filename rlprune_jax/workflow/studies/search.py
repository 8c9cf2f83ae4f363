"""The study of the agent's hyper-parameters."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

import tyro

from rlprune_jax.checks import refuse_unless, require_count
from rlprune_jax.workflow.studies.base import StudyJob, names, require_each
from rlprune_jax.workflow.studies.trained import SearchingStudy

if TYPE_CHECKING:
    from rlprune_jax.runs import Run
    from rlprune_jax.study import StudyResult, StudySettings
    from rlprune_jax.study.settings import Distribution, Value
    from rlprune_jax.workflow.pruning import Pruning


class Range(NamedTuple):
    """Numbers between two, drawn evenly, or evenly in their logarithm."""

    low: float
    high: float
    log: bool = True

    def distribution(self) -> "Distribution":
        """Return what is drawn from."""
        from rlprune_jax.study import LogUniform, Uniform

        return (LogUniform if self.log else Uniform)(self.low, self.high)


RANGES: dict[str, Range] = {
    "unit_learning_rate": Range(0.02, 0.8),
    "group_learning_rate": Range(0.005, 0.5),
    "learning_rate": Range(1e-4, 1e-2),
    "clip_epsilon": Range(0.05, 1.0, log=False),
    "target_kl": Range(0.005, 0.5),
    "sharpness": Range(1.0, 16.0, log=False),
    "entropy_coef": Range(0.0, 0.02, log=False),
    "initial_std": Range(0.1, 2.0),
    "std_learning_rate": Range(0.002, 0.2),
}
"""Ranges of the agent's numbers, around its defaults."""

CHOICES: dict[str, tuple[int, ...] | tuple[str, ...]] = {
    "epochs": (4, 8, 16),
    "candidates": (8, 16, 32),
    "shaping": ("standardise", "elite"),
}
"""What of the agent's structure may vary; each value is a program of its own."""


@dataclasses.dataclass(frozen=True)
class SearchStudy(SearchingStudy):
    """Vary the hyper-parameters of the agent.

    Setting 0 is the defaults.
    """

    kind: ClassVar[str] = "search"
    log_axes: ClassVar[tuple[str, ...]] = tuple(name for name, span in RANGES.items() if span.log)
    drawn_by_optuna: ClassVar[tuple[str, ...]] = ("num_settings",)

    num_settings: Annotated[int, tyro.conf.arg(name="settings")] = 64
    """H, of which all but the first are drawn at random; with more of them, the study goes on where
    it ended."""
    vary: tuple[str, ...] = ("unit_learning_rate", "clip_epsilon", "target_kl", "sharpness")
    """What is varied; of the agent's numbers, those with a range. epochs, candidates and shaping
    make a program for each of their values, and need a number beside them."""
    around: float | None = None
    """Draw each number within this factor of its default; the whole range where that is 0."""
    metric: Literal["area", "reward"] = "area"
    """What is optimised: area (under the best-so-far curve) or reward (at the end)."""

    @property
    def most_candidates(self) -> int:
        """Candidates an iteration that a setting may have."""
        sizes = CHOICES["candidates"] if "candidates" in self.vary else ()
        return max(map(int, sizes), default=self.candidates)

    def check(self) -> None:
        """Refuse options that cannot be."""
        super().check()
        count = self.num_settings
        wanted = "must be at least 2; the first is the defaults, which are compared with the others"
        refuse_unless("settings", count, count >= 2, wanted)
        require_count("settings", count)
        known = (*RANGES, *CHOICES)
        text = f"must be among {names(known)}"
        require_each("vary", self.vary, known.__contains__, text)
        varied = set(self.vary) & set(RANGES)
        text = f"shapes the program alone; vary a number too, one of {names(RANGES)}"
        refuse_unless("vary", self.vary, bool(varied), text)
        if self.around is not None:
            holds = self.around > 1 and math.isfinite(self.around)
            refuse_unless("around", self.around, holds, "must be a finite factor above 1")

    def settings(self, cost: str) -> "StudySettings":
        """Return the defaults and what is drawn at random.

        The first settings of a larger number are those of a smaller one.
        """
        import jax

        from rlprune_jax.study import random, table

        rows = [self.defaults()]
        if self.num_settings > 1:
            key = jax.random.key(self.seed)
            rows += list(random(self.space(cost), self.num_settings - 1, key))
        return table(rows)

    def space(self, cost: str) -> "Mapping[str, Distribution]":
        """Return what each hyper-parameter is drawn from."""
        from rlprune_jax.study import Choice

        defaults = self.defaults()
        found: dict[str, Distribution] = {}
        for name in self.vary:
            default = defaults[name]
            if name in CHOICES:
                found[name] = Choice(CHOICES[name])
            elif self.around is None or not default:
                found[name] = RANGES[name].distribution()
            else:
                middle = float(default)
                span = Range(middle / self.around, middle * self.around)
                found[name] = span.distribution()
        return found

    def defaults(self) -> "dict[str, Value]":
        """Return the defaults of what is varied.

        As a search has it unless told otherwise.
        """
        from rlprune_jax.search import AgentConfig, HParams

        structure = AgentConfig(candidates=self.candidates)
        return {
            name: getattr(structure, name) if name in CHOICES else float(getattr(HParams(), name))
            for name in self.vary
        }

    def job(self, run: "Run | None" = None) -> StudyJob:
        """Train the network and make the job of one search."""
        from rlprune_jax.workflow.studies.problem import prepare

        self.check_live()
        return self.job_on(prepare(self, (self.budget,), run))

    def check_live(self) -> None:
        """Refuse to vary a number that does nothing.

        Raises:
            ValueError: naming the number, and those that it reads.
        """
        from rlprune_jax.search import AgentConfig

        live = AgentConfig(granularity=self.granularity, constraint=self.constraint).live_numbers
        text = (
            f"does nothing with granularity={self.granularity} and constraint={self.constraint}; "
            f"vary some of {names(tuple(name for name in RANGES if name in live))}"
        )
        require_each("vary", self.vary, lambda name: name in live or name in CHOICES, text)

    def job_on(self, pruning: "Pruning") -> StudyJob:
        """Make the job of one search on a problem."""
        from rlprune_jax.workflow.studies.search_job import search_study_job

        return search_study_job(pruning, tuple(name for name in self.vary if name in CHOICES))

    def conclude(self, found: "StudyResult", dense_accuracy: float) -> dict[str, object]:
        """Return the result, with the gain over the defaults."""
        result = super().conclude(found, dense_accuracy)
        if self.optuna:
            return result  # which chose its settings, so none is the defaults
        values = found.metrics[self.metric]
        gain = values[found.best(self.metric)] - values[0]
        mean = float(gain.mean())
        return result | {"gain_over_defaults": {"mean": mean, "by_seed": gain.tolist()}}
