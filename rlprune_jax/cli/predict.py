"""Load a slim network from a run directory and evaluate it on the test data again.

Example: rlprune predict runs/prune_rl-0123456789

Nothing of the dense network is needed but its shapes, which come from the run's configuration. The
last line is JSON: the metric found, the one recorded in result.json, and whether they are equal,
for the weights in slim/ and for the StableHLO artifact. Exit code 1 where they are not.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from rlprune_jax.cli.common import run_command
from rlprune_jax.cli.options import PruneOptions, resolved

if TYPE_CHECKING:
    from rlprune_jax.training.task import Task
    from rlprune_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Options of the evaluation."""

    run_dir: tyro.conf.Positional[Path]
    """A finished run of ``rlprune prune``."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets; else the run's, else $TFDS_DATA_DIR."""


def main(prog: str, args: list[str]) -> None:
    """Run the command.

    It exits with 1 where the metric is not reproduced.
    """
    found: dict[str, PyTree] = {}

    def job(options: PredictOptions) -> str:
        found.update(predict(options))
        return json.dumps(found)

    run_command(job, PredictOptions, __doc__, prog=prog, args=args, saved="")
    if not found["reproduced"]:
        raise SystemExit(1)


def predict(options: PredictOptions) -> "dict[str, PyTree]":
    """Restore the network and evaluate it on the test data.

    Raises:
        ValueError: the files are not whole, changed, or of another network.
        OSError: a file or the data are missing.
    """
    stored, settings = read_options(options.run_dir)
    if options.data_dir is not None:
        settings = settings.replace(data_dir=options.data_dir)
    settings = resolved(settings)
    # After the options, which are answered before JAX is imported.
    from rlprune_jax.cli.prune import identity
    from rlprune_jax.costs import count_params
    from rlprune_jax.export import STABLEHLO
    from rlprune_jax.workflow.building import build_network, build_task, wanted_of
    from rlprune_jax.workflow.delivery import evaluate_network
    from rlprune_jax.workflow.results import PruneResult

    recorded = PruneResult.read(options.run_dir)
    if identity(settings).get("code") != stored.get("code"):
        print("note: code of yours has changed since the run", file=sys.stderr)
    task = build_task(settings.data, settings.run.seed)
    wanted = wanted_of(task, settings.run.seed)._replace(shapes_only=True)
    network = build_network(settings.network, wanted).network
    slim = network.load_slim(str(options.run_dir / "slim"))
    metric = float(evaluate_network(slim, task.objective, task.test).metric)
    from_artifact = evaluate_artifact(options.run_dir / "slim" / STABLEHLO, task)
    name = recorded.metric_name
    return {
        name: metric,
        f"stablehlo_{name}": from_artifact,
        f"recorded_{name}": recorded.pruned.metric,
        "reproduced": all(
            # Far less than one example of any test set makes.
            math.isclose(each, recorded.pruned.metric, rel_tol=1e-5, abs_tol=1e-6)
            for each in (metric, from_artifact)
        ),
        "params": count_params(slim.graph),
        "test_examples": task.size("test"),
    }


def read_options(run_dir: Path) -> "tuple[dict[str, PyTree], PruneOptions]":
    """Return a run's settings, as stored and as options.

    Raises:
        ValueError: there is none, or it is not that of a pruning run.
    """
    file = run_dir / "config.json"
    try:
        file.stat()  # which needs no JAX
        from rlprune_jax.runs import read_config

        stored = read_config(run_dir)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}; name a run of prune") from error
    except ValueError as error:
        raise ValueError(f"{error}; run the command again") from error
    known = PruneOptions().settings
    tupled = {
        name: _tuples(value)
        for name, value in stored.items()
        if name in known and name != "pretrained"  # the slim network has weights of its own
    }
    lacking = [name for name in ("model", "dataset", "budget", "seed") if name not in tupled]
    if lacking:
        raise ValueError(f"{file} has no {lacking[0]!r}, so it is not of a pruning run")
    unlike = [name for name, value in tupled.items() if not _is_like(known[name], value)]
    if unlike:
        name = unlike[0]
        raise ValueError(f"{file}: {name}={tupled[name]!r} cannot be; was the file changed?")
    return stored, PruneOptions().replace(**tupled)


def _tuples(value: "PyTree") -> "PyTree":
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _is_like(usual: object, value: object) -> bool:
    """Return whether a value has the type of an option's default, where that says anything."""
    if usual is None or value is None:
        return not isinstance(value, dict)
    if isinstance(usual, float):
        return isinstance(value, int | float)
    return isinstance(value, type(usual))


def evaluate_artifact(path: Path, task: "Task") -> float:
    """Evaluate an exported network on the raw test data."""
    from rlprune_jax.export import load_stablehlo
    from rlprune_jax.training.loops import evaluate
    from rlprune_jax.workflow.delivery import EVALUATION_BATCH

    artifact = load_stablehlo(path)
    raw = dataclasses.replace(task.objective, prepare=None)

    def apply(variables: "PyTree", /, *inputs: "PyTree", **options: "PyTree") -> "PyTree":
        return artifact(*inputs)

    return float(evaluate(apply, {}, raw, task.test, batch_size=EVALUATION_BATCH).metric)
