"""Keep what a study has finished on disk.

In chunks of cells, each written whole before the next begins.

A cell is one setting with one seed, numbered ``setting * S + seed_place``. A chunk's file name
holds the first digits of the SHA-256 of its content, so damage is seen when it is read.
"""

import contextlib
import hashlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from filelock import BaseFileLock

from rlprune_jax.files import Closing, to_json, try_lock, unwritable, write_atomically
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
            self._check(json.loads(json.dumps(to_json(identity))))
            self.reload()
        except BaseException:
            self.close()
            raise

    def _check(self, identity: dict[str, object]) -> None:
        assert self.path is not None
        file = self.path / "study.json"
        if not file.exists():
            write_atomically(file, json.dumps(identity, indent=1) + "\n")
            return
        try:
            stored = json.loads(file.read_text())
        except ValueError:
            raise StudyError(f"{file} is no study of ours; choose another directory") from None
        if _extends(stored, identity):
            write_atomically(file, json.dumps(identity, indent=1) + "\n")
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
        for file in sorted((self.path / "chunks").glob("*.npz")):
            try:
                content = file.read_bytes()
                if _digest(content) != file.stem.rpartition("-")[2]:
                    raise ValueError("its checksum does not fit")
                with np.load(io.BytesIO(content)) as arrays:
                    self.chunks.append({name: arrays[name] for name in arrays.files})
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
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
            try:
                self._measured |= json.loads(file.read_text())
            except ValueError:
                continue

    def done(self) -> set[int]:
        """Return the cells that are finished."""
        return {int(cell) for chunk in self.chunks for cell in chunk["cell"]}

    def save(self, chunk: Chunk) -> None:
        """Keep a chunk, on disk when this returns.

        Raises:
            UnwritableError: it could not be written, as on a full disk; earlier ones stay.
        """
        if self.path is not None:
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **chunk)
            content = buffer.getvalue()
            name = f"{int(chunk['cell'].min()):08d}-{len(chunk['cell'])}-{_digest(content)}.npz"
            write_atomically(self.path / "chunks" / name, content)
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
            write_atomically(file, json.dumps(self._measured, indent=1) + "\n")

    def close(self) -> None:
        """Let another process work on the study."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


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
