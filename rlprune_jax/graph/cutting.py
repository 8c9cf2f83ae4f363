"""Cutting one array to the indices that are still there, wherever it lies."""

import math
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from rlprune_jax.graph.program import Value

Alive = tuple[np.ndarray, ...]
"""For each axis of the dense array bool[size]: which indices are still there."""

Index = tuple[slice, ...]
"""Which entries of an array a shard holds."""


def is_cut(alive: Alive) -> bool:
    """Return whether some index of some axis is gone."""
    return any(not each.all() for each in alive)


def cut(value: Value, alive: Alive) -> Value:
    """Take the indices of an array that are still there.

    Traced arrays are cut by XLA. Others are cut on the host, as XLA would compile one program for
    every shape, and go back to where they were.

    Args:
        value: array of any dtype. One under a ``NamedSharding`` is cut shard by shard, so that no
            device holds more than its part.
        alive: for each axis bool[size], or any array of True where nothing is gone.

    Returns:
        The slim array, under ``slim_sharding`` of its sharding.

    Raises:
        ValueError: a shard of the result rests on shards that other processes hold.
    """
    if isinstance(value, jax.core.Tracer):
        for axis, each in enumerate(alive):
            if not each.all():
                value = jnp.take(value, np.flatnonzero(each), axis=axis)
        return value
    if not is_cut(alive):
        return jnp.asarray(value)
    places = [
        np.arange(size) if each.all() else np.flatnonzero(each)
        for each, size in zip(alive, np.shape(value), strict=True)
    ]
    if not isinstance(value, jax.Array):
        return jnp.asarray(_take(np.asarray(value), places))
    if isinstance(value.sharding, NamedSharding):
        return _cut_shards(value, value.sharding, places)
    slim = _take(np.asarray(value), places)
    stays = value.committed and isinstance(value.sharding, SingleDeviceSharding)
    return jax.device_put(slim, value.sharding) if stays else jnp.asarray(slim)


def spread(value: Value, alive: Alive) -> Value:
    """Undo a cut with kept indices in gone places."""
    for axis, each in enumerate(alive):
        if not each.all():
            value = jnp.take(value, np.maximum(np.cumsum(each) - 1, 0), axis=axis)
    return value


def slim_sharding(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """Return the nearest sharding that fits a slim shape.

    Args:
        sharding: of the dense array.
        shape: of the slim one.

    Returns:
        The same mesh, memory and ``PartitionSpec``. Where the size of an axis is no multiple of the
        number of its parts, it is divided by those of its mesh axes that make the most parts of
        equal size, at worst by none: there every device along them holds the whole axis.

    Example:
        >>> import jax
        >>> from jax.sharding import AbstractMesh, PartitionSpec
        >>> mesh = AbstractMesh((2, 4), ("data", "model"))
        >>> dense = NamedSharding(mesh, PartitionSpec("data", "model"))
        >>> tuple(slim_sharding(dense, (6, 8)).spec), tuple(slim_sharding(dense, (6, 7)).spec)
        (('data', 'model'), ('data', None))
    """
    parts = [
        _dividing(names, size, dict(sharding.mesh.shape))
        for names, size in zip(sharding.spec, shape, strict=False)
    ]
    if parts == list(sharding.spec):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*parts), memory_kind=sharding.memory_kind)


MeshAxes = str | tuple[str, ...] | None
"""What a ``PartitionSpec`` says of one axis of an array."""


def _dividing(names: MeshAxes, size: int, mesh: dict[str, int]) -> MeshAxes:
    given = (names,) if isinstance(names, str) else (names or ())
    if size % math.prod(mesh[name] for name in given) == 0:
        return names
    fewer = [some for count in range(len(given)) for some in combinations(given, count)]
    pieces = {some: math.prod(mesh[name] for name in some) for some in fewer}
    best = max((some for some in fewer if size % pieces[some] == 0), key=pieces.__getitem__)
    return best or None


def _take(array: np.ndarray, places: list[np.ndarray]) -> np.ndarray:
    for axis, each in enumerate(places):
        if len(each) != array.shape[axis]:
            array = np.take(array, each, axis=axis)
    return array


def _cut_shards(value: jax.Array, dense: NamedSharding, places: list[np.ndarray]) -> jax.Array:
    """Make each shard of the result of the shards that it rests on, one after the other."""
    shape = tuple(map(len, places))
    sharding = slim_sharding(dense, shape)
    # Replicas are read once.
    sources = {_bounds(each.index, value.shape): each.data for each in value.addressable_shards}
    blocks: dict[tuple, jax.Array] = {}
    shards = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = _bounds(index, shape)
        home = SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
        if bounds not in blocks:
            wanted = [each[slice(*ends)] for each, ends in zip(places, bounds, strict=True)]
            blocks[bounds] = jax.device_put(_gather(sources, wanted, value), home)
        shards.append(jax.device_put(blocks[bounds], home))
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _bounds(index: Index | None, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    assert index is not None
    return tuple(each.indices(size)[:2] for each, size in zip(index, shape, strict=True))


def _gather(
    sources: dict[tuple, jax.Array], wanted: list[np.ndarray], value: jax.Array
) -> np.ndarray:
    """Return the entries at ``wanted`` indices of each axis, which rise."""
    block = np.empty(tuple(map(len, wanted)), value.dtype)
    missing = block.size
    for bounds, data in sources.items():
        runs = [
            slice(*np.searchsorted(each, ends)) for each, ends in zip(wanted, bounds, strict=True)
        ]
        if all(run.start < run.stop for run in runs):
            local = [
                each[run] - first
                for each, run, (first, _) in zip(wanted, runs, bounds, strict=True)
            ]
            piece = _take(np.asarray(data), local)
            block[tuple(runs)] = piece
            missing -= piece.size
    if missing:
        raise ValueError(
            f"variable of shape {value.shape} lies on devices of several processes, and no single "
            "one holds what a shard of the slim array needs; cut inside of jit, as in "
            "jax.jit(lambda variables: compact(graph, variables, gates))(variables)"
        )
    return block
