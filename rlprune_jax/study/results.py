"""Hold results of a study and summarise them.

One tidy table, and mean, bootstrap interval and rank per setting.
"""

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from rlprune_jax.checks import require, require_count, require_flag, require_range
from rlprune_jax.files import write_atomically
from rlprune_jax.sealed import read_summed, write_sums
from rlprune_jax.study.settings import StudySettings
from rlprune_jax.study.store import Chunk

RESAMPLES = 2000


class Interval(NamedTuple):
    """Hold an estimate with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class StudyResult:
    """Hold what a study found.

    Attributes:
        settings: H settings.
        seeds: S seeds.
        metrics: per metric f64[H, S]; NaN where the job gave NaN.
        seconds: f64[H, S], each cell's part of its block's run, compilation apart.
        strategies: per static group "vmap", "map", or "none" where nothing was left to run.
        compile_seconds: spent compiling, of this call.
        cells_run: number of cells that this call ran; the others were on disk.
        corrupt: chunk files that were damaged and computed again.
    """

    settings: StudySettings
    seeds: tuple[int, ...]
    metrics: Mapping[str, np.ndarray]
    seconds: np.ndarray
    strategies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    compile_seconds: float = 0.0
    cells_run: int = 0
    corrupt: tuple[str, ...] = ()

    def columns(self) -> dict[str, np.ndarray]:
        """Return the tidy table by columns.

        H * S rows: setting number, hyper-parameters, seed, metrics, seconds.
        """
        count = len(self.seeds)
        rows: dict[str, np.ndarray] = {"setting": np.repeat(np.arange(len(self.settings)), count)}
        rows |= {
            name: np.repeat(np.asarray(values), count)
            for name, values in self.settings.columns.items()
        }
        rows["seed"] = np.tile(np.asarray(self.seeds), len(self.settings))
        rows |= {name: values.reshape(-1) for name, values in self.metrics.items()}
        if "seconds" not in rows:
            rows["seconds"] = self.seconds.reshape(-1)
        return rows

    def write(self, directory: str | os.PathLike, name: str = "table") -> tuple[Path, Path]:
        """Write the tidy table as Parquet and CSV.

        ``<name>.parquet`` and ``<name>.csv``, whole or not at all.
        """
        return write_table(directory, name, self.columns())

    def summary(self, metric: str, maximize: bool = True) -> dict[str, np.ndarray]:
        """Summarise one metric per setting.

        One row per setting: hyper-parameters, mean, interval and rank.

        Raises:
            ValueError: the study has no such metric.
        """
        if metric not in self.metrics:
            raise ValueError(f"metric={metric!r}: the study has {', '.join(self.metrics)}")
        rows: dict[str, np.ndarray] = {"setting": np.arange(len(self.settings))}
        rows |= {name: np.asarray(values) for name, values in self.settings.columns.items()}
        return rows | summarise(self.metrics[metric], maximize)

    def best(self, metric: str, maximize: bool = True) -> int:
        """Return the number of the setting of rank 1."""
        return int(np.argmin(self.summary(metric, maximize)["rank"]))


class About(TypedDict):
    """Name what a result says of its call."""

    strategies: Mapping[str, str]
    compile_seconds: float
    cells_run: int
    corrupt: tuple[str, ...]


def collect(
    settings: StudySettings,
    seeds: Sequence[int],
    chunks: Sequence[Chunk],
    **about: Unpack[About],
) -> StudyResult:
    """Put chunks together into a result.

    A cell that is there twice counts once, and one that is not is NaN.
    """
    count = len(settings) * len(seeds)
    names = list(
        dict.fromkeys(name for chunk in chunks for name in chunk if name.startswith("metric/"))
    )
    values = {name: np.full(count, np.nan) for name in ("seconds", *names)}
    for chunk in chunks:
        for name in set(values) & set(chunk):
            values[name][chunk["cell"]] = chunk[name]
    shape = (len(settings), len(seeds))
    metrics = {name.removeprefix("metric/"): values[name].reshape(shape) for name in names}
    return StudyResult(
        settings=settings,
        seeds=tuple(seeds),
        metrics=metrics,
        seconds=values["seconds"].reshape(shape),
        **about,
    )


def summarise(
    values: ArrayLike, maximize: bool = True, confidence: float = 0.95
) -> dict[str, np.ndarray]:
    """Return mean, bootstrap interval and rank per setting.

    Use it to compare settings by one metric over the same seeds.

    Every setting is resampled with the same draws of seeds. With one seed the interval is
    unknown, NaN. A setting with NaN among its seeds has mean NaN and is ranked last.

    Args:
        values: f[H, S] of one metric.
        maximize: whether more is better.
        confidence: of the interval.

    Returns:
        ``mean``, ``low``, ``high`` f64[H]; ``rank`` i64[H], 1 is best, equal means have the same.

    Raises:
        ValueError: not [settings, seeds] with at least one of each, or a confidence outside (0, 1).

    Example:
        >>> summarise([[1.0, 2.0], [float("nan"), 9.0], [3.0, 4.0]])["rank"].tolist()
        [2, 3, 1]
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"values has shape {array.shape} and must be [settings, seeds], at least one of each"
        )
    require_flag("maximize", maximize)
    _check_confidence(confidence)
    mean = array.mean(1)
    low = high = np.full(len(array), np.nan)
    if array.shape[1] > 1:
        draws = np.random.default_rng(0).integers(array.shape[1], size=(RESAMPLES, array.shape[1]))
        tail = 100 * (1 - confidence) / 2
        ends = np.full((2, len(array)), np.nan)
        for index, row in enumerate(array):  # one setting at a time keeps memory small
            if np.isfinite(row).all():
                ends[:, index] = np.percentile(row[draws].mean(1), [tail, 100 - tail])
        low, high = ends
    merit = np.where(np.isnan(mean), np.inf, -mean if maximize else mean)
    last = np.isnan(mean)
    rank = scipy.stats.rankdata(merit, method="min").astype(np.int64)
    # An infinitely bad mean is still a number: it goes before what is none.
    rank[last] = (~last).sum() + 1
    return {"mean": mean, "low": low, "high": high, "rank": rank}


