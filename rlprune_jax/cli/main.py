"""The console command ``rlprune``, a module a subcommand."""

import importlib
import sys
from collections.abc import Sequence

from rlprune_jax.places import open_streams
from rlprune_jax.runs.interruption import interruptible

COMMANDS = {
    "prune": "search, prune, finetune and ship a network within budgets",
    "sap": "prune single weights by the PQ Index, beside lottery ticket and one-shot",
    "study": "run many settings and seeds in one program",
    "predict": "evaluate a slim network from its files",
    "inspect": "print what of a network can be pruned, and what budgets can reach",
}
"""Subcommands, each a module of this package with a function ``main(prog, args)``."""


def main() -> None:
    """Run the subcommand that the command line names."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        run_subcommand(arguments[0], f"rlprune {arguments[0]}", arguments[1:])
        return
    wanted = not arguments or arguments[0] in ("-h", "--help")
    stream = sys.stdout if wanted else sys.stderr
    if arguments and not wanted:
        print(f"error: there is no command {arguments[0]!r}", file=stream)
    print("usage: rlprune COMMAND [OPTIONS]; rlprune COMMAND --help says more", file=stream)
    for name, text in COMMANDS.items():
        print(f"  {name:<8} {text}", file=stream)
    raise SystemExit(0 if wanted else 2)


def run_subcommand(name: str, prog: str, arguments: Sequence[str]) -> None:
    """Import a subcommand and run it.

    Ctrl-C ends it without a traceback from here on, while its options are imported and while the
    process ends too: call it last.

    Args:
        name: among ``COMMANDS``.
        prog: as ``--help`` calls it.
        arguments: what follows its name.
    """
    open_streams()
    with interruptible(final=True):
        module = importlib.import_module(f"rlprune_jax.cli.{name}")
        module.main(prog, arguments)
