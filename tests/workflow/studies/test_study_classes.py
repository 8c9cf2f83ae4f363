"""The four studies: their settings, what Optuna draws from, and their registry."""

import jax
import pytest

from rlprune_jax.costs import COSTS
from rlprune_jax.search import AgentConfig, HParams
from rlprune_jax.study import Choice, LogUniform, Uniform
from rlprune_jax.workflow.methods import METHODS
from rlprune_jax.workflow.studies import (
    STUDIES,
    BudgetStudy,
    ProxyStudy,
    SapStudy,
    SearchStudy,
)
from rlprune_jax.workflow.studies.search import CHOICES, RANGES


def test_names_are_those_of_their_homes():
    assert list(STUDIES) == ["search", "budgets", "sap", "proxy"]
    assert set(RANGES) <= set(HParams._fields)
    assert all(hasattr(AgentConfig(), name) for name in CHOICES)
    BudgetStudy(methods=tuple(METHODS)).check()


@pytest.mark.parametrize("study", STUDIES.values())
def test_defaults_are_accepted(study):
    study().check()
    assert study().identity() == study(runs_dir="elsewhere", chunk=2, trials=3).identity()
    assert study().identity() != study(seeds=9).identity()


@pytest.mark.parametrize("cost", [name for name in COSTS if name != "latency"])
def test_traceable_costs_are_accepted(cost):
    SearchStudy(budget=f"{cost}=0.5").check()


def test_a_search_study_begins_with_the_defaults():
    rows = list(SearchStudy(num_settings=6).settings("params"))
    assert len(rows) == 6
    assert rows[0] == {name: getattr(HParams(), name) for name in SearchStudy().vary}
    for row in rows[1:]:
        assert all(RANGES[name].low <= row[name] <= RANGES[name].high for name in row)


def test_more_settings_begin_with_the_same_ones():
    few, many = (SearchStudy(num_settings=count).settings("params") for count in (5, 40))
    assert list(many)[:5] == list(few)


def test_ranges_around_the_defaults():
    study = SearchStudy(vary=("clip_epsilon", "entropy_coef", "epochs"), around=2.0)
    space = study.space("params")
    assert space["clip_epsilon"] == LogUniform(0.53 / 2, 0.53 * 2)
    assert space["entropy_coef"] == Uniform(0.0, 0.02)  # a factor of 0 is 0
    assert space["epochs"] == Choice((4, 8, 16))


def test_budgets_are_all_limits_with_all_methods():
    study = BudgetStudy(limits=(0.1, 5e-5), methods=("agent", "uniform"), budget="macs=0.7")
    assert study.budgets == ("macs=0.1", "macs=5e-05")
    rows = list(study.settings("macs"))
    assert rows[1] == {"macs": 0.1, "method": "uniform"} and len(rows) == 4
    assert study.space("macs")["macs"] == LogUniform(5e-5, 0.1)


def test_sap_leaves_out_what_is_no_pair_of_norms():
    rows = list(SapStudy(gamma=(1.0, 2.0)).settings(""))
    assert {(row["p"], row["q"]) for row in rows} == {(0.5, 1.0), (0.5, 2.0), (1.0, 2.0)}
    assert len(rows) == 6
    drawn = SapStudy().space("")
    assert set(drawn) == set(rows[0])
    key = jax.random.key(0)
    assert max(drawn["p"].draw(20, key)) < min(drawn["q"].draw(20, key))


def test_a_proxy_study_numbers_its_candidates():
    assert [row["candidate"] for row in ProxyStudy(candidates=3).settings("params")] == [0, 1, 2]
    assert ProxyStudy().model == "cnn"
