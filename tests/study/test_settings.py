"""Settings of a study."""

import jax
import numpy as np
import pytest

from rlprune_jax.study import Choice, LogUniform, StudySettings, Uniform, grid, random, table


def test_a_grid_has_every_combination_once():
    rows = list(grid({"p": [1, 2], "q": ["a", "b", "c"]}))
    assert len(rows) == 6 and rows[0] == {"p": 1, "q": "a"} and rows[1] == {"p": 1, "q": "b"}


def test_random_settings_lie_where_they_should_and_repeat_with_the_key():
    space = {
        "a": Uniform(-1, 2),
        "b": LogUniform(1e-4, 1e-1),
        "c": Choice(("x", "y")),
    }
    found = random(space, 400, jax.random.key(0))
    a, b = (np.asarray(found.columns[name]) for name in "ab")
    assert a.min() >= -1 and a.max() <= 2 and abs(a.mean() - 0.5) < 0.15
    assert b.min() >= 1e-4 and b.max() <= 1e-1 and abs(np.log10(b).mean() + 2.5) < 0.15
    assert set(found.columns["c"]) == {"x", "y"}
    assert random(space, 400, jax.random.key(0)) == found
    assert random(space, 400, jax.random.key(1)) != found


def test_whole_and_broken_numbers_mix_to_floats():
    assert table([{"p": 1}, {"p": 0.5}]).columns["p"] == (1.0, 0.5)
    assert type(table([{"p": 1}, {"p": 2}]).columns["p"][0]) is int
    assert type(grid({"p": np.array([1.0])}).columns["p"][0]) is float
    assert type(grid({"p": [np.bool_(True)]}).columns["p"][0]) is bool


def test_more_random_settings_begin_with_the_same_ones():
    space = {"a": Uniform(0, 1), "b": LogUniform(1e-3, 1), "c": Choice((1, 2, 3, 4, 5, 6, 7))}
    few, many = (random(space, count, jax.random.key(3)) for count in (5, 9))
    assert list(many)[:5] == list(few)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grid({}), "the grid is empty"),
        (lambda: grid({"p": []}), r"the grid is empty: \['p'\] has no values"),
        (lambda: grid({"p": [1, 1]}), "settings 0 and 1 are the same"),
        (lambda: table([]), "the table is empty"),
        (lambda: table([{"p": 1}, {"q": 1}]), r"setting 1 names \['q'\], setting 0 \['p'\]"),
        (lambda: StudySettings({"p": (1, 2), "q": (1,)}), "columns differ in length"),
        (lambda: StudySettings({"p": (1, "a")}), "all numbers"),
        (lambda: StudySettings({"p": (float("nan"),)}), "finite numbers"),
        (lambda: StudySettings({"seed": (1,)}), "cannot be named 'seed'"),
        (lambda: StudySettings({"p": ([1],)}), "'p' holds"),
        (lambda: random({}, 3, jax.random.key(0)), "at least one"),
        (lambda: random({"a": Uniform(0, 1)}, 0, jax.random.key(0)), "count=0 must be at least 1"),
        (lambda: random({"a": Uniform(0, 1)}, 2.5, jax.random.key(0)), "count=2.5 must be an"),
        (lambda: random({"a": Uniform(0, 1)}, 2, 0), "key=0 must be one typed key"),
        (lambda: random({"a": Choice((1, 2))}, 9, jax.random.key(0)), "are the same"),
        (lambda: Uniform(2, 1), "low must be below high"),
        (lambda: LogUniform(0, 1), "low must be above 0"),
        (lambda: Choice(()), "no values"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
