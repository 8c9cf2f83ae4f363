"""Run a long part of a run in steps, with checkpoints to resume from."""

import contextlib
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require, require_count, require_function, require_type
from rlprune_jax.pytree import flatten_with_paths, is_key
from rlprune_jax.runs.interruption import end_if_asked, is_ending, saving
from rlprune_jax.runs.progress import show_progress
from rlprune_jax.runs.run import Run, Values, check_run
from rlprune_jax.sealed import DamageWarning
from rlprune_jax.types import PyTree

if TYPE_CHECKING:
    from rlprune_jax.runs.checkpoint import Checkpointer

Row = tuple[int, Values]
"""Number of steps done, and what to record of it as metrics."""


class DivergenceError(RuntimeError):
    """Say which stage diverged, and at which step."""


class Advance(Protocol):
    """Take some steps of a stage."""

    def __call__(self, state: PyTree, start: int, count: int, /) -> tuple[PyTree, Sequence[Row]]:
        """Take ``count`` steps from step ``start``.

        What is computed may depend on nothing but the state and the numbers of the steps, so that
        a stage that was interrupted ends as one that was not.

        Args:
            state: after ``start`` steps.
            start: number of steps done.
            count: number of steps to take.

        Returns:
            The state after ``start + count`` steps, and what to record.
        """


class Check(Protocol):
    """Look for divergence."""

    def __call__(self, state: PyTree, rows: Sequence[Row], /) -> str:
        """Return what has diverged, or "".

        Args:
            state: about to be saved, or just restored; None after a chunk that is not saved.
            rows: records of the chunk; none after a restore.
        """


def find_divergence(state: PyTree, rows: Sequence[Row]) -> str:
    """Return which loss or array shows divergence, or "".

    The check that `run_stage` makes by default. Records whose "loss" is NaN or infinite count, and
    NaN in any array of the state; infinity there does not, since states use it for "none yet".

    Args:
        state: pytree of arrays, keys and numbers, or None.
        rows: records to look at.

    Example:
        >>> find_divergence({"w": np.ones(2)}, [(3, {"loss": float("inf")})])
        'the loss is inf at step 3'
        >>> find_divergence({"w": np.array([1.0, np.nan])}, [])
        "'w' holds NaN"
        >>> find_divergence({"w": np.ones(2)}, [(3, {"loss": 0.1, "seconds": float("nan")})])
        ''
    """
    for step, values in rows:
        losses = np.asarray(values.get("loss", 0.0), dtype=np.float64).reshape(-1)
        if not np.isfinite(losses).all():
            return f"the loss is {losses[~np.isfinite(losses)][0]} at step {step}"
    for path, leaf in flatten_with_paths(state).items():
        if _holds_nan(leaf):
            return f"{path!r} holds NaN"
    return ""


def no_note(values: Values) -> str:
    """Return "", so that nothing stands beside the bar."""
    return ""


@dataclass(frozen=True)
class StageOptions:
    """Set how a stage is cut, saved, shown and checked.

    Attributes:
        chunk: number of steps between two looks at the clock, at least 1.
        save_seconds: a kill loses at most so many seconds, and the chunk under way. 0 saves after
            every chunk.
        note: what to show of the last record's values beside the progress bar.
        check: looks for divergence after each chunk, before anything is saved. None for stages in
            which NaN is no failure, such as a search.

    Raises:
        ValueError: ``chunk`` is below 1, or ``save_seconds`` is negative or NaN.

    Example:
        >>> StageOptions(chunk=100, save_seconds=float("nan"))
        Traceback (most recent call last):
        ValueError: save_seconds=nan must be a number of seconds, 0 or more; 20 is usual
    """

    chunk: int = 1
    save_seconds: float = 20.0
    note: Callable[[Values], str] = no_note
    check: Check | None = find_divergence

    def __post_init__(self) -> None:
        require_count("chunk", self.chunk)
        require_function("note", self.note, "a function of a record's values")
        if self.check is not None:
            require_function("check", self.check, "a function (state, rows) -> text, or None")
        seconds: object = self.save_seconds
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not number or math.isnan(self.save_seconds) or self.save_seconds < 0:
            raise ValueError(
                f"save_seconds={self.save_seconds!r} must be a number of seconds, 0 or more; "
                "20 is usual"
            )


_DEFAULT = StageOptions()


