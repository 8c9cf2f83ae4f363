"""A table of what of a network can be pruned, and why the rest cannot."""

import html
import math
from dataclasses import dataclass

import numpy as np

from rlprune_jax.graph.groups import Frozen, Graph


@dataclass(frozen=True)
class GraphReport:
    """Hold what units own and what is frozen.

    Attributes:
        parameters: of the network.
        owned: how many of them some unit owns.
        rows: for each reason how many axes it freezes, the fraction of the parameters that lie
            along them, and the first few of them.
        remarks: of the graph.
    """

    parameters: int
    owned: int
    rows: tuple[tuple[str, int, float, tuple[str, ...]], ...]
    remarks: tuple[str, ...] = ()

    @property
    def fraction(self) -> float:
        """Return the fraction of the parameters that some unit owns."""
        return self.owned / max(self.parameters, 1)

    def __str__(self) -> str:
        lines = [
            f"{self.fraction:.1%} of {self.parameters:,} parameters belong to a unit",
            "axes without units, by reason (fraction of the parameters along them):",
        ]
        for reason, count, fraction, names in self.rows:
            more = f" and {count - len(names)} more" if count > len(names) else ""
            lines.append(f"  {fraction:6.1%}  {reason}: {', '.join(names)}{more}")
        if not self.rows:
            lines.append("  none")
        return "\n".join([*lines, *(f"note: {remark}" for remark in self.remarks)])

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{html.escape(reason)}</td><td>{count}</td><td>{fraction:.1%}</td>"
            f"<td>{html.escape(', '.join(names))}{' …' if count > len(names) else ''}</td></tr>"
            for reason, count, fraction, names in self.rows
        )
        notes = "".join(f"<p>{html.escape(remark)}</p>" for remark in self.remarks)
        return (
            f"<p>{self.fraction:.1%} of {self.parameters:,} parameters belong to a unit.</p>"
            "<table><thead><tr><th>frozen because</th><th>axes</th><th>parameters</th>"
            f"<th>where</th></tr></thead><tbody>{cells}</tbody></table>{notes}"
        )


SHOWN = 3
"""Axes that a row names."""


def report_graph(graph: Graph) -> GraphReport:
    """Return a table of what is owned and frozen.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import trace_graph
        >>> def apply(variables, x):
        ...     return jax.nn.relu(x @ variables["a"]) @ variables["b"]
        >>> variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
        >>> print(report_graph(trace_graph(apply, variables, jnp.ones((1, 3)))))
        100.0% of 25 parameters belong to a unit
        axes without units, by reason (fraction of the parameters along them):
           60.0%  an input of the function, to which 'dot_general' ties it: a[0]
           40.0%  an output of the function: b[1]
    """
    sizes = {path: math.prod(graph.variables[path].shape) for path in graph.parameters}
    total = max(sum(sizes.values()), 1)
    free = {
        path: math.prod(int(np.sum(axis < 0)) for axis in graph.owners[path])
        for path in graph.parameters
    }
    by_reason: dict[str, list[Frozen]] = {}
    for axis in graph.frozen:
        by_reason.setdefault(axis.reason, []).append(axis)
    rows = []
    for reason, axes in by_reason.items():
        along = sum(sizes.get(path, 0) for path in {axis.path for axis in axes})
        names = [f"{axis.path.removeprefix('params/')}[{axis.axis}]" for axis in axes[:SHOWN]]
        rows.append((reason, len(axes), along / total, tuple(names)))
    return GraphReport(
        parameters=sum(sizes.values()),
        owned=sum(sizes.values()) - sum(free.values()),
        rows=tuple(sorted(rows, key=lambda row: -row[2])),
        remarks=graph.remarks,
    )
