"""Evaluate a slim network from its files: the command ``rlprune predict`` as a script.

Command:   python experiments/predict.py runs/prune_rl-0123456789
Hardware:  any
Minutes:   less than 1
Expected:  a line of JSON with ``"reproduced": true``; else the exit code is 1
"""

import sys

from rlprune_jax.cli.main import run_subcommand

if __name__ == "__main__":
    run_subcommand("predict", "predict.py", sys.argv[1:])