def run_stage(
    run: Run,
    name: str,
    state: PyTree,
    total: int,
    advance: Advance,
    options: StageOptions = _DEFAULT,
) -> PyTree:
    """Take a stage's steps from its last checkpoint on.

    Use it for whatever takes minutes: dense training, a search, finetuning. A run in memory has no
    checkpoints and starts from ``state``.

    Args:
        run: where checkpoints and metrics go.
        name: of the stage, as in the metrics; also a folder's name.
        state: to start from; also the structure that a checkpoint must have.
        total: number of steps of the stage.
        advance: takes some of the steps.
        options: chunks, checkpoints, what is shown and what is checked.

    Returns:
        The state after ``total`` steps, on the device.

    Raises:
        DivergenceError: the check found divergence. What had diverged was not saved.
        ValueError: the checkpoint holds another structure, or more than ``total`` steps.
        CheckpointError: the checkpoint is damaged or cannot be written.

    Example:
        >>> from rlprune_jax.runs import MemoryRun
        >>> def advance(state, start, count):
        ...     state = state + count
        ...     return state, [(start + count, {"loss": 1 / state})]
        >>> run = MemoryRun()
        >>> run_stage(run, "counting", 0, 10, advance, StageOptions(chunk=5))
        10
        >>> [record["loss"] for record in run.metrics("counting")]
        [0.2, 0.1]
    """
    check_run(run)
    plain = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
    require(bool(plain), "name", name, "letters, digits, dots, dashes and underscores; a folder's")
    require_count("total", total, 0)
    require_function("advance", advance, "a function (state, start, count) -> (state, rows)")
    require_type("options", options, StageOptions, "make it by StageOptions(...)")
    with _open_checkpoints(run, name) as checkpointer:
        start = 0 if checkpointer is None else checkpointer.latest_step() or 0
        if start > total:
            raise ValueError(
                f"stage {name!r} has taken {start} steps, more than total={total}; "
                f"ask for at least {start} or choose another run directory"
            )
        if checkpointer is not None and start:
            found, about = checkpointer.restore(state)
            _refuse_checkpoint(checkpointer, name, found, options.check)
            if run.has_rows(name, about.get("rows")):
                state = found
            else:
                start = _begin_anew(checkpointer, run, name)
        run.rewind_metrics(name, start)
        saved = time.monotonic()
        # A run in memory has nothing to save, so a signal ends it at once.
        patient = contextlib.nullcontext() if checkpointer is None else saving()
        with patient, show_progress(name, total) as tick:
            tick(start)
            while start < total:
                count = min(options.chunk, total - start)
                state, rows = advance(state, start, count)
                state = jax.block_until_ready(state)
                start += count
                for step, values in rows:
                    run.append_metrics(name, step, values)
                tick(count, options.note(rows[-1][1]) if rows else "")
                late = time.monotonic() - saved > options.save_seconds
                due = start == total or late or is_ending()
                _refuse_divergence(name, state if due else None, rows, options.check)
                if due and checkpointer is not None:
                    checkpointer.save(start, state, {"rows": run.mark_of(name)})
                    saved = time.monotonic()
                    end_if_asked()
    return state


@contextlib.contextmanager
def _open_checkpoints(run: Run, name: str) -> Iterator["Checkpointer | None"]:
    """Open the checkpoints of a stage, or None for a run in memory."""
    if run.checkpoints is None:
        yield None
        return
    # Only here, since it loads Orbax.
    from rlprune_jax.runs.checkpoint import Checkpointer

    owners = run.owners(name)
    with Checkpointer(run.checkpoints / name, keep=1, owners=owners) as checkpointer:
        yield checkpointer


def _begin_anew(checkpointer: "Checkpointer", run: Run, name: str) -> int:
    """Take a stage back to its beginning, since what it recorded is lost; return its step, 0."""
    warnings.warn(
        f"metrics of stage {name!r} are not those of its checkpoint in {checkpointer.directory}: "
        "rows were lost or changed, so the stage is computed again",
        DamageWarning,
        stacklevel=3,
    )
    checkpointer.forget()
    run.rewind_metrics(name, -1)
    return 0


def _refuse_divergence(name: str, state: PyTree, rows: Sequence[Row], check: Check | None) -> None:
    if check is not None and (found := check(state, rows)):
        raise DivergenceError(
            f"stage {name!r} diverged: {found}; lower the learning rate. "
            "Nothing that diverged was saved"
        )


def _refuse_checkpoint(
    checkpointer: "Checkpointer", name: str, state: PyTree, check: Check | None
) -> None:
    if check is not None and (found := check(state, ())):
        raise DivergenceError(
            f"the checkpoint of stage {name!r} at step {checkpointer.latest_step()} was saved "
            f"after it diverged: {found}; delete {checkpointer.directory} and lower the learning "
            "rate"
        )


def _holds_nan(leaf: object) -> bool:
    if isinstance(leaf, float | complex):
        return leaf != leaf
    if not isinstance(leaf, np.ndarray | np.generic | jax.Array) or is_key(leaf):
        return False
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return False
    # Other processes of a distributed computation look at their own parts.
    parts = [shard.data for shard in leaf.addressable_shards] if _is_spread(leaf) else [leaf]
    return any(bool(np.isnan(np.asarray(part)).any()) for part in parts)


def _is_spread(leaf: object) -> TypeGuard[jax.Array]:
    """Return whether other processes hold parts of an array."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
