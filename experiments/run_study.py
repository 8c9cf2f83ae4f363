"""Run a study: hundreds of settings and seeds in one program, resumable, with a page of results.

Commands: python experiments/run_study.py search --settings 64 --seeds 4
          python experiments/run_study.py budgets --limits 0.02 0.05 0.1 0.2 --seeds 4
          python experiments/run_study.py sap --p 0.2 0.5 1.0 --q 1.0 2.0 --seeds 4
          python experiments/run_study.py proxy --model cnn --candidates 32
          python experiments/run_study.py search --optuna study.journal --worker 0

The same as ``rlprune study``, whose --help says more. Hardware: any; the first command takes a few
minutes on two CPU cores.
"""

import sys

from rlprune_jax.cli.main import run_subcommand

if __name__ == "__main__":
    run_subcommand("study", "run_study.py", sys.argv[1:])
