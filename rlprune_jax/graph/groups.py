"""Groups of coupled units, what each unit owns, and what is frozen and why."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import jax
import numpy as np

from rlprune_jax.checks import require_type
from rlprune_jax.graph.memo import Memo
from rlprune_jax.kept import is_kept
from rlprune_jax.types import Gates

if TYPE_CHECKING:
    from rlprune_jax.graph.report import GraphReport

PRODUCER, FOLLOWER, CONSUMER = "producer", "follower", "consumer"


@dataclass(frozen=True, eq=False)
class Slot:
    """Hold what units own of one axis of a variable.

    Attributes:
        path: of the variable, as in ``"params/Conv_0/kernel"``.
        axis: of that variable.
        role: ``"producer"`` (an out-axis of weights), ``"consumer"`` (an in-axis of weights) or
            ``"follower"`` (bias, norm scale, running statistics).
        indices: int32[units, multiplicity], the indices along the axis that each unit owns.
    """

    path: str
    axis: int
    role: str
    indices: np.ndarray


@dataclass(frozen=True)
class Group:
    """Hold units that own the same slots.

    Removing a unit removes all that it owns, in every slot.

    Attributes:
        name: the path of the first weights that make the units, without collection and leaf name.
        size: number of units.
        first: number of the group's first unit when all units of a graph are counted through.
        slots: what the units own.
        branches: for each unit of the group of residual branches the paths of the variables that
            it owns whole; () of every other group.
        are_layers: whether the units are the steps of a loop over residual layers.
        least: units that must be kept: more than one where a ``top_k`` takes so many.
    """

    name: str
    size: int
    first: int
    slots: tuple[Slot, ...] = field(repr=False)
    branches: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    are_layers: bool = False
    least: int = 1

    def slots_of(self, role: str) -> tuple[Slot, ...]:
        """Return the slots with this role."""
        return tuple(slot for slot in self.slots if slot.role == role)


@dataclass(frozen=True)
class Frozen:
    """Hold an axis that no unit owns, and why.

    Attributes:
        path: of the variable.
        axis: of it.
        size: how many indices of the axis no unit owns.
        reason: the first that was met, with the primitive and the line of the user's code.
        role: ``"producer"``, ``"consumer"`` or ``"follower"``, as of a `Slot`.
    """

    path: str
    axis: int
    size: int
    reason: str
    role: str = PRODUCER


@dataclass(frozen=True, eq=False)
class Layer:
    """Describe one contraction, a convolution or a dot.

    Attributes:
        name: path of its weights without the leaf name; of a dot of activations ``"dot"``.
        kind: ``"convolution"`` or ``"dot"``.
        factors: for each axis whose sizes multiply to the MACs of a batch, the unit that each index
            belongs to, int32[size], -1 where it is always kept.
        reads: units that are summed over, as in ``factors``.
        makes: units that the weights produce, as in ``factors``.
        space: output height and width of a convolution, ``()`` of a dot.
        kernel: kernel height and width of a convolution, ``()`` of a dot.
        runs: how often it runs for the batch that was traced: the length of the loops around it;
            what depends on no input is counted once for every example.
    """

    name: str
    kind: str
    factors: tuple[np.ndarray, ...]
    reads: tuple[np.ndarray, ...]
    makes: tuple[np.ndarray, ...]
    space: tuple[int, ...]
    kernel: tuple[int, ...]
    runs: int = 1


@dataclass(frozen=True, eq=False)
class Graph:
    """Hold the groups of coupled units of a network.

    Made by ``trace_graph``.

    Attributes:
        groups: in depth order.
        frozen: every axis longer than one of every variable that no unit owns, with the reason.
        layers: the contractions, in the order of the program.
        variables: path -> ``jax.ShapeDtypeStruct`` of each variable.
        owners: path -> for each axis int32[size], the unit that owns each index, -1 for none.
        parameters: paths of the variables that count as parameters.
        batch: number of examples that the network was traced with.
        remarks: what else to know, as a loop whose MACs are counted for one trip.
        programs: functions of the variables that were matched with the graph, so that none is
            traced twice.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    layers: tuple[Layer, ...]
    variables: dict[str, jax.ShapeDtypeStruct]
    owners: dict[str, tuple[np.ndarray, ...]]
    parameters: tuple[str, ...]
    batch: int
    remarks: tuple[str, ...] = ()
    programs: Memo = field(default_factory=Memo, repr=False)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the names of the groups in depth order."""
        return tuple(group.name for group in self.groups)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Return the sizes of the groups in depth order."""
        return tuple(group.size for group in self.groups)

    @cached_property
    def units(self) -> int:
        """Return the number of units of all groups."""
        return sum(self.sizes)

    @cached_property
    def group_of_unit(self) -> np.ndarray:
        """Return int32[units], the number of each unit's group."""
        return np.repeat(np.arange(len(self.groups), dtype=np.int32), self.sizes)

    @cached_property
    def branch_of(self) -> dict[str, int]:
        """Return the unit of each variable's residual branch."""
        return {
            path: group.first + number
            for group in self.groups
            for number, paths in enumerate(group.branches)
            for path in paths
        }

    @cached_property
    def layers_are_units(self) -> bool:
        """Return whether steps of a loop over layers are units."""
        return any(group.are_layers for group in self.groups)

    def extents(self, path: str) -> tuple[np.ndarray, ...]:
        """Return the owners of a variable's axes and branch.

        The sizes of what is kept of each multiply to the variable's size.
        """
        branch = self.branch_of.get(path)
        own = self.owners[path]
        return own if branch is None else (*own, np.array([branch], np.int32))

    def alive(self, path: str, kept: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return which indices of a variable's axes are kept.

        Args:
            path: of the variable.
            kept: bool[units + 1], which units are; the last entry is True.
        """
        axes = tuple(kept[units] for units in self.owners[path])
        branch = self.branch_of.get(path)
        if branch is None or kept[branch]:
            return axes
        return tuple(np.zeros_like(axis) for axis in axes)

    def group(self, name: str) -> Group:
        """Return the group called ``name``.

        Raises:
            KeyError: there is none; the message lists the names.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(f"group {name!r} is not in the graph; it has {', '.join(self.names)}")

    def __str__(self) -> str:
        parameters = sum(math.prod(self.variables[path].shape) for path in self.parameters)
        macs = sum(layer.runs * math.prod(map(len, layer.factors)) for layer in self.layers)
        macs //= self.batch
        lines = [
            f"{len(self.groups)} groups with {self.units} units; "
            f"{parameters:,} parameters, {macs:,} MACs per example"
        ]
        width = max([len(name) for name in self.names], default=0)
        for group in self.groups:
            owned = "; ".join(
                f"{verb} {', '.join(map(_slot_text, group.slots_of(role)))}"
                for role, verb in [
                    (PRODUCER, "made by"),
                    (FOLLOWER, "with"),
                    (CONSUMER, "read by"),
                ]
                if group.slots_of(role)
            )
            if group.branches:
                counts = sorted({len(paths) for paths in group.branches})
                owned = f"residual branches of {' or '.join(map(str, counts))} variables each"
            lines.append(f"  {group.name:<{width}} {group.size:>5} units  {owned}")
        makers = [axis for axis in self.frozen if axis.role == PRODUCER]
        if makers:
            lines.append("frozen:")
        for axis in makers:
            lines.append(f"  {_short(axis.path)}[{axis.axis}] {axis.size} units: {axis.reason}")
        if others := len(self.frozen) - len(makers):
            lines.append(f"  and {others} other axes; graph.report() says why of each")
        lines += [f"note: {remark}" for remark in self.remarks]
        return "\n".join(lines)

    def report(self) -> "GraphReport":
        """Return a table of what is frozen and why.

        Print it, or let a notebook show it.
        """
        from rlprune_jax.graph.report import report_graph

        return report_graph(self)

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()


def _slot_text(slot: Slot) -> str:
    times = slot.indices.shape[1]
    return f"{_short(slot.path)}[{slot.axis}]" + (f" x{times}" if times > 1 else "")


def _short(path: str) -> str:
    return path.removeprefix("params/")


def ones_gates(graph: Graph) -> Gates:
    """Return gates that keep every unit.

    Args:
        graph: of the network.

    Returns:
        Group name -> f32[units] of ones.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
        >>> ones_gates(trace_graph(apply, variables, jnp.ones((1, 3))))["a"].shape
        (5,)
    """
    check_graph(graph)
    return {group.name: jax.numpy.ones(group.size, jax.numpy.float32) for group in graph.groups}


def check_graph(graph: object) -> None:
    """Refuse what is no graph.

    Raises:
        TypeError: it is something else.
    """
    require_type("graph", graph, Graph, "make it by trace_graph(apply, variables, x)")


def check_gates(graph: Graph, gates: Gates, *, binary: bool = False) -> None:
    """Check that gates fit a graph.

    Values are looked at only where they are concrete.

    Args:
        graph: of the network.
        gates: group name -> f32[units].
        binary: whether gates other than 0 and 1, and gates not known yet, are refused.

    Raises:
        TypeError: not a dictionary of arrays, or, if ``binary``, a traced array.
        ValueError: a group is missing or unknown, a shape is wrong, or a gate is NaN, below 0,
            above 1 or, if ``binary``, neither 0 nor 1.
    """
    check_graph(graph)
    if not isinstance(gates, dict):
        raise TypeError(
            f"gates must be a dict group name -> f32[units], got {type(gates).__name__}"
        )
    unknown, missing = set(gates) - set(graph.names), set(graph.names) - set(gates)
    if unknown or missing:
        raise ValueError(
            f"gates must name the groups of the graph, {', '.join(graph.names)}; "
            f"unknown: {sorted(unknown)}, missing: {sorted(missing)}"
        )
    for group in graph.groups:
        gate = gates[group.name]
        if not hasattr(gate, "dtype"):
            raise TypeError(
                f"gates[{group.name!r}] is a {type(gate).__name__}; pass an array "
                f"f32[{group.size}], as jax.numpy.asarray makes it"
            )
        if np.shape(gate) != (group.size,):
            raise ValueError(
                f"gates[{group.name!r}] has shape {np.shape(gate)}, needs ({group.size},)"
            )
        if isinstance(gate, jax.core.Tracer):
            if binary:
                raise TypeError(
                    f"gates[{group.name!r}] is traced, but the shapes of a slim network depend on "
                    "its values; pass concrete gates, from outside of jit and vmap"
                )
            continue
        values = np.asarray(gate)
        if values.dtype.kind in "OSU":
            raise TypeError(
                f"gates[{group.name!r}] holds {values.dtype}; pass numbers, f32[{group.size}]"
            )
        allowed = (values == 0) | (values == 1) if binary else (values >= 0) & (values <= 1)
        if not allowed.all():
            worst = values[~allowed][0]
            wanted = "0 or 1" if binary else "between 0 and 1"
            raise ValueError(f"gates[{group.name!r}] holds {worst}; every gate must be {wanted}")


def kept_mask(graph: Graph, gates: Gates) -> np.ndarray:
    """Return which units concrete gates keep.

    Args:
        graph: of the network.
        gates: group name -> f32[units], concrete; soft ones keep from 0.5 (``is_kept``).

    Returns:
        bool[units + 1], all groups in depth order, then True for indices without a unit.
    """
    # On the host, for inside of jit even an operation on concrete arrays is traced.
    rows = [is_kept(np.asarray(gates[name])) for name in graph.names]
    return np.concatenate([*rows, np.ones(1, bool)])
