"""The study of how well rewards predict the accuracy after finetuning."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from rlprune_jax.checks import refuse_unless
from rlprune_jax.workflow.studies.base import StudyJob
from rlprune_jax.workflow.studies.trained import TrainedStudy

if TYPE_CHECKING:
    from rlprune_jax.report.study_page import Drawing
    from rlprune_jax.runs import Run
    from rlprune_jax.study import StudyResult, StudySettings
    from rlprune_jax.study.settings import Distribution

PROXIES: dict[str, int | None] = {
    "no_recalibration": None,
    "recalibration": 0,
    "finetune_32": 32,
    "finetune_128": 128,
}
"""Rewards by name: steps of finetuning before, None for no recalibration either."""

MOST_CANDIDATES = 10_000
"""Each of them is finetuned."""


@dataclasses.dataclass(frozen=True)
class ProxyStudy(TrainedStudy):
    """Correlate rewards with the finetuned accuracy.

    By rank, over random candidates.
    """

    kind: ClassVar[str] = "proxy"

    model: str = "cnn"
    """A network with batch norm, or recalibration has nothing to do."""
    candidates: int = 32
    """How many; at least 30 for an interval worth reading."""
    finetune_steps: int = 300
    """Of the long finetune."""
    seeds: int = 1
    """Of finetuning."""
    metric: Literal[
        "accuracy", "no_recalibration", "recalibration", "finetune_32", "finetune_128"
    ] = "accuracy"
    """What settings are ranked by: the accuracy after the long finetune, or a reward."""

    def check(self) -> None:
        """Refuse options that cannot be."""
        super().check()
        count = self.candidates
        refuse_unless("candidates", count, count >= 3, "must be at least 3; fewer do not correlate")
        text = f"must be at most {MOST_CANDIDATES}; each of them is finetuned"
        refuse_unless("candidates", count, count <= MOST_CANDIDATES, text)
        self.at_least("finetune_steps", 1)
        text = "has nothing to choose in a proxy study; leave it out"
        refuse_unless("optuna", self.optuna, self.optuna is None, text)

    def settings(self, cost: str) -> "StudySettings":
        """Return the numbers of the candidates."""
        from rlprune_jax.study import grid

        return grid({"candidate": list(range(self.candidates))})

    def space(self, cost: str) -> "Mapping[str, Distribution]":
        """Return nothing to search.

        ``check`` refuses Optuna.
        """
        return {}

    def job(self, run: "Run | None" = None) -> StudyJob:
        """Train the network and make the job of one candidate."""
        from rlprune_jax.workflow.studies.problem import prepare
        from rlprune_jax.workflow.studies.proxy_job import proxy_study_job

        pruning = prepare(self, (self.budget,), run, finetune=True)
        return proxy_study_job(pruning, self.candidates, self.finetune_steps)

    def conclude(self, found: "StudyResult", dense_accuracy: float) -> dict[str, object]:
        """Return the result, with each reward's correlation."""
        from rlprune_jax.study import rank_correlation

        accuracy = found.metrics["accuracy"].mean(1)
        correlations = {
            name: rank_correlation(found.metrics[name].mean(1), accuracy)._asdict()
            for name in PROXIES
        }
        return super().conclude(found, dense_accuracy) | {"correlations": correlations}

    def draw(
        self, found: "StudyResult", result: Mapping[str, object], cost: str
    ) -> "list[Drawing]":
        """Return accuracy against each reward."""
        from rlprune_jax.report.study_page import correlations

        means = {name: found.metrics[name].mean(1) for name in (*PROXIES, "accuracy")}
        return [correlations(means, "accuracy", result["correlations"])]  # type: ignore[arg-type]
