"""Replace running statistics of training with those of given examples."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Var, jaxpr_as_fun

from rlprune_jax.checks import require_flag, require_function
from rlprune_jax.types import ApplyTrain, PyTree, Variables

STATISTIC_NAMES = frozenset(
    f"{kind}_{of}" for kind in ("running", "moving") for of in ("mean", "var", "variance")
)
"""Names that no trainable parameter has."""

PAIRED_NAMES = (("mean", "var"), ("mean", "variance"))
"""Names that mean running statistics where both stand side by side, of one shape."""

STATISTIC_COLLECTIONS = frozenset({"batch_stats", "BatchStat", "mean_ema", "var_ema"})
"""Names of collections, or of modules, that hold nothing but running statistics."""


def recalibrate(
    apply_train: ApplyTrain, variables: Variables, *inputs: PyTree, batches: bool = False
) -> Variables:
    """Replace running statistics with those of given examples.

    Use it whenever weights change without training, as pruning does: batch norm in evaluation mode
    then normalises with the mean and variance of what the changed network computes. It works for
    any network, needs no momentum, and leaves nothing of the old statistics.

    Train mode moves a running statistic from ``s`` to ``u(s) = m s + (1 - m) b`` with the batch's
    statistic ``b``. ``u`` is evaluated at several ``s`` in one forward pass, without a derivative,
    because Flax NNX and Equinox stop gradients in it: ``m = (u(S) - u(0)) / S`` with a power of two
    ``S`` so large that ``m`` comes without a rounding error, and ``b = u(0) / (1 - m)``. ``1 - m``
    is taken as the shortest decimal within the rounding of ``m``, since frameworks round ``m`` and
    ``1 - m`` apart. The relative error in float32 is about 2e-7 for a momentum of at most six
    decimals; it is at most 3e-8 / (1 - m) for others, and where the framework subtracts the rounded
    ``m`` from 1. ``u(1)`` and ``u(old)`` confirm that ``u`` has this form.

    Which leaves are statistics: floating leaves of the collections in the updates, never
    ``"params"``, that train mode returns changed. Kept are leaves with ``m = 1``, integers,
    booleans and random keys; also those for which ``u`` is not of this form (codebooks, power
    iterations), with a warning that names them. Under ``jit`` and ``vmap`` there is no warning:
    values are unknown there.

    Bias-corrected averages come out right too. Haiku's ``hidden`` and ``average`` become
    ``b (1 - m^counter)`` and ``b``. In an Equinox ``State`` a mean and variance after a step
    counter become ``b (1 - m^counter)``, or ``b`` if the counter is 0; those after a flag (mode
    ``"ema"``) are measured as in the first step, which alone normalises with the batch.

    Args:
        apply_train: ``(variables, *inputs) -> (outputs, updates)``.
        variables: mapping of ``"params"`` and other collections. A pytree without collections
            comes back as it is; `untold_statistics` tells whether it seems to hold statistics.
        *inputs: one batch as train mode takes it: arrays of any rank and type, dictionaries, ....
        batches: whether every array of ``inputs`` has one more axis ``[M, ...]`` in front. The
            statistics are then averaged over M batches, which run one after the other.

    Returns:
        The variables in the same containers, with new statistics.

    Raises:
        ValueError: no or empty inputs, different M, or updates whose structure or shapes are not
            those of the variables.

    Reference:
        Li et al. (2020), EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning.

    Example:
        >>> import flax.linen as nn
        >>> import jax, jax.numpy as jnp
        >>> norm = nn.BatchNorm(momentum=0.99)
        >>> x = jnp.array([[1.0], [3.0]])
        >>> variables = norm.init(jax.random.key(0), x, use_running_average=True)
        >>> def apply_train(variables, x):
        ...     return norm.apply(variables, x, False, mutable=["batch_stats"])
        >>> variables = recalibrate(apply_train, variables, x)
        >>> print(variables["batch_stats"]["mean"], variables["batch_stats"]["var"])
        [2.] [1.]
    """
    require_function("apply_train", apply_train, "a function (variables, *inputs)")
    require_flag("batches", batches)
    inputs = _check_inputs(inputs, batches)
    if not _possible_statistics(variables):
        return variables
    solve = _average_solutions if batches else _solve
    solutions = solve(apply_train, variables, inputs)
    if not solutions:
        return variables
    _warn_of_failures(variables, solutions)
    leaves, treedef = jax.tree.flatten(variables)
    for index, solution in solutions.items():
        old = jnp.asarray(leaves[index])
        leaves[index] = jnp.where(solution.kept, old, solution.value.astype(old.dtype))
    return jax.tree.unflatten(treedef, leaves)


def find_statistics(
    apply_train: ApplyTrain, variables: Variables, *inputs: PyTree
) -> tuple[str, ...]:
    """Return the paths of the statistics that train mode changes.

    Use it to see, without computing anything, what `recalibrate` works on. Frozen batch norm is
    not among them.

    Args:
        apply_train: ``(variables, *inputs) -> (outputs, updates)``.
        variables: arrays or `jax.ShapeDtypeStruct`.
        *inputs: one batch, arrays or `jax.ShapeDtypeStruct`.

    Returns:
        Paths of floating leaves outside ``"params"``, in the order of the leaves.

    Example:
        >>> import jax.numpy as jnp
        >>> def apply_train(variables, x):
        ...     moved = 0.9 * variables["state"]["mean"] + 0.1 * x.mean()
        ...     return x, {"state": {**variables["state"], "mean": moved}}
        >>> variables = {"params": {}, "state": {"mean": jnp.zeros(()), "fixed": jnp.ones(())}}
        >>> find_statistics(apply_train, variables, jnp.ones(3))
        ('state/mean',)
    """
    leaves, treedef = jax.tree.flatten((variables, inputs))
    arrays = {index: leaf for index, leaf in enumerate(leaves) if hasattr(leaf, "dtype")}
    found: list[str] = []

    def trace(arrays: dict[int, jax.Array]) -> None:
        filled = [arrays.get(index, leaf) for index, leaf in enumerate(leaves)]
        traced_variables, traced_inputs = jax.tree.unflatten(treedef, filled)
        indices = _possible_statistics(traced_variables)
        moving = _trace_update(apply_train, traced_variables, traced_inputs, indices).moving
        paths = _paths(variables)
        found.extend("/".join(paths[indices[position]]) for position in moving)

    jax.eval_shape(trace, arrays)
    return tuple(found)


def untold_statistics(variables: Variables) -> tuple[str, ...]:
    """Return the paths of leaves that look like running statistics.

    Use it for a network that comes without a train mode, or whose parameters are one pytree: names
    found here mean that it has statistics which recalibration would need to know of. It goes by
    names (``running_mean``, ``moving_variance``, ..., ``mean`` beside ``var``) and by the
    ``State`` of Equinox, and rather misses one than cries wolf.

    Args:
        variables: any pytree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
        Paths of floating leaves, in the order of the leaves.

    Example:
        >>> import jax.numpy as jnp
        >>> norm = {"scale": jnp.ones(3), "mean": jnp.ones(3), "var": jnp.ones(3)}
        >>> untold_statistics({"dense": {"kernel": jnp.ones((3, 3))}, "norm": norm})
        ('norm/mean', 'norm/var')
    """
    leaves = jax.tree.leaves(variables)
    paths = _paths(variables)
    names = [_name(path) for path in paths]
    shapes = {name: jnp.shape(leaf) for name, leaf in zip(names, leaves, strict=True)}
    in_state = {statistic for statistic, _ in _equinox_statistics(variables)}

    def looks_so(index: int) -> bool:
        *parents, last = names[index]
        paired = any(
            shapes.get((*parents, first)) == shapes.get((*parents, second))
            for first, second in PAIRED_NAMES
            if last in (first, second)
        )
        return _is_floating(leaves[index]) and (
            index in in_state
            or last in STATISTIC_NAMES
            or paired
            or not STATISTIC_COLLECTIONS.isdisjoint(parents)
        )

    return tuple("/".join(paths[index]) for index in range(len(leaves)) if looks_so(index))


class _Update(NamedTuple):
    """The update of train mode, as a function of the statistics that move.

    Attributes:
        moving: positions, among the possible statistics, of those that the update changes.
        evaluate: values of these -> their new values.
    """

    moving: list[int]
    evaluate: Callable[[list[jax.Array]], list[jax.Array]]


class _Probe(NamedTuple):
    """New values of one statistic from old values 0, 1, the large ``scale``, and its own."""

    at_zero: jax.Array
    at_one: jax.Array
    at_scale: jax.Array
    at_old: jax.Array
    scale: float


class _Solution(NamedTuple):
    """What a batch makes of one statistic.

    Attributes:
        value: the batch's statistic.
        momentum: ``m``, how much of the old value stays after one step.
        kept: bool, where the old value is to be kept.
        failed: bool[], whether the update has another form, so that all is kept.
    """

    value: jax.Array
    momentum: jax.Array
    kept: jax.Array
    failed: jax.Array


def _solve(
    apply_train: ApplyTrain, variables: Variables, inputs: tuple[PyTree, ...]
) -> dict[int, _Solution]:
    """Solve for the statistics of one batch, by index of the leaf."""
    leaves = jax.tree.leaves(variables)
    indices = _possible_statistics(variables)
    update = _trace_update(apply_train, variables, inputs, indices)
    moving = [indices[position] for position in update.moving]
    old = {index: jnp.asarray(leaves[index]) for index in moving}
    probes = dict(zip(moving, _probe_update(update, list(old.values())), strict=True))
    solutions = {index: _solve_one(probes[index], old[index]) for index in moving}
    for statistic, control in _equinox_statistics(variables):
        steps = jnp.asarray(leaves[control])
        if statistic in solutions and jnp.issubdtype(steps.dtype, jnp.integer):
            solution = solutions[statistic]
            corrected = jnp.where(steps == 0, 1, 1 - solution.momentum**steps)
            solutions[statistic] = solution._replace(value=solution.value * corrected)
    for hidden, average, counter in _haiku_averages(variables):
        if hidden in solutions and average in solutions:
            solutions[hidden], solutions[average] = _solve_haiku(
                solutions[hidden], probes[hidden], probes[average], jnp.asarray(leaves[counter])
            )
    return solutions


def _solve_haiku(
    solution: _Solution, hidden: _Probe, average: _Probe, steps: jax.Array
) -> tuple[_Solution, _Solution]:
    """Return the solutions of ``hidden`` and ``average`` after so many steps."""
    corrects_bias = average.at_scale != hidden.at_scale
    # After the first step the corrected average is the batch's statistic itself.
    value = jnp.where(corrects_bias, average.at_zero, solution.value)
    corrected = 1 - solution.momentum ** jnp.maximum(steps, 0)
    return (
        solution._replace(value=value * jnp.where(corrects_bias, corrected, 1)),
        solution._replace(value=value),
    )


def _average_solutions(
    apply_train: ApplyTrain, variables: Variables, batches: tuple[PyTree, ...]
) -> dict[int, _Solution]:
    """Average the solutions over batches ``[M, ...]``; what fails in one batch fails."""

    def solve(batch: tuple[PyTree, ...]) -> dict[int, _Solution]:
        return _solve(apply_train, variables, batch)

    def add(
        total: dict[int, _Solution], batch: tuple[PyTree, ...]
    ) -> tuple[dict[int, _Solution], None]:
        def combine(before: jax.Array, one: jax.Array) -> jax.Array:
            return before | one if before.dtype == bool else before + one

        return jax.tree.map(combine, total, solve(batch)), None

    shapes = jax.eval_shape(solve, jax.tree.map(lambda leaf: leaf[0], batches))
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, start, batches)
    count = jax.tree.leaves(batches)[0].shape[0]
    return {index: one._replace(value=one.value / count) for index, one in total.items()}


def _trace_update(
    apply_train: ApplyTrain,
    variables: Variables,
    inputs: tuple[PyTree, ...],
    indices: list[int],
) -> _Update:
    """Trace train mode once as a function of the possible statistics."""
    leaves, treedef = jax.tree.flatten(variables)
    paths = _paths(variables)
    leaves = _at_first_step(variables, leaves)
    old = [jnp.asarray(leaves[index]) for index in indices]

    def update(values: list[jax.Array]) -> list[jax.Array]:
        filled = list(leaves)
        for index, value in zip(indices, values, strict=True):
            filled[index] = value
        _, updates = apply_train(jax.tree.unflatten(treedef, filled), *inputs)
        new = _match_updates(updates, paths)
        return [
            _same_shape(new.get(paths[index], value), value, paths[index])
            for index, value in zip(indices, values, strict=True)
        ]

    closed = jax.make_jaxpr(update)(old)
    sources = _passed_through(closed.jaxpr)
    moving = [position for position, source in enumerate(sources) if source != position]
    evaluate_all = jaxpr_as_fun(closed)

    def evaluate(values: list[jax.Array]) -> list[jax.Array]:
        filled = list(old)
        for position, value in zip(moving, values, strict=True):
            filled[position] = value
        new = evaluate_all(*filled)
        return [new[position] for position in moving]

    return _Update(moving=moving, evaluate=evaluate)


def _probe_update(update: _Update, old: list[jax.Array]) -> list[_Probe]:
    """Evaluate the update at four points; what does not read the statistics is done once."""
    if not old:
        return []
    scales = [2.0 ** (jnp.finfo(leaf.dtype).maxexp // 2) for leaf in old]
    points = [
        jnp.stack([jnp.zeros_like(leaf), jnp.ones_like(leaf), jnp.full_like(leaf, scale), leaf])
        for leaf, scale in zip(old, scales, strict=True)
    ]
    new = jax.vmap(update.evaluate)(points)
    # Solved in float32 or better, whatever the type of the statistic.
    precise = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in new]
    return [
        _Probe(at_zero=at[0], at_one=at[1], at_scale=at[2], at_old=at[3], scale=scale)
        for at, scale in zip(precise, scales, strict=True)
    ]


def _solve_one(probe: _Probe, old: jax.Array) -> _Solution:
    """Solve ``u(s) = m s + (1 - m) b`` for ``m`` and ``b``."""
    eps = float(jnp.finfo(old.dtype).eps)
    before = old.astype(probe.at_zero.dtype)
    momentum = jnp.real((probe.at_scale - probe.at_zero) / probe.scale)
    off_one = abs(probe.at_one - (momentum + probe.at_zero))
    off_old = abs(probe.at_old - (momentum * before + probe.at_zero))
    size = abs(probe.at_zero) + abs(momentum)
    # NaN compares false: NaN in the data reaches the statistics, NaN in the old ones is lost.
    # Where the old statistics give a number but 0, 1 or the scale do not, the form is another.
    wrong = (off_one > 256 * eps * size) | (off_old > 256 * eps * (size * (1 + abs(before))))
    wrong |= (momentum < -eps) | (momentum > 1 + eps)
    measured = jnp.isfinite(probe.at_zero) & jnp.isfinite(probe.at_one) & jnp.isfinite(momentum)
    wrong |= jnp.isfinite(probe.at_old) & ~measured
    failed = jnp.any(wrong)
    moves = momentum != 1
    value = probe.at_zero / jnp.where(moves, _one_minus(momentum, eps), 1)
    return _Solution(value=value, momentum=momentum, kept=failed | ~moves, failed=failed)


def _one_minus(momentum: jax.Array, eps: float) -> jax.Array:
    """Return 1 - momentum as the shortest decimal within the rounding of the momentum."""
    exact = 1 - momentum
    best = exact
    for digits in range(6, 0, -1):
        decimal = jnp.round(exact * 10**digits) / 10**digits
        best = jnp.where((decimal > 0) & (abs(decimal - exact) <= eps / 2), decimal, best)
    return best


def _check_inputs(inputs: tuple[PyTree, ...], batches: bool) -> tuple[PyTree, ...]:
    """Return inputs of arrays; refuse what has no statistics."""
    inputs = jax.tree.map(jnp.asarray, inputs)
    shapes = [leaf.shape for leaf in jax.tree.leaves(inputs)]
    if not shapes:
        raise ValueError("inputs hold no array; give one batch as train mode takes it")
    for shape in shapes:
        if 0 in shape:
            raise ValueError(f"inputs have shape {shape}, which holds no example; give some")
    if batches and (() in shapes or len({shape[0] for shape in shapes}) > 1):
        raise ValueError(
            f"batches=True, but inputs have shapes {shapes}; every array needs the same number of "
            "batches as its first axis"
        )
    return inputs


def _possible_statistics(variables: Variables) -> list[int]:
    """Return indices of the floating leaves outside ``"params"`` in a mapping of collections."""
    if not isinstance(variables, Mapping):
        return []
    return [
        index
        for index, (path, leaf) in enumerate(
            zip(_paths(variables), jax.tree.leaves(variables), strict=True)
        )
        if path[0] != "params" and _is_floating(leaf)
    ]


def _match_updates(
    updates: PyTree, paths: list[tuple[str, ...]]
) -> dict[tuple[str, ...], jax.Array]:
    """Return the update of each path; refuse a collection of another structure."""
    new = dict(zip(_paths(updates), jax.tree.leaves(updates), strict=True))
    known = set(paths)
    for collection in {path[0] for path in new} & {path[0] for path in paths}:
        theirs = {path for path in new if path[0] == collection}
        if theirs.isdisjoint(known):
            raise ValueError(
                f"updates of {collection!r} have the paths {['/'.join(path) for path in theirs]}, "
                "none of which the variables have; return the collection as it is in variables"
            )
    return new


def _same_shape(new: jax.Array, old: jax.Array, path: tuple[str, ...]) -> jax.Array:
    """Return the new value in the old one's type; refuse another shape."""
    if jnp.shape(new) != old.shape:
        raise ValueError(
            f"update of {'/'.join(path)} has shape {jnp.shape(new)}, the variable {old.shape}; "
            "train mode must return one statistic for the whole batch"
        )
    new = jnp.asarray(new)
    return new if new.dtype == old.dtype else new.astype(old.dtype)


