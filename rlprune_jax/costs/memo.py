"""Values that are made once and kept on the object that they belong to."""

from collections.abc import Callable, Hashable
from typing import TypeVar

_Made = TypeVar("_Made")


class _Memo(dict):
    """Hold what was made for one object.

    An object that is copied or pickled starts without.
    """

    def __reduce__(self) -> tuple[type["_Memo"], tuple[()]]:
        return _Memo, ()


def remember(owner: object, key: Hashable, make: Callable[[], _Made]) -> _Made:
    """Return what ``make()`` gave for this owner and key before.

    Use it for functions that are jitted: JAX keys its programs on the function object, so a
    function that is made anew is compiled anew. The memo is held by the owner itself and goes with
    it; a global weak dictionary would be kept alive by values that refer to their owner.

    Args:
        owner: an object with a ``__dict__``, such as a ``Graph``.
        key: what tells one value of the owner from another.
        make: called when there is none yet; nothing is kept when it raises.

    Example:
        >>> class Owner:
        ...     pass
        >>> owner = Owner()
        >>> remember(owner, "list", list) is remember(owner, "list", list)
        True
        >>> remember(owner, "list", list) is remember(Owner(), "list", list)
        False
    """
    memo: dict[Hashable, _Made] = vars(owner).setdefault("_remembered", _Memo())
    if key not in memo:
        memo[key] = make()
    return memo[key]
