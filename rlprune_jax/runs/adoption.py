"""Begin a run with what an earlier one has computed already."""

import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from rlprune_jax.origin import Provenance
from rlprune_jax.runs.run import Json
from rlprune_jax.runs.run_directory import (
    COSMETIC,
    EXTENDS,
    METRICS,
    RESULT,
    RunDirectory,
    RunDirectoryError,
    config_hash,
    read_config,
    read_made_with,
)
from rlprune_jax.sealed import open_line, parse_json, read_regular, read_sealed, seal_of


def find_similar(
    runs_dir: str | os.PathLike,
    experiment: str,
    config: object,
    *,
    differing: Collection[str],
    exclude: Collection[str] = COSMETIC,
    origin: Provenance | None = None,
) -> dict[Path, Json]:
    """Find finished runs that differ in some settings alone.

    Use it to extend a run: its stages that do not depend on those settings can be adopted.

    Args:
        runs_dir: directory of all runs.
        experiment: name of the experiment, as ``open_run`` takes it.
        config: frozen dataclass or dict of settings.
        differing: names of top-level settings that may differ.
        exclude: top-level settings that do not count, as in ``open_run``.
        origin: what has to have made them; None does not ask.

    Returns:
        Their directories with their settings; the run of ``config`` itself is not among them.
    """
    ignored = (*differing, *exclude)
    wanted, own = config_hash(config, exclude=ignored), config_hash(config, exclude=exclude)
    found = {}
    for path in sorted(Path(runs_dir).expanduser().glob(f"{experiment}-*")):
        if path.name == f"{experiment}-{own}" or not (path / RESULT).is_file():
            continue
        try:
            stored = read_config(path)
            if config_hash(stored, exclude=ignored) == wanted:
                read_sealed(path / RESULT, "result")
                if origin is None or _is_made_with(path, origin):
                    found[path] = stored
        except (OSError, ValueError, TypeError, RunDirectoryError):
            continue  # not one of ours, or damaged
    return found


def adopt_stages(run: RunDirectory, source: Path, stages: Sequence[str]) -> list[str]:
    """Begin a run with stages of a finished one.

    Their checkpoints and records are copied, unless the new run has begun. A kill on the way leaves
    a run that has not begun.

    Args:
        run: that goes on from them.
        source: directory of the finished run.
        stages: names of those that are wanted; those that the source lacks are left out.

    Returns:
        The names of the stages that were copied.
    """
    present = [stage for stage in stages if (source / "checkpoints" / stage).is_dir()]
    if run.checkpoints.exists() or not present:
        return []
    temporary = run.path / "adopted.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    for stage in present:
        shutil.copytree(source / "checkpoints" / stage, temporary / stage)
        run.rewind_metrics(stage, -1)
    for record in _records(source):
        stage, step = record.pop("stage"), record.pop("step")
        if stage in present:
            run.append_metrics(stage, step, record)
    run.rewind_metrics(EXTENDS, -1)
    names = {stage: _owners(source, stage) for stage in present}
    run.append_metrics(EXTENDS, 0, {"run": source.name, "stages": present, "owners": names})
    os.rename(temporary, run.checkpoints)
    return present


def _is_made_with(path: Path, origin: Provenance) -> bool:
    made_with = read_made_with(path)
    return bool(made_with) and all(each == origin.made_with for each in made_with)


def _records(source: Path) -> list[Json]:
    """Return the records of a run that are whole, without their seals."""
    opened = (open_line(line, None) for line in read_regular(source / METRICS).splitlines())
    records = [found[0] for found in opened if found is not None]
    # One that was changed makes another chain, which the checkpoint then does not fit.
    return [
        record
        for record in records
        if isinstance(record.get("stage"), str) and type(record.get("step")) is int
    ]


def _owners(source: Path, stage: str) -> list[str]:
    """Return whom a finished run's checkpoints of a stage may belong to."""
    said = seal_of(parse_json(read_regular(source / RESULT), source / RESULT)) or {}
    taken = [each.get("owners", {}) for each in _records(source) if each.get("stage") == EXTENDS]
    return [f"{said.get('of')}/{stage}", *(name for each in taken for name in each.get(stage, ()))]
