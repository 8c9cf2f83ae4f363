"""Costs that only the host can know: a user's function, or a time; checked, limited, remembered."""

import hashlib
import importlib
import inspect
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlprune_jax.graph.groups import Graph
from rlprune_jax.kept import is_kept
from rlprune_jax.types import Gates
from rlprune_jax.units.gates import widths

UserFunction = Callable[[dict[str, int], dict[str, np.ndarray]], float]
"""``(widths, gates) -> cost``: units kept per group, and gates f32[units] per group."""


class CostError(RuntimeError):
    """A cost could not be had of a candidate; the message names the function and the candidate."""


class CostTimeout(CostError):
    """A cost took longer than its time limit."""


def call_checked(
    name: str, function: Callable[[], Any], widths: Mapping[str, int], time_limit: float
) -> float:
    """Call ``function()`` and return what it returns if that is a cost.

    It runs in a thread of its own, which cannot be ended: past the time limit it is left behind
    and ends with the process. A function that holds Python's lock for good stops the clock too.

    Args:
        name: of the cost, for the message.
        function: to call.
        widths: of the candidate, for the message.
        time_limit: in seconds.

    Raises:
        CostTimeout: it has not returned in time.
        CostError: it raised, or returned what is not a number, NaN, infinite or negative.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True, name=f"cost {name}")
    thread.start()
    thread.join(time_limit)
    where = f"cost {name!r} of the candidate with widths {dict(widths)}"
    if thread.is_alive():
        raise CostTimeout(
            f"{where} took more than its limit of {time_limit:g} seconds; raise --cost-seconds "
            "or make the function faster"
        )
    if "error" in outcome:
        error = outcome["error"]
        raise CostError(f"{where} raised {type(error).__name__}: {error}") from error
    try:
        value = float(outcome["value"])
    except (TypeError, ValueError) as error:
        raise CostError(f"{where} is {outcome['value']!r}, not a number") from error
    if not math.isfinite(value) or value < 0:
        raise CostError(f"{where} is {value}; a cost must be finite and at least 0")
    return value


def import_function(path: str) -> Callable[..., Any]:
    """Return the function that ``module:function`` names; modules of the working directory count.

    Raises:
        ValueError: not of that form, no such module, no such function, or not callable.

    Example:
        >>> import_function("math:hypot")(3, 4)
        5.0
    """
    module_name, found, name = path.partition(":")
    if not (module_name and found and name):
        raise ValueError(f"budget function {path!r} is not of the form module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function: Any = importlib.import_module(module_name)
        for part in name.split("."):
            function = getattr(function, part)
    except Exception as error:
        raise ValueError(
            f"budget function {path!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        raise ValueError(f"budget function {path!r} is a {type(function).__name__}, not a function")
    return function


def source_digest(function: Callable[..., Any]) -> str:
    """Return ten hexadecimal digits of the source file that a function is written in.

    They change with the code, so that what was computed with other code is not taken for its. What
    that file imports is not in them. Of a function without a source file, as of a compiled module,
    the digits are those of nothing.

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


class FunctionCost:
    """A user's function of widths and gates, called once per candidate."""

    def __init__(self, graph: Graph, name: str, function: UserFunction, time_limit: float) -> None:
        self._graph, self._name = graph, name
        self._function, self._time_limit = function, time_limit
        self._seen: dict[bytes, float] = {}

    def __call__(self, gates: Gates) -> float:
        """Return the cost of concrete gates, in the function's own unit.

        Raises:
            CostError: see ``call_checked``.
        """
        kept = widths(self._graph, gates)
        copies = {
            name: is_kept(np.asarray(gates[name])).astype(np.float32) for name in self._graph.names
        }
        mark = b"".join(np.packbits(is_kept(gate)).tobytes() for gate in copies.values())
        if mark not in self._seen:
            self._seen[mark] = call_checked(
                self._name, lambda: self._function(dict(kept), copies), kept, self._time_limit
            )
        return self._seen[mark]
