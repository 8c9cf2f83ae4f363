"""Keep what a study has finished on disk.

In chunks of cells, each written whole before the next begins.

A cell is one setting with one seed, numbered ``setting * S + seed_place``. A chunk carries the
checksum of its content, of the study, and of the settings that its cells have, so that damage is
seen when it is read, and so is a chunk of another study.
"""

import contextlib
import itertools
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from filelock import BaseFileLock

from rlprune_jax.files import Closing, to_json, try_lock, unwritable, write_atomically
from rlprune_jax.origin import Stale, StaleWarning, differences
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


MADE_WITH = "made_with"
"""Entry of an identity that holds versions and digests of code."""


class StudyError(RuntimeError):
    """Raised where a study cannot go on in a place.

    It holds another study, another process works on it, or it is damaged.
    """


class CorruptChunkWarning(UserWarning):
    """Warn that a chunk's file is damaged.

    Its cells are computed again.
    """


class Cells:
    """Know the cells of a study.

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
        # Neither more settings nor other code make another study of it.
        self.study = digest_json({**identity, "settings": list(self._columns), MADE_WITH: None})

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
        values: digest of the arrays that this process computes with; other processes may have
            others, since no two kinds of machine round alike.
        stale: what is done with chunks that other code or arrays made.

    Raises:
        StudyError: the directory holds another study, or another process works on it.
        UnwritableError: it cannot be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike | None,
        identity: Mapping[str, object],
        process: int = 0,
        *,
        values: str = "",
        stale: Stale = "refuse",
    ):
        self.path = None if directory is None else Path(directory).expanduser()
        self.chunks: list[Chunk] = []
        self.corrupt: list[str] = []
        self._measured: dict[str, object] = {}
        self._process = process
        self._lock: BaseFileLock | None = None
        if self.path is None:
            return
        plain: dict[str, object] = json.loads(json.dumps(to_json(identity)))
        self._cells = Cells(plain)
        self._values = values
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
            self._check(plain)
            self._settle(plain, stale)
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
        made_with, identity = stored.pop(MADE_WITH, {}), identity.copy()
        identity.pop(MADE_WITH, {})
        if _extends(stored, identity):
            write_sealed(file, identity | {MADE_WITH: made_with}, "study")
        elif stored != identity:
            names = sorted(
                name for name in {*stored, *identity} if stored.get(name) != identity.get(name)
            )
            raise StudyError(
                f"{self.path} holds another study: they differ in {', '.join(names)}"
                f"{_difference(stored, identity, names)}; choose another directory, or delete "
                "it to begin anew"
            )

    def _settle(self, identity: dict[str, object], stale: Stale) -> None:
        """Do with what other code or arrays made as is wanted.

        Raises:
            StudyError: it is to be refused.
        """
        assert self.path is not None
        file, own = self.path / "study.json", self.path / f"values-{self._process}.json"
        made_with = read_sealed(file, "study").get(MADE_WITH) or {}
        found = differences(made_with, identity.get(MADE_WITH) or {})  # type: ignore[arg-type]
        known = self._known(own)
        if known and self._values not in known:
            found = f"{found}{', ' if found else ''}the arrays that it reads"
        if found and stale == "refuse":
            raise StudyError(
                f"{self.path} holds what other code or arrays have made: {found}; stale='redo' "
                "(--stale redo) computes it again and keeps the old chunks beside, stale='keep' "
                "goes on with it as it is, or choose another directory"
            )
        if found:
            text = {"redo": "is computed again", "keep": "is kept"}[stale]
            warnings.warn(f"{self.path} {text}; it was made with other: {found}", StaleWarning, 5)
        if found and stale == "redo":
            self._set_aside()
            write_sealed(file, identity, "study")
            known = []
        if self._values not in known:
            values = {"values": [*known, self._values]}
            write_sealed(own, values, "values", self._cells.study)

    def _set_aside(self) -> None:
        """Keep the chunks that are there under another name, and forget what goes with them."""
        assert self.path is not None
        names = (self.path / f"chunks.stale-{number}" for number in itertools.count(1))
        (self.path / "chunks").rename(next(name for name in names if not name.exists()))
        (self.path / "chunks").mkdir()
        for file in [*self.path.glob("values-*.json"), *self.path.glob("measured-*.json")]:
            file.unlink()

    def _known(self, file: Path) -> list[str]:
        """Return the digests of arrays that a process has computed with."""
        with contextlib.suppress(OSError, DamagedFileError):
            return list(read_sealed(file, "values", self._cells.study)["values"])
        return []

    def reload(self) -> None:
        """Read all chunks.

        A damaged one is set aside, with a warning, and does not count.
        """
        if self.path is None:
            return
        self.chunks, self.corrupt = [], []
        self._all_values = {
            each for file in self.path.glob("values-*.json") for each in self._known(file)
        }
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
        said = arrays_header(content, file)
        if said.get("rows") != self._cells.rows(chunk["cell"]):
            raise DamagedFileError("its settings are others")
        if said.get("values") not in self._all_values:
            raise DamagedFileError("it was computed with other arrays")
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
            about = {"rows": self._cells.rows(cells), "values": self._values}
            parts = pack_arrays(chunk, "chunk", self._cells.study, **about)
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
