"""Text that comes with Python, as sequences of characters, and its task of the next one."""

import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlprune_jax.checks import require_count, require_seed
from rlprune_jax.training.task import Metric, Task, next_token

VOCABULARY = 128
"""Tokens: the characters of ASCII by their codes; any other is a question mark."""

CONTEXT = 64
"""Tokens that a network reads of each sequence, unless told."""

SEGMENT = 4096
"""Characters of a segment; segments go whole to training, held-out or test data."""

PARTS = 10
"""Every so many segments one is held out and one is for testing."""


class TextSource(NamedTuple):
    """Hold what is known of a text beforehand.

    Attributes:
        vocabulary: how many tokens there are.
        context: tokens that a network reads of each sequence.
    """

    vocabulary: int
    context: int


@dataclass(frozen=True)
class Text:
    """Hold a text as sequences of tokens.

    Attributes:
        name: as given to ``load_text``.
        vocabulary: how many tokens there are.
        train: int32[n, context + 1], what to train on.
        held_out: likewise, what to choose by.
        test: likewise, what to report on, once.
    """

    name: str
    vocabulary: int
    train: np.ndarray
    held_out: np.ndarray
    test: np.ndarray


def text_names() -> tuple[str, ...]:
    """List the names that ``load_text`` knows."""
    return tuple(_SOURCES)


def describe_text(name: str) -> TextSource:
    """Describe a text without reading it.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> describe_text("text").vocabulary
        128
    """
    if not isinstance(name, str) or name not in _SOURCES:
        raise ValueError(f"text {name!r} is unknown; choose from {', '.join(_SOURCES)}")
    return _SOURCES[name]


def load_text(name: str = "text", *, context: int = CONTEXT, seed: int = 0) -> Text:
    """Read the English text that comes with Python.

    It is the reference of the language as ``help()`` shows it (``pydoc_data.topics``), some 370 kB.
    Topics hold paragraphs of each other; a paragraph that came before is left out, so that no test
    data are in the training data. The text differs between versions of Python by what their
    references say.

    Args:
        name: one of ``text_names()``.
        context: tokens that a network reads of each sequence; sequences have one more, the last of
            which is only predicted and starts the next one.
        seed: of the choice of the held-out segments; those for testing are always the same.

    Returns:
        The text, cut into sequences.

    Raises:
        ValueError: an unknown ``name``, or a ``context`` below 1 or longer than a segment.
        FileNotFoundError: this Python came without it.

    Example:
        >>> text = load_text(context=32)
        >>> text.train.shape[1], int(text.train.max()) < text.vocabulary
        (33, True)
    """
    source = describe_text(name)
    require_count("context", context)
    require_seed("seed", seed)
    if context >= SEGMENT:
        raise ValueError(f"context={context} must be below {SEGMENT}, the characters of a segment")
    codes = np.frombuffer(_paragraphs().encode("ascii", "replace"), np.uint8)
    segments = codes[: len(codes) // SEGMENT * SEGMENT].reshape(-1, SEGMENT)
    part = np.arange(len(segments)) % PARTS == PARTS - 1
    rest = np.flatnonzero(~part)
    held = np.zeros(len(segments), bool)
    held[np.random.default_rng(seed).permutation(rest)[: part.sum()]] = True
    return Text(
        name=name,
        vocabulary=source.vocabulary,
        train=_sequences(segments[~part & ~held], context),
        held_out=_sequences(segments[held], context),
        test=_sequences(segments[part], context),
    )


def text_task(text: Text, metric: Metric | str = "negative_loss") -> Task:
    """Return the task of predicting a text's next token.

    Args:
        text: as ``load_text`` returns.
        metric: as in ``next_token``.

    Example:
        >>> task = text_task(load_text(context=32))
        >>> task.objective.network_inputs(task.sample("test", 2))[0].shape
        (2, 32)
        >>> task.objective.metric_name
        'negative_loss_per_token'
    """
    return next_token(
        text.train,
        text.held_out,
        text.test,
        metric=metric,
        description={
            "dataset": text.name,
            "vocabulary": text.vocabulary,
            "tokens": "codes of ASCII characters",
            "python": ".".join(map(str, sys.version_info[:3])),
        },
    )


_SOURCES = {"text": TextSource(vocabulary=VOCABULARY, context=CONTEXT)}


def _paragraphs() -> str:
    """The reference, topic by topic, each of its paragraphs once."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(
            "the data set 'text' is Python's own reference, pydoc_data.topics, which this Python "
            "came without; install the whole standard library, or give tokens of your own to "
            "rlprune_jax.next_token"
        ) from error
    # Spaces and line breaks may differ where the words are the same.
    paragraphs: dict[str, str] = {}
    for topic in sorted(topics):
        for each in topics[topic].split("\n\n"):
            paragraphs.setdefault(" ".join(each.split()), each)
    return "\n\n".join(paragraphs.values())


def _sequences(segments: np.ndarray, context: int) -> np.ndarray:
    """Cut each segment into sequences that overlap by one token; what is left over is dropped."""
    count = (segments.shape[1] - 1) // context
    starts = np.arange(count)[:, None] * context + np.arange(context + 1)
    return segments[:, starts].reshape(-1, context + 1).astype(np.int32)
