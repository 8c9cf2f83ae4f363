"""Run a study of any kind in a run directory."""

import sys
import time
from pathlib import Path

import jax

from rlprune_jax.runs import COSMETIC, Extension, config_hash, open_run, read_config, show_progress
from rlprune_jax.study import StudyResult, initialize, run_study
from rlprune_jax.study.results import write_table
from rlprune_jax.workflow.building import origin_of
from rlprune_jax.workflow.studies.base import (
    BY_CONTENT,
    EXTENDS,
    HOW,
    PLACE,
    Study,
    StudyJob,
)

NOT_HASHED = (*COSMETIC, *PLACE, *HOW, *BY_CONTENT)
"""Options that do not make another run."""

MORE = Extension(settings=EXTENDS, stages=("dense",))
"""A study may get more settings; the dense network stays."""


def conduct(study: Study) -> Path:
    """Run a study, or go on with one.

    One that is finished is found, or extended by more settings. Call it in every process of a study
    over many hosts, before anything is computed.

    Args:
        study: its options.

    Returns:
        The run directory, with ``study/`` (chunks and the tidy table), ``table.csv``,
        ``summary.csv``, ``result.json`` and ``report.html``.

    Raises:
        ValueError: an option is wrong, or a budget cannot be met.
        OSError: data are missing, or a directory cannot be written.
        RunDirectoryError: another process works on the study.
    """
    study.check()
    initialize(study.coordinator, study.num_processes, study.process_id)
    process = jax.process_index()
    name = f"study-{study.kind}"
    record = study.record()
    own = own_folder(study, process)
    digits = config_hash(record, exclude=(*NOT_HASHED, *EXTENDS))
    refuse_fewer(own / f"{name}-{digits}", study)
    # Processes of one study share its directory; all but the first train in one of their own.
    home = Path(study.runs_dir) / f"{name}-{digits}"
    origin = origin_of(study.task(), study.stale)
    with open_run(own, name, record, exclude=NOT_HASHED, extension=MORE, origin=origin) as run:
        if run.is_finished:
            print(f"finished before; delete {run.path} to run again", file=sys.stderr)
            return run.path
        began = time.perf_counter()
        if study.optuna:
            from rlprune_jax.study.optuna_workers import open_storage

            open_storage(study.optuna)
        job = study.job(run)
        for note in (*job.notes, *clamped(study, job.cost)):
            print(f"note: {note}", file=sys.stderr)
        found = run_settings(study, job, home / "study")
        if process:
            return home
        found.write(run.path)
        write_table(run.path, "summary", found.summary(study.metric_name))
        result = study.conclude(found, job.dense_accuracy)
        result["task_metric"] = job.task_metric
        result["seconds"] = time.perf_counter() - began
        write_page(study, found, result, job.cost, run.path)
        run.write_result(result)
        return run.path


def clamped(study: Study, cost: str) -> list[str]:
    """Tell which options are above what there is.

    They are those of how settings are run.

    Args:
        study: its options.
        cost: name of the budget.
    """
    if study.optuna is not None:
        name, value, kind, there = "batch", study.batch, "trials", study.trials
    elif study.chunk is not None:
        name, value, kind, there = "chunk", study.chunk, "settings", len(study.settings(cost))
    else:
        return []
    return [f"{name}={value}: there are {there} {kind}, and all are taken"] if value > there else []


def own_folder(study: Study, process: int) -> Path:
    """Return the run directory of this process or worker."""
    folder = Path(study.runs_dir)
    if process:
        folder = folder / f"process-{process}"
    return folder / f"worker-{study.worker}" if study.optuna else folder


def refuse_fewer(path: Path, study: Study) -> None:
    """Refuse fewer settings than a study has already.

    Raises:
        ValueError: naming the option, its value and that of the study in the directory.
    """
    try:
        stored = read_config(path)
    except (OSError, ValueError):
        return  # opening the directory says what is wrong
    for field, option in zip(EXTENDS, ("settings", "trials"), strict=True):
        before, now = stored.get(field), getattr(study, field, None)
        if isinstance(before, int) and isinstance(now, int) and now < before:
            raise ValueError(
                f"{option}={now} is below the {before} that the study in {path} has; give at least "
                f"{before}, or another --runs-dir"
            )


def run_settings(study: Study, job: StudyJob, folder: Path) -> StudyResult:
    """Run all settings times seeds, by ourselves or by Optuna.

    Args:
        study: its options.
        job: what runs a setting.
        folder: where chunks go.
    """
    seeds = range(study.seeds)
    if study.optuna:
        from rlprune_jax.study.optuna_workers import run_worker

        identity = study.identity()
        with show_progress("trials", study.trials) as tick:
            return run_worker(
                job.job,
                study.space(job.cost),
                seeds,
                storage=study.optuna,
                study_name=f"{study.kind}-{config_hash(identity)}",
                trials=study.trials,
                batch=study.batch,
                metric=study.metric_name,
                strategy="vmap" if study.strategy == "auto" else study.strategy,
                tick=tick,
                static=job.static,
                shared=job.shared,
                known=job.known,
                identity=identity,
            )
    settings = study.settings(job.cost)
    with show_progress("cells", len(settings) * len(seeds)) as tick:
        return run_study(
            job.job,
            settings,
            seeds,
            directory=folder,
            strategy=study.strategy,
            chunk=study.chunk,
            tick=tick,
            static=job.static,
            shared=job.shared,
            known=job.known,
            identity=study.identity(),
            stale=study.stale,
        )


def write_page(
    study: Study, found: StudyResult, result: dict[str, object], cost: str, folder: Path
) -> None:
    """Write the page of a study and its figures."""
    from rlprune_jax.report.study_page import StudyPage, write_study_page

    summary = found.summary(study.metric_name)
    page = StudyPage(
        settings=found.settings.columns,
        summary={name: summary[name] for name in ("rank", "mean", "low", "high")},
        metrics=found.metrics,
        result=result,
        config=study.record(),
        drawings=study.draw(found, result, cost),
    )
    write_study_page(folder, page)
