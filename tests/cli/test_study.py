"""The command ``rlprune study``: what it refuses before JAX is imported."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rlprune_jax.cli import study
from rlprune_jax.workflow.studies import conduct

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run a command line that is to be refused, and return what it says."""
    monkeypatch.setattr(conduct, "conduct", lambda options: pytest.fail(f"{options} was accepted"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def refused(line):
        with pytest.raises(SystemExit) as stopped:
            study.main("rlprune study", line.split())
        assert stopped.value.code == 2
        said = capsys.readouterr()
        return said.err + said.out

    return refused


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sap --iterations -1", "iterations=-1 must be at least 1"),
        ("sap --iterations 0", "iterations=0 must be at least 1"),
        ("sap --epochs 0", "epochs=0 must be at least 1"),
        ("sap --epochs -1", "epochs=-1 must be at least 1"),
        ("sap --batch-size 0", "batch_size=0 must be at least 1"),
        ("sap --beta 2", "beta=(2.0,) must be above 0 and at most 1"),
        ("sap --gamma -1", "gamma=(-1.0,) must be finite and above 0"),
        ("sap --gamma 1 1", "gamma=(1.0, 1.0) repeats a value"),
        ("sap --eta-r -0.5", "eta_r=(-0.5,) must be finite and at least 0"),
        ("sap --p nan", "p=(nan,) must be finite"),
        ("sap --p 2 --q 1", "p=(2.0,) must have a number below one of q=(1.0,)"),
        ("sap --metric foo", "metric"),
        ("search --settings 0", "settings=0 must be at least 2"),
        ("search --settings 1", "settings=1 must be at least 2; the first is the defaults"),
        ("search --vary candidates --settings 64", "shapes the program alone; vary a number too"),
        ("search --vary depth", "vary=('depth',) must be among unit_learning_rate"),
        ("search --vary", "vary=() is empty"),
        ("search --around inf", "around=inf must be a finite factor above 1"),
        ("search --around 1", "around=1.0 must be a finite factor above 1"),
        ("search --metric foo", "metric"),
        ("search --strategy pmap", "strategy"),
        ("search --budget latency=3", "is measured on the host"),
        ("search --budget my:energy=3", "is measured on the host"),
        ("search --budget params", "budget='params' must be NAME=LIMIT"),
        ("search --chunk 0", "chunk=0 must be at least 1"),
        ("search --chunk -3", "chunk=-3 must be at least 1"),
        ("search --candidates 300", "candidates=300 an iteration exceed evaluations=256"),
        ("search --candidates 1", "candidates=1 must be at least 2"),
        ("search --vary sharpness candidates --evaluations 24", "below the 32 candidates that"),
        ("search --seeds 0", "seeds=0 must be at least 1"),
        ("search --dataset imagenet", "dataset='imagenet' is unknown; choose from digits"),
        ("search --widths 8 0", "widths=(8, 0) must be above 0"),
        ("search --model resnet19", "model='resnet19' is unknown; choose from mlp"),
        ("proxy --model resnet20 --widths 4", "resnet20 has no such option; it has width"),
        ("sap --model no_such_package:f", "model='no_such_package:f' cannot be imported"),
        ("search --dataset json:", "not of the form package.module:function"),
        ("search --pretrained nowhere", "pretrained='nowhere' does not exist"),
        ("search --data-dir nowhere", "data_dir='nowhere' is no folder"),
        ("search --ignore (", "is no regular expression"),
        ("search --dense-steps 0", "dense_steps=0 must be at least 1"),
        ("search --optuna nodb://x/y", "optuna='nodb://x/y' cannot be opened"),
        ("search --optuna sqlite:////nonexistent/dir/x.db", "cannot be opened"),
        ("search --optuna /proc/nope/x", "optuna='/proc/nope/x' cannot be opened"),
        ("search --trials 9", "trials=9 is read with optuna alone; leave it out"),
        ("search --batch 4", "batch=4 is read with optuna alone"),
        ("search --worker 1", "worker=1 is read with optuna alone"),
        ("search --optuna journal --chunk 4", "chunk=4 is not read with optuna; give batch"),
        ("search --optuna journal --settings 9", "settings=9 is not read with optuna, which"),
        ("sap --optuna journal --p 0.3", "p=(0.3,) is not read with optuna, which draws"),
        ("search --worker -1", "worker=-1 must be at least 0"),
        ("search --optuna journal --trials 0", "trials=0 must be at least 1"),
        ("budgets --limits", "limits=() is empty"),
        ("budgets --limits 0.1 0.1", "limits=(0.1, 0.1) repeats a value"),
        ("budgets --limits 0.1 nan", "limits=(0.1, nan) must be finite and above 0"),
        ("budgets --methods", "methods=() is empty"),
        ("budgets --methods agent agent", "methods=('agent', 'agent') repeats a value"),
        ("budgets --methods grid", "grid"),
        ("budgets --metric foo", "metric"),
        ("budgets --metric accuracy", "metric=accuracy is read after finetuning; give finetune"),
        ("budgets --finetune-steps -1", "finetune_steps=-1 must be at least 0"),
        ("budgets --limits 0.1 --optuna journal", "limits=(0.1,) are one number"),
        ("proxy --candidates 100000", "candidates=100000 must be at most 10000"),
        ("proxy --candidates 2", "candidates=2 must be at least 3"),
        ("proxy --finetune-steps 0", "finetune_steps=0 must be at least 1"),
        ("proxy --finetune-steps -1", "finetune_steps=-1 must be at least 1"),
        ("proxy --metric foo", "metric"),
        ("proxy --optuna journal", "optuna=journal has nothing to choose"),
    ],
)
def test_what_cannot_be_studied_is_refused(command, line, message):
    assert message in command(line)


