"""Where caches go and what streams are there, on machines of all kinds; nothing imports JAX."""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

from rlprune_jax.private import make_folder

LEAST_FILES = 64
"""Files that a command may have open at a time: checkpoints, compiled programs, libraries."""

PROBE = 1 << 16
"""Bytes that a folder must take before it is used as a cache."""


def default_cache_dir() -> Path:
    """Return where caches go.

    It is ``$RLPRUNE_CACHE_DIR``, else ``~/.cache/rlprune_jax``, and for a user without a home
    directory a folder of that user's own among the temporary files (``$TMPDIR``).

    Example:
        >>> default_cache_dir().is_absolute()
        True
    """
    if chosen := os.environ.get("RLPRUNE_CACHE_DIR"):
        with contextlib.suppress(RuntimeError):  # "~" is no folder of a user without a home
            return Path(chosen).expanduser().absolute()
        return Path(chosen).absolute()
    try:
        return Path("~/.cache/rlprune_jax").expanduser().absolute()
    except RuntimeError:
        user = os.getuid() if hasattr(os, "getuid") else "user"
        return Path(tempfile.gettempdir()) / f"rlprune_jax-{user}"


def why_unusable(folder: Path) -> str:
    """Return why a folder keeps nothing, or "".

    It is made where it is missing, and a small file is written and deleted again, since a full disk
    shows in nothing else.

    Example:
        >>> why_unusable(Path("/dev/null/cache"))
        'Not a directory'
    """
    probe = folder / f".probe.{os.getpid()}"
    try:
        make_folder(folder)
        try:
            probe.write_bytes(bytes(PROBE))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def require_files(least: int = LEAST_FILES) -> None:
    """Refuse a process that may open too few files.

    Where only the soft limit is low it is raised.

    Args:
        least: files that must be allowed.

    Raises:
        OSError: the hard limit is below that; the message says how to raise it.

    Example:
        >>> require_files(8)
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= least:
        return
    if hard != unlimited and hard < least:
        raise OSError(
            f"this process may open {hard} files at a time and needs {least}; raise the limit, as "
            f"by ulimit -n {least}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))


class _Forgiving(io.TextIOBase):
    """A stream of messages that goes on where nobody reads them or there is no room."""

    def __init__(self, stream: io.TextIOBase) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding or "utf-8"


def open_streams() -> None:
    """Give a process the streams that it was started without.

    Use it first in a command. A file that is opened while descriptor 1 or 2 is closed gets its
    number, and whatever libraries print goes into that file. Messages on standard error that nobody
    can take are dropped and end nothing.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if not isinstance(sys.stderr, _Forgiving):
        sys.stderr = _Forgiving(sys.stderr)  # type: ignore[arg-type]


def print_last(text: object) -> None:
    """Print a command's last line, or say why not.

    Raises:
        SystemExit: standard output takes nothing, as on a full disk or where its reader has gone;
            the line is on standard error then.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        print(
            f"error: standard output cannot be written: {error.strerror}; it was to be: {text}",
            file=sys.stderr,
        )
        # What is left in the buffer would fail once more when Python ends.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
