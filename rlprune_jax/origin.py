"""What made a result: the code, the versions of its libraries, and the data.

A result that other code made is stale: it is refused, made again, or kept, by choice (`Stale`).
"""

import dataclasses
import enum
import functools
import hashlib
import inspect
import platform
import sys
import sysconfig
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from rlprune_jax.checks import require_choice
from rlprune_jax.devices import library_versions
from rlprune_jax.pytree import host_array, is_key

Stale = Literal["refuse", "redo", "keep"]
"""What is done with results that other code made: refuse to go on, make them again (the old ones
are kept aside), or keep them and go on."""

STALE: tuple[Stale, ...] = ("refuse", "redo", "keep")


class StaleWarning(UserWarning):
    """Warn that other code made a result."""


class Provenance(NamedTuple):
    """Say what makes a result.

    Attributes:
        made_with: versions and digests by name, see `code_origin`.
        stale: what is done with results that were made with others.
    """

    made_with: Mapping[str, str]
    stale: Stale = "refuse"


class FunctionDigest(NamedTuple):
    """Hold digests of a function.

    Attributes:
        code: of its body, of the functions that it calls and of text that it reads.
        values: of numbers and arrays that it reads: closed over, global, or defaults.
    """

    code: str
    values: str


def code_origin(**more: str) -> dict[str, str]:
    """Return what a result depends on besides its settings.

    The digest of this package's sources, and versions of Python and the libraries.

    Args:
        **more: other digests by name, such as that of the data.
    """
    found = library_versions()
    found["python"] = ".".join(platform.python_version_tuple()[:2])
    return {**found, "code": package_digest(), **more}


def differences(stored: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say in what two origins differ, or "".

    Example:
        >>> differences({"jax": "0.10", "code": "a"}, {"jax": "0.11", "code": "a"})
        'jax (0.10 there, 0.11 here)'
    """
    names = [name for name in {**stored, **now} if stored.get(name) != now.get(name)]
    return ", ".join(
        f"{name} ({stored.get(name, 'none')} there, {now.get(name, 'none')} here)" for name in names
    )


def check_stale(stale: str) -> None:
    """Refuse what is no choice.

    Raises:
        ValueError: it is none of ``STALE``.
    """
    require_choice("stale", stale, STALE)


@functools.cache
def package_digest() -> str:
    """Return ten hexadecimal digits of this package's sources.

    Those that only draw pages are left out.
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if not name.startswith("report/"):
            digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:10]


def source_digest(function: Callable[..., Any]) -> str:
    """Return ten hexadecimal digits of a function's source file.

    They change with the code: use them to name results, so that results of other code are not
    taken for those of this one. What the file imports does not change them. Functions without a
    source file, as those of compiled modules, all have the same digits.

    Example:
        >>> import json, math
        >>> source_digest(json.dumps) == source_digest(json.loads)
        True
        >>> source_digest(json.dumps) == source_digest(math.hypot)
        False
    """
    code = inspect.unwrap(function)
    module = inspect.getmodule(code) or inspect.getmodule(type(code))
    try:
        file = None if module is None else inspect.getsourcefile(module)
    except TypeError:
        file = None
    return hashlib.sha256(Path(file).read_bytes() if file else b"").hexdigest()[:10]


def function_digest(function: object) -> FunctionDigest:
    """Return digests of a function and of what it reads.

    Use it where a name does not tell one function from another that replaced it. It goes through
    closures, defaults, globals that are named in the body, partial functions, bound methods and
    dataclasses. Functions of installed libraries count by their names and closures, objects of
    other types by their types alone.

    Args:
        function: to digest; any object will do.

    Example:
        >>> def scaled(scale):
        ...     return lambda x: scale * x
        >>> one, other = function_digest(scaled(2.0)), function_digest(scaled(3.0))
        >>> one.code == other.code, one.values == other.values
        (True, False)
    """
    walker = _Walker()
    walker.visit(function)
    return FunctionDigest(walker.code.hexdigest()[:16], walker.values.hexdigest()[:16])


