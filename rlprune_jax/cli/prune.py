"""Prune a network to budgets by constrained reinforcement learning, beside rivals, and ship it.

Example: rlprune prune --dataset digits --budget params=0.1 --budget macs=0.3

Stages: train the dense network, unless it is given; score its units; search with the agent and with
each baseline, at the same number of evaluations; bring the best of each under the budgets, re-rank
them after a short finetune on held-out data, finetune the winner on all training data; cut the
agent's network to the kept units, check that it equals its masked twin, and read the test data
once. The run directory, printed last, holds result.json, metrics.jsonl, report.html and slim/.
The exit code is 3 where the slim network differs from its masked twin, which is a defect.

With --finetune-steps 0 nothing is trained after the cut: what remains is refitted to the dense
network's activations by least squares, in seconds.

The same command resumes an interrupted run, or says that it is finished. With more --evaluations,
other --baselines or another finetuning it goes on from the dense network and the searches of a
finished run that is the same otherwise; a search that is extended follows the schedules of the
longer one from there on, so it is not the one that would have been that long from the start.
"""

import dataclasses
import io
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlprune_jax.cli.common import run_command
from rlprune_jax.cli.options import PruneOptions, resolved
from rlprune_jax.workflow.config import AGENT, extendable_searches
from rlprune_jax.workflow.sources import BUNDLED

if TYPE_CHECKING:
    from rlprune_jax.origin import Provenance
    from rlprune_jax.runs import Json, RunDirectory
    from rlprune_jax.training.task import Task
    from rlprune_jax.workflow.pruning import Problem
    from rlprune_jax.workflow.results import PruneResult

EXPERIMENT = "prune_rl"
"""What run directories are called."""

UNNAMED = ("runs_dir", "data_dir", "save_seconds", "pretrained", "stale")
"""Options that do not name the run; of pretrained weights the content does."""

EXTENDABLE = (
    *("evaluations", "baselines"),
    *("rerank", "rerank_steps", "finetune_steps", "finetune_rule", "finetune_rate"),
    *("repair", "controls"),
)
"""Options that the dense network and the beginning of a search do not depend on."""


def main(prog: str, args: list[str]) -> None:
    """Run the command."""
    run_command(prune, PruneOptions, __doc__, prog=prog, args=args, code=exit_code)


DIFFERS = 3
"""Exit code of a run whose slim network is not its masked twin."""


def exit_code(path: object) -> int:
    """Return 0, or 3 where slim and masked outputs differ."""
    result = json.loads((Path(str(path)) / "result.json").read_text())
    return 0 if result["equivalence"].get("equal", True) else DIFFERS


def prune(options: PruneOptions) -> Path:
    """Do a run and return its directory.

    A run that is finished is found and not done again.

    Raises:
        ValueError: an option is wrong, a budget cannot be met, or a search found nothing.
        OSError: data are missing or the run directory cannot be written.
        RuntimeError: training diverged, or another process works in the directory.
    """
    options = resolved(options)
    # After the options, which are answered before JAX is imported.
    from rlprune_jax.runs import open_run
    from rlprune_jax.workflow.building import build_task, origin_of

    settings = identity(options)
    task = build_task(options.data, options.run.seed)
    origin = origin_of(task, options.place.stale)
    place = options.place.runs_dir
    with open_run(place, EXPERIMENT, settings, exclude=UNNAMED, origin=origin) as run:
        if run.is_finished:
            say(f"finished before; delete {run.path} to run again")
            return run.path
        extend(run, options, settings, origin)
        execute(run, options, task)
        return run.path


def say(text: str) -> None:
    """Tell the user something beside the result."""
    print(text, file=sys.stderr)


def identity(options: PruneOptions) -> dict[str, object]:
    """Return what names a run.

    These are its options, and the code and weights of the user's.
    """
    from rlprune_jax.costs import parse_budgets
    from rlprune_jax.workflow.building import digest_of, own_code

    budgets = parse_budgets(options.budgets.budget, options.budgets.budget_fn)
    data, network = options.data, options.network
    paths: dict[str, str | None] = {
        "model": network.model,
        "dataset": data.dataset,
        "metric": data.metric,
        **{f"budget function {each.name}": each.name for each in budgets if each.is_function},
    }
    found: dict[str, object] = dict(options.settings)
    if code := own_code(paths):
        found["code"] = code
    if network.pretrained is not None:
        found["pretrained_digest"] = digest_of(network.pretrained)
    return found


