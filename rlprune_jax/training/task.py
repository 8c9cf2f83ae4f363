"""Tasks of networks, with their data and what counts as good."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.checks import require_choice, require_count, shown
from rlprune_jax.pytree import leaf_paths
from rlprune_jax.training.metrics import (
    METRICS,
    Loss,
    Metric,
    NegativeLoss,
    SoftmaxCrossEntropy,
    labels_of,
    next_token_loss,
    squared_error,
)
from rlprune_jax.types import PyTree

Batch = PyTree
"""Some examples: any pytree of arrays whose first axis counts them."""

BatchSource = Callable[[], Iterable[Batch]]
"""Data that do not fit in memory: each call yields the batches of one pass, in a new iterator."""

Data = PyTree
"""All examples as one ``Batch``, or a ``BatchSource``."""

INPUT_KEYS = ("inputs", "input", "x", "image", "images", "tokens", "input_ids", "features")
"""Keys of a batch under which a network's input is looked for."""


class Evaluation(NamedTuple):
    """Hold how well a network does.

    Attributes:
        loss: f32[...], mean over the examples.
        metric: f32[...], mean over the examples; higher is better.
    """

    loss: jax.Array
    metric: jax.Array


class TaskError(ValueError):
    """Say what is wrong with a task or its data."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """Hold the functions of a task, without its data.

    Static structure of jitted programs. Two objectives of equal functions are equal, and use the
    same compiled program.

    Attributes:
        loss: ``(outputs, batch) -> f32[]``.
        metric: ``(outputs, batch) -> f32[]``, higher is better.
        metric_name: as results call it.
        inputs: ``batch -> inputs``, a tuple of positional arguments or the only one.
        prepare: ``(*inputs) -> inputs`` of raw ones, without randomness; None where the network
            reads them as they are. It travels with an exported network.
        augment: ``(batch, key) -> batch`` of raw examples, in training only; None for none.
    """

    loss: Loss
    metric: Metric
    metric_name: str
    inputs: Callable[[Batch], PyTree]
    prepare: Callable[..., PyTree] | None = None
    augment: Callable[[Batch, jax.Array], Batch] | None = None

    def network_inputs(self, batch: Batch) -> tuple[PyTree, ...]:
        """Return the network's arguments for a batch of raw examples."""
        return self.prepared(*positional(self.inputs(batch)))

    def prepared(self, *inputs: PyTree) -> tuple[PyTree, ...]:
        """Return raw inputs as the network reads them."""
        return inputs if self.prepare is None else positional(self.prepare(*inputs))

    def evaluate(self, outputs: PyTree, batch: Batch) -> Evaluation:
        """Return loss and metric of outputs for a batch."""
        return Evaluation(loss=self.loss(outputs, batch), metric=self.metric(outputs, batch))