class _Walker:
    """Go through what a function reads, once each."""

    def __init__(self) -> None:
        self.code, self.values = hashlib.sha256(), hashlib.sha256()
        self._seen: dict[int, tuple[int, object]] = {}

    def visit(self, value: object) -> None:
        """Take a value into the digests."""
        if value is None or isinstance(value, bool | str | bytes | enum.Enum):
            self._say(self.code, repr(value))
        elif isinstance(value, int | float | complex | np.generic):
            self._say(self.values, type(value).__name__, repr(value))
        elif isinstance(value, np.ndarray | jax.Array):
            self._array(value)
        elif id(value) in self._seen:
            self._say(self.code, f"seen {self._seen[id(value)][0]}")
        else:
            # Held, so that no other object gets the identity of one.
            self._seen[id(value)] = (len(self._seen), value)
            self._visit(value)

    def _visit(self, value: object) -> None:
        match value:
            case types.FunctionType():
                self._function(value)
            case types.MethodType():
                self._all("method", value.__self__, value.__func__)
            case functools.partial():
                self._all("partial", value.func, value.args, value.keywords)
            case types.ModuleType():
                self._say(self.code, "module", value.__name__)
            case type():
                self._class(value)
            case Mapping():
                self._say(self.values, type(value).__name__, str(len(value)))
                self._all("mapping", *(part for item in value.items() for part in item))
            case tuple() | list():
                self._say(self.values, type(value).__name__, str(len(value)))
                self._all("sequence", *value)
            case set() | frozenset():
                self._all("set", *sorted(map(repr, value)))
            case jax.ShapeDtypeStruct():
                self._say(self.code, "shape", str(value.shape), str(value.dtype))
            case _ if dataclasses.is_dataclass(value):
                fields = [getattr(value, each.name, None) for each in dataclasses.fields(value)]
                self._all("dataclass", type(value), *fields)
            case _:
                self._object(value)

    def _object(self, value: object) -> None:
        """Take what is behind a wrapper, the leaves of a pytree, or the type alone."""
        wrapped = getattr(value, "__wrapped__", None)
        if wrapped is not None:
            self._all("wrapper", wrapped)
            return
        if isinstance(value, types.BuiltinFunctionType | np.ufunc):
            self._say(self.code, "built in", getattr(value, "__qualname__", repr(value)))
            return
        self.visit(type(value))
        if not jax.tree_util.all_leaves([value]):
            self._all("pytree", *jax.tree.leaves(value))
        elif callable(value) and not _is_library(type(value).__module__):
            self._all("callable", dict(sorted(getattr(value, "__dict__", {}).items())))

    def _function(self, function: types.FunctionType) -> None:
        self._say(self.code, "function", function.__qualname__)
        cells = [_content(cell) for cell in function.__closure__ or ()]
        self._all("reads", function.__defaults__, function.__kwdefaults__, *cells)
        if _is_library(function.__module__):
            self._say(self.code, str(function.__module__))
            return
        for code in _codes(function.__code__):
            self.code.update(code.co_code)
            self._all("names", *code.co_names, *code.co_varnames)
            constants = [each for each in code.co_consts if not isinstance(each, types.CodeType)]
            self._all("constants", *map(repr, map(_in_order, constants)))
            read = [name for name in code.co_names if name in function.__globals__]
            self._all("globals", *(function.__globals__[name] for name in read))

    def _class(self, value: type) -> None:
        self._say(self.code, "class", value.__qualname__)
        if not _is_library(value.__module__):
            methods = [
                each for each in vars(value).values() if isinstance(each, types.FunctionType)
            ]
            self._all("methods", *methods)

    def _array(self, array: np.ndarray | jax.Array) -> None:
        self._say(self.code, "array", str(array.dtype))
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            self._say(self.values, str(array.shape))
            return
        plain = host_array(array) if is_key(array) else np.asarray(array)
        self._say(self.values, str(plain.shape))
        if plain.dtype == object:
            self._all("objects", *plain.reshape(-1).tolist())
        else:
            self.values.update(np.ascontiguousarray(plain).tobytes())

    def _all(self, kind: str, *values: object) -> None:
        self._say(self.code, kind)
        for value in values:
            self.visit(value)

    @staticmethod
    def _say(digest: Any, *texts: str) -> None:
        digest.update("\0".join(("", *texts)).encode(errors="replace"))


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _in_order(constant: object) -> object:
    """Return a constant of a code object, whose repr is then always the same."""
    return sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """Return a code object and those inside it."""
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return [code, *(found for each in inner for found in _codes(each))]


@functools.cache
def _is_library(module: str | None) -> bool:
    """Return whether a module is ours, installed, or Python's own."""
    name = str(module)
    if name in ("None", "__main__"):
        return False
    if name.partition(".")[0] in ("rlprune_jax", "builtins"):
        return True
    file = getattr(_module(name), "__file__", None)
    if file is None:
        return _module(name) is not None
    paths = [sysconfig.get_path(each) for each in ("stdlib", "platstdlib", "purelib", "platlib")]
    return any(path and Path(file).is_relative_to(path) for path in paths)


def _module(name: str) -> types.ModuleType | None:
    return sys.modules.get(name)
