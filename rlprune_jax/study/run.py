"""Run settings times seeds of one job, durably."""

import inspect
import json
import os
import time
from collections.abc import Collection, Mapping, Sequence

import jax
import numpy as np

from rlprune_jax.checks import (
    require,
    require_choice,
    require_count,
    require_function,
    require_path,
    require_type,
)
from rlprune_jax.origin import Stale, check_stale, code_origin, function_digest
from rlprune_jax.pytree import tree_hash
from rlprune_jax.sealed import digest_json
from rlprune_jax.study.blocks import STRATEGIES, Plan, Programs, Runner, StaticGroup, StudyTick
from rlprune_jax.study.distributed import process_settings
from rlprune_jax.study.program import Job, check_job, job_name, place_shared, traced_columns
from rlprune_jax.study.results import StudyResult, collect
from rlprune_jax.study.settings import StudySettings, Value, check_listed
from rlprune_jax.study.store import MADE_WITH, Store
from rlprune_jax.types import PyTree

POLL_SECONDS = 0.5


def run_study(
    fn: Job,
    settings: StudySettings | Mapping[str, Sequence[Value]],
    seeds: Sequence[int],
    *,
    static: Collection[str] = (),
    shared: PyTree = None,
    known: Collection[str] | None = None,
    directory: str | os.PathLike | None = None,
    identity: object = None,
    strategy: str = "auto",
    chunk: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    memory: int | None = None,
    compiled: Programs | None = None,
    tick: StudyTick | None = None,
    stale: Stale = "refuse",
) -> StudyResult:
    """Run every setting with every seed.

    Each cell runs exactly once, however often the study is killed. Use it to compare settings of
    any traceable job: a search, a training, a pruning loop.

    Settings that differ in ``static`` only are grouped, and each group is compiled once. Seed s is
    ``jax.random.key(s)`` for every setting: common random numbers, which make differences between
    settings sharper than the settings themselves.

    Args:
        fn: the job, ``(hparams, key, **static) -> metrics``: a dictionary of scalars to a
            dictionary of scalars, traceable. With ``shared``, ``(hparams, key, shared, **static)``.
        settings: H settings, from ``grid``, ``random`` or ``table``, or columns.
        seeds: S different integers in [0, 2**31).
        static: hyper-parameters that shape the program (text, sizes): keyword arguments of ``fn``.
        shared: pytree of arrays that all settings read, such as weights and images.
        known: hyper-parameters that ``fn`` has; by default those that it reads when traced.
        directory: where finished chunks, ``table.parquet`` and ``table.csv`` go; the same call
            resumes there, and one with more settings after the same ones extends the study. None
            keeps all in memory.
        identity: plain JSON of what else decides the numbers (data, commit); a study with another
            is refused.
        strategy: "vmap" over settings and seeds, "map" one cell after the other, or "auto": the
            faster, by timing one small block of each.
        chunk: settings at once, which is also what a kill loses; by default as many as fit into
            memory, on a CPU so many that there are 16 cells.
        devices: of this host; by default all. Settings are spread over them.
        memory: bytes to use; by default what the device has left, or half the host's free RAM.
        compiled: a dictionary, empty at first, that keeps compiled programs for further calls with
            the same job, ``shared`` and types of settings.
        tick: called with the number of cells that are done and a note.
        stale: what is done with finished chunks that another body of the job, other arrays (shared
            or closed over) or other versions made: "refuse" them, "redo" them and keep the old
            ones beside, or "keep" them and go on.

    Returns:
        The result, in every process of a study over many hosts.

    Raises:
        ValueError: settings are empty or repeat, seeds repeat, a name that the job does not have,
            metrics that are no scalars. It is a JobError where the job itself fails.
        StudyError: the directory holds another study, or what other code made, or another process
            works on it.
        UnwritableError: the directory cannot be written, as on a full disk.

    Example:
        >>> import jax
        >>> from rlprune_jax.study import grid, run_study
        >>> def job(hparams, key):
        ...     return {"score": hparams["scale"] * jax.random.uniform(key)}
        >>> result = run_study(job, grid({"scale": [1.0, 2.0]}), seeds=range(3))
        >>> result.metrics["score"].shape
        (2, 3)
        >>> result.summary("score")["rank"].tolist()
        [2, 1]
    """
    require_function("fn", fn, "a function (hparams, key) -> metrics")
    settings, seeds = as_settings(settings), check_seeds(seeds)
    _check_options(settings, static, known, strategy)
    check_stale(stale)
    _check_resources(chunk, memory, devices, directory)
    if compiled is not None:
        require_type("compiled", compiled, dict, "an empty dictionary at first")
    chosen = tuple(devices if devices is not None else jax.local_devices())
    process, processes = jax.process_index(), jax.process_count()
    if processes > 1 and directory is None:
        raise ValueError(
            f"directory=None must be a path that all {processes} processes of the study see"
        )
    if shared is not None:
        shared = place_shared(shared, chosen)
    groups = group_settings(fn, settings, static, shared, known)
    about = study_identity(fn, settings, seeds, static, identity)
    about["metrics"] = sorted({tuple(sorted(group.metrics)) for group in groups})
    about[MADE_WITH], values = made_by(fn, shared) if directory is not None else ({}, "")
    plan = Plan(strategy=strategy, chunk=chunk, devices=chosen, memory=memory)
    with Store(directory, about, process, values=values, stale=stale) as store:
        mine = set(process_settings(len(settings), process, processes))
        runners = [Runner(group, seeds, plan, store, compiled) for group in groups]
        strategies, cells_run, corrupt = dict.fromkeys((g.name for g in groups), "none"), 0, []
        if tick is not None and (finished := len(store.done())):
            tick(finished, "from disk")
        while True:
            corrupt += store.corrupt
            done = store.done()
            for runner in runners:
                missing = [
                    (place, seed)
                    for place, setting in enumerate(runner.group.places)
                    for seed in range(len(seeds))
                    if setting in mine and setting * len(seeds) + seed not in done
                ]
                if missing:
                    strategies[runner.group.name] = runner.run(missing, tick or _quiet)
                    cells_run += len(missing)
            if len(store.done()) == len(settings) * len(seeds):
                break
            # Other processes are still at theirs; a dead one is noticed by jax.distributed.
            time.sleep(POLL_SECONDS)
            store.reload()
        result = collect(
            settings,
            seeds,
            store.chunks,
            strategies=strategies,
            compile_seconds=sum(runner.compile_seconds for runner in runners),
            cells_run=cells_run,
            corrupt=tuple(corrupt),
        )
        if store.path is not None and process == 0:
            result.write(store.path)
        return result


