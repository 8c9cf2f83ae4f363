"""Wrong command lines: each ends with exit 2 and says which option, before anything is computed.

The first lists are the lines that a stranger typed, each through the whole command; the last sets
every option of every command to every wrong number that its type allows.
"""

import dataclasses
import functools
import importlib.util
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from rlprune_jax.cli import inspect, predict, prune, sap, study
from rlprune_jax.cli.inspect import InspectOptions
from rlprune_jax.cli.options import PruneOptions, resolved
from rlprune_jax.cli.sap import SapOptions
from rlprune_jax.cli.sap import resolved as resolved_sap
from rlprune_jax.sealed import write_sealed
from rlprune_jax.workflow import building
from rlprune_jax.workflow.studies import STUDIES, conduct

COMMANDS = {
    "prune": prune.main,
    "sap": sap.main,
    "study": study.main,
    "inspect": inspect.main,
    "predict": predict.main,
    "compare": lambda prog, args: script("compare_methods").run_command(
        script("compare_methods").compare,
        script("compare_methods").CompareOptions,
        None,
        prog=prog,
        args=args,
    ),
}


@functools.cache
def script(name):
    """Load a script of the folder ``experiments``."""
    file = Path(__file__).parents[2] / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their types up
    spec.loader.exec_module(module)
    return module


B = "prune --budget params=0.2"

