"""Costs that only the host knows, called with a time limit and checked."""

import hashlib
import importlib
import importlib.util
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rlprune_jax.checks import names_file, require_count
from rlprune_jax.costs.cost import Cost, CostFactory, Measured, NetworkLike, without_noise
from rlprune_jax.costs.interpolation import interpolate_uniform
from rlprune_jax.costs.options import CostOptions
from rlprune_jax.costs.registry import OWN_UNIT
from rlprune_jax.graph.groups import Graph, ones_gates
from rlprune_jax.kept import is_kept
from rlprune_jax.origin import source_digest as source_digest
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

    It is the user's code and runs with the user's rights. Modules in the working directory are
    found too, after those that are installed; a file by its path is loaded itself.

    Args:
        path: ``module:function``, or ``folder/file.py:function``.
        what: the function is for, to name in an error.

    Raises:
        ValueError: not of that form, no such module, no such function, or not callable.

    Example:
        >>> import_function("math:hypot")(3, 4)
        5.0
    """
    module_name, found, name = path.rpartition(":")
    if not (module_name and found and name):
        raise ValueError(f"{what} {path!r} is not of the form module:function or file.py:function")
    try:
        function: Any = _load(module_name)
        for part in name.split("."):
            function = getattr(function, part)
    except Exception as error:
        raise ValueError(
            f"{what} {path!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        raise ValueError(f"{what} {path!r} is a {type(function).__name__}, not a function")
    return function


def _load(name: str) -> ModuleType:
    """Import a module, or load a file; its folder is on ``sys.path`` meanwhile, and last."""
    file = Path(name).expanduser().resolve() if names_file(name) else None
    folder = os.getcwd() if file is None else str(file.parent)
    # Last, so that a file of the name of a library is not taken for it.
    sys.path.append(folder)
    try:
        return importlib.import_module(name) if file is None else _load_file(file)
    finally:
        for place in range(len(sys.path) - 1, -1, -1):
            if sys.path[place] == folder:
                del sys.path[place]
                break


def _load_file(file: Path) -> ModuleType:
    """Load a file as a module of a name of its own, once."""
    name = f"{file.stem}-{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no file of Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


MOST_ANSWERS = 48
"""Answers after which a function with noise is not asked again, though its quartile is open."""

RISK = 0.02
"""Chance that the upper quartile lies on the other side of a bound than is said."""

CHECKED_TWICE = 8
"""Networks that a function is asked for twice before one answer is taken for all."""


class FunctionCost:
    """Call a user's function, and again where its answers differ.

    The first few networks are asked for twice. If no two answers differ, one is enough for a
    candidate of a search, and what is delivered is asked for twice. From the first difference on
    the function has noise, and every network is asked for ``answers`` times.

    Attributes:
        has_noise: whether two answers for one network have differed.
    """

    def __init__(
        self,
        graph: Graph,
        name: str,
        function: UserFunction,
        time_limit: float,
        answers: int = CostOptions().answers,
    ) -> None:
        """Prepare without calling the function.

        Args:
            graph: of the network.
            name: of the cost, for messages.
            function: ``(widths, gates) -> number``.
            time_limit: seconds that one call may take.
            answers: that are taken of a network where two differ.

        Raises:
            ValueError: ``answers`` below 2.
        """
        self._graph, self._name = graph, name
        self._function, self._time_limit = function, time_limit
        self._answers = require_count("answers", answers, 2)
        self._seen: dict[bytes, list[float]] = {}
        self._open: dict[bytes, float] = {}
        self.has_noise = False

    def __call__(self, gates: Gates) -> float:
        """Return the cost of a candidate, its upper quartile where it has noise.

        Args:
            gates: group name -> f32[units], concrete; a unit counts as kept from 0.5.

        Raises:
            CostError: see ``call_checked``.
        """
        count = 2 if len(self._seen) < CHECKED_TWICE else 1
        return _quartiles(self._ask(gates, count)).upper

    def exact(self, gates: Gates) -> Measured:
        """Return the cost with its noise.

        From two answers, or more where they differ.

        Args:
            gates: group name -> f32[units], concrete; a unit counts as kept from 0.5.

        Raises:
            CostError: see ``call_checked``.
        """
        found = _quartiles(self._ask(gates, 2))
        return found._replace(upper=max(found.upper, self._open.get(self._mark(gates), 0.0)))

    def again(self, gates: Gates, limit: float = math.inf) -> Measured:
        """Return the cost from new answers alone.

        With noise it is asked until its answers say on which side of a limit its upper quartile
        lies, at a risk of ``RISK``. Where ``MOST_ANSWERS`` do not, the upper quartile is given by
        its bound, which is above the limit.

        Args:
            gates: group name -> f32[units], concrete; a unit counts as kept from 0.5.
            limit: of the cost.

        Raises:
            CostError: see ``call_checked``.
        """
        mark = self._mark(gates)
        before = self._seen.pop(mark, [])
        self._open.pop(mark, None)
        found = self._ask(gates, 2)
        if not self.has_noise and before and before[0] != found[0]:
            self.has_noise = True
            found = self._ask(gates, 2)
        if self.has_noise and math.isfinite(limit):
            low, high = quartile_bounds(found, RISK)
            while low <= limit < high and len(found) < MOST_ANSWERS:
                found = self._ask(gates, len(found) + 1)
                low, high = quartile_bounds(found, RISK)
            if low <= limit < high:
                self._open[mark] = high
        return self.exact(gates)

    def _mark(self, gates: Gates) -> bytes:
        kept = [is_kept(np.asarray(gates[name])) for name in self._graph.names]
        return b"".join(np.packbits(each).tobytes() for each in kept)

    def _ask(self, gates: Gates, count: int) -> list[float]:
        """Return the answers for a network, ``count`` of them or as many as noise asks for."""
        kept = widths(self._graph, gates)
        answers = self._seen.setdefault(self._mark(gates), [])
        while len(answers) < max(count, self._answers if self.has_noise else 0):
            copies = {
                name: is_kept(np.asarray(gates[name])).astype(np.float32)
                for name in self._graph.names
            }
            call = partial(self._function, dict(kept), copies)
            answers.append(call_checked(self._name, call, kept, self._time_limit))
            self.has_noise |= answers[-1] != answers[0]
        return answers


def quartile_bounds(answers: Sequence[float], risk: float) -> tuple[float, float]:
    """Bound the upper quartile of what answers are drawn from.

    By order statistics, so for any distribution: the number of answers below the quartile is
    binomial.

    Args:
        answers: n of them.
        risk: chance that the quartile lies beyond one of the bounds.

    Returns:
        The lower and the upper bound; infinite where the answers are too few for one.

    Example:
        >>> quartile_bounds(range(14), 0.02)
        (6, 13)
        >>> quartile_bounds(range(3), 0.02)
        (0, inf)
    """
    count, ordered = len(answers), sorted(answers)
    chances = [math.comb(count, k) * 0.75**k * 0.25 ** (count - k) for k in range(count + 1)]
    below = np.cumsum(chances)  # of at most k answers below the quartile
    high = next((ordered[k] for k in range(count) if below[k] >= 1 - risk), math.inf)
    low = next((ordered[k] for k in range(count - 1, -1, -1) if below[k] <= risk), -math.inf)
    return low, high


def _quartiles(answers: Sequence[float]) -> Measured:
    if len(set(answers)) == 1:
        return without_noise(answers[0])
    median, lower, upper = map(float, np.percentile(answers, (50, 25, 75)))
    return Measured(value=median, lower=lower, upper=upper)


def user_cost(name: str, function: UserFunction) -> CostFactory:
    """Return the factory of a user's function.

    Args:
        name: of the cost, for messages.
        function: ``(widths, gates) -> number``: ``dict[str, int]`` of units kept and
            ``dict[str, f32[units]]`` of zeros and ones, both by group name.
    """

    def make(network: NetworkLike, options: CostOptions) -> Cost:
        graph = network.graph
        asked = FunctionCost(graph, name, function, options.time_limit, options.answers)
        dense = asked.exact(ones_gates(graph)).value
        return Cost(
            unit=OWN_UNIT,
            dense=dense,
            estimate=interpolate_uniform(graph, lambda gates: asked.exact(gates).value, dense),
            exact=asked.exact,
            in_search=asked,
            again=asked.again,
            asks=options.function_asks,
        )

    return make
