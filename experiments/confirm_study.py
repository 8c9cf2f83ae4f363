"""The best settings of search studies again, on seeds that had no say in choosing them.

Command:  python experiments/confirm_study.py runs/study-search-A runs/study-search-B --top 12
Hardware: any; with the studies' own networks about a fifth of their time.

The best of many settings owes part of its lead to luck. Here the ``top`` settings by their mean
gain over the defaults (setting 0), in deviations over settings and averaged over the studies, meet
the defaults once more on fresh seeds. The studies must hold the same settings, which they do if
they vary the same names with the same --seed and --settings. The defaults of
``rlprune_jax.search.HParams`` were chosen so: commands in docs/commands.md, numbers in the README.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from rlprune_jax.cli.common import run_command
from rlprune_jax.places import open_streams
from rlprune_jax.workflow.studies import SearchStudy

if TYPE_CHECKING:
    from rlprune_jax.study import StudyResult, StudySettings


Number = int | float | str | bool
Row = dict[str, Number]


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """Settings of the confirmation."""

    studies: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories of finished search studies."""
    top: int = 12
    """Settings that are run again."""
    seeds: int = 12
    """Fresh seeds of each."""
    first_seed: int = 1000
    """The first of them; beyond those of the studies."""
    runs_dir: Path = Path("runs")
    """Where the run directory goes."""
    stale: Literal["refuse", "redo", "keep"] = "refuse"
    """What to do with a run that is there and that other code made."""

    def check(self) -> None:
        """Refuse options that cannot be.

        Raises:
            ValueError: naming the option, its value and what it may be.
        """
        for option in ("top", "seeds"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option}={getattr(self, option)} must be at least 1")
        if self.first_seed < 0:
            raise ValueError(f"first_seed={self.first_seed} must be at least 0")
        if not self.studies:
            raise ValueError("studies is empty; name at least one run directory of a search study")
        for path in self.studies:
            if not (path / "result.json").exists():
                raise ValueError(f"studies={path} is not a finished search study; run it first")


def load(path: Path) -> tuple[SearchStudy, "StudySettings", np.ndarray]:
    """Return options, settings and metric f64[H, S] of a finished search study.

    Raises:
        ValueError: it is none.
    """
    from rlprune_jax.runs import read_config
    from rlprune_jax.study import StudySettings
    from rlprune_jax.study.results import read_table

    try:
        content = read_config(path)
        rows = read_table(path / "table.parquet")
    except (OSError, ValueError) as error:
        raise ValueError(f"studies={path} is not a finished search study: {error}") from error
    if "vary" not in content:
        raise ValueError(f"studies={path} is not a search study; name one of rlprune study search")
    if content["optuna"]:
        raise ValueError(
            f"studies={path}: Optuna chose its settings, so none is the defaults; name a study "
            "without --optuna"
        )
    names = {field.name for field in dataclasses.fields(SearchStudy)}
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in content.items()
        if name in names
    }
    study = dataclasses.replace(SearchStudy(), **known | {"runs_dir": Path(content["runs_dir"])})
    columns = {name: tuple(rows[name][:: study.seeds]) for name in study.vary}
    values = np.asarray(rows[study.metric]).reshape(-1, study.seeds)
    return study, StudySettings(columns), values


def chosen(values: Sequence[np.ndarray], top: int) -> list[int]:
    """Return setting 0 and the ``top`` others of largest mean standardised gain over it.

    Args:
        values: f64[H, S] of each study.
        top: how many others.
    """
    gains = []
    for study in values:
        mean = np.nan_to_num(study.mean(1), nan=-np.inf)
        spread = np.std(mean[np.isfinite(mean)])
        gains.append((mean - mean[0]) / max(spread, 1e-12))
    order = np.argsort(-np.mean(gains, axis=0), kind="stable")
    return [0, *[int(place) for place in order if place != 0][:top]]


