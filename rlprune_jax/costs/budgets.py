"""Budgets: what a user wrote about the cost of the pruned network.

Nothing here imports JAX, so that a command line refuses a wrong budget at once.
"""

import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from numbers import Real
from typing import TYPE_CHECKING, NamedTuple

from rlprune_jax.checks import shown
from rlprune_jax.costs.registry import COSTS, OWN_UNIT, UNITS

if TYPE_CHECKING:
    from rlprune_jax.costs.host import UserFunction

_COUNT_SCALES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_BYTE_SCALES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9} | {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_TIME_SCALES = {"": Fraction(1), "ms": Fraction(1), "us": Fraction(1, 1000), "s": Fraction(1000)}
_SCALES: Mapping[str, Mapping[str, int | Fraction]] = {
    "parameters": _COUNT_SCALES,
    "MACs": _COUNT_SCALES,
    "bytes": _BYTE_SCALES,
    "ms": _TIME_SCALES,
}
_COUNTED = ("parameters", "MACs", "bytes")
"""Units of which a bare number up to 1 is a fraction of dense."""

_LIMIT = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)([A-Za-z%]*)")


class Budget(NamedTuple):
    """Hold one limit as the user wrote it.

    Attributes:
        name: of the cost: one of ``COSTS``, a user's function as ``module:function``, or any name
            where ``function`` is given.
        limit: fraction of the dense network's cost in (0, 1] if ``relative``, else in the unit of
            the cost.
        relative: whether the limit is a fraction of the dense network's cost.
        function: a user's ``(widths, gates) -> number``, for ``(dict[str, int],
            dict[str, f32[units]])`` of a candidate; None for the costs known by name.

    Example:
        >>> print(Budget("params", 0.1, relative=True), Budget("latency", 2.5, relative=False))
        params=0.1 latency=2.5
    """

    name: str
    limit: float
    relative: bool
    function: "UserFunction | None" = None

    @property
    def is_function(self) -> bool:
        """Return whether the cost is a user's function."""
        return self.function is not None or ":" in self.name

    @property
    def text(self) -> str:
        """Return the limit as written, such as ``0.5x``."""
        fraction = "x" if self.relative and _unit(self) not in _COUNTED else ""
        return f"{format_number(self.limit)}{fraction}"

    def __str__(self) -> str:
        return f"{self.name}={self.text}"


def parse_budgets(
    budgets: str | Budget | Sequence[str | Budget], functions: Sequence[str] = ()
) -> tuple[Budget, ...]:
    """Read budgets, each given once.

    Args:
        budgets: as ``parse_budget`` takes them.
        functions: limits of users' functions, as ``module:function=LIMIT``.

    Raises:
        TypeError: what is neither text nor ``Budget``.
        ValueError: no budget, one that ``parse_budget`` refuses, or a name given twice.

    Example:
        >>> parsed = parse_budgets(["params=0.1", "latency=2.5ms"], ["my_costs:energy=7"])
        >>> [budget.limit for budget in parsed]
        [0.1, 2.5, 7.0]
    """
    several = isinstance(budgets, Sequence) and not isinstance(budgets, str | Budget)
    given = tuple(budgets) if several else (budgets,)
    for text in functions:
        name, found, _ = text.rpartition("=")
        if not found or not all(name.partition(":")):
            raise ValueError(f"budget {text!r} is not of the form module:function=LIMIT")
    parsed = tuple(parse_budget(budget) for budget in (*given, *functions))
    if not parsed:
        raise ValueError("no budget is given; give at least one, as in --budget params=0.1")
    names = [budget.name for budget in parsed]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"budget {name!r} is given twice; give each budget once")
    return parsed


