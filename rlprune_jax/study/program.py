"""One compiled program for a block of settings and seeds: vmapped or mapped, over any devices."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlprune_jax.study.settings import RESERVED, Settings
from rlprune_jax.types import PyTree

Job = Callable[..., Mapping[str, jax.Array]]
"""``(hparams, key, **static) -> metrics``, or ``(hparams, key, shared, **static)`` with arrays
that all settings share: a dictionary of scalars to a dictionary of scalars, traceable."""

MEMORY_SHARE = 0.8  # of an accelerator's free memory; the rest is for what XLA does not foresee


class Program(NamedTuple):
    """A compiled block.

    Attributes:
        call: ``(columns [h], keys [s], shared) -> metrics f32[h, s]``.
        compiled: XLA's executable.
        settings: h.
        seeds: s.
    """

    call: Callable[..., dict[str, jax.Array]]
    compiled: Any
    settings: int
    seeds: int


class _Watched(dict):
    """Hyper-parameters that remember which of them were read while the job was traced."""

    def __init__(self, content: Mapping[str, Any], read: set[str]):
        super().__init__(content)
        self._read = read

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise ValueError(
                f"the job asks for {name!r}, which the settings do not have; "
                f"they have: {', '.join(self)}"
            )
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        self._read.update(super().keys())
        return super().__iter__()

    def keys(self) -> Any:
        self._read.update(super().keys())
        return super().keys()

    def items(self) -> Any:
        self._read.update(super().keys())
        return super().items()

    def values(self) -> Any:
        self._read.update(super().keys())
        return super().values()


def traced_columns(settings: Settings, static: Collection[str]) -> dict[str, np.ndarray]:
    """The columns that are traced, as f32, i32 or bool [H].

    Raises:
        ValueError: text that is not named in ``static``, or an integer beyond 32 bits.
    """
    columns: dict[str, np.ndarray] = {}
    for name, values in settings.columns.items():
        if name in static:
            continue
        if isinstance(values[0], str):
            raise ValueError(
                f"{name!r} holds text, such as {values[0]!r}, which cannot be traced: name it in "
                f"static={tuple(static)}"
            )
        kind = {bool: np.bool_, int: np.int32, float: np.float32}[type(values[0])]
        wide = np.asarray(values)
        if kind is np.int32 and np.abs(wide).max() >= 2**31:
            raise ValueError(f"{name!r} holds integers beyond 32 bits: give floats")
        columns[name] = wide.astype(kind)
    return columns


def check_job(
    job: Job,
    columns: Mapping[str, np.ndarray],
    static: Mapping[str, Any],
    shared: PyTree,
    known: Collection[str] | None,
) -> tuple[str, ...]:
    """Trace the job once on abstract scalars; return the names of its metrics.

    Raises:
        ValueError: a setting that the job does not have, one that it misses, or metrics that are
            not a dictionary of scalars with names of their own.
    """
    names = {*columns, *static}
    if known is not None and (unknown := sorted(names - set(known))):
        raise ValueError(f"the job has no setting {unknown}; it has: {', '.join(sorted(known))}")
    read: set[str] = set()
    hparams = {name: jax.ShapeDtypeStruct((), column.dtype) for name, column in columns.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    rest = () if shared is None else (shared,)
    metrics = jax.eval_shape(
        lambda hparams, key, *rest: job(_Watched(hparams, read), key, *rest, **static),
        hparams,
        key,
        *rest,
    )
    if known is None and (unknown := sorted(set(columns) - read)):
        raise ValueError(
            f"the job has no setting {unknown}; it reads: {', '.join(sorted(read)) or 'none'}"
        )
    if not isinstance(metrics, Mapping) or not metrics:
        raise ValueError(
            f"the job returns a {type(metrics).__name__}: needs a dictionary of scalar metrics"
        )
    for name, metric in metrics.items():
        if getattr(metric, "shape", None) != ():
            raise ValueError(
                f"metric {name!r} has shape {getattr(metric, 'shape', None)}: needs a scalar"
            )
        if not (jnp.issubdtype(metric.dtype, jnp.number) or metric.dtype == bool):
            raise ValueError(f"metric {name!r} is {metric.dtype}: needs a number")
        if name in names or name in RESERVED:
            raise ValueError(f"metric {name!r} has the name of a setting or of {RESERVED}")
    return tuple(metrics)


def block_function(job: Job, static: Mapping[str, Any], strategy: str) -> Callable[..., PyTree]:
    """``(columns [h], keys [s], shared) -> metrics f32[h, s]`` of a job.

    "vmap": settings outside, seeds inside, so that what depends on the seed alone is computed
    once for all settings. "map": one cell after the other.
    """

    def cell(hparams: Mapping[str, jax.Array], key: jax.Array, shared: PyTree) -> PyTree:
        rest = () if shared is None else (shared,)
        metrics = job(dict(hparams), key, *rest, **static)
        return {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    def block(columns: Mapping[str, jax.Array], keys: jax.Array, shared: PyTree) -> PyTree:
        if strategy == "vmap":
            over_seeds = jax.vmap(cell, in_axes=(None, 0, None))
            return jax.vmap(over_seeds, in_axes=(0, None, None))(dict(columns), keys, shared)

        def one_setting(hparams: Mapping[str, jax.Array]) -> PyTree:
            return jax.lax.map(lambda key: cell(hparams, key, shared), keys)

        return jax.lax.map(one_setting, dict(columns))

    return block


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """One axis, "setting", over these devices."""
    return Mesh(np.asarray(devices), ("setting",), axis_types=(AxisType.Auto,))


def compile_block(
    job: Job,
    columns: Mapping[str, np.ndarray],
    static: Mapping[str, Any],
    shared: PyTree,
    *,
    settings: int,
    seeds: int,
    strategy: str,
    devices: Sequence[jax.Device],
) -> Program:
    """Compile a block of h settings (a multiple of the devices) times s seeds.

    Settings are spread over the devices by ``shard_map``: every device runs its share by itself,
    and there is nothing to communicate.
    """
    mesh = make_mesh(devices)
    spread, whole = PartitionSpec("setting"), PartitionSpec()
    function = jax.shard_map(
        block_function(job, static, strategy),
        mesh=mesh,
        in_specs=(spread, whole, whole),
        out_specs=spread,
        check_vma=False,
    )
    by_setting, everywhere = NamedSharding(mesh, spread), NamedSharding(mesh, whole)
    shapes = {
        name: jax.ShapeDtypeStruct((settings,), column.dtype) for name, column in columns.items()
    }
    keys = jax.eval_shape(lambda: jax.vmap(jax.random.key)(jnp.arange(seeds)))
    jitted = jax.jit(
        function,
        in_shardings=(by_setting, everywhere, everywhere),
        out_shardings=by_setting,
    )
    compiled = jitted.lower(shapes, keys, shared).compile()

    def call(columns: Mapping[str, np.ndarray], keys: jax.Array, shared: PyTree) -> Any:
        placed = {name: jax.device_put(column, by_setting) for name, column in columns.items()}
        return compiled(placed, jax.device_put(keys, everywhere), shared)

    return Program(call, compiled, settings, seeds)


def place_shared(shared: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """Put what all settings share on every device, once."""
    sharding = NamedSharding(make_mesh(devices), PartitionSpec())
    return jax.tree.map(lambda leaf: jax.device_put(jnp.asarray(leaf), sharding), shared)


def bytes_needed(program: Program, devices: Sequence[jax.Device]) -> int:
    """Memory that a block takes while it runs, besides what is there already.

    Forced CPU devices share one memory, so theirs are added up.
    """
    analysis = program.compiled.memory_analysis()
    if analysis is None:
        return 0
    each = int(analysis.temp_size_in_bytes) + int(analysis.output_size_in_bytes)
    return each * (len(devices) if devices[0].platform == "cpu" else 1)


def bytes_free(device: jax.Device) -> int:
    """Memory to plan with: most of what an accelerator has left, half of the host's free RAM."""
    statistics = device.memory_stats() or {}
    if device.platform != "cpu" and "bytes_limit" in statistics:
        left = statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
        return int(MEMORY_SHARE * left)
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024 // 2
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA ran out of the device's memory."""
    text = str(error)
    return isinstance(error, jax.errors.JaxRuntimeError | MemoryError) and (
        "RESOURCE_EXHAUSTED" in text or "ut of memory" in text or isinstance(error, MemoryError)
    )