WRONG = f"""
prune | no budget is given
prune --budget | --budget
prune --budget params | 'params' is not of the form NAME=LIMIT
prune --budget flops=0.5 | 'flops' is unknown
prune --budget params=0 | must be a fraction of the dense network
prune --budget params=2x | must be a fraction of the dense network
prune --budget params=nan | 'nan' is not a number
prune --budget params=0.2 --budget params=0.3 | given twice
prune --budget-fn costs | module:function=LIMIT
{B} --width 0.25 | width=0.25: cnn has no such option
{B} --pools 4 | pools=4: cnn has no such option
{B} --pools 6 --model vgg11 | pools=6 must be from 0 to 5
{B} --width nan --model vgg11 | width=nan must be finite
{B} --width 0 --model vgg11 | width=0.0 must be finite and above 0
{B} --widths 0 | widths=(0,) must be above 0
{B} --widths x | --widths
{B} --model resnet19 | model='resnet19' is unknown
{B} --model nowhere:f | cannot be imported
{B} --model : | not of the form package.module:function
{B} --dataset imagenet | dataset='imagenet' is unknown
{B} --dataset text | reads images
{B} --data-dir /nonexistent | data_dir='/nonexistent' is no folder
{B} --pretrained /nonexistent | pretrained='/nonexistent' does not exist
{B} --ignore ( | is no regular expression
{B} --metric f1 | metric='f1' is unknown
{B} --seed 99999999999 | seed=99999999999 must be an integer from 0
{B} --seed -1 | seed=-1 must be an integer from 0
{B} --seed 1.5 | --seed
{B} --evaluations 0 | evaluations=0 must be at least 1
{B} --evaluations 1e3 | --evaluations
{B} --evaluations 99999999999999999999 | must be at most 2147483647
{B} --candidates 1 --evaluations 4 | candidates=1 must be at least 2
{B} --candidates 900 | candidates=900 must be at most evaluations=768
{B} --batch-size 0 | batch_size=0 must be at least 1
{B} --dense-steps 0 | dense_steps=0 must be at least 1
{B} --dense-rate 0 | dense_rate=0.0 must be finite and above 0
{B} --dense-rate inf | dense_rate=inf must be finite
{B} --dense-rule lion | --dense-rule
{B} --finetune-rate nan | finetune_rate=nan must be a finite number
{B} --finetune-rate -1 | finetune_rate=-1.0 must be
{B} --finetune-steps -1 | finetune_steps=-1 must be at least 0
{B} --chunk 0 | chunk=0 must be at least 1
{B} --chunk -1 | chunk=-1 must be at least 1
{B} --save-seconds -1 | save_seconds=-1.0 must be
{B} --save-seconds nan | save_seconds=nan must be
{B} --baselines uniform uniform | must be each method once
{B} --baselines grid | --baselines
{B} --runs-dir EMPTY | runs_dir='' is empty
{B} --min-keep 0 | min_keep=0 must be at least 1
{B} --round-to 0 | round_to=0 must be at least 1
{B} --min-keep-of conv | min_keep_of='conv' is not of the form REGEX=N
{B} --tile 4 4 | tile=(4, 4) would do nothing
{B} --tile 4 | --tile
{B} --latency-steps 9 | latency_steps=9 would do nothing
{B} --kv-layers ( | kv_layers
{B} --cost-seconds 0 | cost_seconds=0.0 must be above 0
{B} --cost-answers 1 | cost_answers=1 must be at least 2
{B} --reward loss9 | --reward
{B} --reward-finetune -1 | reward_finetune=-1 must be at least 0
{B} --start-evaluations 9 | start_evaluations
{B} --repair maybe | --repair
{B} --seeds 3 | --seeds
{B} extra | extra
sap --q inf --p 0.5 | q=inf must be finite
sap --p 0.5 0.5 --q 1 1 | hold the pair (0.5, 1.0) twice
sap --p 2 --q 1 | p=2.0 must be below q=1.0
sap --p 0.5 --q 1 2 | must be as many
sap --rate 0 | rate=0.0 must be above 0 and below 1
sap --rate 1 | rate=1.0 must be above 0 and below 1
sap --batch-size 5000 | batch_size=5000 is above the 1437 training images
sap --train-images 100 | batch_size=250 is above the 100
sap --train-images 5000 | train_images=5000 is above the 1437
sap --learning-rate nan | learning_rate=nan must be finite
sap --learning-rate 0 | learning_rate=0.0 must be finite and above 0
sap --learning-rate -1 | learning_rate=-1.0 must be finite and above 0
sap --batch-statistics foo | --batch-statistics
sap --model resnet19 | model='resnet19' is unknown
sap --widths 0 | widths=(0,) must be above 0
sap --method sap sap | each once
sap --method | method
sap --iterations 0 | iterations=0 must be at least 1
sap --epochs 0 | epochs=0 must be above rewind_epoch=0
sap --rewind-epoch -1 | rewind_epoch=-1 must be at least 0
sap --seeds 0 | seeds=0 must be at least 1
sap --seed 4294967295 | gives seeds up to 4294967298
sap --beta 2 | beta=2.0 must be above 0 and at most 1
sap --gamma -1 | gamma=-1.0 must be above 0
sap --eta-r nan | eta_r=nan must be
sap --runs-dir EMPTY | runs_dir='' is empty
study | study
study frobnicate | frobnicate
study sap --iterations -1 | iterations=-1 must be at least 1
study sap --batch-size 0 | batch_size=0 must be at least 1
study sap --epochs 0 | epochs=0 must be at least 1
study sap --beta 2 | beta=(2.0,) must be above 0
study sap --gamma -1 | gamma=(-1.0,) must be finite
study search --settings 1 | settings=1 must be at least 2
study search --vary candidates --settings 64 | vary a number too
study search --around inf | around=inf must be
study search --metric foo | --metric
study search --budget latency=3 | is measured on the host
study search --strategy pmap | --strategy
study search --chunk 0 | chunk=0 must be at least 1
study search --chunk -3 | chunk=-3 must be at least 1
study search --candidates 300 | candidates=300
study search --worker -1 | worker=-1 must be at least 0
study search --seeds 99999999999 | seeds=99999999999 must be at most
study search --optuna nodb://x/y | cannot be opened
study search --optuna sqlite:////nonexistent/dir/x.db | cannot be opened
study search --optuna /proc/nope/x | cannot be opened
study search --optuna EMPTY | optuna='' cannot be opened
study budgets --limits | limits=() is empty
study budgets --limits 0.1 0.1 | repeats a value
study budgets --methods | methods=() is empty
study budgets --methods agent agent | repeats a value
study budgets --metric foo | --metric
study budgets --finetune-steps -1 | finetune_steps=-1 must be at least 0
study proxy --candidates 100000 | candidates=100000 must be at most
study proxy --finetune-steps 0 | finetune_steps=0 must be at least 1
study proxy --metric foo | --metric
study proxy --optuna journal | has nothing to choose
inspect --model resnet19 | model='resnet19' is unknown
inspect --input-shape | input_shape=() must be above 0
inspect --input-shape 0 3 | input_shape=(0, 3) must be above 0
inspect --input-shape 8 8 1 --dataset digits | give either dataset
inspect --classes 0 | classes=0 must be at least 1
inspect --classes -1 | classes=-1 must be at least 1
inspect --dataset imagenet | dataset='imagenet' is unknown
inspect --min-keep 0 | min_keep=0 must be at least 1
inspect --round-to -2 | round_to=-2 must be at least 1
inspect --model gpt --dataset digits | reads text
compare | no budget is given
compare --seeds 0 --budget params=0.2 | seeds=0 must be at least 1
compare --seeds -1 --budget params=0.2 | seeds=-1 must be at least 1
compare --budget params=2x | must be a fraction of the dense network
compare --evaluations --budget params=0.2 | evaluations
compare --evaluations 0 8 --budget params=0.2 | evaluations=0 must be at least 1
compare --methods grid --budget params=0.2 | 'grid' must be among
compare --figure /proc/x/y.png --seeds 1 --budget params=0.2 | cannot be written
compare --figure table.txt --seeds 1 --budget params=0.2 | must end in .png
predict | Required options
predict nowhere | config.json cannot be read
predict listcfg | config.json holds a list
predict nojson | config.json is not JSON
predict nomodel | has no 'model'
predict badmodel | model='nonet' is unknown
predict extramodel | width=0.5: cnn has no such option
predict objectmodel | cannot be; was the file changed?
predict nopruned | no whole result of a pruning run
predict noresult | result.json
predict whole --data-dir /nonexistent | data_dir='/nonexistent' is no folder
"""
"""Lines, and after the bar words of what they say. EMPTY stands for an empty argument."""