def positional(inputs: PyTree) -> tuple[PyTree, ...]:
    """Return inputs as a tuple of positional arguments.

    Anything but a tuple is the only argument.

    Example:
        >>> positional(1), positional((1, 2))
        ((1,), (1, 2))
    """
    return tuple(inputs) if type(inputs) is tuple else (inputs,)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Hold a loss, a metric and three sets of data.

    One is to train on, one to choose by and one to report on. Made by ``classification``,
    ``regression`` and ``next_token``, or directly for anything else.

    Attributes:
        loss: ``(outputs, batch) -> f32[]``, the mean over the examples of a batch.
        metric: ``(outputs, batch) -> f32[]``, higher is better; or a name among ``METRICS``:
            ``"negative_loss"`` stands for the loss itself with its sign turned.
        train: data to train on.
        held_out: data that choose between candidates; never trained on before the last finetune.
        test: data that are read once per delivered network.
        inputs: ``batch -> inputs``; None takes the first of a tuple or list, the entry of a
            dictionary called as in ``INPUT_KEYS``, or the batch itself.
        prepare: ``(*inputs) -> inputs`` of raw ones, such as a standardisation of images. It is
            applied before the network, in training too, and travels with the exported network.
        augment: ``(batch, key) -> batch`` of raw examples, in training only.
        metric_name: as results call the metric; by default its own name.
        description: what is to be known of raw inputs and outputs besides, with a JSON form, such
            as ``class_names``. It goes into ``plan.json``.

    Raises:
        TaskError: no metric, an unknown one, data without examples or of unequal lengths, or no
            input found in them.

    Example:
        >>> import jax.numpy as jnp
        >>> data = (jnp.ones((6, 3)), jnp.zeros((6, 1)))
        >>> loss = lambda outputs, batch: jnp.mean((outputs - batch[1]) ** 2)
        >>> task = Task(loss, "negative_loss", data, data, data)
        >>> task.size("train"), task.objective.network_inputs(data)[0].shape
        (6, (6, 3))
    """

    loss: Loss
    metric: Metric | str
    train: Data
    held_out: Data
    test: Data
    inputs: Callable[[Batch], PyTree] | None = None
    prepare: Callable[..., PyTree] | None = None
    augment: Callable[[Batch, jax.Array], Batch] | None = None
    metric_name: str | None = None
    description: Mapping[str, PyTree] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for argument in ("loss", "metric"):
            if getattr(self, argument) is None:
                raise TaskError(
                    f"{argument}=None: a task needs a function (outputs, batch) -> number"
                    + ("; metric='negative_loss' takes the loss" if argument == "metric" else "")
                )
        if isinstance(self.metric, str) and self.metric not in METRICS:
            raise TaskError(
                f"metric={self.metric!r} is unknown; choose from {', '.join(METRICS)} or give a "
                "function (outputs, batch) -> number, higher is better"
            )
        if not isinstance(self.metric, str) and not callable(self.metric):
            raise TaskError(
                f"metric={shown(self.metric)} must be a function (outputs, batch) -> number, "
                f"higher is better, or one of {', '.join(METRICS)}"
            )
        for argument in ("loss", "inputs", "prepare", "augment"):
            value = getattr(self, argument)
            if value is not None and not callable(value):
                raise TaskError(f"{argument}={shown(value)} must be a function")
        name: object = self.metric_name
        if name is not None and not (isinstance(name, str) and name):
            raise TaskError(f"metric_name={shown(name)} must be text, as results show it")
        for split in SPLITS:
            check_data(split, getattr(self, split))
        find_inputs(self.sample("train", 1), self.inputs)

    @cached_property
    def objective(self) -> Objective:
        """Return the functions alone."""
        metric = self.metric
        if isinstance(metric, str):
            named = METRICS[metric]
            function: Metric = NegativeLoss(self.loss) if named is None else named
            name = metric
        else:
            function, name = metric, getattr(metric, "__name__", "metric")
            name = "metric" if name == "<lambda>" else name
        return Objective(
            loss=self.loss,
            metric=function,
            metric_name=self.metric_name or name,
            inputs=find_inputs(self.sample("train", 1), self.inputs),
            prepare=self.prepare,
            augment=self.augment,
        )

    def is_streamed(self, split: str) -> bool:
        """Return whether a split comes batch by batch.

        Args:
            split: ``"train"``, ``"held_out"`` or ``"test"``.
        """
        require_choice("split", split, SPLITS)
        return callable(getattr(self, split))

    def size(self, split: str) -> int | None:
        """Return the number of examples of a split.

        None where they come batch by batch.
        """
        return None if self.is_streamed(split) else count_examples(getattr(self, split))

    def sample(self, split: str, count: int) -> Batch:
        """Return the first examples of a split.

        Args:
            split: ``"train"``, ``"held_out"`` or ``"test"``.
            count: at most so many, at least 1.

        Raises:
            ValueError: an unknown split, or a count below 1.
        """
        require_choice("split", split, SPLITS)
        require_count("count", count)
        data = getattr(self, split)
        if not self.is_streamed(split):
            return jax.tree.map(lambda leaf: leaf[:count], data)
        found: list[Batch] = []
        seen = 0
        for batch in data():
            found.append(batch)
            seen += count_examples(batch)
            if seen >= count:
                break
        if not found:
            raise TaskError(f"{split} yields no batch; return a new iterator at each call")
        joined = jax.tree.map(lambda *leaves: np.concatenate(list(map(np.asarray, leaves))), *found)
        return jax.tree.map(lambda leaf: leaf[:count], joined)

    def on_device(self) -> "Task":
        """Return the same task with its arrays on the device.

        Use it before many calls, each of which would move them otherwise.
        """
        moved = {
            split: getattr(self, split)
            if self.is_streamed(split)
            else jax.tree.map(jnp.asarray, getattr(self, split))
            for split in SPLITS
        }
        return dataclasses.replace(self, **moved)


SPLITS = ("train", "held_out", "test")
"""The parts of a task's data."""


