"""Make the settings of a study.

Equally long columns, from a grid, from distributions, or from rows.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from rlprune_jax.checks import require, require_count, require_key, require_range

Value = bool | int | float | str
RESERVED = ("setting", "seed")


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """Hold H settings as columns, checked.

    Columns are equally long and of one kind each, and no setting is there twice.

    Attributes:
        columns: per hyper-parameter H plain Python values, all bool, int, float or str. Scalars of
            NumPy become Python's.

    Raises:
        ValueError: no settings, columns of unequal length or mixed kinds, a number that is not
            finite, a reserved name, or the same setting twice.

    Example:
        >>> len(StudySettings({"rate": (0.1, 0.2), "depth": (2, 3)}))
        2
    """

    columns: Mapping[str, tuple[Value, ...]]

    def __post_init__(self) -> None:
        check_listed("settings", self.columns)
        columns = {name: _column(name, values) for name, values in self.columns.items()}
        if not columns or not all(columns.values()):
            empty = [name for name, values in columns.items() if not values]
            raise ValueError(
                f"settings are empty{f' in {empty}' if empty else ''}: give each hyper-parameter "
                "at least one value"
            )
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length, {lengths}: give every setting all values")
        seen: dict[tuple[Value, ...], int] = {}
        for index, row in enumerate(zip(*columns.values(), strict=True)):
            if row in seen:
                raise ValueError(
                    f"settings {seen[row]} and {index} are the same, "
                    f"{dict(zip(columns, row, strict=True))}: repeat seeds, not settings"
                )
            seen[row] = index
        object.__setattr__(self, "columns", columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __iter__(self) -> Iterator[dict[str, Value]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Value]:
        return {name: values[index] for name, values in self.columns.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Return the hyper-parameters, in order."""
        return tuple(self.columns)

    def take(self, indices: Sequence[int]) -> "StudySettings":
        """Return the settings at these places, in that order.

        Example:
            >>> [row["p"] for row in grid({"p": [1, 2, 3]}).take([2, 0])]
            [3, 1]
        """
        return StudySettings(
            {name: tuple(values[i] for i in indices) for name, values in self.columns.items()}
        )


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Draw numbers evenly between ``low`` and ``high``."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range(self, self.low, self.high)

    def draw(self, count: int, key: jax.Array) -> list[Value]:
        """Return ``count`` floats."""
        fraction = np.asarray(jax.random.uniform(key, (count,)), np.float64)
        return [float(value) for value in self.low + fraction * (self.high - self.low)]


@dataclasses.dataclass(frozen=True)
class LogUniform:
    """Draw numbers evenly in their logarithm.

    Between ``low`` and ``high``, both above 0; for rates and other scales.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range(self, self.low, self.high)
        if self.low <= 0:
            raise ValueError(f"{self}: low must be above 0")

    def draw(self, count: int, key: jax.Array) -> list[Value]:
        """Return ``count`` floats."""
        logs = Uniform(math.log(self.low), math.log(self.high)).draw(count, key)
        return [math.exp(float(value)) for value in logs]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Draw one of some values, each as likely."""

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        several = isinstance(self.values, Sequence) and not isinstance(self.values, str)
        require(several, "values", self.values, "a sequence of numbers, booleans or texts")
        if not self.values:
            raise ValueError("Choice has no values: give at least one")
        _column("values", self.values)
        twice = len(set(self.values)) < len(self.values)
        require(not twice, "values", self.values, "each value once; all are as likely")

    def draw(self, count: int, key: jax.Array) -> list[Value]:
        """Return ``count`` of the values."""
        places = np.asarray(jax.random.randint(key, (count,), 0, len(self.values)))
        return [self.values[place] for place in places]


Distribution = Uniform | LogUniform | Choice


