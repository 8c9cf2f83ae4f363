"""Keep what a study has finished on disk.

In chunks of cells, each written whole before the next begins.

A cell is one setting with one seed, numbered ``setting * S + seed_place``. A chunk carries the
checksum of its content, of the study, and of the settings that its cells have, so that damage is
seen when it is read, and so is a chunk of another study.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from filelock import BaseFileLock

from rlprune_jax.files import Closing, to_json, try_lock, unwritable, write_atomically
from rlprune_jax.sealed import (
    DamagedFileError,
    arrays_header,
    digest_json,
    open_arrays,
    pack_arrays,
    read_regular,
    read_sealed,
    write_sealed,
)
from rlprune_jax.types import PyTree

Chunk = dict[str, np.ndarray]
"""``"cell"`` i64[n], ``"seconds"`` f64[n], and f64[n] per metric as ``"metric/<name>"``."""


class StudyError(RuntimeError):
    """Raised where a study cannot go on in a place.

    It holds another study, another process works on it, or it is damaged.
    """


class CorruptChunkWarning(UserWarning):
    """Warn that a chunk's file is damaged.

    Its cells are computed again.
    """


class Cells:
    """Know the cells of a study, and what a chunk of them must be.

    Args:
        identity: plain JSON of everything that decides the numbers. Of it ``settings`` (columns by
            name) and ``seeds`` say which cells there are, ``metrics`` what a cell gives.
    """

    def __init__(self, identity: Mapping[str, object]):
        self._columns: dict[str, list] = identity.get("settings") or {}  # type: ignore[assignment]
        self._metrics: list[list[str]] = identity.get("metrics") or []  # type: ignore[assignment]
        seeds: list[int] = identity.get("seeds") or []  # type: ignore[assignment]
        self._seeds = len(seeds)
        self.count = self._seeds * len(next(iter(self._columns.values()), ()))
        self.study = digest_json({**identity, "settings": list(self._columns)})

    def rows(self, cells: np.ndarray) -> str:
        """Return the digest of the settings of some cells."""
        places = sorted({int(cell) // self._seeds for cell in cells})
        return digest_json(
            {name: [column[p] for p in places] for name, column in self._columns.items()}
        )

    def check(self, chunk: Chunk) -> None:
        """Refuse what is no chunk of this study.

        Raises:
            DamagedFileError: other arrays, cells that there are not, or twice the same.
        """
        cells = chunk.get("cell")
        names = sorted(name.removeprefix("metric/") for name in chunk if name.startswith("metric/"))
        if cells is None or cells.dtype != np.int64 or cells.ndim != 1 or not len(cells):
            raise DamagedFileError("it names no cells")
        if names not in self._metrics or len(chunk) != len(names) + 2 or "seconds" not in chunk:
            raise DamagedFileError(f"it holds {', '.join(chunk)}, not what the job gives")
        for name, values in chunk.items():
            if values.shape != cells.shape or (name != "cell" and values.dtype != np.float64):
                raise DamagedFileError(f"{name!r} is not one number for each cell")
        if cells.min() < 0 or cells.max() >= self.count or len(set(cells.tolist())) < len(cells):
            raise DamagedFileError(
                f"its cells are not among the {self.count} of the study, once each"
            )


class Store(Closing):
    """Hold the directory of one study, locked.

    A context manager.

    ``study.json`` says what is studied, ``measured.json`` what was found to be faster,
    ``chunks/`` holds the cells that are done. Without a directory everything stays in memory.

    Args:
        directory: of the study, made where needed; None keeps nothing.
        identity: plain JSON of everything that decides the numbers.
        process: number of this process among those that use the directory.

    Raises:
        StudyError: the directory holds another study, or another process works on it.
        UnwritableError: it cannot be written.
    """

    def __init__(
        self, directory: str | os.PathLike | None, identity: Mapping[str, object], process: int = 0
    ):
        self.path = None if directory is None else Path(directory).expanduser()
        self.chunks: list[Chunk] = []
        self.corrupt: list[str] = []
        self._measured: dict[str, object] = {}
        self._process = process
        self._lock: BaseFileLock | None = None
        if self.path is None:
            return
        identity = json.loads(json.dumps(to_json(identity)))
        self._cells = Cells(identity)
        try:
            (self.path / "chunks").mkdir(parents=True, exist_ok=True)
            self._lock = try_lock(self.path / f".lock-{process}")
        except OSError as error:
            raise unwritable(self.path, error) from error
        if self._lock is None:
            raise StudyError(
                f"another process works on the study in {self.path}; wait for it, or choose "
                "another directory"
            )
        try:
            self._check(identity)
            self.reload()
        except BaseException:
            self.close()
            raise

    def _check(self, identity: dict[str, object]) -> None:
        assert self.path is not None
        file = self.path / "study.json"
        if not file.exists():
            write_sealed(file, identity, "study")
            return
        try:
            stored = read_sealed(file, "study")
        except DamagedFileError as error:
            raise StudyError(
                f"{error}; choose another directory, or delete {self.path} to begin anew"
            ) from None
        if _extends(stored, identity):
            write_sealed(file, identity, "study")
        elif stored != identity:
            names = sorted(
                name for name in {*stored, *identity} if stored.get(name) != identity.get(name)
            )
            raise StudyError(
                f"{self.path} holds another study: they differ in {', '.join(names)}"
                f"{_difference(stored, identity, names)}; choose another directory, or delete "
                "it to begin anew"
            )

    def reload(self) -> None:
        """Read all chunks.

        A damaged one is set aside, with a warning, and does not count.
        """
        if self.path is None:
            return
        self.chunks, self.corrupt = [], []
        for file in sorted((self.path / "chunks").glob("*.arrays")):
            try:
                self.chunks.append(self._read(file))
            except (OSError, DamagedFileError) as error:
                self.corrupt.append(file.name)
                warnings.warn(
                    f"chunk {file} is corrupt ({error}): its cells are computed again",
                    CorruptChunkWarning,
                    stacklevel=2,
                )
                with contextlib.suppress(OSError):  # another process may have been faster
                    file.rename(file.with_suffix(".corrupt"))
        self._measured = {}
        for file in sorted(self.path.glob("measured-*.json")):
            # What is damaged is measured again.
            with contextlib.suppress(OSError, DamagedFileError):
                self._measured |= read_sealed(file, "measured", self._cells.study)

    def _read(self, file: Path) -> Chunk:
        """Return a chunk, checked.

        Raises:
            DamagedFileError: it was changed, or belongs to another study or other settings.
        """
        content = read_regular(file)
        chunk = open_arrays(content, file, "chunk", self._cells.study)
        self._cells.check(chunk)
        if arrays_header(content, file).get("rows") != self._cells.rows(chunk["cell"]):
            raise DamagedFileError("its settings are others")
        return chunk

    def done(self) -> set[int]:
        """Return the cells that are finished."""
        return {int(cell) for chunk in self.chunks for cell in chunk["cell"]}

    def save(self, chunk: Chunk) -> None:
        """Keep a chunk, on disk when this returns.

        Raises:
            UnwritableError: it could not be written, as on a full disk; earlier ones stay.
        """
        if self.path is not None:
            cells = chunk["cell"]
            parts = pack_arrays(chunk, "chunk", self._cells.study, rows=self._cells.rows(cells))
            # Processes may compute the same cells: each has a name of its own.
            name = f"{int(cells.min()):08d}-{len(cells)}-{digest_json(cells.tolist())[:16]}"
            file = self.path / "chunks" / f"{name}-{self._process}.arrays"
            write_atomically(file, parts)
        self.chunks.append(chunk)

    def measured(self, name: str) -> PyTree:
        """Return what was measured under a name, or None."""
        return self._measured.get(name)

    def keep_measured(self, name: str, value: object) -> None:
        """Keep a measurement.

        So that a resumed study does not measure again.
        """
        self._measured[name] = to_json(value)
        if self.path is not None:
            file = self.path / f"measured-{self._process}.json"
            write_sealed(file, self._measured, "measured", self._cells.study)

    def close(self) -> None:
        """Let another process work on the study."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _extends(stored: Mapping[str, object], identity: Mapping[str, object]) -> bool:
    """Whether a study is a stored one with more settings after the same ones."""
    old, new = stored.get("settings"), identity.get("settings")
    if not (isinstance(old, dict) and isinstance(new, dict)) or list(old) != list(new):
        return False
    longer = all(
        len(new[name]) > len(old[name]) and _same(old[name], new[name][: len(old[name])])
        for name in old
    )
    return longer and {**stored, "settings": None} == {**identity, "settings": None}


def _same(old: object, new: object) -> bool:
    """Whether two JSON values are the same, 1 and 1.0 apart."""
    return json.dumps(old) == json.dumps(new)


def _difference(
    stored: Mapping[str, object], identity: Mapping[str, object], names: list[str]
) -> str:
    """Short values are shown, since a name alone seldom says what to do."""
    if len(names) != 1:
        return ""
    old, new = (json.dumps(side.get(names[0])) for side in (stored, identity))
    return f" ({old} there, {new} here)" if len(old) + len(new) < 200 else ""
