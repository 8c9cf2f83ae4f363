import jax
import numpy as np
import pytest

from rlprune_jax.checks import (
    require,
    require_above,
    require_choice,
    require_count,
    require_expression,
    require_flag,
    require_function,
    require_key,
    require_path,
    require_processes,
    require_range,
    require_seed,
    require_type,
    shown,
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
        (lambda: require_count("n", 10**20), f"n={10**20} must be at most 2147483647"),
        (lambda: require_count("n", 9, most=8), "n=9 must be at most 8"),
        (lambda: require_range("r", True), "r=True must be a finite number"),
        (lambda: require_choice("c", ["x"], ("x", "y")), "c=['x'] must be one of 'x', 'y'"),
        (lambda: require_above("a", 0), "a=0 must be a finite number above 0"),
        (lambda: require_above("a", "1"), "a='1' must be a finite number above 0"),
        (lambda: require_above("a", 2.0, 2.0), "a=2.0 must be a finite number above 2"),
        (lambda: require_seed("s", -1), "s=-1 must be an integer from 0 to 4294967295"),
        (lambda: require_seed("s", 2**32), "s=4294967296 must be an integer from 0"),
        (lambda: require_seed("s", 1.0), "s=1.0 must be an integer from 0"),
        (lambda: require_seed("s", True), "s=True must be an integer from 0"),
        (lambda: require_expression("e", "("), "e='(' is no regular expression"),
        (lambda: require_expression("e", 3), "e=3 must be a regular expression"),
        (lambda: require_path("p", ""), "p='' is empty; name a file or folder"),
        (lambda: require_path("p", "a\0"), "p='a\\x00' holds a null character"),
        (lambda: require_processes("h:1", 2, None), "process_id=None must be given where"),
        (lambda: require_processes("h", 2, 0), "coordinator='h' must be HOST:PORT"),
        (lambda: require_processes("h:0", 2, 0), "coordinator='h:0' must be HOST:PORT"),
        (lambda: require_processes("h:1", 2, 2), "process_id=2 must be below num_processes=2"),
    ],
)
def test_wrong_arguments_are_refused_in_one_idiom(call, message):
    with pytest.raises(ValueError) as error:
        call()
    said = str(error.value)
    assert said.startswith(message) and not said.endswith("inf")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: require_flag("f", 1), "f=1 must be True or False"),
        (lambda: require_flag("f", None), "f=None must be True or False"),
        (lambda: require_function("g", 3, "a function of x"), "g=3 must be a function of x"),
        (lambda: require_path("p", 3), "p=3 must be a path, text or os.PathLike"),
        (lambda: require_type("t", "a", dict, "make it"), "t='a' must be a dict; make it"),
    ],
)
def test_what_is_of_another_type_is_a_type_error(call, message):
    with pytest.raises(TypeError) as error:
        call()
    assert str(error.value) == message


def test_a_long_value_is_shown_shortened():
    assert shown("a") == "'a'" and len(shown(list(range(10**4)))) < 60
    assert len(shown("x" * 10**4)) < 70 and "\n" not in shown(np.ones((9, 9)))
