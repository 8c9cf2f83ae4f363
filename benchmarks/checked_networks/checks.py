"""What is asked of a network: one row of the table.

Everything is compared with something that the package did not make: masked with slim, all gates 1
with dense, counts with ``counting``.
"""

import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from checked_networks.case import BATCH, Built, Case, compile_quickly, compiled
from checked_networks.counting import own_macs, own_params
from rlprune_jax import (
    compact,
    count_macs,
    count_params,
    gated,
    ones_gates,
    respecialise,
    trace_graph,
)
from rlprune_jax.graph import Graph
from rlprune_jax.types import Apply, Gates, PyTree, Variables

SINGLE, DOUBLE = 2e-5, 1e-7
"""Largest difference that counts as equal, relative to the largest output, in float32, float64."""

NOISE = 30
"""How many times what rounding the variables does to the slim network still counts as rounding."""

KEPT = (0.5, 0.75, 0.25)
"""Fraction of units that each of the random draws keeps."""


@dataclass
class Row:
    """Hold what was found about a network; None where it could not be asked.

    Attributes:
        name: of the network.
        family: of it.
        package: of it.
        traces: whether a graph was made.
        groups: their number.
        units: their number.
        parameters: of the dense network.
        owned: fraction of them that some unit owns.
        left: fraction of them left where each group keeps half its units.
        evaluation: largest difference of masked and slim over the draws, relative.
        training: the same of training mode, outputs and updates.
        dense: largest difference of all gates 1 and the dense network, relative.
        moved: largest change that a draw made to the outputs, relative.
        precision: how evaluation was found to be equal or not: in ``"float32"``, ``"float64"``, or
            as less than ``"rounding"`` alone does, where a network computes in float32 throughout.
        framework: whether the function itself, run on the slim variables, gives the same:
            ``"same"``, ``"differs"`` or ``"refuses"``.
        widths: whether the slim network is the same without gates: ``"same"``, ``"differs"`` or
            ``"refuses"``.
        params_agree: whether parameters counted are those of the slim variables.
        macs_dense: per example, as counted and by the own count.
        macs_slim: the same of the draws, added up.
        macs_whole: whether the own count knows how often each loop runs.
        seconds: that tracing took.
        total_seconds: that the row took.
        frozen: reason -> fraction of parameters on an axis frozen for it.
        wrong: what is wrong, in words; empty where nothing is.
        errors: whatever failed, each with the step in which it did.
    """

    name: str
    family: str
    package: str
    traces: bool = False
    groups: int | None = None
    units: int | None = None
    parameters: int | None = None
    owned: float | None = None
    left: float | None = None
    evaluation: float | None = None
    training: float | None = None
    dense: float | None = None
    moved: float | None = None
    precision: str = ""
    framework: str = ""
    widths: str = ""
    params_agree: bool | None = None
    macs_dense: tuple[int, int] | None = None
    macs_slim: tuple[int, int] | None = None
    macs_whole: bool | None = None
    seconds: float | None = None
    total_seconds: float | None = None
    frozen: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class TookTooLongError(Exception):
    """Raised in a network that takes longer than it may."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise ``TookTooLongError`` in the block after some seconds, if they are not 0."""

    def stop(number: int, frame: object) -> None:
        raise TookTooLongError(f"took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check(case: Case, seconds: float = 0.0) -> Row:
    """Check a network; what fails is said in the row and never raised.

    Args:
        case: the network.
        seconds: that it may take; 0 sets no limit.
    """
    row = Row(name=case.name, family=case.family, package=case.package)
    start = time.perf_counter()
    try:
        with limited(seconds), jax.default_matmul_precision("highest"):
            _check(row, case)
    except TookTooLongError as error:
        row.errors.append(str(error))
    row.total_seconds = time.perf_counter() - start
    return row


def _check(row: Row, case: Case) -> None:
    with _step(row, "build"):
        built = case.build()
    if row.errors:
        return
    with _step(row, "trace"):
        subject = Subject(built)
        row.traces = True
    if row.errors:
        return
    for name, ask in _QUESTIONS.items():
        with _step(row, name):
            ask(row, subject)
        if row.errors and row.errors[-1].startswith(f"{name}:"):
            row.wrong.append(f"fails to {name}")


@contextmanager
def _step(row: Row, name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    except TookTooLongError:
        raise
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")
        row.errors.append(f"{name}: {type(error).__name__}: {line}")
    if name == "trace":
        row.seconds = time.perf_counter() - start


class Subject:
    """Hold a network, its graph, and the slim networks of three draws of gates."""

    def __init__(self, built: Built) -> None:
        self.built = built
        self.train = _training(built)
        self.graph = trace_graph(
            built.apply, built.variables, *built.inputs, apply_train=self.train
        )

    @cached_property
    def gates(self) -> list[Gates]:
        """Draws of gates that keep ``KEPT`` of each group, as many as it needs and not all."""
        drawn = []
        for number, fraction in enumerate(KEPT):
            generator = np.random.default_rng(number)
            gates = {}
            for group in self.graph.groups:
                kept = generator.random(group.size) < fraction
                if group.size > 1:
                    kept[generator.integers(group.size)] = False
                kept[generator.integers(group.size)] |= not kept.any()
                # Where a ``top_k`` needs more, the first that are missing.
                kept[np.flatnonzero(~kept)[: max(group.least - int(kept.sum()), 0)]] = True
                gates[group.name] = jnp.asarray(kept, jnp.float32)
            drawn.append(gates)
        return drawn

    @cached_property
    def slim(self) -> list[Variables]:
        """The slim variables of each draw."""
        return [compact(self.graph, self.built.variables, gates) for gates in self.gates]

    @cached_property
    def slim_outputs(self) -> list[PyTree]:
        """What the slim network of each draw returns in evaluation mode."""
        return self.run_slim(self.built.apply)

    def run_slim(self, apply: Apply) -> list[PyTree]:
        """Run a function of the dense variables on those of each draw."""
        return [
            compiled(respecialise(apply, self.graph, gates), slim, *self.built.inputs)
            for gates, slim in zip(self.gates, self.slim, strict=True)
        ]


def _training(built: Built) -> Apply | None:
    """Return training mode as a function of variables and inputs alone."""
    apply_train = built.apply_train
    if apply_train is None:
        return None
    return lambda variables, *inputs: apply_train(variables, *inputs, key=jax.random.key(5))


def describe(row: Row, subject: Subject) -> None:
    """Say how much of the network can be pruned, and why not the rest."""
    graph = subject.graph
    sizes = {path: math.prod(graph.variables[path].shape) for path in graph.parameters}
    total = sum(sizes.values())
    unowned = sum(
        math.prod(int((units < 0).sum()) for units in graph.owners[path]) for path in sizes
    )
    reasons = {(each.path, each.axis): each.reason for each in graph.frozen}
    frozen: Counter[str] = Counter()
    for path, size in sizes.items():
        for axis, units in enumerate(graph.owners[path]):
            if len(units) > 1 and (units < 0).any():
                reason = reasons.get((path, axis), "no reason given")
                frozen[reason] += size * float((units < 0).mean()) / total
    row.groups, row.units, row.parameters = len(graph.groups), graph.units, total
    row.owned = 1 - unowned / total
    row.left = count_params(graph, halved(graph)) / count_params(graph)
    row.frozen = {reason: round(part, 4) for reason, part in frozen.most_common(6)}


def halved(graph: Graph) -> Gates:
    """Keep the first half of every group's units, one at least."""
    return {
        group.name: jnp.asarray(
            np.arange(group.size) < max(group.least, group.size // 2), jnp.float32
        )
        for group in graph.groups
    }


class Compared(NamedTuple):
    """Hold largest differences relative to the largest value.

    Attributes:
        slim: of the masked and the slim network, over the draws.
        ones: of the masked network with all gates 1 and the dense one.
        moved: of the masked and the dense network, over the draws.
    """

    slim: float
    ones: float
    moved: float


def compare_evaluation(row: Row, subject: Subject) -> None:
    """Compare masked with slim, and all gates 1 with dense."""
    found = _compare(subject, subject.built.apply, subject.slim_outputs)
    row.precision, found = _decide(found, subject, training=False)
    row.evaluation, row.dense, row.moved = found.slim, found.ones, found.moved
    if row.precision == "wrong":
        row.wrong.append(
            f"masked and slim differ by {found.slim:.1e}, gates 1 and dense by {found.ones:.1e}"
        )


def compare_training(row: Row, subject: Subject) -> None:
    """Compare the same in training mode, outputs and updates."""
    if subject.train is None:
        return
    found = _compare(subject, subject.train, subject.run_slim(subject.train))
    precision, found = _decide(found, subject, training=True)
    row.training = max(found.slim, found.ones)
    if precision == "wrong":
        row.wrong.append(
            f"in training masked and slim differ by {found.slim:.1e}, "
            f"gates 1 and dense by {found.ones:.1e}"
        )


def _decide(found: Compared, subject: Subject, training: bool) -> tuple[str, Compared]:
    """Tell rounding from a wrong value, where float32 alone does not."""
    if max(found.slim, found.ones) <= SINGLE:
        return "float32", found
    double = _compare_in_double(subject.built, training)
    if max(double.slim, double.ones) <= DOUBLE:
        return "float64", double
    if max(found.slim, found.ones) <= NOISE * _noise(subject, training):
        return "rounding", found
    return "wrong", found


def _noise(subject: Subject, training: bool) -> float:
    """Return what a last digit of the variables changes in the slim networks, relative."""
    apply = subject.train if training else subject.built.apply
    assert apply is not None
    generator = np.random.default_rng(0)

    def nudged(leaf: jax.Array) -> jax.Array:
        if not jax.dtypes.issubdtype(leaf.dtype, np.floating):
            return leaf
        signs = generator.choice([-1.0, 1.0], np.shape(leaf))
        return leaf * jnp.asarray(1 + signs * jnp.finfo(leaf.dtype).eps, leaf.dtype)

    changes = []
    for gates, slim in zip(subject.gates, subject.slim, strict=True):
        network = respecialise(apply, subject.graph, gates)
        run = compile_quickly(network, slim, *subject.built.inputs)
        moved = run(jax.tree.map(nudged, slim), *subject.built.inputs)
        changes.append(difference(run(slim, *subject.built.inputs), moved))
    return max(changes)


def _compare(subject: Subject, apply: Apply, of_slims: list[PyTree]) -> Compared:
    variables, inputs, graph = subject.built.variables, subject.built.inputs, subject.graph
    dense = compiled(apply, variables, *inputs)
    if not _finite(dense):
        raise FloatingPointError("the dense network returns values that are not finite")
    masked = compile_quickly(gated(apply, graph), variables, ones_gates(graph), *inputs)
    slims, moves = [], []
    for gates, of_slim in zip(subject.gates, of_slims, strict=True):
        of_masked = masked(variables, gates, *inputs)
        slims.append(difference(_cut(of_masked, variables, graph, gates), of_slim))
        moves.append(difference(_outputs(dense), _outputs(of_masked)))
    ones = difference(dense, masked(variables, ones_gates(graph), *inputs))
    return Compared(slim=max(slims), ones=ones, moved=max(moves))


def _compare_in_double(built: Built, training: bool) -> Compared:
    """Compare in float64, which tells rounding from a wrong value."""
    with jax.enable_x64(True):
        subject = Subject(
            built._replace(
                variables=jax.tree.map(_doubled, built.variables),
                inputs=jax.tree.map(_doubled, built.inputs),
            )
        )
        apply = subject.train if training else subject.built.apply
        assert apply is not None
        return _compare(subject, apply, subject.run_slim(apply))


def _doubled(leaf: PyTree) -> PyTree:
    if jax.dtypes.issubdtype(jnp.asarray(leaf).dtype, np.floating):
        return jnp.asarray(leaf, jnp.float64)
    return leaf


def _outputs(found: PyTree) -> PyTree:
    """Return outputs without updates."""
    return found[0] if _has_updates(found) else found


def _has_updates(found: PyTree) -> bool:
    return isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)


def _cut(found: PyTree, variables: Variables, graph: Graph, gates: Gates) -> PyTree:
    """Cut what a masked network in training mode says of its variables."""
    if not _has_updates(found):
        return found
    outputs, updates = found
    slim = compact(graph, {**variables, **updates}, gates)
    return outputs, {name: slim[name] for name in updates}


def difference(first: PyTree, second: PyTree) -> float:
    """Return the largest difference of two pytrees, each leaf's relative to its largest value.

    It is infinite where shapes differ, or where one is not finite and the other is something else.
    """
    ours, theirs = jax.tree.leaves(first), jax.tree.leaves(second)
    if len(ours) != len(theirs):
        return math.inf
    return max(map(_difference, ours, theirs), default=0.0)


def _difference(first: jax.Array, second: jax.Array) -> float:
    if jax.dtypes.issubdtype(first.dtype, jax.dtypes.prng_key):
        first, second = jax.random.key_data(first), jax.random.key_data(second)
    if first.shape != second.shape:
        return math.inf
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return math.inf
    apart = np.abs(one[finite] - other[finite]).max(initial=0.0)
    return float(apart / max(np.abs(one[finite]).max(initial=0.0), 1e-30)) if apart else 0.0


def _finite(found: PyTree) -> bool:
    return all(
        bool(np.isfinite(np.asarray(leaf)).all())
        for leaf in jax.tree.leaves(found)
        if jax.dtypes.issubdtype(leaf.dtype, np.floating)
    )


def compare_params(row: Row, subject: Subject) -> None:
    """Compare the parameters counted with those of the slim variables."""
    pairs = [(count_params(subject.graph), own_params(subject.built.variables))]
    for gates, slim in zip(subject.gates, subject.slim, strict=True):
        pairs.append((count_params(subject.graph, gates), own_params(slim)))
    row.params_agree = all(counted == own for counted, own in pairs)
    if not row.params_agree:
        row.wrong.append(f"parameters counted and owned: {pairs}")


def compare_macs(row: Row, subject: Subject) -> None:
    """Compare the MACs counted with the own count over the programs."""
    built, graph = subject.built, subject.graph
    counted, own = count_macs(graph), _own_macs(built.apply, built.variables, built)
    row.macs_dense, row.macs_whole = (counted, own.nearest(counted)), own.whole
    pairs = []
    for gates, slim in zip(subject.gates, subject.slim, strict=True):
        counted = count_macs(graph, gates)
        own = _own_macs(respecialise(built.apply, graph, gates), slim, built)
        pairs.append((counted, own.nearest(counted)))
    row.macs_slim = (sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs))
    if row.macs_dense[0] != row.macs_dense[1]:
        row.wrong.append("MACs dense: {} counted, {} in the program".format(*row.macs_dense))
    if any(counted != own for counted, own in pairs):
        row.wrong.append("MACs slim: {} counted, {} in the program".format(*row.macs_slim))


class _OwnMacs(NamedTuple):
    """Hold the own count per example, of a program with one and of one with all examples.

    Attributes:
        one: with one example.
        all: with all of them, over their number; more where examples are compared with each other.
        whole: as in ``Counted``.
    """

    one: int
    all: int
    whole: bool

    def nearest(self, counted: int) -> int:
        """Return the one of the two that was counted, or else the first."""
        return self.all if counted == self.all else self.one


def _own_macs(apply: Apply, variables: Variables, built: Built) -> _OwnMacs:
    one, every = (own_macs(apply, variables, built.inputs, size) for size in (1, BATCH))
    return _OwnMacs(one=one.macs, all=every.macs // BATCH, whole=one.whole)


def compare_framework(row: Row, subject: Subject) -> None:
    """Run the function itself on slim variables, and the slim network without its gates."""
    built, slim, wanted = subject.built, subject.slim[0], subject.slim_outputs[0]
    row.framework = _agreement(built.apply, slim, built.inputs, wanted)
    row.widths = _agreement(respecialise(built.apply, subject.graph), slim, built.inputs, wanted)
    if row.widths == "differs":
        row.wrong.append("slim without gates differs from slim with them")


def _agreement(apply: Apply, slim: Variables, inputs: tuple[PyTree, ...], wanted: PyTree) -> str:
    try:
        jax.eval_shape(apply, slim, *inputs)
    except TookTooLongError:
        raise
    except Exception:
        return "refuses"
    return "same" if difference(wanted, compiled(apply, slim, *inputs)) <= 1e-3 else "differs"


_QUESTIONS: dict[str, Callable[[Row, Subject], None]] = {
    "describe": describe,
    "evaluate": compare_evaluation,
    "train": compare_training,
    "count parameters": compare_params,
    "count MACs": compare_macs,
    "run the framework": compare_framework,
}
