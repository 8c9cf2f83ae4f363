"""The studies: what of a pruning may vary, one class a file.

A study is a frozen dataclass of options with the methods of `Study`: it checks itself, says which
settings it has or from what they are drawn, makes the job that runs one of them, and concludes.
`conduct` runs any of them. Nothing that is imported here imports JAX, so that a command line reads
the options at once.
"""

from rlprune_jax.workflow.studies.base import Study, StudyJob
from rlprune_jax.workflow.studies.budgets import BudgetStudy
from rlprune_jax.workflow.studies.proxy import ProxyStudy
from rlprune_jax.workflow.studies.sap import SapStudy
from rlprune_jax.workflow.studies.search import SearchStudy

__all__ = ["STUDIES", "BudgetStudy", "ProxyStudy", "SapStudy", "SearchStudy", "Study", "StudyJob"]

STUDIES: dict[str, type[Study]] = {
    study.kind: study for study in (SearchStudy, BudgetStudy, SapStudy, ProxyStudy)
}
"""All studies by name. A new one is one class in a file of its own, and an entry here."""
