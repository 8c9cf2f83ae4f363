"""Networks as people write them: what of each can be pruned, and is anything wrong?

Command:  python benchmarks/check_networks.py --markdown docs/networks.md --json networks.json
Packages: pip install -e ".[networks]"; networks of packages that are not installed are left out.

Each row is one network, with random variables: is there a graph, in how many seconds; the share of
parameters that some unit owns, and the share that is left where every group keeps half its units;
the largest difference of the masked and the slim network over three random draws of gates, in
evaluation and in training mode, and of all gates 1 and the dense network; whether parameters and
MACs are those that an own count finds in the slim arrays and in the programs (loops times their
length). A network that fails is a row too. The last line is one JSON object.
"""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import tyro
from checked_networks import all_cases
from checked_networks.case import Case
from checked_networks.checks import Row, check
from checked_networks.table import markdown, progress, summarise

from rlprune_jax.cli.common import enable_compilation_cache
from rlprune_jax.devices import describe_device, versions

QUICK = (
    "gpt_linen",
    "llama_scan",
    "convnext_linen",
    "resnet_basic",
    "lstm_linen",
    "mlp_norm_layer",
    "cond_of_branches",
    "moe_dense_mixture",
)
"""Networks of ``--quick``, one of each kind."""


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Options of the check."""

    only: str = ""
    """Regular expression of the names to check (``re.search``); all by default."""
    package: str = ""
    """Regular expression of the packages to check; "own" are those written here."""
    quick: bool = False
    """Eight networks of our own, for a minute."""
    seconds: float = 180.0
    """After which a network is given up; 0 sets no limit."""
    json: str = ""
    """File for all rows."""
    markdown: str = ""
    """File for the table."""
    list: bool = False
    """Print names, families and packages, and stop."""


def chosen(options: NetworkOptions) -> list[Case]:
    """Return the networks that the options ask for.

    Raises:
        SystemExit: there are none.
    """
    cases = [
        case
        for case in all_cases()
        if re.search(options.only, case.name)
        and re.search(options.package, case.package)
        and (not options.quick or case.name in QUICK)
    ]
    if not cases:
        raise SystemExit(
            f"--only {options.only!r} --package {options.package!r} match no network; see --list"
        )
    return cases


def check_all(cases: Sequence[Case], seconds: float) -> list[Row]:
    """Check networks, one after another, and print a line about each."""
    rows = []
    for number, case in enumerate(cases, start=1):
        row = check(case, seconds)
        print(f"{number:3d}/{len(cases)} {progress(row)}", flush=True)
        rows.append(row)
        if number % 20 == 0:
            # Each program runs a few times only; what was compiled would fill the memory.
            jax.clear_caches()
    return rows


def main(options: NetworkOptions) -> dict[str, object]:
    """Check, write the files, print and return the last line."""
    enable_compilation_cache()
    cases = chosen(options)
    if options.list:
        for case in cases:
            print(f"{case.name:40s} {case.family:16s} {case.package}")
        return {}
    rows = check_all(cases, options.seconds)
    line = summarise(rows) | {"versions": versions(), "hardware": describe_device()}
    if options.json:
        found = {"summary": line, "rows": [dataclasses.asdict(row) for row in rows]}
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    if options.markdown:
        Path(options.markdown).write_text(markdown(rows, line))
    print(json.dumps(line))
    return line


if __name__ == "__main__":
    main(tyro.cli(NetworkOptions, description=__doc__))
