"""A small problem that jobs of studies are tried on."""

import pytest

from rlprune_jax.workflow.studies import SearchStudy
from rlprune_jax.workflow.studies.problem import prepare


@pytest.fixture(scope="session")
def pruning():
    """Half of the parameters of a narrow MLP on digits, hardly trained."""
    study = SearchStudy(
        widths=(6, 8),
        dense_steps=30,
        reward_images=64,
        budget="params=0.5",
        evaluations=12,
        candidates=4,
    )
    return prepare(study, ("params=0.5",))