RIGHT = f"""
{B} --budget macs=1
{B} --pools 0 --model vgg11
{B} --model vit_tiny
{B} --evaluations 100 --candidates 16
{B} --batch-size 100000
{B} --reward-images 1000000 --calibration-images 10000000
{B} --rerank 999
{B} --chunk 100000
{B} --save-seconds 0
{B} --baselines
study search --chunk 100000
"""
"""What only looks wrong: what is cut to what there is, of which a note tells (``notes``), and
what means what it says: 1 of dense, no pooling, a checkpoint after every chunk, no rival."""


class AcceptedError(BaseException):
    """Raised where a command would begin its work; no command catches it."""


def accept(*given, **named):
    raise AcceptedError


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run a command line up to its work, and return its exit code and what it says."""
    monkeypatch.setattr("rlprune_jax.runs.open_run", accept)
    monkeypatch.setattr(conduct, "conduct", accept)
    # Which has to come before JAX, that other tests of this process have started.
    monkeypatch.setattr("rlprune_jax.study.one_device_per_core", lambda: None)
    monkeypatch.setattr(building, "build_network", accept)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def run(line):
        name, *rest = ["" if word == "EMPTY" else word for word in line.split()]
        with pytest.raises(SystemExit) as stopped:
            COMMANDS[name](f"rlprune {name}", rest)
        said = capsys.readouterr()
        return stopped.value.code, said.err + said.out

    return run


def lines(text):
    return [line.strip() for line in text.strip().splitlines()]


def write_runs(folder):
    """Write run directories that are wrong, each in its way."""
    right = {"model": "cnn", "dataset": "digits", "budget": ["params=0.5"], "seed": 0}
    settings = {
        "nomodel": {"seed": 0},
        "badmodel": right | {"model": "nonet"},
        "extramodel": right | {"width": 0.5},
        "objectmodel": right | {"model": {}},
        "nopruned": right,
        "noresult": right,
        "whole": right,
    }
    for name, content in settings.items():
        (folder / name).mkdir()
        write_sealed(folder / name / "config.json", content, "config")
    for name, text in {"listcfg": "[]", "nojson": "{"}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)
    write_sealed(folder / "nopruned" / "result.json", {"dense": {}, "seed": 0}, "result")


def test_each_wrong_line_is_refused_by_name(command, tmp_path):
    write_runs(tmp_path)
    wrong = []
    for line in lines(WRONG):
        given, _, words = line.partition(" | ")
        try:
            code, said = command(given)
        except BaseException as error:
            wrong.append(f"{given}: {type(error).__name__}: {error}")
            continue
        if code != 2 or words not in said or "Traceback" in said:
            wrong.append(f"{given}: {code}, {said[:300]!r}")
    assert not wrong, "\n".join(wrong)
    assert len(lines(WRONG)) >= 140


@pytest.mark.parametrize("line", lines(RIGHT))
def test_what_only_looks_wrong_is_accepted(command, line):
    with pytest.raises(AcceptedError):
        command(line)


WRONG_OF_TYPE = {
    int: (-1, 10**20, 1.5, float("nan")),
    float: (float("nan"), float("inf"), -1.0),
    str: ("",),
    bool: ("maybe",),
}
"""Values that no option of a type may have, but for those below."""

ANY_TEXT = ("ignore", "optuna", "coordinator", "kv_layers", "data_dir")
"""Options whose texts are read elsewhere: the first lists have them."""


SPOKEN = ("budget_fn", "num_settings")
"""Options that messages call budget and settings."""


def options_of(kind):
    """Yield the options of a dataclass of groups, and the types they may have."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from options_of(hints[field.name])
        else:
            yield field.name, str(hints[field.name])