def extend(
    run: "RunDirectory",
    options: PruneOptions,
    settings: Mapping[str, object],
    origin: "Provenance | None" = None,
) -> None:
    """Go on from a similar run that is finished.

    Dense network and searches are taken of one that differs in ``EXTENDABLE`` alone, and that the
    same code has made.
    """
    from rlprune_jax.runs import adopt_stages, find_similar

    place = options.place.runs_dir
    similar = find_similar(
        place, EXPERIMENT, settings, differing=EXTENDABLE, exclude=UNNAMED, origin=origin
    )
    wanted = options.search.evaluations

    def usefulness(path: Path) -> int:
        evaluations = int(similar[path]["evaluations"])
        return evaluations if evaluations <= wanted else 0

    if not similar:
        return
    source = max(similar, key=usefulness)
    searches = [f"search-{method}" for method in extendable_searches(options.search)]
    stages = adopt_stages(run, source, ["dense", *(searches if usefulness(source) else ())])
    if stages:
        say(f"goes on from {source}: {', '.join(stages)}")


def execute(run: "RunDirectory", options: PruneOptions, task: "Task") -> None:
    """Do the whole run in its directory."""
    from rlprune_jax.workflow.pipeline import run_pruning

    began = time.perf_counter()
    result = run_pruning(prepare(run, options, task), run, path=run.path)
    labels = {"dataset": options.data.dataset, "model": options.network.model}
    for record in run.metrics("extends"):
        labels["extends"] = record["run"]
    result = dataclasses.replace(result, labels=labels, seconds=time.perf_counter() - began)
    write(run, result, dict(options.settings))
    say(str(result))


def prepare(run: "RunDirectory", options: PruneOptions, task: "Task") -> "Problem":
    """Return the problem, its network trained.

    A budget that cannot be met is refused before any training.
    """
    from rlprune_jax.costs import parse_budgets
    from rlprune_jax.devices import gpu_advice
    from rlprune_jax.workflow.building import build_network, wanted_of
    from rlprune_jax.workflow.learning import train_dense
    from rlprune_jax.workflow.notes import notes
    from rlprune_jax.workflow.pruning import check_problem
    from rlprune_jax.workflow.recipes import DenseRecipe, FastRecipe

    seed, config = options.run.seed, options.config
    network, is_trained, _ = build_network(options.network, wanted_of(task, seed))
    say(str(network.graph))
    if advice := gpu_advice():
        say(f"note: {advice}")
    budgets = parse_budgets(options.budgets.budget, options.budgets.budget_fn)
    problem = check_problem(network, task, budgets, config)
    for note in notes(config, task, network).values():
        say(f"note: {note}")
    dataset, folder = options.data.dataset, options.data.data_dir
    if dataset in BUNDLED and folder is not None:
        say(f"note: data_dir={folder!r} is not read: none is needed for {dataset}")
    dense = options.dense
    if is_trained and dense.dense_steps is None:
        for name, usual in (
            *(("dense_rate", None), ("dense_rule", None), ("dense_batch", None)),
            ("recipe", "plain"),
        ):
            if (value := getattr(dense, name)) != usual:
                raise ValueError(
                    f"{name}={value} would do nothing: {options.network.model} is trained already; "
                    "give dense_steps to train it further"
                )
        return problem
    kind = FastRecipe if options.is_fast else DenseRecipe
    recipe = kind(
        steps=dense.dense_steps or options.usual_dense_steps,
        rate=dense.dense_rate or options.usual_dense_rate,
        batch_size=dense.dense_batch or options.usual_dense_batch,
        rule=dense.dense_rule or options.usual_dense_rule,
        precision=options.run.precision,
    )
    network = train_dense(network, task, recipe, seed, run, options.run.save_seconds)
    return problem._replace(network=network)


def write(run: "RunDirectory", result: "PruneResult", settings: "Json") -> None:
    """Write history, page and result.

    The result comes last, since it ends the run.
    """
    import numpy as np

    from rlprune_jax.files import to_json, write_atomically
    from rlprune_jax.report.run_page import write_run_page
    from rlprune_jax.workflow.results import history_arrays

    history = history_arrays(result.searches)
    arrays = {
        f"{method}/{name}": rows
        for method, found in history.items()
        for name, rows in found.items()
    }
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    write_atomically(run.path / "history.npz", packed.getvalue())
    content = result.to_json()
    rows = run.metrics(f"search-{AGENT}")
    write_run_page(run.report, content, rows, history, to_json(settings))
    run.write_result(content)
