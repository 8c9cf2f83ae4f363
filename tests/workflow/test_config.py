"""Settings are filled in and refused by name, without JAX."""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import rlprune_jax
from rlprune_jax.per_group import read_overrides
from rlprune_jax.workflow.config import (
    AGENT,
    MethodName,
    PruneConfig,
    check_methods,
    extendable_searches,
    overrides,
    resolve,
)


def test_settings_load_no_jax():
    program = "import sys, rlprune_jax.workflow.config; assert 'jax' not in sys.modules"
    root = Path(rlprune_jax.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_defaults_that_depend_on_others():
    found = resolve(PruneConfig(reward_images=64))
    assert (found.rerank_steps, found.finetune_steps, found.calibration_images) == (100, 1000, 64)
    assert found.constraint == "both"
    kept = resolve(PruneConfig(constraint="multiplier", rerank_steps=7, calibration_images=3))
    assert (kept.constraint, kept.rerank_steps, kept.calibration_images) == ("multiplier", 7, 3)
    assert resolve(found) == found
    assert not found.repair
    untrained = resolve(PruneConfig(finetune_steps=0))
    assert (untrained.rerank_steps, untrained.repair) == (0, True)
    assert not resolve(PruneConfig(finetune_steps=0, repair=False)).repair


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluations": 0}, "evaluations=0 must be at least 1"),
        ({"evaluations": "64"}, "evaluations='64' must be an integer"),
        ({"finetune_steps": 10.5}, "finetune_steps=10.5 must be an integer"),
        ({"finetune_steps": -1}, "finetune_steps=-1 must be at least 0"),
        ({"repair": "yes"}, "repair='yes' must be True or False"),
        ({"repair_images": 0}, "repair_images=0 must be at least 1"),
        ({"rerank": True}, "rerank=True must be an integer"),
        ({"candidates": 16, "evaluations": 8}, "candidates=16 must be at most evaluations=8"),
        ({"chunk": 0}, "chunk=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be an integer from 0"),
        ({"seed": 2**32}, "seed=4294967296 must be an integer from 0"),
        ({"finetune_rule": "rmsprop"}, "finetune_rule='rmsprop' must be one of sgd, adam"),
        ({"controls": 1}, "controls=1 must be True or False"),
        ({"finetune_rate": 0.0}, "finetune_rate=0.0 must be above 0"),
        ({"finetune_rate": float("nan")}, "finetune_rate=nan must be a finite number"),
        ({"cost_seconds": "fast"}, "cost_seconds='fast' must be a finite number"),
        ({"save_seconds": -1.0}, "save_seconds=-1.0 must be a finite number of at least 0"),
        ({"tile": (8,)}, "tile=.8,. must be two integers"),
        ({"tile": (8, 0)}, "tile=0 must be at least 1"),
        ({"reward_finetune": ()}, "reward_finetune=.. must be at least one number"),
        ({"reward_finetune": 5}, "reward_finetune=5 must be a tuple"),
        ({"reward_finetune": (0, -1)}, "reward_finetune=-1 must be at least 0"),
        ({"baselines": "uniform"}, "baselines='uniform' must be a tuple"),
        ({"granularity": "medium"}, "granularity='medium' must be one of fine, coarse"),
        ({"constraint": "soft"}, "constraint='soft' must be one of projection, multiplier, both"),
        ({"score": None}, "score=None must be one of taylor"),
        ({"reward": "acc"}, "reward='acc' must be one of metric, accuracy, loss"),
        ({"sparsity_informed": "yes"}, "sparsity_informed='yes' must be True or False"),
        ({"min_keep_of": ("conv",)}, "min_keep_of='conv' is not of the form REGEX=N"),
        ({"round_to_of": ("(=2",)}, r"round_to_of='\(=2' is not of the form REGEX=N"),
        ({"kv_layers": "key("}, r"kv_layers='key\(' is no regular expression"),
        ({"min_keep_of": ("a=0",)}, "N is an integer of at least 1"),
        ({"start": "dp"}, "start='dp' must be one of uniform, .*dynamic_programming"),
        ({"start_evaluations": 16}, "start_evaluations=16 must be left out where start names no"),
        ({"start": "uniform", "evaluations": 24}, "start='uniform' must be left out with evalu"),
        ({"start": "uniform", "start_evaluations": 8}, "start_evaluations=8 must be from 16 to"),
        ({"start": "uniform", "start_evaluations": 760}, "=760 must be from 16 to 752"),
        ({"start": "uniform", "reward_finetune": (0, 5)}, "start='uniform' must be left out with"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        resolve(PruneConfig(**changes))


@pytest.mark.parametrize("field", dataclasses.fields(PruneConfig), ids=lambda field: field.name)
def test_every_setting_refuses_nonsense_by_name(field):
    with pytest.raises(ValueError, match=field.name):
        resolve(dataclasses.replace(PruneConfig(), **{field.name: object()}))


def test_a_method_whose_library_is_missing_is_refused_before_anything_is_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    wanted = r"method 'cma_es' needs cmaes.*pip install 'rlprune_jax\[rivals\]'"
    with pytest.raises(ValueError, match=wanted):
        check_methods(("cma_es",), get_args(MethodName))
    with pytest.raises(ValueError, match=wanted):
        resolve(PruneConfig(start="cma_es"))


def test_searches_that_plan_ahead_and_started_agents_begin_anew():
    rivals = ("spdy", "fastnas", "cma_es", "uniform")
    assert extendable_searches(PruneConfig(baselines=rivals)) == [AGENT, "spdy", "uniform"]
    started = PruneConfig(baselines=rivals, start="spdy")
    assert extendable_searches(started) == ["spdy", "uniform"]


def test_methods_are_checked_against_the_registry():
    known = (AGENT, *get_args(MethodName), "mine")
    check_methods(("mine", "uniform"), known)
    with pytest.raises(ValueError, match="baselines='unifrom' must be among agent, uniform"):
        check_methods(("unifrom",), known)
    for twice in (("uniform", "uniform"), (AGENT,)):
        with pytest.raises(ValueError, match="each method once; the agent runs in any case"):
            check_methods(twice, known)


def test_overrides_are_numbers_or_patterns_in_order():
    assert overrides(PruneConfig(min_keep=3), "min_keep") == 3
    found = overrides(PruneConfig(round_to=2, round_to_of=("conv=8", "conv1=4")), "round_to")
    assert list(found.items()) == [(".*", 2), ("conv", 8), ("conv1", 4)]
    # The last of equal expressions counts from its own place on.
    again = overrides(PruneConfig(round_to_of=("conv=8", "a=2", "conv=4")), "round_to")
    assert list(again.items()) == [(".*", 1), ("a", 2), ("conv", 4)]
    assert read_overrides("round_to_of", ["a=b=3"]) == {"a=b": 3}