def confirm(options: object) -> Path:
    """Run the best settings again; return the run directory.

    Raises:
        ValueError: no studies, studies of different settings, or too few settings or seeds.
    """
    assert isinstance(options, Confirmation)
    options.check()
    from rlprune_jax.devices import describe_device, versions
    from rlprune_jax.origin import Provenance, code_origin
    from rlprune_jax.runs import open_run
    from rlprune_jax.study import one_device_per_core

    one_device_per_core()
    loaded = [load(path) for path in options.studies]
    if any(settings.columns != loaded[0][1].columns for _, settings, _ in loaded):
        raise ValueError("the studies hold different settings; vary the same with the same seed")
    places = chosen([values for *_, values in loaded], options.top)
    settings = loaded[0][1].take(places)
    origin = Provenance(code_origin(), options.stale)
    with open_run(options.runs_dir, "confirm", options, origin=origin) as run:
        if run.is_finished:
            print(f"finished before; delete {run.path} to run again", file=sys.stderr)
            return run.path
        found = {
            path.name: gains(study, run_again(study, settings, options, run.path / path.name))
            for path, (study, *_) in zip(options.studies, loaded, strict=True)
        }
        mean = np.mean([np.asarray(study["relative"]) for study in found.values()], axis=0)
        rows: list[Row] = [
            {"setting": place, **setting, "relative_gain": float(gain)}
            for place, setting, gain in zip(places, settings, mean, strict=True)
        ]
        run.write_result(
            {
                "seeds": list(fresh_seeds(options)),
                "settings": rows,
                "best": rows[int(np.argmax(mean))],
                "gains": found,
                "versions": versions(),
                "device": describe_device(),
            }
        )
        show(rows, found)
        return run.path


def fresh_seeds(options: Confirmation) -> range:
    """Return the seeds that had no say."""
    return range(options.first_seed, options.first_seed + options.seeds)


def run_again(
    study: SearchStudy, settings: "StudySettings", options: Confirmation, folder: Path
) -> "StudyResult":
    """Run settings of a study with fresh seeds, resumably.

    Args:
        study: whose network and search count.
        settings: to run.
        options: of the confirmation.
        folder: for the run directory of this study.
    """
    from rlprune_jax.runs import open_run_at, show_progress
    from rlprune_jax.study import run_study

    seeds = fresh_seeds(options)
    with open_run_at(folder, study.record()) as run:
        job = study.job(run)
        about = f"{study.dataset} {study.model}"
        with show_progress(about, len(settings) * len(seeds)) as tick:
            return run_study(
                job.job,
                settings,
                seeds,
                directory=folder / "study",
                shared=job.shared,
                known=job.known,
                static=job.static,
                identity=study.identity(),
                strategy=study.strategy,
                chunk=study.chunk,
                tick=tick,
                stale=options.stale,
            )


def gains(study: SearchStudy, found: "StudyResult") -> dict[str, str | list[float]]:
    """Return means of the metric, and paired gains over setting 0 with bootstrap intervals."""
    from rlprune_jax.study import summarise

    values = found.metrics[study.metric]
    gain = summarise(values - values[:1])
    return {
        "dataset": study.dataset,
        "model": study.model,
        "metric": study.metric,
        "mean": values.mean(1).tolist(),
        "gain": gain["mean"].tolist(),
        "low": gain["low"].tolist(),
        "high": gain["high"].tolist(),
        "relative": (gain["mean"] / values[0].mean()).tolist(),
    }


def show(rows: Sequence[Row], found: Mapping[str, Mapping[str, str | list[float]]]) -> None:
    """Print one line per setting, the best first."""
    order = sorted(range(len(rows)), key=lambda place: -float(rows[place]["relative_gain"]))
    for place in order:
        each = []
        for study in found.values():
            mean, gain, low, high = (
                float(study[name][place]) for name in ("mean", "gain", "low", "high")
            )
            about = f"{study['dataset']} {mean:.3f}"
            each.append(f"{about}, {gain:+.3f} [{low:+.3f}, {high:+.3f}]")
        print(f"setting {rows[place]['setting']:>3}: {'; '.join(each)}")
    print(json.dumps(rows[order[0]]))


if __name__ == "__main__":
    open_streams()
    run_command(confirm, Confirmation, __doc__, saved="chunk")
