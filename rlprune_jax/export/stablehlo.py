"""A network that runs wherever JAX does, with its weights and its preparation inside."""

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_function
from rlprune_jax.export.description import ArraySpec, Description
from rlprune_jax.export.errors import ExportError, read_stored
from rlprune_jax.export.plan import PLAN, read_plan
from rlprune_jax.pytree import tree_hash
from rlprune_jax.sealed import add_trailer, open_trailer
from rlprune_jax.types import Apply, PyTree, Variables

STABLEHLO = "model.stablehlo"
"""Name of the exported network in a folder of a slim network."""

PLATFORMS = ("cpu", "cuda", "tpu")
KNOWN_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

TOLERANCE = 1e-3
"""Of a network applied row by row against itself, relative to the largest output."""


class Artifact(NamedTuple):
    """An exported network.

    Attributes:
        content: bytes of the file, for `load_stablehlo` or ``jax.export.deserialize``; behind the
            network stands their checksum, which the latter passes over.
        description: inputs, outputs and batch; ``prepare`` is ``{"kind": "custom"}`` where a
            preparation is inside, for the caller to say more of.
    """

    content: bytes
    description: Description


def export_stablehlo(
    apply: Apply,
    variables: Variables,
    *examples: PyTree,
    prepare: Callable[..., PyTree] | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> Artifact:
    """Export a network with its weights and preparation inside.

    Use it to hand a network to those who have neither its code nor this package: it runs where only
    jax and flatbuffers are installed, ``jax.export.deserialize(bytearray(content)).call(*inputs)``.
    It takes any number of examples. Where ``apply`` cannot be traced for an unknown number, it is
    exported row by row, if that gives the same outputs; else for the number that the examples have,
    and ``description.batch`` says so.

    Args:
        apply: ``(variables, *inputs) -> outputs`` in evaluation mode.
        variables: pytree of arrays, written into the artifact as constants.
        *examples: for each argument of the artifact a pytree of arrays or of
            ``jax.ShapeDtypeStruct``, all with the same first axis, the batch; arrays of rank 0 have
            none. Where ``prepare`` is given these are raw inputs (uint8 images). Containers other
            than dict, list and tuple become dicts, and keys of dicts text, in the outputs too,
            since they may be unknown to those who load the artifact.
        prepare: ``(*raw inputs) -> inputs``, a tuple of several or one, applied inside.
        platforms: where it has to run, of ``"cpu"``, ``"cuda"``, ``"rocm"`` and ``"tpu"``.

    Raises:
        ExportError: the network cannot be traced with these examples, an example is no array, their
            batches differ, or a platform is unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def apply(variables, x):
        ...     return x @ variables["w"]
        >>> images = jax.ShapeDtypeStruct((2, 3), jnp.uint8)
        >>> artifact = export_stablehlo(
        ...     apply, {"w": jnp.ones((3, 1))}, images, prepare=lambda x: x / 255
        ... )
        >>> artifact.description.inputs
        (ArraySpec(shape=(3,), dtype='uint8', batched=True),)
        >>> float(load_stablehlo(artifact.content)(jnp.full((4, 3), 255, jnp.uint8))[0, 0])
        3.0
    """
    require_function("apply", apply, "a function (variables, *inputs) -> outputs")
    if prepare is not None:
        require_function("prepare", prepare, "a function (*raw inputs) -> inputs")
    platforms = _checked_platforms(platforms)
    shapes = _shapes(examples)
    count = _batch_size(shapes)
    network = _on_plain_containers(apply, variables, prepare, shapes)
    plain = tuple(_plain(each) for each in shapes)
    (batch,) = jax.export.symbolic_shape("batch")

    def export(function: Callable[..., PyTree], size: Any) -> Artifact:
        sized = jax.tree.map(lambda leaf: _with_batch(leaf, size), plain)
        exported = jax.export.export(jax.jit(function), platforms=platforms)(*sized)
        description = Description(
            inputs=jax.tree.map(lambda leaf: _spec(leaf, size), sized),
            outputs=jax.tree.map(
                lambda leaf: _spec(leaf, size),
                jax.tree.unflatten(exported.out_tree, exported.out_avals),
            ),
            batch=None if size is batch else count,
            prepare=None if prepare is None else {"kind": "custom"},
        )
        content = add_trailer(bytes(exported.serialize()), STABLEHLO, tree_hash(variables))
        return Artifact(content=content, description=description)

    # Tracing runs code of others, which may raise anything.
    with contextlib.suppress(Exception):
        return export(network, batch)
    # Some functions trace otherwise for a batch of unknown size (strided indexing becomes a
    # gather); of a single row they do not.
    rows = _row_by_row(network, plain)
    with contextlib.suppress(Exception):
        if _agree(network, rows, plain, max(count, 2)):
            return export(rows, batch)
    try:
        return export(network, count)
    except Exception as error:
        named = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(shapes))
        raise ExportError(
            f"the network cannot be exported for examples {named}: {error}; pass examples that it "
            "can be applied to"
        ) from error