def rank_correlation(
    first: ArrayLike, second: ArrayLike, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """Return Spearman's rank correlation with a bootstrap interval.

    Use it to ask how well one number predicts another over n pairs.

    Pairs with a NaN are left out. Constant data correlate with nothing: NaN.

    Raises:
        ValueError: unequal lengths, fewer than 3 pairs, or a confidence outside (0, 1).

    Example:
        >>> rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]).value
        1.0
    """
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"first has shape {x.shape}, second {y.shape}: give two equal lengths")
    seen = np.isfinite(x) & np.isfinite(y)
    x, y = x[seen], y[seen]
    if len(x) < 3:
        raise ValueError(f"{len(x)} pairs have both numbers: a correlation needs at least 3")
    _check_confidence(confidence)
    resamples = require_count("resamples", resamples)
    draws = np.random.default_rng(0).integers(len(x), size=(resamples, len(x)))
    value = float(_spearman(x[None], y[None])[0])
    found = _spearman(x[draws], y[draws])
    found = found[np.isfinite(found)]
    if not len(found) or not np.isfinite(value):
        return Interval(value=value, low=np.nan, high=np.nan)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return Interval(value=round(value, 12), low=float(low), high=float(high))


def _check_confidence(confidence: float) -> None:
    require_range("confidence", confidence)
    require(0.0 < confidence < 1.0, "confidence", confidence, "between 0 and 1, such as 0.95")


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each row of f[R, n]: the Pearson correlation of ranks, ties at their mean."""
    a, b = (scipy.stats.rankdata(values, axis=1) for values in (x, y))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.where(scale > 0, (a * b).sum(1) / np.where(scale > 0, scale, 1), np.nan)


def write_table(
    directory: str | os.PathLike, name: str, columns: Mapping[str, np.ndarray]
) -> tuple[Path, Path]:
    """Write columns as Parquet and CSV.

    ``<name>.parquet`` and ``<name>.csv``, and their checksums in ``SHA256SUMS``.

    Raises:
        UnwritableError: the place cannot be written.
    """
    # Imported here: reading and writing tables is the only use of a large library.
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    arrow = pyarrow.table({column: pyarrow.array(values) for column, values in columns.items()})
    folder = Path(directory)
    paths = folder / f"{name}.parquet", folder / f"{name}.csv"
    writers = (pyarrow.parquet.write_table, pyarrow.csv.write_csv)
    for path, writer in zip(paths, writers, strict=True):
        buffer = io.BytesIO()
        writer(arrow, buffer)
        write_atomically(path, buffer.getvalue())
    write_sums(folder, [path.name for path in paths])
    return paths


def read_table(path: str | os.PathLike) -> dict[str, list]:
    """Read a table that `write_table` wrote, by columns.

    Args:
        path: of the Parquet file; its checksum is looked up in the ``SHA256SUMS`` beside it.

    Raises:
        OSError: it cannot be read.
        DamagedFileError: it was changed, or its checksum is gone.
    """
    import pyarrow.parquet

    content = read_summed(path)
    return pyarrow.parquet.read_table(io.BytesIO(content)).to_pydict()
