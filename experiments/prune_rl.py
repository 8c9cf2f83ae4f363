"""Prune a network to budgets: the command ``rlprune prune`` as a script.

Command:   python experiments/prune_rl.py --dataset digits --budget params=0.1 --budget macs=0.3
Hardware:  2 CPU cores
Minutes:   2 from a clone with nothing compiled
Expected:  99 % test accuracy where dense has 98 %, both budgets respected

The last line on stdout is the run directory. Options: ``--help``.
"""

import sys

from rlprune_jax.cli.main import run_subcommand

if __name__ == "__main__":
    run_subcommand("prune", "prune_rl.py", sys.argv[1:])
