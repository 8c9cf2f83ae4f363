"""Names of a package that are imported when they are used first."""

import importlib
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
