"""Refuse wrong arguments in one idiom.

A message names the argument, its value, what it must be, and the way out where that is not plain:
``min_keep=0 must be at least 1; ...``. Nothing here imports JAX until a key is checked, so that
settings are refused before it is there.
"""

import importlib.util
import math
import operator
import os
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


def require_count(argument: str, value: object, least: int = 1) -> int:
    """Return an integer argument, refused below a least value.

    Use it for counts and sizes: a float, text or boolean is no count.

    Raises:
        ValueError: not an integer, or below ``least``.

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
        number = math.nan if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    require(math.isfinite(number) and low <= number <= high, argument, value, bounds)
    return number


def require_choice(argument: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is not one of some choices.

    Raises:
        ValueError: it is none of them; the message lists them.
    """
    require(value in choices, argument, value, f"one of {', '.join(map(repr, choices))}")


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
