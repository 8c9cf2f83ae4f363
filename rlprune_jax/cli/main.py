"""The console command ``rlprune``, a module a subcommand."""

import importlib
import sys

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
        module = importlib.import_module(f"rlprune_jax.cli.{arguments[0]}")
        module.main(f"rlprune {arguments[0]}", arguments[1:])
        return
    wanted = not arguments or arguments[0] in ("-h", "--help")
    stream = sys.stdout if wanted else sys.stderr
    if arguments and not wanted:
        print(f"error: there is no command {arguments[0]!r}", file=stream)
    print("usage: rlprune COMMAND [OPTIONS]; rlprune COMMAND --help says more", file=stream)
    for name, text in COMMANDS.items():
        print(f"  {name:<8} {text}", file=stream)
    raise SystemExit(0 if wanted else 2)
