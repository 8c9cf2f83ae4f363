"""Compile a block of settings and seeds into one program.

Vmapped or mapped, over any devices.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlprune_jax.devices import is_out_of_memory as is_out_of_memory
from rlprune_jax.study.settings import RESERVED, StudySettings, Value
from rlprune_jax.types import PyTree

Job = Callable[..., Mapping[str, jax.Array]]
"""``(hparams, key, **static) -> metrics``, or ``(hparams, key, shared, **static)`` with arrays
that all settings read: a dictionary of scalars to a dictionary of scalars, traceable."""

Hparams = Mapping[str, jax.Array]
"""Traced hyper-parameters by name."""

MEMORY_FRACTION = 0.8  # of an accelerator's free memory; the rest is for what XLA does not foresee


class JobError(ValueError):
    """Raised where a job itself fails while it is traced."""


class UnknownSettingError(ValueError):
    """Raised where a job reads an unknown hyper-parameter."""


class CallBlock(Protocol):
    """Run a compiled block."""

    def __call__(
        self, columns: Mapping[str, np.ndarray], keys: jax.Array, shared: PyTree, /
    ) -> dict[str, jax.Array]:
        """Return metrics f32[h, s] of columns [h] and keys [s]."""


class CompiledBlock(NamedTuple):
    """Hold a compiled block.

    Attributes:
        call: ``(columns [h], keys [s], shared) -> metrics f32[h, s]``.
        compiled: XLA's executable.
        settings: h.
        seeds: s.
    """

    call: CallBlock
    compiled: jax.stages.Compiled
    settings: int
    seeds: int


class _Watched(dict[str, jax.Array]):
    """Hyper-parameters that remember which of them were read while the job was traced."""

    def __init__(self, content: Hparams, read: set[str]):
        super().__init__(content)
        self._read = read

    def __getitem__(self, name: str) -> jax.Array:
        if name not in self:
            raise UnknownSettingError(
                f"the job asks for {name!r}, which the settings do not have; "
                f"they have: {', '.join(self)}"
            )
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: object = None) -> object:  # type: ignore[override]
        self._read.add(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        self._read.update(super().keys())
        return super().__iter__()

    def keys(self):
        self._read.update(super().keys())
        return super().keys()

    def items(self):
        self._read.update(super().keys())
        return super().items()

    def values(self):
        self._read.update(super().keys())
        return super().values()


def traced_columns(settings: StudySettings, static: Collection[str]) -> dict[str, np.ndarray]:
    """Return the columns that are traced as arrays.

    f32, i32 or bool, [H].

    Raises:
        ValueError: text that is not named in ``static``, or a number beyond 32 bits.
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
            raise ValueError(f"{name!r} holds integers beyond 32 bits; give floats")
        if kind is np.float32 and np.abs(wide).max() > np.finfo(np.float32).max:
            raise ValueError(
                f"{name!r} holds {wide[np.abs(wide).argmax()]:g}, beyond 32 bits; give its "
                "logarithm and raise it in the job"
            )
        narrow: np.ndarray = wide.astype(kind)
        if kind is np.float32 and ((narrow == 0) & (wide != 0)).any():
            lost = wide[(narrow == 0) & (wide != 0)][0]
            raise ValueError(
                f"{name!r} holds {lost:g}, which is 0 in 32 bits; give its logarithm and raise it "
                "in the job"
            )
        columns[name] = narrow
    return columns


