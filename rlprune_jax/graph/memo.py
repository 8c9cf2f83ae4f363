"""A bounded memory of what was traced, which keeps no function alive."""

import weakref
from collections.abc import Callable, Hashable
from types import MethodType
from typing import Generic, TypeVar

import jax
import numpy as np

from rlprune_jax.types import PyTree

Value = TypeVar("Value")

MOST = 32
"""Programs that a memory holds before the one unused for longest makes room."""


class Memo(Generic[Value]):
    """Remember values by functions and their shapes.

    A function is told by its identity, a method by that of its object and its function. It is held
    weakly: the values of a function that is gone go when the next one is put. A copy or a pickle is
    empty.

    Example:
        >>> memo, function = Memo(), lambda x: x
        >>> memo.put(function, ("f32[3]",), "program")
        >>> memo.get(function, ("f32[3]",)), memo.get(lambda x: x, ("f32[3]",))
        ('program', None)
        >>> del function
        >>> len(memo)
        0
    """

    def __init__(self, most: int = MOST) -> None:
        """Start empty; at most ``most`` values are held."""
        self._most = most
        self._held: dict[Hashable, tuple[Value, weakref.ref]] = {}

    def __len__(self) -> int:
        self._drop_dead()
        return len(self._held)

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self._most,)

    def get(self, function: Callable[..., object], key: Hashable) -> Value | None:
        """Return what is remembered, or None."""
        key = (_identity(function), key)
        found = self._held.pop(key, None)
        if found is None or found[1]() is not _owner(function):
            return None
        self._held[key] = found
        return found[0]

    def put(self, function: Callable[..., object], key: Hashable, value: Value) -> None:
        """Remember a value, unless the function cannot be held weakly."""
        self._drop_dead()
        try:
            owner = weakref.ref(_owner(function))
        except TypeError:
            return
        self._held[_identity(function), key] = (value, owner)
        while len(self._held) > self._most:
            self._held.pop(next(iter(self._held)), None)

    def _drop_dead(self) -> None:
        for key, (_, owner) in list(self._held.items()):
            if owner() is None:
                self._held.pop(key, None)


def _owner(function: Callable[..., object]) -> object:
    return function.__self__ if isinstance(function, MethodType) else function


def _identity(function: Callable[..., object]) -> Hashable:
    if isinstance(function, MethodType):
        return id(function.__self__), id(function.__func__)
    return id(function)


def call_key(arguments: PyTree, static: tuple[object, ...] = ()) -> Hashable | None:
    """Return what a trace depends on besides its function.

    These are shapes, dtypes and structure of the arguments, the static arguments with their types,
    and the settings of JAX that hold at the moment (precision, 64 bits, named axes).

    Args:
        arguments: pytree of arrays, tracers, numbers or ``jax.ShapeDtypeStruct``.
        static: other arguments.

    Returns:
        A hashable value, or None where a static argument cannot be compared, or a size is symbolic.
    """
    leaves, structure = jax.tree.flatten(arguments)
    if not all(isinstance(size, int) for leaf in leaves for size in np.shape(leaf)):
        return None
    avals = tuple(
        leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf) for leaf in leaves
    )
    key = (structure, avals, tuple((type(each), each) for each in static), _settings())
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _nothing() -> tuple[()]:
    return ()


def _settings() -> object:
    """Return a value that is the same while JAX would trace a function the same way.

    JAX remembers traces by all its settings, so the trace of a fixed function stands for them.
    """
    return jax.jit(_nothing).trace().jaxpr
