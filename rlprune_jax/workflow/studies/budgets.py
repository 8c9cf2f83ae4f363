"""The study of the front of accuracy against cost."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from rlprune_jax.checks import refuse_unless
from rlprune_jax.workflow.config import MethodName
from rlprune_jax.workflow.studies.base import StudyJob, require_each
from rlprune_jax.workflow.studies.trained import SearchingStudy

if TYPE_CHECKING:
    from rlprune_jax.report.study_page import Drawing
    from rlprune_jax.runs import Run
    from rlprune_jax.study import StudyResult, StudySettings
    from rlprune_jax.study.settings import Distribution


@dataclasses.dataclass(frozen=True)
class BudgetStudy(SearchingStudy):
    """The front of accuracy against cost, the agent beside baselines."""

    kind: ClassVar[str] = "budgets"

    limits: tuple[float, ...] = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.35)
    """B budgets, fractions of the dense network; the name is that of --budget."""
    methods: tuple[Literal["agent"] | MethodName, ...] = (
        "agent",
        "random_search",
        "cross_entropy",
    )
    """What searches."""
    finetune_steps: int = 0
    """Finetune the best candidate of each search so long and read its test accuracy."""
    metric: Literal["reward", "accuracy"] = "reward"
    """What is drawn: reward, or accuracy where there is finetuning."""

    @property
    def budgets(self) -> tuple[str, ...]:
        """Return the limits as text.

        Of the cost that the budget names.
        """
        name = self.budget.rpartition("=")[0]
        return tuple(f"{name}={limit}" for limit in self.limits)

    def check(self) -> None:
        """Refuse options that cannot be."""
        super().check()
        text = "must be finite and above 0 each"
        require_each("limits", self.limits, lambda limit: 0 < float(str(limit)) < math.inf, text)
        require_each("methods", self.methods, bool, "")
        self.at_least("finetune_steps", 0)
        tuned = self.metric != "accuracy" or self.finetune_steps > 0
        text = "is read after finetuning; give finetune_steps of at least 1"
        refuse_unless("metric", self.metric, tuned, text)
        if self.optuna:
            text = "are one number, and Optuna draws between the least and the greatest; give two"
            refuse_unless("limits", self.limits, len(self.limits) > 1, text)

    def settings(self, cost: str) -> "StudySettings":
        """Return all limits with all methods."""
        from rlprune_jax.study import grid

        return grid({cost: list(self.limits), "method": list(self.methods)})

    def space(self, cost: str) -> "Mapping[str, Distribution]":
        """Return the range of limits, and the methods."""
        from rlprune_jax.study import Choice, LogUniform

        span = LogUniform(min(self.limits), max(self.limits))
        return {cost: span, "method": Choice(self.methods)}

    def job(self, run: "Run | None" = None) -> StudyJob:
        """Make the job of a search under one limit.

        The network is trained before.
        """
        from rlprune_jax.workflow.studies.problem import prepare
        from rlprune_jax.workflow.studies.search_job import search_study_job

        pruning = prepare(self, self.budgets, run, finetune=self.finetune_steps > 0)
        return search_study_job(pruning, ("method",), self.finetune_steps)

    def draw(
        self, found: "StudyResult", result: Mapping[str, object], cost: str
    ) -> "list[Drawing]":
        """Return a front for each metric, and the effects."""
        from rlprune_jax.report.study_page import front

        # The reward is before any finetuning, the accuracy after it.
        dense = float(str(result["dense_accuracy"]))
        fronts = [
            front(self.fronts(found, name, cost), (cost, name), dense)
            for name in dict.fromkeys((self.metric, "reward"))
        ]
        return [*fronts, *super().draw(found, result, cost)]

    def fronts(
        self, found: "StudyResult", metric: str, cost: str
    ) -> "dict[str, dict[str, list[float]]]":
        """Return limits, means and intervals of a metric by method."""
        summary = found.summary(metric)
        fronts: dict[str, dict[str, list[float]]] = {}
        for method in dict.fromkeys(found.settings.columns["method"]):
            chosen = summary["method"] == method
            columns = {"cost": cost, "mean": "mean", "low": "low", "high": "high"}
            fronts[str(method)] = {
                name: summary[column][chosen].tolist() for name, column in columns.items()
            }
        return fronts