def count_examples(batch: Batch) -> int:
    """Return the length of the first axis of all leaves."""
    return int(np.shape(jax.tree.leaves(batch)[0])[0])


def check_data(argument: str, data: Data) -> None:
    """Refuse data without examples or of unequal lengths.

    Sources of batches pass.

    Raises:
        TaskError: naming the argument and the leaf.
    """
    if callable(data):
        return
    leaves = jax.tree.leaves(data)
    if not leaves:
        raise TaskError(f"{argument}={data!r} holds no array; give a pytree of arrays [n, ...]")
    lengths = {}
    for path, leaf in zip(leaf_paths(data), leaves, strict=True):
        if not hasattr(leaf, "dtype"):
            raise TaskError(
                f"{argument}: leaf {path!r} is a {type(leaf).__name__}, not an array [n, ...]; "
                "data that come in batches are given as a function that returns a new iterator"
            )
        if leaf.dtype.kind in "OSU":
            raise TaskError(
                f"{argument}: leaf {path!r} holds {leaf.dtype}; give numbers, such as class "
                "numbers for names"
            )
        if not np.shape(leaf):
            raise TaskError(
                f"{argument}: leaf {path!r} is a scalar; its first axis counts examples"
            )
        lengths[path] = np.shape(leaf)[0]
    if min(lengths.values()) == 0:
        raise TaskError(f"{argument} holds no examples: lengths {lengths}; give at least one")
    if len(set(lengths.values())) > 1:
        raise TaskError(f"{argument} holds data of unequal lengths {lengths}; give as many of each")