def wrong_values(name, kind):
    if name in ANY_TEXT or kind == str(bool):  # a flag has no value
        return
    wanted = next((each for each in (bool, int, float, str) if each.__name__ in kind), str)
    if "Literal" in kind:
        wanted = str
    for value in WRONG_OF_TYPE[wanted]:
        yield (value,) if "tuple" in kind else value


def accepted(options, check):
    """Return the wrong values of options that a check accepts, and how many there were."""
    found, count = [], 0
    for name, kind in options:
        for value in wrong_values(name, kind):
            count += 1
            try:
                check(**{name: value})
            except (ValueError, TypeError) as error:
                if name not in str(error) and name not in SPOKEN:
                    found.append(f"{name}={value} is not named: {error}")
            else:
                found.append(f"{name}={value}")
    return found, count


def check_inspect(**changed):
    options = InspectOptions()
    for field in dataclasses.fields(options):
        group = getattr(options, field.name)
        own = {name: value for name, value in changed.items() if hasattr(group, name)}
        options = dataclasses.replace(options, **{field.name: dataclasses.replace(group, **own)})
    inspect.check_options(options)


CHECKS = {
    "prune": (
        PruneOptions,
        lambda **new: resolved(PruneOptions().replace(**{"budget": ("params=0.5",)} | new)),
    ),
    "sap": (SapOptions, lambda **new: resolved_sap(SapOptions().replace(**new))),
    "inspect": (InspectOptions, check_inspect),
    **{
        name: (kind, lambda kind=kind, **new: kind(**new).check()) for name, kind in STUDIES.items()
    },
}


@pytest.mark.parametrize("name", CHECKS)
def test_every_option_refuses_every_wrong_number(name):
    kind, check = CHECKS[name]
    found, count = accepted(options_of(kind), check)
    assert not found, "\n".join(found)
    assert count >= 30
