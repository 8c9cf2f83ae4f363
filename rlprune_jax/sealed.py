"""Files that carry a checksum of their content and of what they belong to.

Every file that a run, a study, a cache or an export writes is sealed in one of these ways, and
read back through the same functions: JSON objects (`write_sealed`), rows of metrics (`seal_line`),
arrays (`pack_arrays`), files of another format with a line behind them (`add_trailer`), and files
that stand beside a list of sums (`write_sums`). A seal is no signature: it finds damage and mixed
up files, not someone who writes a file with a right seal; what such a file says is checked too.
"""

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlprune_jax.files import to_json, write_atomically

Json = dict[str, Any]

SEAL = "seal"
"""Entry of an object that holds its seal; also that of a row of metrics."""

SUMS = "SHA256SUMS"
"""Name of the list of sums in a folder, as the command sha256sum reads it."""

_ARRAYS = b"rlprune_jax.arrays/1 "
_TRAILER = b"\nrlprune_jax.seal/1 "
_DTYPE = re.compile(r"[<|][biufc]\d+")


class DamagedFileError(ValueError):
    """Say which file is damaged, or belongs to something else."""


class DamageWarning(UserWarning):
    """Warn that something on disk is damaged and made anew."""


def read_regular(path: str | os.PathLike) -> bytes:
    """Return the bytes of a regular file.

    Use it for whatever others may have put there: a pipe would wait forever.

    Raises:
        OSError: there is none, or it cannot be read.
        DamagedFileError: it is a pipe or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise DamagedFileError(f"{os.fspath(path)} is no regular file; delete it")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def parse_json(content: bytes, where: str | os.PathLike) -> object:
    """Return what JSON says, refusing all else.

    Raises:
        DamagedFileError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{os.fspath(where)} is not JSON: {error}") from error


def digest_json(content: object) -> str:
    """Return the SHA-256 of a plain JSON value.

    Blanks and the order of names do not enter.

    Example:
        >>> digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
        True
    """
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def seal(content: Mapping[str, object], kind: str, of: str = "", **about: object) -> Json:
    """Return a JSON object with its seal.

    Args:
        content: plain JSON by name.
        kind: of file, such as ``"result"``.
        of: what it belongs to, such as the identity of a run.
        **about: what else the seal is to say.

    Example:
        >>> unseal(seal({"seed": 0}, "result", "run 7"), "result.json", "result", "run 7")
        {'seed': 0}
    """
    body = {name: value for name, value in content.items() if name != SEAL}
    said = {"kind": kind, "of": of, **about}
    return {**body, SEAL: {**said, "sha256": digest_json([said, body])}}


def unseal(content: object, where: str | os.PathLike, kind: str, of: str | None = None) -> Json:
    """Return a sealed object without its seal, checked.

    Args:
        content: as read.
        where: to name in an error.
        kind: of file that it must be.
        of: what it must belong to; None for anything.

    Raises:
        DamagedFileError: no object, no seal, or one that does not fit.
    """
    place = os.fspath(where)
    if not isinstance(content, dict):
        raise DamagedFileError(f"{place} holds a {type(content).__name__}, not an object")
    said = seal_of(content)
    if said is None:
        raise DamagedFileError(
            f"{place} carries no checksum: it was changed, or written by an earlier version"
        )
    body = {name: value for name, value in content.items() if name != SEAL}
    rest = {name: value for name, value in said.items() if name != "sha256"}
    if digest_json([rest, body]) != said.get("sha256"):
        raise DamagedFileError(f"{place} was changed after it was written: its checksum differs")
    _check_belongs(said, place, kind, of)
    return body


def _check_belongs(said: Json, place: str, kind: str, of: str | None) -> None:
    """Refuse a seal of another kind, or of what belongs to something else."""
    if said.get("kind") != kind:
        raise DamagedFileError(f"{place} is of kind {said.get('kind')!r}, not {kind!r}")
    if of is not None and said.get("of") != of:
        raise DamagedFileError(f"{place} belongs to {said.get('of')!r}, not to {of!r}")


def _header(content: bytes, place: str) -> Json:
    """Return what a file that is no JSON says of itself in JSON."""
    said = parse_json(content, place)
    if not isinstance(said, dict):
        raise DamagedFileError(f"{place} does not say what it holds")
    return said


