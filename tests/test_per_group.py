import numpy as np
import pytest

from rlprune_jax.per_group import per_group, read_overrides

NAMES = ("conv1", "conv10", "block/conv1", "head")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, [3, 3, 3, 3]),
        (np.int64(3), [3, 3, 3, 3]),
        ([1, 2, 3, 4], [1, 2, 3, 4]),
        ((1, 2, 3, 4), [1, 2, 3, 4]),
        (np.array([1, 2, 3, 4]), [1, 2, 3, 4]),
        ({}, [1, 1, 1, 1]),
        # A name means one group, although it is found in others.
        ({"conv1": 8}, [8, 1, 1, 1]),
        ({"conv1$": 8}, [8, 1, 8, 1]),
        ({"conv": 8, "conv10": 4}, [8, 4, 8, 1]),
        # The last key that means a group counts.
        ({"conv10": 4, "conv": 8}, [8, 8, 8, 1]),
        ({"": 2, "head": 5}, [2, 2, 2, 5]),
    ],
)
def test_every_way_to_say_it(value, expected):
    found = per_group(NAMES, "round_to", value)
    assert list(found) == list(NAMES)
    assert list(found.values()) == expected
    assert all(type(number) is int for number in found.values())


def test_names_are_taken_literally_first():
    assert per_group(("a.b", "axb"), "min_keep", {"a.b": 2}) == {"a.b": 2, "axb": 1}
    assert per_group(("a(", "b"), "min_keep", {"a(": 2}) == {"a(": 2, "b": 1}


def test_default_and_least():
    assert per_group(("a", "b"), "min_keep", {"a": 0}, default=7, least=0) == {"a": 0, "b": 7}
    with pytest.raises(ValueError, match=r"widths leaves out b; give every group a number"):
        per_group(("a", "b"), "widths", {"a": 1}, default=None)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, r"^min_keep=0 must be at least 1$"),
        (-1, ValueError, "min_keep=-1 must be at least 1"),
        (3.5, ValueError, "min_keep=3.5 must be an integer of at least 1"),
        (np.float32(2), ValueError, "must be an integer"),
        (True, TypeError, "min_keep=True must be an integer of at least 1, a sequence"),
        (None, TypeError, "min_keep=None must be an integer of at least 1, a sequence"),
        ("8", TypeError, "min_keep='8' must be"),
        ([1, 2], ValueError, "min_keep has 2 entries but there are 4 groups, conv1, .*; give one"),
        ([1, 2, 3, 0], ValueError, r"min_keep\[3\]=0 must be at least 1"),
        ([1, 2, 3, 4.5], ValueError, r"min_keep\[3\]=4.5 must be an integer"),
        ({"conv": 0}, ValueError, r"min_keep\['conv'\]=0 must be at least 1"),
        ({"conv": "x"}, TypeError, r"min_keep\['conv'\]='x' must be"),
        ({"tail": 2}, ValueError, "'tail', which is found in no group; the groups are conv1, "),
        ({"(": 2}, ValueError, r"key '\(', which is no group and no regular expression"),
    ],
)
def test_wrong_numbers_are_refused_by_name(value, error, message):
    with pytest.raises(error, match=message):
        per_group(NAMES, "min_keep", value)


def test_overrides_of_a_command_line():
    found = read_overrides("round_to_of", ["conv=4", "a=b=2", "conv=8"])
    assert found == {"a=b": 2, "conv": 8}
    # What is said again comes last again.
    assert list(found) == ["a=b", "conv"]
    for text in ("conv", "conv=", "conv=x", "(=3", "conv=1.5"):
        with pytest.raises(ValueError, match=r"round_to_of='.*' is not of the form REGEX=N: "):
            read_overrides("round_to_of", [text])