def group_settings(
    fn: Job,
    settings: StudySettings,
    static: Collection[str],
    shared: PyTree,
    known: Collection[str] | None,
) -> list[StaticGroup]:
    """Split settings into groups of one static structure.

    The job is traced once per group, to check it.
    """
    columns = traced_columns(settings, static)
    if known is None:
        _check_static(fn, static)
    by_static: dict[str, list[int]] = {}
    for index, setting in enumerate(settings):
        signature = json.dumps({name: setting[name] for name in static}, sort_keys=True)
        by_static.setdefault(signature, []).append(index)
    groups = []
    for signature, places in by_static.items():
        arguments = json.loads(signature)
        metrics = check_job(fn, columns, arguments, shared, known)
        numbers = {name: column[places] for name, column in columns.items()}
        if not numbers:
            # A program needs an axis of settings, even where all that differs is static.
            raise ValueError(
                f"every setting is static, {tuple(static)}: give at least one traced number"
            )
        groups.append(
            StaticGroup(
                name=signature,
                job=fn,
                static=arguments,
                columns=numbers,
                places=tuple(places),
                shared=shared,
                metrics=metrics,
            )
        )
    return groups


def study_identity(
    fn: Job,
    settings: StudySettings,
    seeds: Sequence[int],
    static: Collection[str],
    identity: object,
) -> dict[str, object]:
    """Return what decides a study's numbers, besides code and arrays.

    As plain JSON; settings may be added later.
    """
    return {
        "job": job_name(fn),
        "settings": {name: list(values) for name, values in settings.columns.items()},
        "seeds": list(seeds),
        "static": sorted(static),
        "identity": identity,
    }


def made_by(fn: Job, shared: PyTree) -> tuple[dict[str, str], str]:
    """Return a study's code, and digits of its arrays.

    Args:
        fn: the job.
        shared: arrays that all settings read.
    """
    own = function_digest(fn)
    return code_origin(job=own.code), digest_json([own.values, tree_hash(shared)])


def check_names(argument: str, names: object) -> None:
    """Refuse what is no collection of names.

    Raises:
        ValueError: one text, or what is none.
    """
    good = isinstance(names, Collection) and not isinstance(names, str | bytes)
    require(good, argument, names, "a collection of names, such as ('depth',)")


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return the seeds as integers, checked.

    Raises:
        ValueError: none, one that is no integer, one that repeats, or one outside [0, 2**31).
    """
    listed = isinstance(seeds, Sequence | np.ndarray) and not isinstance(seeds, str)
    require(listed, "seeds", seeds, "a sequence of integers, such as range(4)")
    numbers = tuple(require_count("seeds", seed, -(2**63), 2**63) for seed in seeds)
    if not numbers:
        raise ValueError("seeds are empty: give at least one")
    if twice := sorted({seed for seed in numbers if numbers.count(seed) > 1}):
        raise ValueError(f"seeds repeat {twice}: a seed twice is the same run twice")
    if min(numbers) < 0 or max(numbers) >= 2**31:
        raise ValueError(f"seeds={numbers}: each must be in [0, 2**31)")
    return numbers


def as_settings(settings: StudySettings | Mapping[str, Sequence[Value]]) -> StudySettings:
    """Return settings as columns, checked.

    Raises:
        ValueError: no dictionary of sequences, or what ``StudySettings`` refuses.
    """
    if isinstance(settings, StudySettings):
        return settings
    check_listed("settings", settings)
    return StudySettings({name: tuple(values) for name, values in settings.items()})


def _check_resources(
    chunk: int | None,
    memory: int | None,
    devices: Sequence[jax.Device] | None,
    directory: str | os.PathLike | None,
) -> None:
    if chunk is not None:
        require_count("chunk", chunk)
    if memory is not None:
        require_count("memory", memory, most=2**63)
    if devices is not None:
        listed = isinstance(devices, Sequence) and len(devices) > 0
        good = listed and all(hasattr(each, "platform") for each in devices)
        require(good, "devices", devices, "some of jax.local_devices()")
    if directory is not None:
        require_path("directory", directory)


def _check_options(
    settings: StudySettings, static: Collection[str], known: Collection[str] | None, strategy: str
) -> None:
    check_names("static", static)
    if known is not None:
        check_names("known", known)
    if unknown := sorted(set(static) - set(settings.names)):
        raise ValueError(f"static names {unknown}: the settings have {', '.join(settings.names)}")
    require_choice("strategy", strategy, STRATEGIES)


def _check_static(fn: Job, static: Collection[str]) -> None:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    names = [parameter.name for parameter in parameters]
    if unknown := sorted(set(static) - set(names)):
        raise ValueError(
            f"the job has no static setting {unknown}; its arguments are: {', '.join(names)}"
        )


def _quiet(cells: int, note: str) -> None:
    """Progress that nobody asked for."""
