"""Costs that only the host knows, called with a time limit and checked."""

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

from rlprune_jax.costs.cost import Cost, CostFactory, NetworkLike, without_noise
from rlprune_jax.costs.interpolation import interpolate_uniform
from rlprune_jax.costs.options import CostOptions
from rlprune_jax.costs.registry import OWN_UNIT
from rlprune_jax.graph.groups import Graph, ones_gates
from rlprune_jax.kept import is_kept
from rlprune_jax.types import Gates
from rlprune_jax.units.gates import widths

UserFunction = Callable[[dict[str, int], dict[str, np.ndarray]], float]
"""``(widths, gates) -> cost``: units kept per group, and gates f32[units] per group."""


class CostError(RuntimeError):
    """Raised when a cost function fails on a candidate.

    The message names the function and the candidate's widths.
    """


class CostTimeout(CostError):
    """Raised when a cost function exceeds its time limit."""


def call_checked(
    name: str, function: Callable[[], object], widths: Mapping[str, int], time_limit: float
) -> float:
    """Return the cost that ``function()`` gives, within a time limit.

    The function runs in a thread of its own, which cannot be ended: past the time limit it is left
    behind and ends with the process. A function that never releases Python's lock stops the clock
    too.

    Args:
        name: of the cost, for the message.
        function: to call.
        widths: of the candidate, for the message.
        time_limit: in seconds.

    Raises:
        CostTimeout: it has not returned in time.
        CostError: it raised, or returned what is not a number, NaN, infinite or negative.

    Example:
        >>> call_checked("energy", lambda: 7, {"conv": 3}, time_limit=10.0)
        7.0
        >>> call_checked("energy", lambda: -1, {"conv": 3}, time_limit=10.0)
        Traceback (most recent call last):
        rlprune_jax.costs.host.CostError: cost 'energy' of the candidate with widths {'conv': 3} \
is -1.0; a cost must be finite and at least 0
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
            f"{where} took more than its limit of {time_limit:g} seconds; raise time_limit "
            "(--cost-seconds) or make the function faster"
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


def import_function(path: str, what: str = "budget function") -> Callable[..., Any]:
    """Return the function with this name.

    Modules in the working directory are found too.

    Args:
        path: ``module:function``.
        what: the function is for, to name in an error.

    Raises:
        ValueError: not of that form, no such module, no such function, or not callable.

    Example:
        >>> import_function("math:hypot")(3, 4)
        5.0
    """
    module_name, found, name = path.partition(":")
    if not (module_name and found and name):
        raise ValueError(f"{what} {path!r} is not of the form module:function")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        function: Any = importlib.import_module(module_name)
        for part in name.split("."):
            function = getattr(function, part)
    except Exception as error:
        raise ValueError(
            f"{what} {path!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    if not callable(function):
        raise ValueError(f"{what} {path!r} is a {type(function).__name__}, not a function")
    return function


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


class FunctionCost:
    """Call a user's function, once per candidate."""

    def __init__(self, graph: Graph, name: str, function: UserFunction, time_limit: float) -> None:
        """Prepare without calling the function.

        Args:
            graph: of the network.
            name: of the cost, for messages.
            function: ``(widths, gates) -> number``.
            time_limit: seconds that one call may take.
        """
        self._graph, self._name = graph, name
        self._function, self._time_limit = function, time_limit
        self._seen: dict[bytes, float] = {}

    def __call__(self, gates: Gates) -> float:
        """Return the cost of concrete gates.

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


def user_cost(name: str, function: UserFunction) -> CostFactory:
    """Return the factory of a user's function.

    Args:
        name: of the cost, for messages.
        function: ``(widths, gates) -> number``: ``dict[str, int]`` of units kept and
            ``dict[str, f32[units]]`` of zeros and ones, both by group name.
    """

    def make(network: NetworkLike, options: CostOptions) -> Cost:
        graph = network.graph
        asked = FunctionCost(graph, name, function, options.time_limit)
        dense = asked(ones_gates(graph))
        return Cost(
            unit=OWN_UNIT,
            dense=dense,
            estimate=interpolate_uniform(graph, asked, dense),
            exact=lambda gates: without_noise(asked(gates)),
            in_search=asked,
        )

    return make