def load_stablehlo(content: bytes | str | os.PathLike) -> Callable[..., PyTree]:
    """Return the function of an exported network, ``(*inputs) -> outputs``.

    Nothing of it reaches JAX before its checksum fits, since damaged files can end the process.

    Args:
        content: bytes of `export_stablehlo`, or the path of their file. Where a plan lies beside
            the file, its weights must be those of the plan.

    Raises:
        ExportError: there is no such file, it is no exported network, was changed or cut off,
            carries no checksum, or belongs to another plan.
    """
    where = "the content" if isinstance(content, bytes) else os.fspath(content)
    data = content if isinstance(content, bytes) else read_stored(content, "export_stablehlo")
    plan = None if isinstance(content, bytes) else Path(content).with_name(PLAN)
    belongs = read_plan(plan)["slim_sha256"] if plan is not None and plan.exists() else None
    try:
        return jax.export.deserialize(bytearray(open_trailer(data, where, STABLEHLO, belongs))).call
    except Exception as error:
        raise ExportError(
            f"{where} is no exported network, or cut off: {error}; export it again, with a jax as "
            "new as this one or older"
        ) from error


def _checked_platforms(platforms: Sequence[str]) -> tuple[str, ...]:
    listed = isinstance(platforms, Sequence)
    names = (platforms,) if isinstance(platforms, str) else tuple(platforms if listed else ())
    unknown = [name for name in names if name not in KNOWN_PLATFORMS]
    if unknown or not names:
        raise ExportError(
            f"platforms={platforms!r} must name some of {', '.join(KNOWN_PLATFORMS)}"
            + (f"; {', '.join(map(repr, unknown))} is none of them" if unknown else "")
        )
    return names


def _shapes(examples: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
    def shape(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            raise ExportError(
                f"examples{jax.tree_util.keystr(path)} is a {type(leaf).__name__}; examples must "
                "be arrays or jax.ShapeDtypeStruct, bind other arguments with functools.partial"
            )
        return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.result_type(leaf))

    return jax.tree_util.tree_map_with_path(shape, examples)


def _batch_size(shapes: tuple[PyTree, ...]) -> int:
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(shapes) if leaf.shape}
    if len(sizes) != 1 or 0 in sizes:
        raise ExportError(
            f"examples have shapes {[leaf.shape for leaf in jax.tree.leaves(shapes)]}; the first "
            "axis must be a batch of at least one, the same in all"
        )
    return sizes.pop()


def _with_batch(leaf: jax.ShapeDtypeStruct, size: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size, *leaf.shape[1:]) if leaf.shape else (), leaf.dtype)


def _spec(leaf: Any, size: Any) -> ArraySpec:
    batched = bool(leaf.shape) and leaf.shape[0] == size
    shape = leaf.shape[1:] if batched else leaf.shape
    sizes = tuple(each if isinstance(each, int) else str(each) for each in shape)
    return ArraySpec(shape=sizes, dtype=str(leaf.dtype), batched=batched)


def _plain(tree: PyTree) -> PyTree:
    """Return a tree of dicts, lists and tuples, which ``jax.export`` knows everywhere."""
    if tree is None or jax.tree_util.all_leaves([tree]):
        return tree
    if type(tree) in (list, tuple):
        return type(tree)(_plain(each) for each in tree)
    children, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda each: each is not tree)
    return {jax.tree_util.keystr(key, simple=True): _plain(child) for key, child in children}


def _on_plain_containers(
    apply: Apply,
    variables: Variables,
    prepare: Callable[..., PyTree] | None,
    shapes: tuple[PyTree, ...],
) -> Callable[..., PyTree]:
    """Return the network as a function between plain containers."""
    flat, structure = jax.tree.flatten(shapes)
    numbered = jax.tree.unflatten(structure, range(len(flat)))
    order = jax.tree.leaves(tuple(_plain(each) for each in numbered))

    def network(*inputs: PyTree) -> PyTree:
        leaves = dict(zip(order, jax.tree.leaves(inputs), strict=True))
        given = jax.tree.unflatten(structure, [leaves[place] for place in sorted(leaves)])
        prepared = given if prepare is None else prepare(*given)
        return _plain(apply(variables, *(prepared if type(prepared) is tuple else (prepared,))))

    return network


def _row_by_row(
    network: Callable[..., PyTree], shapes: tuple[PyTree, ...]
) -> Callable[..., PyTree]:
    def one(*row: PyTree) -> PyTree:
        single = jax.tree.map(lambda leaf, shape: leaf[None] if shape.shape else leaf, row, shapes)
        return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), network(*single))

    return jax.vmap(one, in_axes=jax.tree.map(lambda leaf: 0 if leaf.shape else None, shapes))


def _agree(
    network: Callable[..., PyTree],
    rows: Callable[..., PyTree],
    shapes: tuple[PyTree, ...],
    count: int,
) -> bool:
    """Whether outputs of each row depend on that row alone, as tried on random inputs."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype)
        # Small numbers are tokens of any vocabulary; bytes are images.
        high = 128 if leaf.dtype.itemsize == 1 and leaf.dtype != bool else 2
        return jnp.asarray(rng.integers(0, high, leaf.shape), leaf.dtype)

    inputs = jax.tree.map(lambda leaf: draw(_with_batch(leaf, count)), shapes)
    with jax.default_matmul_precision("highest"):
        pairs = zip(
            jax.tree.leaves(jax.jit(network)(*inputs)),
            jax.tree.leaves(jax.jit(rows)(*inputs)),
            strict=True,
        )
        return all(_is_close(np.asarray(a), np.asarray(b)) for a, b in pairs)


def _is_close(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    one, other = a.astype(np.complex128), b.astype(np.complex128)
    largest = max(1.0, float(np.abs(one).max(initial=0.0)))
    if not math.isfinite(largest):
        return np.array_equal(one, other, equal_nan=True)
    return bool(np.allclose(one, other, rtol=0, atol=TOLERANCE * largest))