def _passed_through(jaxpr: Jaxpr) -> list[int | None]:
    """Return, for each output, which input it is unchanged, also through inner ``jit``."""
    source = {variable: index for index, variable in enumerate(jaxpr.invars)}
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("jit", "pjit"):
            inner = _passed_through(equation.params["jaxpr"].jaxpr)
            for variable, index in zip(equation.outvars, inner, strict=True):
                given = None if index is None else equation.invars[index]
                if isinstance(given, Var) and given in source:
                    source[variable] = source[given]
    return [
        source.get(variable) if isinstance(variable, Var) else None for variable in jaxpr.outvars
    ]


def _at_first_step(variables: Variables, leaves: list[PyTree]) -> list[PyTree]:
    """Set flags of Equinox and counters of Haiku to those of the first training step."""
    leaves = list(leaves)
    for _, flag in _equinox_statistics(variables):
        if leaves[flag].dtype == bool:
            leaves[flag] = jnp.ones_like(leaves[flag])
    for _, _, counter in _haiku_averages(variables):
        leaves[counter] = jnp.zeros_like(leaves[counter])
    return leaves


def _equinox_statistics(variables: Variables) -> Iterator[tuple[int, int]]:
    """Yield indices ``(statistic, control)``, the control being the counter or flag before it."""
    start = 0
    for node in jax.tree.leaves(variables, is_leaf=_is_equinox_state):
        leaves = jax.tree.leaves(node)
        if _is_equinox_state(node):
            entries = [int(path[0]) for path in _paths(node)]
            controls = {
                entry: start + index
                for index, (entry, leaf) in enumerate(zip(entries, leaves, strict=True))
                if _is_control(leaf)
            }
            for index, (entry, leaf) in enumerate(zip(entries, leaves, strict=True), start):
                if _is_floating(leaf) and entry - 1 in controls:
                    yield index, controls[entry - 1]
        start += len(leaves)


