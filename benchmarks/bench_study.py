"""A study in one program against one process per setting, and against one process that loops.

Command:  python benchmarks/bench_study.py [--quick]

64 settings of RL search on digits, compilation counted, without the persistent cache. The other
two are measured on a sample and scaled up, which the output says: separate processes cost
the mean of the sampled ones, the loop its start and compilation once and the mean of the sampled
runs. Dense training is not counted: each reads the same trained network. Last comes JSON:
``one_program_over_processes`` (aim 10), ``one_program_over_loop`` (aim 3); more than 1 means that
one program is faster. With --picture also time against the number of settings from 1 to 256.

Measured on 2 quiet cores of an AMD EPYC, JAX 0.10.2, 200 seconds with the picture (2026-11-21): one
program 19.8 s; 44.1 times faster than processes, 14.7 times than a loop that compiles each; 0.95
times the speed of a loop that compiles once (1.3 at 256 settings), so the second aim is missed.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tyro

from rlprune_jax.devices import describe_device
from rlprune_jax.export import load_weights, save_weights
from rlprune_jax.report.study_figures import scaling_figure
from rlprune_jax.study import one_device_per_core, run_study
from rlprune_jax.types import PyTree
from rlprune_jax.workflow.learning import train_dense
from rlprune_jax.workflow.pruning import make_pruning
from rlprune_jax.workflow.recipes import DenseRecipe
from rlprune_jax.workflow.studies import SearchStudy
from rlprune_jax.workflow.studies.base import StudyJob
from rlprune_jax.workflow.studies.problem import build

Line = dict[str, PyTree]
"""A JSON object."""


@dataclasses.dataclass(frozen=True)
class StudyBenchmark:
    """Settings of the benchmark."""

    quick: bool = False
    """8 settings of short searches, and a sample of 2."""
    settings: int = 64
    """H."""
    evaluations: int = 256
    """Candidates of each search."""
    processes: int = 3
    """Separate processes that are measured."""
    runs: int = 8
    """Runs of the loop that are measured."""
    picture: Path | None = None
    """Where to draw time against the number of settings (PNG); takes as long again."""
    counts: tuple[int, ...] = (1, 4, 16, 64, 256)
    """Numbers of settings for that."""
    role: tuple[str, ...] = ()
    """For the processes that the benchmark starts itself."""


def measured_alone(config: StudyBenchmark, *role: str) -> Line:
    """Run one part in a fresh process without the persistent cache; its JSON, with seconds."""
    environment = {
        name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
    }
    command = [sys.executable, __file__, "--settings", str(config.settings)]
    command += ["--evaluations", str(config.evaluations), "--role", *role]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    line: Line = json.loads(done.stdout.strip().splitlines()[-1])
    return line | {"seconds": time.perf_counter() - began}


def study_of(config: StudyBenchmark, count: int) -> SearchStudy:
    """Return the study that is timed; the network is the same for every number of settings."""
    tiny = config.evaluations < 64
    return SearchStudy(
        num_settings=count,
        seeds=1,
        evaluations=config.evaluations,
        widths=(12, 16) if tiny else (),
        dense_steps=40 if tiny else 300,
        budget="params=0.5" if tiny else "params=0.1",
    )


def train_once(study: SearchStudy, saved: Path) -> None:
    """Train the network that all parts search in."""
    (network, _, _), task = build(study)
    assert study.dense_steps is not None
    trained = train_dense(network, task, DenseRecipe(steps=study.dense_steps), study.seed)
    save_weights(saved, trained.variables)


def prepared_job(study: SearchStudy, saved: Path) -> StudyJob:
    """Return the job of one search in the trained network."""
    (network, _, _), task = build(study)
    stored = load_weights(saved, like=network.variables)
    network = network.replace(jax.tree.map(jax.numpy.asarray, stored))
    return study.job_on(make_pruning(network, task, [study.budget], study.prune_config()))


def part(config: StudyBenchmark) -> Line:
    """Do one part in its own process: ``train``, ``study``, or ``loop`` over some settings."""
    role, folder, *numbers = config.role
    study = study_of(config, int(numbers[-1]) if numbers else config.settings)
    saved = Path(folder) / "variables.safetensors"
    if role == "train":
        train_once(study, saved)
        return {}
    if role == "study":
        one_device_per_core()  # as rlprune study does
    began = time.perf_counter()
    job = prepared_job(study, saved)
    setup = time.perf_counter() - began
    settings = study.settings(job.cost)
    if role == "study":
        found = run_study(job.job, settings, [0], shared=job.shared, known=job.known)
        return {"setup": setup, "area": found.metrics["area"][:, 0].tolist()}
    step = jax.jit(job.job)
    key, times, area = jax.random.key(0), [], []
    for row in list(settings)[int(numbers[0]) :]:
        hparams = {name: np.float32(value) for name, value in row.items()}
        began = time.perf_counter()
        bound = functools.partial(job.job, hparams)
        # As constants of the program, numbers make another program of each setting.
        call = jax.jit(bound) if role == "constants" else functools.partial(step, hparams)
        area.append(float(jax.block_until_ready(call(key, job.shared))["area"]))
        times.append(time.perf_counter() - began)
    return {"setup": setup, "times": times, "area": area}


def main(config: StudyBenchmark) -> Line:
    """Measure, print, and return the last line."""
    if config.role:
        line = part(config)
        print(json.dumps(line))
        return line
    if config.quick:
        config = dataclasses.replace(config, settings=8, evaluations=32, processes=2, runs=3)
    with tempfile.TemporaryDirectory() as folder:
        measured_alone(config, "train", folder)
        program = measured_alone(config, "study", folder, str(config.settings))
        alone = [
            measured_alone(config, "loop", folder, str(index), str(index + 1))
            for index in range(config.processes)
        ]
        loop = measured_alone(config, "loop", folder, "0", str(config.runs))
        constants = measured_alone(config, "constants", folder, "0", str(config.processes))
        looping = scaled(loop, config.settings)
        compiling = scaled(constants, config.settings)
        processes = float(np.mean([run["seconds"] for run in alone])) * config.settings
        print(f"one program: {program['seconds']:.1f} s for {config.settings} settings, measured")
        print(f"processes: {processes:.1f} s, from {config.processes} of {config.settings}")
        print(f"loop: {looping:.1f} s, from {config.runs} of {config.settings} runs")
        print(f"loop of constants: {compiling:.1f} s, from {config.processes} of {config.settings}")
        if config.picture is not None:
            draw(config, folder, loop, constants)
    difference = np.abs(np.asarray(program["area"][: len(loop["area"])]) - loop["area"]).max()
    line = {
        "one_program_over_processes": round(processes / program["seconds"], 2),
        "one_program_over_loop": round(looping / program["seconds"], 2),
        "one_program_over_loop_of_constants": round(compiling / program["seconds"], 2),
        "one_program_seconds": round(program["seconds"], 1),
        "settings": config.settings,
        "sampled_processes": config.processes,
        "sampled_runs": config.runs,
        "largest_difference": float(difference),
        "device": describe_device(),
    }
    print(json.dumps(line))
    return line


def scaled(loop: Line, count: int) -> float:
    """Seconds of a loop over so many settings, from a sample."""
    steady = float(np.mean(loop["times"][1:]))
    return loop["seconds"] - sum(loop["times"][1:]) + steady * (count - 1)


def draw(config: StudyBenchmark, folder: str, loop: Line, constants: Line) -> None:
    """Time against the number of settings; all but the one program is scaled from a sample."""
    assert config.picture is not None
    first = scaled(loop, 1)
    lines = {
        "one program": [
            measured_alone(config, "study", folder, str(count))["seconds"]
            for count in config.counts
        ],
        "one loop": [scaled(loop, count) for count in config.counts],
        "one loop, compiling each": [scaled(constants, count) for count in config.counts],
        "processes": [first * count for count in config.counts],
    }
    scaling_figure(config.counts, lines).savefig(config.picture, dpi=110, facecolor="white")


if __name__ == "__main__":
    main(tyro.cli(StudyBenchmark, description=__doc__))
