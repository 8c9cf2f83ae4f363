import jax
import numpy as np
import pytest

from rlprune_jax.models.initializers import variance_scaling


@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_the_numbers_are_those_of_jax(mode, distribution):
    key, shape = jax.random.key(3), (3, 3, 4, 6)
    expected = jax.nn.initializers.variance_scaling(1.7, mode, distribution)(key, shape)
    result = variance_scaling(1.7, mode, distribution)(key, shape)
    assert result.dtype == expected.dtype
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="mode='fan'"):
        variance_scaling(1.0, "fan", "normal")
    with pytest.raises(ValueError, match="distribution='cauchy'"):
        variance_scaling(1.0, "fan_in", "cauchy")
