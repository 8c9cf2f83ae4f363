"""What of a study is refused before anything is trained."""

import pytest

from rlprune_jax.workflow.studies import BudgetStudy, ProxyStudy, SapStudy, SearchStudy, problem


@pytest.fixture(autouse=True)
def _no_training(monkeypatch):
    monkeypatch.setattr(problem, "train_dense", lambda *args: pytest.fail("training started"))


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (SearchStudy(budget="flops=1"), "known budgets"),
        (SearchStudy(budget="params=2.5"), "must be a fraction"),
        (BudgetStudy(limits=(0.1, 0.00001)), "cannot be met"),
        (BudgetStudy(limits=(0.1, 5000.0)), "mix fractions"),
        (ProxyStudy(model="vgg11"), "vgg11.*too small"),
        (SapStudy(model="vgg11"), "vgg11.*too small"),
    ],
)
def test_what_cannot_be_is_refused_before_training(study, message):
    study.check()
    with pytest.raises(ValueError, match=message):
        study.job()
