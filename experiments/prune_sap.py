"""Iterative pruning by the PQ Index (SAP) beside lottery ticket, one-shot and random pruning.

Command:   python experiments/prune_sap.py --dataset fashion_mnist --data-dir DIR --model mlp
Hardware:  two CPU cores
Minutes:   12, for 4 seeds of 4 methods, each with 31 trainings of 3 epochs
Expected:  measured with --decayed kernels: SAP (0.5, 1) ends with 17.7 % of the weights at 88.5 %
           test accuracy, SAP (1, 2) with 0.8 % at 84.7 %, the lottery ticket with 0.13 % at 76.5 %

The same as ``rlprune sap``, whose --help lists the options. The run directory, printed last, holds
result.json, metrics.jsonl and report.html.
"""

import sys

from rlprune_jax.cli.main import run_subcommand

if __name__ == "__main__":
    run_subcommand("sap", "prune_sap.py", sys.argv[1:])
