"""Names of a package that are imported when they are used first."""

import importlib
import sys
import types
from collections.abc import Callable, Mapping


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """Return a package's ``__getattr__`` that imports names on demand.

    Use it where a part of a package must stay cheap to import, as the settings that a command line
    reads before JAX is there.

    Args:
        package: its ``__name__``.
        homes: name -> module below the package; a name that is its own home is the module itself.

    Example:
        >>> get = lazy_names("rlprune_jax", {"is_key": "pytree"})
        >>> get("is_key").__name__
        'is_key'
    """

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{homes[name]}")
        return module if homes[name] == name else getattr(module, name)

    return get


def call_as(package: str, home: str, name: str) -> None:
    """Make a package callable as a function of its name.

    Use it where a function and a folder have one name: ``rlprune_jax.search(pruning, "agent")``
    is `rlprune_jax.workflow.search`, and ``rlprune_jax.search.make_environment`` a name of the
    folder. The function's module is imported by the first call, so the folder depends on nothing.

    Args:
        package: the folder's ``__name__``.
        home: the function's module.
        name: of the function.

    Example:
        >>> import rlprune_jax
        >>> callable(rlprune_jax.search)
        True
    """

    class CallableRoom(types.ModuleType):
        def __call__(self, *args: object, **options: object) -> object:
            return getattr(importlib.import_module(home), name)(*args, **options)

    sys.modules[package].__class__ = CallableRoom
