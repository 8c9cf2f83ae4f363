"""Kill a run at random moments and start it again, until it ends; print what happened as JSON.

Run by ``test_soak.py`` in a process of its own: the package is imported once, and every start is a
fork of that process before JAX has started a thread. ``python tests/attack/soak.py FOLDER 23`` does
as many kills as it is told.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

# Those of tests/cli/test_prune.py, so that compiled programs are shared.
OPTIONS = {
    **{"model": "mlp", "widths": (12, 16), "dense_steps": 40, "evaluations": 32, "candidates": 8},
    **{"rerank": 2, "rerank_steps": 5, "finetune_steps": 20, "batch_size": 64},
    **{"reward_images": 64, "save_seconds": 0.0, "budget": ("params=0.5", "macs=0.6")},
    "baselines": ("uniform", "random_search"),
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
ENDS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
"""Exit codes of a process that a signal has ended."""


def preload():
    """Import what a run imports on its way."""
    import orbax.checkpoint  # noqa: F401

    import rlprune_jax.export
    import rlprune_jax.report.run_page
    import rlprune_jax.runs.checkpoint
    import rlprune_jax.workflow.building
    import rlprune_jax.workflow.pipeline  # noqa: F401


def start(runs, log):
    """Fork a process that does the run, and return its number."""
    from rlprune_jax.cli.options import PruneOptions
    from rlprune_jax.cli.prune import prune
    from rlprune_jax.runs import interruptible

    if number := os.fork():
        return number
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        with interruptible("checkpoint"):
            prune(PruneOptions().replace(**OPTIONS, runs_dir=str(runs)))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait(number):
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def whole(runs):
    """Return what a run ended in, without what a clock has measured."""
    (path,) = runs.glob("prune_rl-*")
    result = json.loads((path / "result.json").read_text())
    found = {key: result[key] for key in ("dense", "pruned", "baselines", "budgets", "groups")}
    for entry in (found["dense"], found["pruned"], *found["baselines"].values()):
        for name in [name for name in entry if name.startswith("latency")]:
            del entry[name]
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    steps = [(record["stage"], record["step"]) for record in records if "stage" in record]
    left = sorted(str(each.relative_to(path)) for each in path.rglob("*.tmp*"))
    return {"result": found, "steps": sorted(steps), "leftovers": left}


def count_records(runs):
    return sum(path.read_bytes().count(b"\n") for path in runs.glob("*/metrics.jsonl"))


def wait_for(number, runs, records):
    """Wait until a run has so many records, or has ended."""
    # Ended, but not waited for, so that its number is not given to another process.
    over = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while count_records(runs) < records and os.waitid(os.P_PID, number, over) is None:
        time.sleep(0.01)


def main(folder, kills, seed=0):
    preload()
    folder = Path(folder)
    log = folder / "errors.txt"
    assert wait(start(folder / "whole", log)) == 0, log.read_text()
    records = count_records(folder / "whole")
    draw = random.Random(seed)
    ended, wrong = [], []
    for count in range(kills):
        number = start(folder / "killed", log)
        # By records and not by the clock, whose hours are longer on a machine that is busy.
        wanted, name = draw.randrange(records), SIGNALS[count % len(SIGNALS)]
        wait_for(number, folder / "killed", wanted)
        time.sleep(draw.uniform(0.0, 0.3))
        os.kill(number, name)
        code = wait(number)
        ended.append(code)
        if code not in (ENDS[name], 0):
            wrong.append(f"{name.name} at record {wanted} of {records}: {code}")
    if (code := wait(start(folder / "killed", log))) != 0:
        wrong.append(f"the last start: {code}")
    said = log.read_text() if log.exists() else ""
    print(
        json.dumps(
            {
                "ended": ended,
                "wrong": wrong,
                "traceback": said[-2000:] if "Traceback" in said else "",
                "whole": whole(folder / "whole"),
                "killed": whole(folder / "killed"),
            }
        )
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main(sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:]))
