"""The command line that experiments share: options, compilation cache, errors, the last line."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import tyro

from rlprune_jax.runs import interruptible


def enable_compilation_cache() -> None:
    """Keep compiled programs between processes, unless the user has chosen where already."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path.home() / ".cache" / "rlprune_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def run_resumable(
    job: Callable[[Any], Path], options: Any, description: str | None, saved: str = "checkpoint"
) -> None:
    """Parse the options, do the job and print its run directory as the last line.

    Exits with 130 on Ctrl-C, 143 on SIGTERM, and 2 where the job is refused, always with one line
    that says why.

    Args:
        job: from the parsed options to the run directory.
        options: the type to parse, as tyro takes it.
        description: of the experiment, for ``--help``.
        saved: what the same command goes on from.
    """
    with interruptible(saved):
        enable_compilation_cache()
        config = tyro.cli(options, description=description)
        try:
            path = job(config)
        except (ValueError, OSError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        print(path)
