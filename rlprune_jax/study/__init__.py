"""Run many settings and seeds of one job.

In one program, durable, on any number of devices: `grid`, `random` or `table` make the settings,
`run_study` runs them and returns a `StudyResult`. Nothing here knows what a job does.
"""

from rlprune_jax.study.blocks import StudyTick
from rlprune_jax.study.distributed import initialize, one_device_per_core
from rlprune_jax.study.intervals import paired_difference, wilson_interval
from rlprune_jax.study.program import Job, JobError
from rlprune_jax.study.results import Interval, StudyResult, rank_correlation, summarise
from rlprune_jax.study.run import run_study
from rlprune_jax.study.settings import (
    Choice,
    LogUniform,
    StudySettings,
    Uniform,
    grid,
    random,
    table,
)
from rlprune_jax.study.store import StudyError

__all__ = [
    "Choice",
    "Interval",
    "Job",
    "JobError",
    "LogUniform",
    "StudyError",
    "StudyResult",
    "StudySettings",
    "StudyTick",
    "Uniform",
    "grid",
    "initialize",
    "one_device_per_core",
    "paired_difference",
    "random",
    "rank_correlation",
    "run_study",
    "summarise",
    "table",
    "wilson_interval",
]