def _is_control(leaf: PyTree) -> bool:
    """Tell a counter or a flag."""
    return (
        hasattr(leaf, "dtype")
        and leaf.shape == ()
        and bool(jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == bool)
    )


def _haiku_averages(variables: Variables) -> Iterator[tuple[int, int, int]]:
    """Yield indices ``(hidden, average, counter)`` of Haiku's moving averages."""
    places = {path: index for index, path in enumerate(_paths(variables))}
    for path, index in places.items():
        if path and path[-1] == "hidden":
            average, counter = (places.get((*path[:-1], name)) for name in ("average", "counter"))
            if average is not None and counter is not None:
                yield index, average, counter


def _is_equinox_state(node: PyTree) -> bool:
    """Tell an Equinox ``State`` without importing Equinox."""
    kind = type(node)
    return kind.__name__ == "State" and kind.__module__.partition(".")[0] == "equinox"


def _is_floating(leaf: object) -> bool:
    """Tell a floating or complex array."""
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _paths(tree: PyTree) -> list[tuple[str, ...]]:
    """Return the keys that lead to each leaf."""
    entries, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [tuple(jax.tree_util.keystr((key,), simple=True) for key in path) for path, _ in entries]


def _name(path: tuple[str, ...]) -> tuple[str, ...]:
    """Split keys such as Haiku's at slashes; drop the last one that Flax NNX adds."""
    keys = tuple("/".join(path).split("/"))
    return keys[:-1] if keys[-1] == "value" else keys


def _warn_of_failures(variables: Variables, solutions: dict[int, _Solution]) -> None:
    """Warn of statistics that are kept because their update has another form."""
    paths = _paths(variables)
    failed = [
        "/".join(paths[index])
        for index, solution in solutions.items()
        if not isinstance(solution.failed, jax.core.Tracer) and bool(solution.failed)
    ]
    if failed:
        warnings.warn(
            f"train mode does not move {', '.join(failed)} as m s + (1 - m) b; recalibration "
            "keeps the old values",
            stacklevel=3,
        )
