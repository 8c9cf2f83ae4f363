import jax
import numpy as np
import pytest

from rlprune_jax.checks import (
    require,
    require_choice,
    require_count,
    require_key,
    require_range,
)


def test_right_arguments_come_back_as_plain_numbers():
    assert require_count("n", np.int64(3)) == 3 and type(require_count("n", np.int64(3))) is int
    assert require_range("r", np.float32(0.5), 0.0, 1.0) == 0.5
    assert require_range("r", -1) == -1.0
    require_key("key", jax.random.key(0))
    jax.jit(lambda key: require_key("key", key))(jax.random.key(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: require(False, "a", "x", "y; do z"), "a='x' must be y; do z"),
        (lambda: require_count("n", 0), "n=0 must be at least 1"),
        (lambda: require_count("n", 1.0), "n=1.0 must be an integer"),
        (lambda: require_count("n", True), "n=True must be an integer"),
        (lambda: require_count("n", "3"), "n='3' must be an integer"),
        (lambda: require_range("r", "1"), "r='1' must be a finite number"),
        (lambda: require_range("r", float("inf")), "r=inf must be a finite number"),
        (lambda: require_range("r", None), "r=None must be a finite number"),
        (lambda: require_range("r", float("nan")), "r=nan must be a finite number"),
        (lambda: require_range("r", -1, 0), "r=-1 must be a finite number of at least 0"),
        (lambda: require_range("r", 95, 0, 1), "r=95 must be a number from 0 to 1"),
        (lambda: require_range("r", float("nan"), 0, 1), "r=nan must be a number from 0 to 1"),
        (lambda: require_choice("c", "z", ("x", "y")), "c='z' must be one of 'x', 'y'"),
        (lambda: require_key("key", 0), "key=0 must be one typed key"),
    ],
)
def test_wrong_arguments_are_refused_in_one_idiom(call, message):
    with pytest.raises(ValueError) as error:
        call()
    said = str(error.value)
    assert said.startswith(message) and not said.endswith("inf")
