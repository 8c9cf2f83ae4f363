"""What ships under a cost with noise is within its budget when measured afresh elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from attack import noise
from small import random_gates, small_pruning

import rlprune_jax as rp
from rlprune_jax.costs.host import quartile_bounds
from rlprune_jax.workflow.delivery import repaired

LIMIT = 7.7


@pytest.mark.parametrize("count", [3, 14, 20, 48])
def test_bounds_hold_as_often_as_they_say(count):
    rng = np.random.default_rng(0)
    quartile = np.log(4.0)  # of the exponential distribution
    draws = rng.exponential(size=(2000, count))
    low, high = np.array([quartile_bounds(row.tolist(), 0.02) for row in draws]).T
    assert (high < quartile).mean() <= 0.03 and (low > quartile).mean() <= 0.03
    assert np.isinf(high).all() == (count < 14)


def test_what_ships_is_within_at_the_upper_quartile_in_another_process():
    shipped = []
    cost = rp.Budget(
        "energy", LIMIT, relative=False, function=lambda w, g: noise.energy(sum(w.values()))
    )
    pruning = small_pruning(cost)
    many = random_gates(pruning.graph, 24, jax.random.key(0))
    for number in range(24):
        gates = {name: np.asarray(each[number]) for name, each in many.items()}
        found = repaired(pruning, gates)
        if pruning.constraints[0].measure(found).upper <= LIMIT:
            shipped.append(sum(int(np.asarray(gate).sum()) for gate in found.values()))
    assert len(shipped) >= 20
    environment = {**os.environ, "NOISE_SEED": "another"}
    command = [sys.executable, str(Path(noise.__file__)), *map(str, shipped)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert max(map(float, done.stdout.split())) <= LIMIT
