"""Refuse wrong arguments in one idiom.

A message names the argument, its value, what it must be, and the way out where that is not plain:
``min_keep=0 must be at least 1; ...``. Nothing here imports JAX until a key is checked, so that
settings are refused before it is there.
"""

import importlib.util
import math
import operator
import os
import re
import reprlib
from collections.abc import Sequence


def require(condition: bool, argument: str, value: object, rule: str) -> None:
    """Refuse an argument unless a condition holds.

    Use it for every rule that no other function of this module states.

    Args:
        condition: whether the value is right.
        argument: its name, as the caller wrote it.
        value: what was given.
        rule: what it must be, and after a semicolon the way out.

    Raises:
        ValueError: ``condition`` is false.

    Example:
        >>> require(0.5 <= 1, "beta", 0.5, "at most 1")
        >>> require(2.0 <= 1, "beta", 2.0, "at most 1")
        Traceback (most recent call last):
        ValueError: beta=2.0 must be at most 1
    """
    refuse_unless(argument, repr(value), condition, f"must be {rule}")


def refuse_unless(argument: str, value: object, holds: bool, wanted: str) -> None:
    """Refuse an argument in words of the caller's own.

    Use it where ``require`` does not make a sentence.

    Args:
        argument: its name, as the caller wrote it.
        value: what was given, shown as it prints.
        holds: whether the value is right.
        wanted: the rest of the sentence: what it must be, or what is wrong and the way out.

    Raises:
        ValueError: ``holds`` is false.

    Example:
        >>> refuse_unless("limits", (0.1, 0.1), False, "repeats a value; give each once")
        Traceback (most recent call last):
        ValueError: limits=(0.1, 0.1) repeats a value; give each once
    """
    if not holds:
        raise ValueError(f"{argument}={value} {wanted}")


MOST_COUNTED = 2**31 - 1
"""No count is larger, since arrays and compiled programs count in 32 bits."""


def require_count(argument: str, value: object, least: int = 1, most: int = MOST_COUNTED) -> int:
    """Return an integer argument, refused outside a range.

    Use it for counts and sizes: a float, text or boolean is no count.

    Raises:
        ValueError: not an integer, below ``least`` or above ``most``.

    Example:
        >>> require_count("candidates", 16)
        16
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    whole = number is not None and not isinstance(value, bool)
    require(whole, argument, value, "an integer")
    assert number is not None
    require(number >= least, argument, value, f"at least {least}")
    require(number <= most, argument, value, f"at most {most}")
    return number


def require_range(
    argument: str, value: object, low: float = -math.inf, high: float = math.inf
) -> float:
    """Return a finite number, refused outside a closed range.

    Raises:
        ValueError: not a number, not finite, or outside.

    Example:
        >>> require_range("confidence", 0.95, 0.0, 1.0)
        0.95
    """
    bounds = {
        (low, math.inf): f"a finite number of at least {low:g}",
        (-math.inf, math.inf): "a finite number",
    }.get((low, high), f"a number from {low:g} to {high:g}")
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    require(math.isfinite(number) and low <= number <= high, argument, value, bounds)
    return number


def require_above(argument: str, value: object, low: float = 0.0) -> float:
    """Return a finite number, refused unless above another.

    Use it for rates and scales.

    Raises:
        ValueError: not a number, not finite, or at most ``low``.

    Example:
        >>> require_above("rate", 0.1)
        0.1
    """
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    good = math.isfinite(number) and number > low
    require(good, argument, value, f"a finite number above {low:g}")
    return number


SEEDS = 2**32
"""Seeds are below this."""


def require_seed(argument: str, value: object) -> int:
    """Return a seed, refused unless of 32 bits.

    Raises:
        ValueError: not an integer, negative, or too large.

    Example:
        >>> require_seed("seed", 3)
        3
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    good = not isinstance(value, bool) and 0 <= number < SEEDS
    require(good, argument, value, f"an integer from 0 to {SEEDS - 1}")
    return number


def require_expression(argument: str, value: object) -> None:
    """Refuse what is no regular expression.

    Raises:
        ValueError: no text, or one that cannot be compiled.

    Example:
        >>> require_expression("ignore", "head$")
    """
    require(isinstance(value, str), argument, value, "a regular expression")
    assert isinstance(value, str)
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{argument}={value!r} is no regular expression: {error}") from None