def find_inputs(
    batch: Batch, given: Callable[[Batch], PyTree] | None = None
) -> Callable[[Batch], PyTree]:
    """Return the function from batches to a network's inputs.

    Raises:
        TaskError: no input is found; ``given`` is returned as it is.
    """
    if given is not None:
        return given
    if isinstance(batch, Mapping):
        found = [key for key in INPUT_KEYS if key in batch]
        if not found:
            raise TaskError(
                f"no input is found in a batch with the keys {sorted(batch)}; call it one of "
                f"{', '.join(INPUT_KEYS)} or give inputs=function(batch)"
            )
        return _Entry(found[0])
    if isinstance(batch, Sequence):
        return _Entry(0)
    return _whole


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One entry of a batch; equal to another of the same key, which a lambda is not."""

    key: str | int

    def __call__(self, batch: Batch) -> PyTree:
        return batch[self.key]


def _whole(batch: Batch) -> PyTree:
    return batch


def classification(
    train: Data,
    held_out: Data,
    test: Data,
    *,
    metric: Metric | str = "accuracy",
    label_smoothing: float = 0.0,
    **details: PyTree,
) -> Task:
    """Make a task of telling classes apart.

    The loss is the softmax cross-entropy in nats, the metric by default the accuracy.

    Args:
        train: ``(inputs, labels i32[n])``, a dictionary with ``"label"`` or ``"labels"``, or a
            source of such batches.
        held_out: likewise.
        test: likewise.
        metric: a name among ``METRICS`` or a function.
        label_smoothing: fraction of each target spread evenly over the classes.
        **details: further fields of ``Task``: ``prepare``, ``augment``, ``inputs``, ...

    Raises:
        TaskError: as ``Task``; labels that are no integers from 0 on, inputs that are NaN or
            infinite.
        ValueError: ``label_smoothing`` outside [0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> data = (jnp.ones((8, 4)), jnp.zeros(8, int))
        >>> classification(data, data, data).objective.metric_name
        'accuracy'
    """
    task = Task(
        loss=SoftmaxCrossEntropy(label_smoothing),
        metric=metric,
        train=train,
        held_out=held_out,
        test=test,
        **details,
    )
    for split in SPLITS:
        check_labels(
            split, task.sample(split, 1) if task.is_streamed(split) else getattr(task, split)
        )
        check_finite(split, getattr(task, split))
    return task


def check_finite(argument: str, data: Data) -> None:
    """Refuse data that are NaN or infinite.

    Sources of batches pass. A ``Task`` of one's own takes them, since its loss may read them as
    missing.

    Raises:
        TaskError: naming the argument and the leaf.
    """
    if callable(data):
        return
    for path, leaf in zip(leaf_paths(data), jax.tree.leaves(data), strict=True):
        if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        # Of the extremes, which need no second array, as large as the first.
        ends = np.asarray([leaf.min(), leaf.max()], np.float64)
        if not np.isfinite(ends).all():
            raise TaskError(
                f"{argument}: leaf {path!r} holds NaN or infinity; leave those examples out, or "
                "write a Task whose loss takes them"
            )


def check_labels(argument: str, batch: Batch) -> None:
    """Refuse labels that are no class numbers, one per example.

    Raises:
        TaskError: naming the argument.
    """
    labels = labels_of(batch)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TaskError(f"{argument}: labels are {labels.dtype}; give class numbers, integers")
    if np.ndim(labels) != 1:
        raise TaskError(f"{argument}: labels have shape {np.shape(labels)}; give one per example")
    if isinstance(labels, jax.core.Tracer):
        return
    if (smallest := int(np.asarray(labels).min())) < 0:
        raise TaskError(f"{argument}: labels hold {smallest}; classes count from 0")


def regression(
    train: Data,
    held_out: Data,
    test: Data,
    *,
    metric: Metric | str = "negative_loss",
    **details: PyTree,
) -> Task:
    """Make a task of predicting numbers.

    The loss is the mean squared error, the metric by default its negative.

    Args:
        train: ``(inputs, targets f32[n, ...])``, a dictionary with ``"target"`` or
            ``"targets"``, or a source of such batches.
        held_out: likewise.
        test: likewise.
        metric: a name among ``METRICS`` or a function.
        **details: further fields of ``Task``: ``prepare``, ``augment``, ``inputs``, ...

    Raises:
        TaskError: as ``Task``.

    Example:
        >>> import jax.numpy as jnp
        >>> data = (jnp.ones((8, 4)), jnp.zeros((8, 2)))
        >>> regression(data, data, data).objective.metric_name
        'negative_loss'
    """
    task = Task(
        loss=squared_error, metric=metric, train=train, held_out=held_out, test=test, **details
    )
    for split in SPLITS:
        labels_of(task.sample(split, 1))
        check_finite(split, getattr(task, split))
    return task


def next_token(
    train: Data,
    held_out: Data,
    test: Data,
    *,
    metric: Metric | str = "negative_loss",
    **details: PyTree,
) -> Task:
    """Make a task of predicting the next token of sequences.

    The network reads all tokens but the last and gives logits f32[B, T - 1, vocabulary]; the loss
    is the cross-entropy in nats per token, the metric by default its negative, which results show
    as the loss per token.

    Args:
        train: tokens i32[n, T], or a source of such batches.
        held_out: likewise.
        test: likewise.
        metric: a name among ``METRICS`` or a function.
        **details: further fields of ``Task``: ``prepare``, ``augment``, ``inputs``, ...

    Raises:
        TaskError: as ``Task``.

    Example:
        >>> import jax.numpy as jnp
        >>> tokens = jnp.zeros((4, 9), int)
        >>> next_token(tokens, tokens, tokens).objective.network_inputs(tokens)[0].shape
        (4, 8)
    """
    details = {"inputs": all_but_the_last, **details}
    if metric == "negative_loss":
        details.setdefault("metric_name", "negative_loss_per_token")
    task = Task(
        loss=next_token_loss, metric=metric, train=train, held_out=held_out, test=test, **details
    )
    if task.inputs is all_but_the_last:
        for split in SPLITS:
            streamed = task.is_streamed(split)
            check_tokens(split, task.sample(split, 1) if streamed else getattr(task, split))
    return task


def check_tokens(argument: str, tokens: Batch) -> None:
    """Refuse what is no array of sequences of tokens.

    Raises:
        TaskError: naming the argument.
    """
    dtype: np.dtype | None = getattr(tokens, "dtype", None)
    shape: tuple[int, ...] = getattr(tokens, "shape", ())
    if dtype is None or not np.issubdtype(dtype, np.integer) or len(shape) != 2 or shape[1] < 2:
        raise TaskError(
            f"{argument}={shown(tokens)} must be tokens, integers [n, T] of at least two each; "
            "the last of a sequence is only predicted"
        )
    if not isinstance(tokens, jax.core.Tracer) and (least := int(np.asarray(tokens).min())) < 0:
        raise TaskError(f"{argument}: tokens hold {least}; they count from 0")


def all_but_the_last(tokens: jax.Array) -> jax.Array:
    """Return all tokens but the last of each sequence.

    The next ones are predicted from these, [B, T - 1].
    """
    return tokens[:, :-1]