def seal_of(content: object) -> Json | None:
    """Return the unchecked seal of an object, or None."""
    found = content.get(SEAL) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else None


def write_sealed(
    path: str | os.PathLike,
    content: Mapping[str, object],
    kind: str,
    of: str = "",
    **about: object,
) -> None:
    """Write a JSON object with its seal.

    It is written whole or not at all.

    Args:
        path: of the file; its directory must exist.
        content: anything that `to_json` takes, by name.
        kind: of file.
        of: what it belongs to.
        **about: what else the seal is to say.

    Raises:
        UnwritableError: the place cannot be written.
    """
    sealed = seal(to_json(content), kind, of, **to_json(about))
    text = json.dumps(sealed, indent=2, allow_nan=False)
    write_atomically(path, text + "\n")


def read_sealed(path: str | os.PathLike, kind: str, of: str | None = None) -> Json:
    """Read what `write_sealed` wrote, checked.

    Args:
        path: of the file.
        kind: of file that it must be.
        of: what it must belong to; None for anything.

    Raises:
        OSError: it cannot be read; FileNotFoundError where there is none.
        DamagedFileError: it is damaged, or of something else.
    """
    return unseal(parse_json(read_regular(path), path), path, kind, of)


def seal_line(record: Mapping[str, object], before: str) -> tuple[str, str]:
    """Return a row as a line, and its seal.

    Rows are chained: each seal covers the one before, so that a row that is lost is noticed.

    Args:
        record: plain JSON.
        before: seal of the row before, "" of the first.

    Example:
        >>> line, mark = seal_line({"step": 1}, "")
        >>> open_line(line, "") == ({"step": 1}, mark)
        True
    """
    mark = digest_json([before, record])[:16]
    return json.dumps({**record, SEAL: mark}, allow_nan=False), mark


