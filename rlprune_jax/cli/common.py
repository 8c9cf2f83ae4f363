"""What every command does before and after its work."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO, TypeVar

from rlprune_jax.places import default_cache_dir, print_last, require_files, why_unusable
from rlprune_jax.private import private_folder
from rlprune_jax.runs.interruption import interruptible

Options = TypeVar("Options")
"""A dataclass of options."""


UNKEPT = "Error (reading|writing) persistent compilation cache entry"
"""What JAX warns of where a compiled program cannot be kept."""


def run_command(
    job: Callable[[Options], object],
    options: type[Options],
    description: str | None,
    *,
    prog: str | None = None,
    args: Sequence[str] | None = None,
    saved: str = "checkpoint",
    code: Callable[[object], int] = lambda last: 0,
) -> None:
    """Parse the options, do the job, print the result.

    Use it as the body of every command. It exits with 130 on Ctrl-C, 143 on SIGTERM, and 2 where
    the job is refused, always with one line that says why.

    Args:
        job: from the parsed options to what is printed last, such as a run directory; None for
            nothing. It imports heavy modules itself.
        options: the type to parse, as tyro takes it; its module must not import JAX.
        description: of the command, for ``--help``.
        prog: name of the command, for ``--help``.
        args: the command line; that of the process where None.
        saved: what the same command goes on from.
        code: from what the job returned to the exit code, for a job whose result is not as it
            should be.
    """
    with interruptible(saved):
        import tyro

        parsed = tyro.cli(options, description=description, prog=prog, args=args)
        try:
            require_files()
            enable_compilation_cache()
            with warnings.catch_warnings():
                warnings.showwarning = _say_warning
                # A disk that becomes full later costs time alone; there is one for each program.
                warnings.filterwarnings("ignore", UNKEPT)
                last = job(parsed)
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        if last is not None:
            print_last(last)
        if exit_code := code(last):
            raise SystemExit(exit_code)


def _say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Say what is warned of in one line, without the place in the code."""
    print(f"note: {' '.join(str(message).split())}", file=sys.stderr)


def enable_compilation_cache() -> None:
    """Keep compiled programs between processes.

    A place that the user has chosen already stays. None is used that others can write to, since a
    compiled program is code. Where nothing can be written one line says so, and programs are
    compiled anew.
    """
    if chosen := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        if "://" not in chosen and not _is_private(Path(chosen)):
            del os.environ["JAX_COMPILATION_CACHE_DIR"]
            if jax := sys.modules.get("jax"):
                jax.config.update("jax_compilation_cache_dir", None)
        return
    cache = default_cache_dir() / "compiled"
    if reason := why_unusable(cache):
        print(f"note: compiled programs are not kept: {cache}: {reason}", file=sys.stderr)
        return
    if not _is_private(cache):
        return
    # Read by JAX when it is imported, which is later in a command, but not in a script.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    if jax := sys.modules.get("jax"):
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _is_private(folder: Path) -> bool:
    """Return whether a folder for compiled programs is this user's alone; say so if not."""
    try:
        private_folder(folder)
    except OSError as error:
        print(f"note: compiled programs are not kept: {error}", file=sys.stderr)
        return False
    return True
