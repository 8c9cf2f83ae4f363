"""The best settings of search studies again, on seeds that had no say in choosing them.

Command:  python experiments/confirm_study.py runs/study-search-A runs/study-search-B --top 12

The best of many settings owes part of its lead to luck. Here the ``top`` settings by their mean
gain over the defaults (setting 0), in deviations over settings and averaged over the studies, meet
the defaults once more on fresh seeds. The studies must hold the same settings, which they do if
they vary the same names with the same --seed and --settings. The defaults of
``rlprune_jax.search.HParams`` were chosen so: commands in docs/commands.md, numbers in the README.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet
import tyro
from command_line import run_resumable
from run_study import Search, make_task, metric_of

from rlprune_jax.devices import describe_device, versions
from rlprune_jax.runs.progress import progress
from rlprune_jax.runs.run_directory import open_run
from rlprune_jax.study import StudySettings, one_device_per_core, run_study
from rlprune_jax.study.results import summarise


@dataclasses.dataclass(frozen=True)
class Config:
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


def load(path: Path) -> tuple[Search, StudySettings, np.ndarray]:
    """Configuration, settings and metric f64[H, S] of a finished search study.

    Raises:
        ValueError: it is none.
    """
    try:
        content = json.loads((path / "config.json").read_text())
        rows = pyarrow.parquet.read_table(path / "table.parquet").to_pydict()
    except FileNotFoundError as error:
        raise ValueError(f"studies={path}: not a finished search study: {error}") from error
    if "vary" not in content:
        raise ValueError(f"studies={path}: not a search study")
    if content["optuna"]:
        raise ValueError(f"studies={path}: Optuna chose its settings, so none is the defaults")
    names = {field.name for field in dataclasses.fields(Search)}
    known = {name: _tuple(value) for name, value in content.items() if name in names}
    config = Search(**known | {"runs_dir": Path(content["runs_dir"])})
    columns = {name: tuple(rows[name][:: config.seeds]) for name in config.vary}
    values = np.asarray(rows[metric_of(config)]).reshape(-1, config.seeds)
    return config, StudySettings(columns), values


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def chosen(values: Sequence[np.ndarray], top: int) -> list[int]:
    """Setting 0 and the ``top`` others of largest mean standardised gain over it."""
    gains = []
    for study in values:
        mean = np.nan_to_num(study.mean(1), nan=-np.inf)
        spread = np.std(mean[np.isfinite(mean)])
        gains.append((mean - mean[0]) / max(spread, 1e-12))
    order = np.argsort(-np.mean(gains, axis=0), kind="stable")
    return [0, *[int(place) for place in order if place != 0][:top]]


def confirm(config: Config) -> Path:
    """Run the best settings again; return the run directory.

    Raises:
        ValueError: no studies, studies of different settings, or too few settings or seeds.
    """
    for option in ("top", "seeds"):
        if getattr(config, option) < 1:
            raise ValueError(f"{option}={getattr(config, option)} must be at least 1")
    if not config.studies:
        raise ValueError("studies is empty: name at least one run directory of a search study")
    loaded = [load(path) for path in config.studies]
    if any(settings.columns != loaded[0][1].columns for _, settings, _ in loaded):
        raise ValueError("the studies hold different settings: vary the same with the same seed")
    places = chosen([values for *_, values in loaded], config.top)
    settings = loaded[0][1].take(places)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    found: dict[str, Any] = {}
    with open_run(config.runs_dir, "confirm", config) as run:
        if run.is_finished:
            print(f"finished before; delete {run.path} to run again", file=sys.stderr)
            return run.path
        for path, (study, *_) in zip(config.studies, loaded, strict=True):
            with open_run(run.path, path.name, study) as own:
                task = make_task(study, own)
                with progress(f"{study.dataset} {study.model}", len(places) * len(seeds)) as tick:
                    result = run_study(
                        task.job,
                        settings,
                        seeds,
                        directory=own.path / "study",
                        shared=task.shared,
                        known=task.known,
                        static=task.static,
                        identity=str(path),
                        tick=tick,
                    )
            found[path.name] = gains(study, result.metrics[metric_of(study)])
        mean = np.mean([study["relative"] for study in found.values()], axis=0)
        best = int(np.argmax(mean))
        rows = [
            {"setting": place, **setting, "relative_gain": float(gain)}
            for place, setting, gain in zip(places, settings, mean, strict=True)
        ]
        run.write_result(
            {
                "seeds": list(seeds),
                "settings": rows,
                "best": rows[best],
                "gains": found,
                "versions": versions(),
                "device": describe_device(),
            }
        )
        show(rows, found)
        return run.path


def gains(study: Search, values: np.ndarray) -> dict[str, Any]:
    """Means of a metric f64[H, S], and paired gains over setting 0 with bootstrap intervals."""
    gain = summarise(values - values[:1])
    return {
        "dataset": study.dataset,
        "model": study.model,
        "metric": metric_of(study),
        "mean": values.mean(1).tolist(),
        "gain": gain["mean"].tolist(),
        "low": gain["low"].tolist(),
        "high": gain["high"].tolist(),
        "relative": (gain["mean"] / values[0].mean()).tolist(),
    }


def show(rows: Sequence[dict[str, Any]], found: dict[str, Any]) -> None:
    """Print one line per setting, the best first."""
    order = sorted(range(len(rows)), key=lambda place: -rows[place]["relative_gain"])
    for place in order:
        each = "; ".join(
            f"{study['dataset']} {study['mean'][place]:.3f}, {study['gain'][place]:+.3f} "
            f"[{study['low'][place]:+.3f}, {study['high'][place]:+.3f}]"
            for study in found.values()
        )
        print(f"setting {rows[place]['setting']:>3}: {each}")
    print(json.dumps(rows[order[0]]))


if __name__ == "__main__":
    one_device_per_core()
    run_resumable(confirm, Config, __doc__, saved="chunk")
