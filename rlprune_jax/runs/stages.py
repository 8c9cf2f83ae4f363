"""Parts of a run that take long: each goes in steps, is checkpointed, and resumes where it was."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rlprune_jax.runs.checkpoint import Checkpointer
from rlprune_jax.runs.progress import progress
from rlprune_jax.runs.run_directory import RunDirectory
from rlprune_jax.types import PyTree

Row = tuple[int, Mapping[str, Any]]
"""Number of steps done, and what to record of it in ``metrics.jsonl``."""

Advance = Callable[[PyTree, int, int], tuple[PyTree, list[Row]]]
"""``(state, start, count) -> (state, rows)``: take ``count`` steps from step ``start``."""


def run_stage(
    run: RunDirectory,
    name: str,
    state: PyTree,
    total: int,
    advance: Advance,
    *,
    chunk: int,
    save_seconds: float,
    note: Callable[[Mapping[str, Any]], str] = lambda values: "",
) -> PyTree:
    """Take ``total`` steps, from the last checkpoint if there is one.

    Args:
        run: where checkpoints and metrics go.
        name: of the stage, as in ``metrics.jsonl``.
        state: to start from; also the structure that a checkpoint must have.
        total: steps of the stage.
        advance: takes some steps; what it does may depend on the state and the step's number only.
        chunk: steps between two looks at the clock.
        save_seconds: a kill loses at most so much, and the chunk under way.
        note: what to show beside the progress bar of the last row's values.

    Returns:
        The state after ``total`` steps, on the device.
    """
    with Checkpointer(run.checkpoints / name, keep=1) as checkpointer:
        start = checkpointer.latest_step() or 0
        if start:
            state, _ = checkpointer.restore(state)
        run.rewind_metrics(name, start)
        saved = time.monotonic()
        with progress(name, total) as tick:
            tick(start)
            while start < total:
                count = min(chunk, total - start)
                state, rows = advance(state, start, count)
                state = jax.block_until_ready(state)
                for step, values in rows:
                    run.append_metrics(name, step, values)
                start += count
                tick(count, note(rows[-1][1]) if rows else "")
                if start == total or time.monotonic() - saved > save_seconds:
                    checkpointer.save(start, state)
                    saved = time.monotonic()
    return state