def require_flag(argument: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        TypeError: it is neither; 0 and 1 are numbers.

    Example:
        >>> require_flag("flip", True)
    """
    if not isinstance(value, bool):
        raise TypeError(f"{argument}={shown(value)} must be True or False")


def require_function(argument: str, value: object, use: str) -> None:
    """Refuse what cannot be called.

    Args:
        argument: its name, as the caller wrote it.
        value: what was given.
        use: what it must be, such as ``"a function params -> scores"``.

    Raises:
        TypeError: it cannot be called.

    Example:
        >>> require_function("score", abs, "a function params -> scores")
    """
    if not callable(value):
        raise TypeError(f"{argument}={shown(value)} must be {use}")


def require_type(argument: str, value: object, kind: type, way_out: str) -> None:
    """Refuse what is not of a type.

    Use it at the doors of the workflow, so that a wrong object is not refused by the attribute
    that it lacks.

    Args:
        argument: its name, as the caller wrote it.
        value: what was given.
        kind: its type.
        way_out: how one is made.

    Raises:
        TypeError: it is of another type.

    Example:
        >>> require_type("graph", None, dict, "make it by trace_graph")
        Traceback (most recent call last):
        TypeError: graph=None must be a dict; make it by trace_graph
    """
    if not isinstance(value, kind):
        raise TypeError(f"{argument}={shown(value)} must be a {kind.__name__}; {way_out}")


def require_path(argument: str, value: object) -> None:
    """Refuse what names no file or folder.

    Raises:
        TypeError: it is no path.
        ValueError: it is empty.

    Example:
        >>> require_path("path", "slim/")
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{argument}={shown(value)} must be a path, text or os.PathLike")
    text = os.fspath(value)
    refuse_unless(argument, repr(text), bool(text), "is empty; name a file or folder")
    whole = "\0" not in text if isinstance(text, str) else b"\0" not in text
    refuse_unless(argument, repr(text), whole, "holds a null character, which no path may")


def shown(value: object) -> str:
    """Return a value as messages show it, shortened.

    Example:
        >>> shown(None), len(shown("x" * 1000)) < 100
        ('None', True)
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return " ".join(short.repr(value).split())


def require_processes(coordinator: object, num_processes: object, process_id: object) -> None:
    """Refuse numbers of processes that cannot work together.

    Args:
        coordinator: HOST:PORT of process 0.
        num_processes: how many there are.
        process_id: which of them this is, from 0.

    Raises:
        ValueError: some are missing, or one cannot be.

    Example:
        >>> require_processes("localhost:1234", 2, 0)
    """
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    for name, value in given.items():
        all_three = f"given where the others are: {given}; give all three, or none"
        require(value is not None, name, value, all_three)
    host, found, port = coordinator.rpartition(":") if isinstance(coordinator, str) else ("",) * 3
    good = bool(host and found) and port.isdecimal() and 0 < int(port) < 2**16
    require(good, "coordinator", coordinator, "HOST:PORT of process 0")
    count = require_count("num_processes", num_processes)
    number = require_count("process_id", process_id, 0)
    below = f"below num_processes={count}, counting from 0"
    require(number < count, "process_id", process_id, below)


def require_choice(argument: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is not one of some choices.

    Raises:
        ValueError: it is none of them; the message lists them.
    """
    require(
        isinstance(value, str) and value in choices,
        argument,
        value,
        f"one of {', '.join(map(repr, choices))}",
    )


def require_extra(library: str, extra: str, user: str) -> None:
    """Refuse what needs a library that is not installed.

    Args:
        library: that an optional extra installs.
        extra: of this package.
        user: what needs it, as its name is written.

    Raises:
        ValueError: the library is not there; the message names the extra.

    Example:
        >>> require_extra("no_such_library", "more", "method='best'")
        Traceback (most recent call last):
        ValueError: method='best' needs no_such_library, which is not installed; pip install \
'rlprune_jax[more]'
    """
    if importlib.util.find_spec(library) is None:
        raise ValueError(
            f"{user} needs {library}, which is not installed; pip install 'rlprune_jax[{extra}]'"
        )


def require_key(argument: str, key: object) -> None:
    """Refuse what is not one typed random key.

    Raises:
        ValueError: an integer, an old-style key or an array of keys.

    Example:
        >>> import jax
        >>> require_key("key", jax.random.key(0))
    """
    from rlprune_jax.pytree import is_key

    single = is_key(key) and getattr(key, "shape", None) == ()
    require(single, argument, key, "one typed key; make it by jax.random.key(seed)")


def names_file(module: str) -> bool:
    """Return whether a module is named by its file's path.

    Use it for code of the user's, which is given as ``module:function`` or ``file.py:function``.

    Example:
        >>> names_file("costs/energy.py"), names_file("costs.energy")
        (True, False)
    """
    return module.endswith(".py") or "/" in module or os.sep in module
