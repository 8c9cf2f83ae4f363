"""Keep the record of a run, as `RunDirectory` does on disk or `MemoryRun` in memory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rlprune_jax.checks import shown
from rlprune_jax.files import Closing, to_json
from rlprune_jax.sealed import SEAL

Json = dict[str, Any]
"""A JSON object: text as keys; null, booleans, numbers, text, lists and objects as values."""

Values = Mapping[str, Any]
"""What is recorded: numbers, text, arrays and nestings by name; NaN and infinity become null."""


class Run(Protocol):
    """Hold metrics, checkpoints and the result of one run.

    What takes a run does not ask whether it lies on disk: see `RunDirectory` and `MemoryRun`.

    Attributes:
        config: the settings, as plain JSON.
    """

    config: Json

    @property
    def checkpoints(self) -> Path | None:
        """Return the directory of checkpoints, or None in memory."""

    @property
    def is_finished(self) -> bool:
        """Return whether there is a result."""

    def result(self) -> Json | None:
        """Return the result, or None before `write_result`."""

    def write_result(self, result: Values) -> None:
        """Write the result, which ends the run.

        Args:
            result: numbers, text, arrays and nestings; NaN and infinity become null.
        """

    def append_metrics(self, stage: str, step: int, values: Values) -> None:
        """Append one record of a stage.

        Args:
            stage: part of the run, such as ``"dense"`` or ``"search"``.
            step: number of the step within the stage.
            values: numbers, text, arrays and nestings; NaN and infinity become null.

        Raises:
            ValueError: ``values`` holds the name "stage" or "step".
        """

    def metrics(self, stage: str | None = None) -> list[Json]:
        """Return the records of one stage, or all, oldest first.

        Args:
            stage: which; None for all.

        Returns:
            Objects with "stage", "step" and the values.
        """

    def rewind_metrics(self, stage: str, step: int) -> None:
        """Drop the records of a stage past a step.

        A stage that goes on from a checkpoint calls this first, since it appends the later records
        a second time.

        Args:
            stage: the one whose records go; those of other stages stay.
            step: the last to keep; below the first it drops the whole stage.
        """

    def mark_of(self, stage: str) -> Json:
        """Return what tells the rows of a stage from others.

        A checkpoint keeps it, so that rows which are lost or changed are noticed.
        """

    def has_rows(self, stage: str, mark: object) -> bool:
        """Return whether a stage begins with marked rows.

        Args:
            stage: whose rows.
            mark: as `mark_of` returned it when they were recorded.
        """

    def owners(self, stage: str) -> tuple[str, ...]:
        """Return whom checkpoints of a stage may belong to.

        The first is the run itself, others are those that it goes on from.
        """

    def close(self) -> None:
        """Free what the run holds open."""


def check_run(run: object) -> None:
    """Refuse what keeps no record.

    None stands for a run in memory.

    Raises:
        TypeError: it is something else.
    """
    if run is not None and not hasattr(run, "append_metrics"):
        raise TypeError(
            f"run={shown(run)} must be a run, as open_run_at(path, settings) gives; None keeps "
            "everything in memory"
        )


class MemoryRun(Closing):
    """Keep a run in memory and write nothing.

    Use it where results are wanted and no directory: stages make no checkpoints.

    Args:
        config: dataclass or dict of settings, kept as ``config``.

    Attributes:
        config: the settings, as plain JSON.
        checkpoints: None.

    Example:
        >>> run = MemoryRun({"seed": 0})
        >>> run.append_metrics("dense", 1, {"loss": 0.5})
        >>> run.metrics("dense")
        [{'stage': 'dense', 'step': 1, 'loss': 0.5}]
    """

    def __init__(self, config: object = None):
        self.config: Json = to_json({} if config is None else config)
        self.checkpoints = None
        self._records: list[str] = []
        self._result: str | None = None

    @property
    def is_finished(self) -> bool:
        """Return whether there is a result."""
        return self._result is not None

    def result(self) -> Json | None:
        """Return the result, or None before `write_result`."""
        return None if self._result is None else json.loads(self._result)

    def write_result(self, result: Values) -> None:
        """Write the result, as `Run.write_result` says."""
        self._result = json.dumps(to_json(result))

    def append_metrics(self, stage: str, step: int, values: Values) -> None:
        """Append one record, as `Run.append_metrics` says."""
        self._records.append(json.dumps(metrics_record(stage, step, values)))

    def metrics(self, stage: str | None = None) -> list[Json]:
        """Return the records of one stage, or all, oldest first."""
        records = [json.loads(line) for line in self._records]
        return [record for record in records if stage is None or record["stage"] == stage]

    def rewind_metrics(self, stage: str, step: int) -> None:
        """Drop the records of a stage past a step."""
        self._records = [
            line
            for line, record in zip(self._records, self.metrics(), strict=True)
            if not is_past(record, stage, step)
        ]

    def mark_of(self, stage: str) -> Json:
        """Return nothing, since nothing can be lost."""
        return {}

    def has_rows(self, stage: str, mark: object) -> bool:
        """Return whether nothing was marked."""
        return mark == {}

    def owners(self, stage: str) -> tuple[str, ...]:
        """Return nobody, since there are no checkpoints."""
        return ()

    def close(self) -> None:
        """Do nothing, since nothing is open."""


def metrics_record(stage: str, step: int, values: Values) -> Json:
    """Return one record of metrics as plain JSON.

    Args:
        stage: part of the run.
        step: number of the step within the stage.
        values: numbers, text, arrays and nestings; NaN and infinity become null.

    Raises:
        ValueError: ``values`` holds the name "stage", "step" or "seal".

    Example:
        >>> metrics_record("dense", 1, {"loss": float("inf")})
        {'stage': 'dense', 'step': 1, 'loss': None}
    """
    if taken := {"stage", "step", SEAL} & set(values):
        raise ValueError(f"values must not hold {sorted(taken)}, which are taken; rename them")
    return {"stage": stage, "step": int(step), **to_json(values)}


def is_past(record: Json, stage: str, step: int) -> bool:
    """Return whether a record lies past a step."""
    return record["stage"] == stage and record["step"] > step
