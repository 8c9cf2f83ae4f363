"""The study of sparsity-informed adaptive pruning."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from rlprune_jax.checks import refuse_unless
from rlprune_jax.workflow.sap_config import SapNetworkOptions
from rlprune_jax.workflow.studies.base import Study, StudyJob, require_each

if TYPE_CHECKING:
    from rlprune_jax.runs import Run
    from rlprune_jax.study import StudyResult, StudySettings
    from rlprune_jax.study.settings import Distribution

Scope = Literal["global", "layer", "neuron"]
NUMBERS = ("p", "q", "eta_r", "gamma", "beta")
"""Hyper-parameters that are traced."""


@dataclasses.dataclass(frozen=True)
class SapStudy(SapNetworkOptions, Study):
    """Vary the numbers of adaptive pruning.

    A grid of them, or ranges with --optuna.
    """

    kind: ClassVar[str] = "sap"
    drawn_by_optuna: ClassVar[tuple[str, ...]] = NUMBERS

    p: tuple[float, ...] = (0.5, 1.0)
    """Norms above; combinations with p >= q are left out."""
    q: tuple[float, ...] = (1.0, 2.0)
    """Norms below."""
    eta_r: tuple[float, ...] = (0.0,)
    """The larger, the more goes."""
    gamma: tuple[float, ...] = (1.0,)
    """Scaling of the fraction that goes."""
    beta: tuple[float, ...] = (0.9,)
    """Greatest fraction that one iteration prunes."""
    scope: tuple[Scope, ...] = ("global",)
    """global, layer, neuron."""
    iterations: int = 10
    """Prunings."""
    epochs: int = 3
    """Of each training."""
    batch_size: int = 250
    """Images a step."""
    metric: Literal["kept_sparsity", "accuracy"] = "kept_sparsity"
    """kept_sparsity: largest sparsity whose accuracy is within 0.01 of dense; accuracy: the last.
    The accuracy of a task of yours is its metric."""

    def check(self) -> None:
        """Refuse options that cannot be."""
        super().check()
        for option in ("iterations", "epochs", "batch_size"):
            self.at_least(option, 1)
        finite, most = "must be finite and above 0 each", "must be above 0 and at most 1 each"
        for option, low, high, wanted in (
            ("p", 0.0, math.inf, finite),
            ("q", 0.0, math.inf, finite),
            ("gamma", 0.0, math.inf, finite),
            ("beta", 0.0, math.nextafter(1.0, 2.0), most),
            ("eta_r", -math.ulp(0.0), math.inf, "must be finite and at least 0 each"),
        ):
            given = getattr(self, option)
            require_each(option, given, between(low, high), wanted)
        require_each("scope", self.scope, bool, "")
        some = any(p < q for p in self.p for q in self.q)
        refuse_unless("p", self.p, some, f"must have a number below one of q={self.q}")

    def settings(self, cost: str) -> "StudySettings":
        """Return all combinations with p below q."""
        from rlprune_jax.study import grid, table

        rows = list(grid({name: list(getattr(self, name)) for name in (*NUMBERS, "scope")}))
        return table([row for row in rows if float(row["p"]) < float(row["q"])])

    def space(self, cost: str) -> "Mapping[str, Distribution]":
        """Return the range of each number, and the scopes."""
        from rlprune_jax.study import Choice, Uniform

        return {
            "p": Uniform(0.1, 1.0),
            "q": Uniform(1.05, 2.0),
            "eta_r": Uniform(0.0, 1.0),
            "gamma": Uniform(0.5, 2.0),
            "beta": Uniform(0.5, 0.95),
            "scope": Choice(self.scope),
        }

    def job(self, run: "Run | None" = None) -> StudyJob:
        """Load data and make the job of one pruning."""
        from rlprune_jax.workflow.studies.sap_job import sap_study_job

        return sap_study_job(self)

    def conclude(self, found: "StudyResult", dense_accuracy: float) -> dict[str, object]:
        """Return the result.

        Every cell trains a dense network of its own.
        """
        mean = float(found.metrics["dense_accuracy"].mean())
        return super().conclude(found, mean)


def between(low: float, high: float):
    """Return whether a number is above one and below another."""
    return lambda value: low < value < high