def open_line(line: str | bytes, before: str | None) -> tuple[Json, str] | None:
    """Return a row and its seal, None if damaged.

    Args:
        line: of JSON.
        before: seal of the row before; None leaves the chain unchecked.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get(SEAL), str):
        return None
    mark = record.pop(SEAL)
    if before is not None and digest_json([before, record])[:16] != mark:
        return None
    return record, mark


def pack_arrays(
    arrays: Mapping[str, np.ndarray], kind: str, of: str = "", **about: object
) -> list[bytes | memoryview]:
    """Return arrays as parts of one sealed file.

    A line of JSON says what they are; their bytes follow.

    Args:
        arrays: name -> array of numbers or booleans, any shape.
        kind: of file.
        of: what it belongs to.
        **about: what else the seal is to say.

    Raises:
        TypeError: an array holds objects or text.

    Example:
        >>> content = b"".join(pack_arrays({"x": np.arange(3)}, "chunk"))
        >>> open_arrays(content, "here", "chunk")["x"]
        array([0, 1, 2])
    """
    plain = {}
    for name, array in arrays.items():
        dtype = np.asarray(array).dtype.newbyteorder("<")
        if not _DTYPE.fullmatch(dtype.str):
            raise TypeError(f"array {name!r} is {dtype}; only numbers and booleans are kept")
        plain[name] = np.asarray(array, dtype, order="C")
    parts = [array.reshape(-1).view(np.uint8).data for array in plain.values()]
    said = {"kind": kind, "of": of, **to_json(about)}
    said["arrays"] = {name: [array.dtype.str, list(array.shape)] for name, array in plain.items()}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for part in parts:
        digest.update(part)
    header = json.dumps({**said, "sha256": digest.hexdigest()}).encode()
    return [_ARRAYS + header + b"\n", *parts]


def open_arrays(
    content: bytes, where: str | os.PathLike, kind: str, of: str | None = None
) -> dict[str, np.ndarray]:
    """Return the arrays of a sealed file, checked.

    Nothing is read of them before their checksum fits, and no more than there is.

    Args:
        content: bytes of the file.
        where: to name in an error.
        kind: of file that it must be.
        of: what it must belong to; None for anything.

    Raises:
        DamagedFileError: it is damaged, cut off, or of something else.
    """
    said = arrays_header(content, where)
    place = os.fspath(where)
    _check_belongs(said, place, kind, of)
    found, start = {}, content.index(b"\n") + 1
    try:
        for name, (dtype, shape) in said["arrays"].items():
            if not _DTYPE.fullmatch(dtype) or any(type(n) is not int or n < 0 for n in shape):
                raise ValueError(f"{name!r} is no array of numbers")
            kept, count = np.dtype(dtype), math.prod(shape)
            array = np.frombuffer(content, kept, count, start) if count else np.zeros(0, kept)
            found[name] = array.reshape(shape).copy()
            start += count * kept.itemsize
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DamagedFileError(f"{place} holds no arrays: {error}") from error
    if start != len(content):
        raise DamagedFileError(f"{place} is longer than its arrays")
    return found


def arrays_header(content: bytes, where: str | os.PathLike) -> Json:
    """Return the checked seal of a file of arrays.

    Raises:
        DamagedFileError: it is damaged, cut off, or of something else.
    """
    place = os.fspath(where)
    end = content.find(b"\n")
    if end < 0 or not content.startswith(_ARRAYS):
        raise DamagedFileError(f"{place} is no file of arrays, or of an earlier version")
    said = _header(content[len(_ARRAYS) : end], place)
    wanted = said.pop("sha256", None)
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    digest.update(memoryview(content)[end + 1 :])
    if digest.hexdigest() != wanted:
        raise DamagedFileError(f"{place} was changed after it was written: its checksum differs")
    return said


def add_trailer(content: bytes, kind: str, of: str = "") -> bytes:
    """Return a file's content with a seal behind it.

    Use it for a format whose readers stop before the end, such as a flatbuffer.

    Args:
        content: of the file.
        kind: of file.
        of: what it belongs to.
    """
    said = {"kind": kind, "of": of, "sha256": _trailer_digest(content, kind, of)}
    return content + _TRAILER + json.dumps(said).encode() + b"\n"


def open_trailer(
    content: bytes, where: str | os.PathLike, kind: str, of: str | None = None
) -> bytes:
    """Return the content before a seal, checked.

    Args:
        content: bytes of the file.
        where: to name in an error.
        kind: of file that it must be.
        of: what it must belong to; None for anything.

    Raises:
        DamagedFileError: there is no seal, or one that does not fit.
    """
    place = os.fspath(where)
    body, found, line = content.rpartition(_TRAILER)
    if not found:
        raise DamagedFileError(
            f"{place} carries no checksum: it is cut off, or written by an earlier version"
        )
    said = _header(line, place)
    right = _trailer_digest(body, kind, said.get("of"))
    if said.get("sha256") != right or said.get("kind") != kind:
        raise DamagedFileError(f"{place} was changed after it was written: its checksum differs")
    _check_belongs(said, place, kind, of)
    return body


def _trailer_digest(content: bytes, kind: str, of: object) -> str:
    digest = hashlib.sha256(json.dumps([kind, of]).encode())
    digest.update(content)
    return digest.hexdigest()


def write_sums(folder: str | os.PathLike, names: Sequence[str]) -> None:
    """Write down the sums of some files of a folder.

    Those of others that are listed already stay; ``sha256sum -c SHA256SUMS`` checks them too.

    Args:
        folder: of the files.
        names: of the files.

    Raises:
        UnwritableError: the place cannot be written.
    """
    place = Path(folder)
    listed = _sums(place) | {name: file_digest(place / name) for name in names}
    lines = [f"{digest}  {name}\n" for name, digest in sorted(listed.items())]
    write_atomically(place / SUMS, "".join(lines))


def read_summed(path: str | os.PathLike) -> bytes:
    """Read a file that its folder's sums list.

    Raises:
        OSError: it cannot be read.
        DamagedFileError: it is not listed, or was changed.
    """
    file = Path(path)
    content = read_regular(file)
    if _sums(file.parent).get(file.name) != hashlib.sha256(content).hexdigest():
        raise DamagedFileError(
            f"{file} is not what {file.parent / SUMS} lists: it was changed after it was written, "
            "or the list was"
        )
    return content


def file_digest(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sums(folder: Path) -> dict[str, str]:
    """Return the sums that a folder lists by name; nothing of lines that say none."""
    try:
        lines = read_regular(folder / SUMS).decode(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("  ") for line in lines)
    return {name: digest for digest, found, name in pairs if found}