def parse_budget(budget: str | Budget) -> Budget:
    """Read one budget, written as ``NAME=LIMIT``.

    A limit is a fraction of the dense network or a number in the unit of the cost:

    ============================== ===========================================================
    ``params=0.1``, ``params=1``   of counts and bytes, a number in (0, 1]: a fraction of dense
    ``params=5000``, ``macs=1.5M`` of counts, a whole number above 1, or one with k, M or G
    ``weight_bytes=100kB``         of bytes likewise, with B, kB, MB, GB, KiB, MiB or GiB
    ``latency=2.5``                of times, milliseconds; also 2.5ms, 800us, 0.1s
    ``my_costs:energy=7``          of a user's function, in its own unit; also with k, M or G
    ``NAME=0.5x``, ``NAME=10%``    of every cost, a fraction of dense
    ============================== ===========================================================

    Args:
        budget: the text; a ``Budget`` is checked and returned as it is.

    Raises:
        ValueError: not of that form, an unknown name, a unit that does not fit the cost, or a
            limit that is not above 0, not finite, or a fraction above 1.

    Example:
        >>> [parse_budget(text).limit for text in ("params=0.1", "params=50k", "latency=50%")]
        [0.1, 50000.0, 0.5]
        >>> [parse_budget(text).relative for text in ("params=0.1", "params=50k", "latency=50%")]
        [True, False, True]
    """
    if isinstance(budget, Budget):
        _check_name(budget)
        return _checked(budget)
    if not isinstance(budget, str):
        raise TypeError(f"budget {shown(budget)} must be text as in 'params=0.1', or a Budget")
    name, found, text = budget.rpartition("=")
    if not found or not name:
        raise ValueError(f"budget {budget!r} is not of the form NAME=LIMIT, as in params=0.1")
    parsed = Budget(name=name, limit=math.nan, relative=True)
    _check_name(parsed)
    matched = _LIMIT.fullmatch(text)
    if matched is None:
        raise ValueError(
            f"budget {budget!r}: the limit {text!r} is not a number; write it as in 0.1, 5000, "
            "50k, 10% or 0.5x"
        )
    limit, relative = _read_limit(parsed, *matched.groups())
    return _checked(parsed._replace(limit=limit, relative=relative))


def _read_limit(budget: Budget, number: str, suffix: str) -> tuple[float, bool]:
    """Return the limit, and whether it is relative."""
    rounded = float(number)
    if suffix in ("x", "%"):
        return rounded / (100 if suffix == "%" else 1), True
    unit = _unit(budget)
    scales = _SCALES.get(unit, _COUNT_SCALES)
    if suffix not in scales:
        known = ", ".join(each or "no unit" for each in scales)
        raise ValueError(
            f"budget {budget.name!r}={number}{suffix}: the unit {suffix!r} does not fit a cost "
            f"counted in {_spoken(unit)}; use {known}, or x or % for a fraction of dense"
        )
    if unit in _COUNTED and not suffix and rounded <= 1:
        return rounded, True
    if not 1e-30 < abs(rounded) < 1e30:
        return rounded, False
    # In exact fractions: 1.001k is a whole number, though not in floating point.
    limit = Fraction(number) * scales[suffix]
    if unit in _COUNTED and limit.denominator != 1:
        raise ValueError(
            f"budget {budget.name!r}={number}{suffix} must be a fraction of the dense network in "
            f"(0, 1] or a whole number of {unit}; write {budget.name}=0.5 for half of dense, "
            f"{budget.name}={max(math.floor(limit), 2)} for that many {unit}"
        )
    return float(limit), False


def _check_name(budget: Budget) -> None:
    name = budget.name
    if budget.function is not None and name in COSTS:
        raise ValueError(f"budget {name!r} is a known cost; give your function another name")
    if budget.function is not None and not callable(budget.function):
        raise ValueError(f"budget {name!r}: function={budget.function!r} cannot be called")
    if budget.is_function or name in COSTS:
        return
    raise ValueError(
        f"budget {name!r} is unknown; known budgets: {', '.join(COSTS)}; a function of your own is "
        "given as module:function=LIMIT"
    )


def _checked(budget: Budget) -> Budget:
    name, limit = budget.name, budget.limit
    if not isinstance(limit, Real) or isinstance(limit, bool):
        raise ValueError(f"budget {name!r}={limit!r}: the limit must be a number")
    if budget.relative and not 0 < limit <= 1:
        raise ValueError(
            f"budget {name!r}={limit:g} must be a fraction of the dense network in (0, 1]"
        )
    if not (limit > 0 and math.isfinite(limit)):
        raise ValueError(
            f"budget {name!r}={limit:g} must be a finite number above 0 ({_spoken(_unit(budget))}),"
            " or with x or % behind it a fraction of the dense network"
        )
    return budget


def _unit(budget: Budget) -> str:
    return OWN_UNIT if budget.is_function else UNITS.get(budget.name, OWN_UNIT)


def _spoken(unit: str) -> str:
    return "its own unit" if unit == OWN_UNIT else unit


def format_number(value: float) -> str:
    """Write a number so that it reads back the same.

    Example:
        >>> format_number(5000.0), format_number(0.1), format_number(1e-6)
        ('5000', '0.1', '1e-06')
    """
    whole = float(value).is_integer() and abs(value) < 1e15
    return str(int(value)) if whole else repr(float(value))
