"""Timings that are measured once on a device and kept in files."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from rlprune_jax.devices import describe_device
from rlprune_jax.private import private_folder
from rlprune_jax.sealed import DamagedFileError, read_sealed, write_sealed

_FORMAT = "rlprune_jax.latency/3"

MOST = 1e9
"""Milliseconds that no call takes; a file that says more is not believed."""


class Timings(NamedTuple):
    """Hold the milliseconds f64[...] of several calls.

    Attributes:
        median: of each.
        lower: lower quartile of each.
        upper: upper quartile of each.
    """

    median: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class Stopwatch:
    """Remember what was timed on this kind of device.

    Attributes:
        repeats: timed calls of each measurement.
    """

    def __init__(self, cache: Path | None, repeats: int) -> None:
        """Prepare without reading anything.

        Args:
            cache: folder of the files, or None to keep nothing. The name of a file is a hash of
                the device's kind, JAX's version, the repeats and what is timed.
            repeats: timed calls of each.
        """
        self._cache, self.repeats = cache, repeats
        device = describe_device()
        names = [str(device[name]) for name in ("platform", "kind", "processor", "cores")]
        self._where = [*names, f"jax {jax.__version__}", f"{repeats} repeats"]

    def remembered(
        self, what: list[str], measure: Callable[[], Timings], shape: tuple[int, ...]
    ) -> Timings:
        """Return timings from their file, or measure and keep them.

        Args:
            what: describes what is timed; equal descriptions share a file.
            measure: times it anew.
            shape: of each array of the timings.
        """
        if self._cache is None:
            return measure()
        record = {"format": _FORMAT, "device": self._where, "timed": what}
        try:
            private_folder(self._cache)
        except OSError as error:
            self._tell(error)
            return measure()
        name = hashlib.sha256(json.dumps(record).encode()).hexdigest()[:24]
        path = self._cache / f"{name}.json"
        stored = _read(path, record, shape)
        if stored is not None:
            return stored
        found = measure()
        content = record | {name: rows.tolist() for name, rows in found._asdict().items()}
        try:
            write_sealed(path, content, _FORMAT, name)
        except OSError as error:
            self._tell(error)
        return found

    def _tell(self, error: OSError) -> None:
        """Warn that timings are not kept."""
        warnings.warn(
            f"timings cannot be kept in {self._cache} ({error}); they will be measured again "
            "next time; set RLPRUNE_CACHE_DIR to a writable folder",
            RuntimeWarning,
            stacklevel=3,
        )


def _read(path: Path, record: Mapping[str, object], shape: tuple[int, ...]) -> Timings | None:
    """Read the timings of a record, None where missing; what is damaged is said."""
    try:
        stored = read_sealed(path, _FORMAT, path.stem)
        if {name: stored.pop(name) for name in record} != record:
            raise DamagedFileError(f"{path} is of something else")
        found = Timings(**{name: np.array(rows, np.float64) for name, rows in stored.items()})
        if not _is_plausible(found, shape):
            raise DamagedFileError(f"{path} holds times that cannot be")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        warnings.warn(
            f"timings in {path} do not count ({error}); they are measured again",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    return found


def _is_plausible(found: Timings, shape: tuple[int, ...]) -> bool:
    """Return whether times are finite, in the order of their quartiles, and not below 0."""
    if any(rows.shape != shape for rows in found):
        return False
    inside = all(((rows >= 0) & (rows < MOST) & ~np.signbit(rows)).all() for rows in found)
    return inside and bool(((found.lower <= found.median) & (found.median <= found.upper)).all())