def check_job(
    job: Job,
    columns: Mapping[str, np.ndarray],
    static: Mapping[str, Value],
    shared: PyTree,
    known: Collection[str] | None,
) -> tuple[str, ...]:
    """Trace the job once and return its metrics' names.

    On abstract scalars, so that nothing is computed.

    Raises:
        JobError: the job itself fails, or branches in Python on a traced number.
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
    try:
        metrics = jax.eval_shape(
            lambda hparams, key, *rest: job(_Watched(hparams, read), key, *rest, **static),
            hparams,
            key,
            *rest,
        )
    except UnknownSettingError:
        raise
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise JobError(
            f"the job {job_name(job)} needs the value of a number that is traced, as in an if or "
            "in NumPy; name its setting in static=, or use jnp.where and jax.lax: "
            f"{_first_line(error)}"
        ) from error
    except Exception as error:
        raise JobError(
            f"the job {job_name(job)} fails while it is traced: {type(error).__name__}: "
            f"{_first_line(error)}"
        ) from error
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


def job_name(job: Job) -> str:
    """Return the name that a job is known by."""
    return getattr(job, "__qualname__", type(job).__name__)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def block_function(
    job: Job, static: Mapping[str, Value], strategy: str
) -> Callable[[Hparams, jax.Array, PyTree], PyTree]:
    """Make the function of a block from a job.

    ``(columns [h], keys [s], shared) -> metrics f32[h, s]``.

    "vmap": settings outside, seeds inside, so that what depends on the seed alone is computed
    once for all settings. "map": one cell after the other.
    """

    def cell(hparams: Hparams, key: jax.Array, shared: PyTree) -> PyTree:
        rest = () if shared is None else (shared,)
        metrics = job(dict(hparams), key, *rest, **static)
        return {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    def block(columns: Hparams, keys: jax.Array, shared: PyTree) -> PyTree:
        if strategy == "vmap":
            over_seeds = jax.vmap(cell, in_axes=(None, 0, None))
            return jax.vmap(over_seeds, in_axes=(0, None, None))(dict(columns), keys, shared)

        def one_setting(hparams: Hparams) -> PyTree:
            return jax.lax.map(lambda key: cell(hparams, key, shared), keys)

        return jax.lax.map(one_setting, dict(columns))

    return block


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Make a mesh of one axis, "setting", over devices."""
    return Mesh(np.asarray(devices), ("setting",), axis_types=(AxisType.Auto,))


def compile_block(
    job: Job,
    columns: Mapping[str, np.ndarray],
    static: Mapping[str, Value],
    shared: PyTree,
    *,
    settings: int,
    seeds: int,
    strategy: str,
    devices: Sequence[jax.Device],
) -> CompiledBlock:
    """Compile a block of settings and seeds.

    h settings, a multiple of the devices, times s seeds.

    Settings are spread over the devices by ``shard_map``: every device runs its part by itself,
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

    def call(
        columns: Mapping[str, np.ndarray], keys: jax.Array, shared: PyTree
    ) -> dict[str, jax.Array]:
        placed = {name: jax.device_put(column, by_setting) for name, column in columns.items()}
        return compiled(placed, jax.device_put(keys, everywhere), shared)

    return CompiledBlock(call=call, compiled=compiled, settings=settings, seeds=seeds)


def place_shared(shared: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """Put what all settings read on every device, once."""
    sharding = NamedSharding(make_mesh(devices), PartitionSpec())
    return jax.tree.map(lambda leaf: jax.device_put(jnp.asarray(leaf), sharding), shared)


def bytes_needed(program: CompiledBlock, devices: Sequence[jax.Device]) -> int:
    """Return the memory that a block takes while running.

    Besides what is there already.

    Forced CPU devices have one memory, so theirs are added up.
    """
    analysis = program.compiled.memory_analysis()
    if analysis is None:
        return 0
    each = int(analysis.temp_size_in_bytes) + int(analysis.output_size_in_bytes)
    return each * (len(devices) if devices[0].platform == "cpu" else 1)


def bytes_free(device: jax.Device) -> int:
    """Return the memory to plan with.

    Most of what an accelerator has left, half of the host's free RAM.
    """
    statistics = device.memory_stats() or {}
    if device.platform != "cpu" and "bytes_limit" in statistics:
        left = statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
        return int(MEMORY_FRACTION * left)
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024 // 2
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
