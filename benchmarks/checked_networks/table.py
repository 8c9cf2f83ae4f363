"""Rows of the check as lines of progress, a table in Markdown and a summary."""

from collections.abc import Sequence

from checked_networks.checks import Row

AIMED = ("transformer", "convnext", "rnn")
"""Families of which every network shall be prunable nearly whole."""

OWNED, LEFT = 0.99, 0.32
"""What is aimed at for ``AIMED``: share of parameters owned, and left at half the units."""


def progress(row: Row) -> str:
    """Return a line about one network."""
    said = f"{row.name:36s} {row.total_seconds or 0:5.1f} s  "
    if not row.traces:
        return said + "; ".join(row.errors)
    said += f"{row.groups:3d} groups, {_percent(row.owned)} owned, {_percent(row.left)} left"
    if row.evaluation is not None:
        said += f", masked to slim {row.evaluation:.0e}"
    if row.training is not None:
        said += f", in training {row.training:.0e}"
    return said + "".join(f"; WRONG {each}" for each in row.wrong) + _remarks(row)


def _remarks(row: Row) -> str:
    return "".join(f" [{each}]" for each in row.errors)


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:5.1f} %"


def summarise(rows: Sequence[Row]) -> dict[str, object]:
    """Return the counts of the last line.

    Keys say what is counted; ``aimed`` are the networks of the families in ``AIMED``.
    """
    aimed = [row for row in rows if row.family in AIMED]
    reached = [row for row in aimed if row.traces and (row.owned or 0) >= OWNED]
    reached = [row for row in reached if row.left is not None and row.left <= LEFT]
    built = [row for row in rows if not any(each.startswith("build") for each in row.errors)]
    return {
        "networks": len(rows),
        "built": len(built),
        "traced": sum(row.traces for row in rows),
        "wrong": [row.name for row in rows if row.wrong],
        "failed": [row.name for row in rows if row.errors],
        "compared_in_training": sum(row.training is not None for row in rows),
        "aimed": len(aimed),
        "aimed_reached": len(reached),
        "aimed_missed": [row.name for row in aimed if row not in reached],
        "seconds": round(sum(row.total_seconds or 0 for row in rows), 1),
    }


def markdown(rows: Sequence[Row], summary: dict[str, object]) -> str:
    """Return the page of all networks."""
    lines = [
        "# Networks that the graph was checked on",
        "",
        "Written by `python benchmarks/check_networks.py --markdown docs/networks.md`, whose first",
        "lines say what is asked. Widths are small and variables random. *Owned*: share of the",
        "parameters that some unit owns. *Left*: share that is left where every group keeps half",
        "of its units. *Evaluation*, *training*: largest difference of the masked and the slim",
        "network over three draws of gates, relative to the largest output. *Gates 1*: of all",
        "gates 1 and the dense network. *Counts*: parameters and MACs are those of an own count",
        "over the slim arrays and programs. *Framework*: what the network's own code does with the",
        "slim variables as they are: the same, something else, or refuse them (modules whose",
        "widths are attributes).",
        "",
        f"{summary['traced']} of {summary['networks']} networks have a graph; "
        f"{len(_names(summary['wrong']))} rows are wrong; {summary['aimed_reached']} of "
        f"{summary['aimed']} transformers, ConvNeXts and recurrent networks are at least "
        f"{100 * OWNED:.0f} % owned and at most {100 * LEFT:.0f} % left.",
        "",
    ]
    for package in dict.fromkeys(row.package for row in rows):
        lines += [f"## {'Written here' if package == 'own' else package}", "", *_HEAD]
        lines += [_table_line(row) for row in rows if row.package == package]
        lines.append("")
    return "\n".join(lines)


def _names(value: object) -> list[str]:
    return list(value) if isinstance(value, list) else []


_COLUMNS = (
    "network",
    "family",
    "groups",
    "owned",
    "left",
    "evaluation",
    "training",
    "gates 1",
    "counts",
    "framework",
    "trace, s",
)
_HEAD = [
    "| " + " | ".join(_COLUMNS) + " |",
    "|" + "---|" * 2 + "---:|" * 6 + "---|" * 2 + "---:|",
]


def _table_line(row: Row) -> str:
    cells = [row.name.removeprefix(f"{row.package}/"), row.family]
    if not row.traces:
        error = "; ".join(row.errors).replace("|", "\\|")[:120]
        return "| " + " | ".join([*cells, "none: " + error, *[""] * (len(_COLUMNS) - 3)]) + " |"
    cells += [
        str(row.groups),
        _percent(row.owned).strip(),
        _percent(row.left).strip(),
        _number(row.evaluation),
        _number(row.training),
        _number(row.dense),
        _counts(row),
        row.framework or "-",
        f"{row.seconds:.2f}",
    ]
    line = "| " + " | ".join(cells) + " |"
    return line if not row.wrong else line[:-2] + " **" + "; ".join(row.wrong) + "** |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}" if value else "0"


def _counts(row: Row) -> str:
    macs = row.macs_dense is not None and row.macs_slim is not None
    if not macs or row.params_agree is None:
        return "-"
    assert row.macs_dense is not None and row.macs_slim is not None
    agree = row.macs_dense[0] == row.macs_dense[1] and row.macs_slim[0] == row.macs_slim[1]
    said = "agree" if agree and row.params_agree else "differ"
    return said if row.macs_whole else said + ", per trip"
