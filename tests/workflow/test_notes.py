"""What is cut to what there is, is told."""

import dataclasses

import jax.numpy as jnp
import pytest
from small import QUICK, small_mlp

import rlprune_jax as rp
from rlprune_jax.workflow import pipeline
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.notes import notes
from rlprune_jax.workflow.searches import ARCHIVE_SIZE

SMALL = small_mlp()
SIZES = {split: SMALL.task.size(split) for split in ("train", "held_out")}
FITS = {**QUICK, "reward_images": 1, "calibration_images": 1, "repair_images": 1, "batch_size": 1}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"evaluations": 36, "candidates": 8},
            "evaluations=36 is no multiple of candidates=8; 32 are done",
        ),
        (
            {"rerank": 999},
            "rerank=999: a search evaluates 16 candidates, and all that differ are re-ranked",
        ),
        (
            {"rerank": 999, "evaluations": 1024},
            f"rerank=999: a search keeps {ARCHIVE_SIZE} candidates within the budgets and "
            f"{ARCHIVE_SIZE} others, and all that differ are re-ranked",
        ),
        (
            {"chunk": 100_000},
            "chunk=100000: an iteration has 8 candidates, and all are evaluated at once",
        ),
        (
            {"chunk": 4, "reward_finetune": (0, 2)},
            "chunk=4: candidates that are finetuned go one after the other",
        ),
        (
            {"reward_images": 1000},
            f"reward_images=1000: there are {SIZES['held_out']} examples, and all are taken",
        ),
        (
            {"batch_size": 5000},
            f"batch_size=5000: there are {SIZES['train']} examples, and all are taken",
        ),
    ],
)
def test_what_is_clamped_is_told(changed, expected):
    config = PruneConfig(**FITS | {"candidates": 8, "evaluations": 16} | changed)
    (found,) = notes(config, SMALL.task).values()
    assert found == expected


def test_what_fits_is_not_mentioned():
    assert notes(PruneConfig(**FITS), SMALL.task) == {}


def test_the_library_warns_of_what_was_given_alone(monkeypatch):
    monkeypatch.setattr(pipeline, "run_pruning", lambda problem, *others: problem)
    settings = {**FITS, "rerank": 99}
    with pytest.warns(UserWarning, match="rerank=99: a search evaluates") as caught:
        rp.prune(SMALL.network, SMALL.task, "params=0.5", **settings)
    # The warning points to the caller.
    assert len(caught) == 1 and caught[0].filename == __file__
    config = PruneConfig(**{**settings, "reward_images": 10_000})
    rp.prune(SMALL.network, SMALL.task, "params=0.5", config=config)  # a warning would be an error


def test_what_a_repair_leaves_as_it_is_is_told():
    def apply(variables, x):
        hidden = jnp.tanh(jnp.tanh(x @ variables["tied"]) @ variables["free"])
        return hidden @ variables["tied"].T

    variables = {"tied": jnp.ones((4, 6)), "free": jnp.ones((6, 6))}
    network = rp.Network(apply, variables, jnp.ones((2, 4)))
    config = PruneConfig(**FITS)
    assert notes(config, SMALL.task, network) == {}
    asked = dataclasses.replace(config, repair_reward="merge", repair=True)
    why = "1 of 2 contractions stay as they are: its weights are read 2 times (1)"
    assert notes(asked, SMALL.task, network) == {
        "repair_reward": f"repair_reward=merge: {why}",
        "repair": f"repair=True: {why}",
    }
    assert notes(asked, SMALL.task, SMALL.network) == {}