@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
def test_a_password_is_not_shown(command, kind):
    said = command(f"search --optuna {kind}://u:PASSWORD@localhost/db")
    assert f"{kind}://u:***@localhost/db" in said and "cannot be opened" in said
    assert "PASSWORD" not in said


@pytest.mark.parametrize(
    "line",
    [
        "search --optunas postgresql://u:PASSWORD@localhost/db",
        "search --optuna=mysql://u:PASSWORD@localhost/db --trials x",
        "search postgresql://u:PASSWORD@localhost/db",
        "search --optuna postgresql://localhost/db?user=u&password=PASSWORD",
        "search --optuna nodb://u:PASSWORD@localhost/db --worker -1",
    ],
)
def test_a_password_is_in_no_message(command, line):
    assert "PASSWORD" not in command(line)


def test_the_password_reaches_the_storage_alone(monkeypatch, tmp_path):
    reached = []
    monkeypatch.setattr(study, "work", reached.append)
    line = "search --optuna postgresql://u:PASSWORD@localhost/db"
    study.main("rlprune study", line.split())
    study.main("rlprune study", line.replace(" postgres", "=postgres").split())
    for options in reached:
        assert options.optuna.secret == "postgresql://u:PASSWORD@localhost/db"
        assert "PASSWORD" not in f"{options!r} {options.record()} {options.identity()}"
    assert len(reached) == 2


def in_a_fresh_process(*line):
    program = (
        "import sys; from rlprune_jax.cli.main import main\n"
        f"sys.argv = ['rlprune', 'study', *{line!r}]\n"
        "try: main()\n"
        "finally: assert 'jax' not in sys.modules, 'JAX was imported'\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime - before.ru_utime


def test_help_and_refusals_come_without_jax():
    done, seconds = in_a_fresh_process("search", "--help")
    assert done.returncode == 0, done.stderr
    assert "--unit" not in done.stdout and "--settings" in done.stdout
    assert seconds < 2.0  # measured: 0.4
    done, _ = in_a_fresh_process("--help")
    assert all(word in done.stdout for word in ("search", "budgets", "sap", "proxy"))
    done, _ = in_a_fresh_process("sap", "--help")
    assert all(f"--{option} " in done.stdout for option in ("gamma", "model", "pretrained"))
    unread = ("budget", "dense-steps", "reward-images", "granularity", "constraint", "evaluations")
    assert not any(f"--{option} " in done.stdout for option in unread)
    done, _ = in_a_fresh_process("sap", "--beta", "2")
    assert done.returncode == 2 and done.stderr.startswith("error: beta=(2.0,)"), done.stderr
