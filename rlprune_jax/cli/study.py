"""Run a study: hundreds of settings and seeds in one program, resumable, with a page of results.

Commands: rlprune study search --settings 64 --seeds 4
          rlprune study budgets --limits 0.02 0.05 0.1 0.2 --seeds 4
          rlprune study sap --p 0.2 0.5 1.0 --q 1.0 2.0 --seeds 4
          rlprune study proxy --model cnn --candidates 32
          rlprune study search --optuna study.journal --worker 0

``search`` varies the agent's hyper-parameters; ``budgets`` draws the front of accuracy and cost,
with baselines beside; ``sap`` varies adaptive pruning; ``proxy`` asks how well rewards predict the
finetuned accuracy. Networks and data may be yours, given as package.module:function like those of
``rlprune prune``; rewards and accuracies are then the task's metric, whose name result.json tells
as task_metric. The run directory, printed last, holds study/ (chunks and the tidy table),
summary.csv, result.json and report.html. The same command resumes an interrupted study, or says
that it is finished; one with more --settings or --trials extends it. Many hosts: add --coordinator
HOST:PORT --num-processes N --process-id I, or set RLPRUNE_DISTRIBUTED=1 where the cluster tells JAX
by itself. Many independent workers: --optuna FILE or DATABASE, each its --worker.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Union

import tyro

from rlprune_jax.addresses import hide_password
from rlprune_jax.cli.common import run_command
from rlprune_jax.workflow.studies import STUDIES, Study

_EACH = tuple(Annotated[study, tyro.conf.subcommand(name)] for name, study in STUDIES.items())

OPTIONS: object = Annotated[Union[_EACH], tyro.conf.OmitSubcommandPrefixes]  # noqa: UP007
"""Options of all studies, a subcommand each."""


def main(prog: str | None = None, args: Sequence[str] | None = None) -> None:
    """Run the study that the command line names.

    Passwords in it are hidden before it is read, so that no message about a wrong option shows one.
    """
    options: type = OPTIONS  # type: ignore[assignment]
    given = sys.argv[1:] if args is None else list(args)
    shown = [hide_password(each) for each in given]
    secrets = {
        mask.rpartition("--optuna=")[2]: each.rpartition("--optuna=")[2]
        for mask, each in zip(shown, given, strict=True)
        if mask != each
    }

    def job(found: object) -> Path:
        assert isinstance(found, Study)
        secret = secrets.get(found.optuna or "")
        return work(found if secret is None else dataclasses.replace(found, optuna=secret))

    run_command(job, options, __doc__, prog=prog, args=shown, saved="chunk")


def work(options: Study) -> Path:
    """Run a study from its options.

    JAX is imported once they are right.
    """
    options.check()
    from rlprune_jax.study import one_device_per_core
    from rlprune_jax.workflow.studies.conduct import conduct

    one_device_per_core()
    return conduct(options)