def grid(axes: Mapping[str, Sequence[Value]]) -> StudySettings:
    """Combine all values of all axes.

    The last axis varies fastest. Use it for few hyper-parameters; `random` covers many better.

    Raises:
        ValueError: no axis, an axis without values, or one that repeats a value.

    Example:
        >>> list(grid({"p": [0.5, 1.0], "q": [2.0]}))
        [{'p': 0.5, 'q': 2.0}, {'p': 1.0, 'q': 2.0}]
    """
    check_listed("axes", axes)
    if not axes or any(len(values) == 0 for values in axes.values()):
        empty = [name for name, values in axes.items() if len(values) == 0]
        raise ValueError(
            f"the grid is empty{f': {empty} has no values' if empty else ''}; give each "
            "hyper-parameter at least one value"
        )
    rows = list(itertools.product(*axes.values()))
    return StudySettings({name: tuple(row[i] for row in rows) for i, name in enumerate(axes)})


def random(distributions: Mapping[str, Distribution], count: int, key: jax.Array) -> StudySettings:
    """Draw settings at random.

    ``count`` of them, each hyper-parameter by itself.

    Raises:
        ValueError: nothing to draw, no typed key, or a setting drawn twice, as small sets of
            choices will.

    Example:
        >>> len(random({"rate": LogUniform(1e-4, 1e-1)}, 5, jax.random.key(0)))
        5
    """
    count = require_count("count", count)
    require_key("key", key)
    require(
        isinstance(distributions, Mapping) and bool(distributions),
        "distributions",
        distributions,
        "a dictionary of at least one hyper-parameter",
    )
    for name, each in distributions.items():
        kind: object = each
        known = isinstance(kind, Uniform | LogUniform | Choice)
        require(known, f"distributions[{name!r}]", each, "a Uniform, LogUniform or Choice")
    keys = jax.random.split(key, len(distributions))
    return StudySettings(
        {
            name: tuple(distribution.draw(count, key))
            for (name, distribution), key in zip(distributions.items(), keys, strict=True)
        }
    )


def table(rows: Sequence[Mapping[str, Value]]) -> StudySettings:
    """Make one setting per row.

    Use it for settings from elsewhere. All rows name the same hyper-parameters.

    Raises:
        ValueError: no rows, or rows that differ in what they name.

    Example:
        >>> table([{"p": 1, "kind": "a"}, {"p": 2, "kind": "b"}]).columns["kind"]
        ('a', 'b')
    """
    listed = isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows)
    require(listed, "rows", rows, "a list of dictionaries, one per setting")
    if not rows:
        raise ValueError("the table is empty: give at least one setting")
    names = tuple(rows[0])
    for index, row in enumerate(rows):
        if set(row) != set(names):
            raise ValueError(
                f"setting {index} names {sorted(row)}, setting 0 {sorted(names)}: name the same"
            )
    return StudySettings({name: tuple(row[name] for row in rows) for name in names})


def check_listed(argument: str, columns: object) -> None:
    """Refuse what is no dictionary of sequences.

    Raises:
        ValueError: naming the argument and the entry.
    """
    require(isinstance(columns, Mapping), argument, columns, "a dictionary, name -> values")
    assert isinstance(columns, Mapping)
    for name, values in columns.items():
        listed = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str | bytes)
        require(listed, f"{argument}[{name!r}]", values, "a sequence of values")


def _column(name: str, values: Sequence[Value | np.generic]) -> tuple[Value, ...]:
    if not isinstance(name, str) or not name or name in RESERVED:
        raise ValueError(f"a hyper-parameter cannot be named {name!r}; {RESERVED} are taken")
    plain = [value.item() if isinstance(value, np.generic) else value for value in values]
    kinds = {type(value) for value in plain}
    if kinds == {int, float}:
        plain, kinds = [float(value) for value in plain], {float}
    if not kinds <= {bool, int, float, str} or len(kinds) > 1:
        raise ValueError(
            f"{name!r} holds {sorted(kind.__name__ for kind in kinds)}: give all numbers, all "
            "booleans or all strings"
        )
    for value in plain:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name!r} holds {value}: settings are finite numbers")
    return tuple(plain)


def _check_range(distribution: object, low: float, high: float) -> None:
    for argument, value in (("low", low), ("high", high)):
        require_range(argument, value)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{distribution}: low must be below high, both finite")
