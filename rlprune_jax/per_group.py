"""Numbers per group, from one number, a sequence or a mapping."""

import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real

PerGroup = int | Sequence[int] | Mapping[str, int]
"""One integer for all groups, one a group in their order, or name or expression -> integer."""


def per_group(
    names: Sequence[str],
    argument: str,
    value: PerGroup,
    *,
    default: int | None = 1,
    least: int = 1,
) -> dict[str, int]:
    """Return one integer for each group.

    Use it wherever a user may say a number for all groups or another one for some. A key of a
    mapping that is a group's name means this group alone. Any other key is a regular expression
    that means all groups in whose names it is found (``re.search``). Where several keys mean a
    group, the last one counts.

    Args:
        names: of the groups, in order.
        argument: what the user calls the number, for errors.
        value: as the user gave it.
        default: of groups that a mapping does not mean; None refuses a mapping that leaves one out.
        least: the smallest number allowed.

    Returns:
        Group name -> integer, in the order of ``names``.

    Raises:
        TypeError: the value is none of these kinds.
        ValueError: a number is no integer or below ``least``, a sequence has another length than
            ``names``, a key means no group or is no regular expression, or a group is left out.

    Example:
        >>> names = ("stage1/conv", "stage1/skip", "head")
        >>> per_group(names, "round_to", {"stage1": 8, "stage1/skip": 4})
        {'stage1/conv': 8, 'stage1/skip': 4, 'head': 1}
        >>> per_group(names, "min_keep", 0)
        Traceback (most recent call last):
            ...
        ValueError: min_keep=0 must be at least 1
    """
    if isinstance(value, Mapping):
        found = {} if default is None else dict.fromkeys(names, default)
        for key, number in value.items():
            checked = _integer(f"{argument}[{key!r}]", number, least)
            found |= dict.fromkeys(_meant(names, argument, key), checked)
        left_out = [name for name in names if name not in found]
        if left_out:
            raise ValueError(
                f"{argument} leaves out {', '.join(left_out)}; give every group a number"
            )
        return {name: found[name] for name in names}
    # Told by its axes and not by its type, so that a command line need not import NumPy.
    is_array = getattr(value, "ndim", 0) > 0
    if isinstance(value, int | str) or not (isinstance(value, Sequence) or is_array):
        return dict.fromkeys(names, _integer(argument, value, least))
    if len(value) != len(names):
        raise ValueError(
            f"{argument} has {len(value)} entries but there are {len(names)} groups, "
            f"{', '.join(names)}; give one a group"
        )
    return {
        name: _integer(f"{argument}[{index}]", number, least)
        for index, (name, number) in enumerate(zip(names, value, strict=True))
    }


def read_overrides(argument: str, texts: Sequence[str]) -> dict[str, int]:
    """Read texts such as ``stage1=8`` into a mapping for ``per_group``.

    Args:
        argument: what the user calls the number, for errors.
        texts: each a group's name or a regular expression, an equals sign and an integer.

    Returns:
        Name or expression -> integer, those given later coming later.

    Raises:
        ValueError: a text is not of this form.

    Example:
        >>> read_overrides("round_to_of", ["stage1=8", "head=2"])
        {'stage1': 8, 'head': 2}
    """
    found: dict[str, int] = {}
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{argument}={text!r} is not of the form REGEX=N: it is no text")
        pattern, equals, number = text.rpartition("=")
        try:
            if not equals:
                raise ValueError("there is no equals sign")
            re.compile(pattern)
            count = int(number)
            if count < 1:
                raise ValueError("N is an integer of at least 1")
        except (ValueError, re.error) as error:
            raise ValueError(f"{argument}={text!r} is not of the form REGEX=N: {error}") from None
        found.pop(pattern, None)
        found[pattern] = count
    return found


def _integer(argument: str, number: object, least: int) -> int:
    if isinstance(number, bool) or not isinstance(number, Integral):
        if isinstance(number, bool) or not isinstance(number, Real):
            raise TypeError(
                f"{argument}={number!r} must be an integer of at least {least}, a sequence with "
                "one a group, or a mapping from names or regular expressions to integers"
            )
        raise ValueError(f"{argument}={number!r} must be an integer of at least {least}")
    if number < least:
        raise ValueError(f"{argument}={number} must be at least {least}")
    return int(number)


def _meant(names: Sequence[str], argument: str, key: object) -> list[str]:
    """Return the groups that a key of a mapping means."""
    if key in names:
        return [str(key)]
    try:
        found = [name for name in names if re.search(str(key), name)]
    except re.error as error:
        raise ValueError(
            f"{argument} has the key {key!r}, which is no group and no regular expression: {error}"
        ) from None
    if not found:
        raise ValueError(
            f"{argument} has the key {key!r}, which is found in no group; the groups are "
            f"{', '.join(names)}"
        )
    return found
