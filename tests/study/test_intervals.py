"""Intervals of fractions and of paired differences."""

import numpy as np
import pytest
import scipy.stats

from rlprune_jax.study import paired_difference, wilson_interval


@pytest.mark.parametrize(("good", "count"), [(0, 10), (7, 10), (441, 450), (450, 450)])
def test_wilson_is_scipys(good, count):
    found = wilson_interval(good / count, count, 0.9)
    expected = scipy.stats.binomtest(good, count).proportion_ci(0.9, method="wilson")
    np.testing.assert_allclose(found[1:], expected, atol=1e-9)
    assert found.value == good / count


def test_pairs_are_resampled_together():
    """Seeds that are hard for both do not widen the interval."""
    hard = np.linspace(0.0, 1.0, 8)
    found = paired_difference(hard + 0.1, hard)
    np.testing.assert_allclose(found, [0.1] * 3, atol=1e-12)
    noise = np.array([0.1, -0.1] * 4)
    low, high = paired_difference(hard + noise, hard)[1:]
    assert -0.1 < low < 0 < high < 0.1


def test_one_pair_has_no_interval():
    found = paired_difference([0.5], [0.25])
    assert found.value == 0.25 and np.isnan(found[1:]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(1.2, 10), "fraction=1.2"),
        (lambda: wilson_interval(0.5, 0), "count=0 must be at least 1"),
        (lambda: wilson_interval(0.5, 10, 1.0), "confidence=1.0 must be between"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "give two equal lengths"),
        (lambda: paired_difference([], []), "at least one of each"),
    ],
)
def test_what_has_no_interval_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
