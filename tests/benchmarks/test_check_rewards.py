"""The check of rewards: its intervals, and that it would see a reward that says nothing."""

import numpy as np
from check_rewards import correlations


def test_a_reward_that_ranks_is_told_from_one_that_does_not():
    rng = np.random.default_rng(0)
    results = {}
    for seed in (0, 1):
        tested = rng.uniform(size=40)
        rewards = {"none": rng.uniform(size=40).tolist(), "ridge": (tested**3).tolist()}
        seconds = {"none": 1.0, "ridge": 3.0}
        results[seed] = {"tested": tested.tolist(), "rewards": rewards, "seconds": seconds}
    found = correlations(results, draws=200)
    assert found["ridge"]["spearman"] == [1, 1, 1]
    mean, low, high = found["none"]["spearman"]
    assert low < mean < high < 0.6
    gain, least, most = found["ridge"]["gain"]
    assert 0 < least < gain < most < 2
    assert found["none"]["gain"] == [0, 0, 0] and found["ridge"]["seconds"] == [3]
