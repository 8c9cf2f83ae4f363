"""Studies: many settings and seeds of one job in one program, durable, on any number of devices."""

from rlprune_jax.study.distributed import initialize as initialize
from rlprune_jax.study.distributed import one_device_per_core as one_device_per_core
from rlprune_jax.study.results import StudyResult as StudyResult
from rlprune_jax.study.results import rank_correlation as rank_correlation
from rlprune_jax.study.results import summarise as summarise
from rlprune_jax.study.run import run_study as run_study
from rlprune_jax.study.settings import Choice as Choice
from rlprune_jax.study.settings import LogUniform as LogUniform
from rlprune_jax.study.settings import Settings as Settings
from rlprune_jax.study.settings import Uniform as Uniform
from rlprune_jax.study.settings import grid as grid
from rlprune_jax.study.settings import random as random
from rlprune_jax.study.settings import table as table
from rlprune_jax.study.store import StudyError as StudyError
