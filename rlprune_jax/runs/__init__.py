"""Keep runs resumable on disk, shown on the terminal and safe to interrupt.

`open_run` and `open_run_at` open a run directory, `MemoryRun` is one that writes nothing, and
`run_stage` takes the steps of a long part of either. `interruptible` ends a command at Ctrl-C.

Each name is loaded when it is first used, so that `interruptible` comes before JAX, and Orbax only
with the first checkpoint.
"""

from typing import TYPE_CHECKING

from rlprune_jax.lazy import lazy_names

if TYPE_CHECKING:
    from rlprune_jax.runs.adoption import adopt_stages, find_similar
    from rlprune_jax.runs.checkpoint import Checkpointer, CheckpointError, read_checkpoint
    from rlprune_jax.runs.compile_clock import CompileClock
    from rlprune_jax.runs.interruption import interruptible
    from rlprune_jax.runs.progress import Tick, show_progress
    from rlprune_jax.runs.run import Json, MemoryRun, Run
    from rlprune_jax.runs.run_directory import (
        COSMETIC,
        Extension,
        RunDirectory,
        RunDirectoryError,
        config_hash,
        open_run,
        open_run_at,
        read_config,
        read_of_run,
    )
    from rlprune_jax.runs.stages import (
        Advance,
        Check,
        DivergenceError,
        Row,
        StageOptions,
        find_divergence,
        run_stage,
    )

__all__ = [
    "COSMETIC",
    "Advance",
    "Check",
    "CheckpointError",
    "Checkpointer",
    "CompileClock",
    "DivergenceError",
    "Extension",
    "Json",
    "MemoryRun",
    "Row",
    "Run",
    "RunDirectory",
    "RunDirectoryError",
    "StageOptions",
    "Tick",
    "adopt_stages",
    "config_hash",
    "find_divergence",
    "find_similar",
    "interruptible",
    "open_run",
    "open_run_at",
    "read_checkpoint",
    "read_config",
    "read_of_run",
    "run_stage",
    "show_progress",
]

_HOMES = {
    "adoption": ("adopt_stages", "find_similar"),
    "checkpoint": ("CheckpointError", "Checkpointer", "read_checkpoint"),
    "compile_clock": ("CompileClock",),
    "interruption": ("interruptible",),
    "progress": ("Tick", "show_progress"),
    "run": ("Json", "MemoryRun", "Run"),
    "run_directory": (
        *("COSMETIC", "Extension", "RunDirectory", "RunDirectoryError"),
        *("config_hash", "open_run", "open_run_at", "read_config", "read_of_run"),
    ),
    "stages": (
        *("Advance", "Check", "DivergenceError", "Row", "StageOptions"),
        *("find_divergence", "run_stage"),
    ),
}


__getattr__ = lazy_names(
    __name__, {name: module for module, names in _HOMES.items() for name in names}
)


def __dir__() -> list[str]:
    return sorted(__all__)
