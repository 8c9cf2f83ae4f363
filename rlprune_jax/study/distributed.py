"""Join processes that each run a part of the settings."""

import os

import jax

from rlprune_jax.checks import require_processes
from rlprune_jax.devices import available_cores


def one_device_per_core() -> None:
    """Make every CPU core a device of its own.

    Call it before anything is computed, for a study to spread its settings over the cores.

    A search is made of many small operations, which two cores share badly; two searches side by
    side use them fully. Whoever has set ``jax_num_cpu_devices`` or XLA's flag for it is left alone.

    Raises:
        RuntimeError: something was computed before, so that the devices are there already.
    """
    chosen = jax.config.values["jax_num_cpu_devices"] != -1
    if not chosen and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", available_cores())


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> bool:
    """Join the other processes of a study.

    Call it before anything is computed, in every process of a study over many hosts.

    With a coordinator the three values are taken as given. Without, JAX reads them from the
    environment of SLURM, Open MPI, Kubernetes or a TPU pod, where ``RLPRUNE_DISTRIBUTED=1`` asks
    for it: a single process must not wait for others that never come.

    Args:
        coordinator: ``host:port`` of process 0.
        num_processes: how many there are.
        process_id: which of them this is.

    Returns:
        Whether there are other processes.

    Raises:
        ValueError: some of the numbers are missing, or out of range.
        RuntimeError: the others could not be reached.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise ValueError(
                f"num_processes={num_processes}, process_id={process_id} without a coordinator: "
                "give its host:port too"
            )
        if os.environ.get("RLPRUNE_DISTRIBUTED") != "1":
            return False
        jax.distributed.initialize()
        return jax.process_count() > 1
    if num_processes is None or process_id is None:
        raise ValueError(
            f"coordinator={coordinator!r} with num_processes={num_processes} and "
            f"process_id={process_id}: give all three"
        )
    require_processes(coordinator, num_processes, process_id)
    jax.distributed.initialize(coordinator, num_processes, process_id)
    return num_processes > 1


def process_settings(count: int, process: int, processes: int) -> range:
    """Return the settings of one process.

    Every ``processes``-th, so that slow regions are spread.

    Example:
        >>> [list(process_settings(5, process, 2)) for process in range(2)]
        [[0, 2, 4], [1, 3]]
    """
    return range(process, count, processes)
