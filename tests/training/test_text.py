"""The text that comes with Python, and its task."""

import builtins

import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.training.text import SEGMENT, describe_text, load_text, text_names, text_task

TEXT = load_text()


def lines_of(sequences):
    """Lines of at least 40 characters that lie whole in a sequence."""
    text = ("".join(map(chr, row)) for row in sequences)
    return {line for each in text for line in each.split("\n")[1:-1] if len(line) >= 40}


def test_tokens_are_characters():
    text = "".join(map(chr, TEXT.train[:200].reshape(-1)))
    assert "the" in text and " statement" in text
    for split in (TEXT.train, TEXT.held_out, TEXT.test):
        assert split.dtype == np.int32 and split.shape[1] == 65
        assert split.min() >= 0 and split.max() < TEXT.vocabulary == 128


def test_sequences_go_on_where_the_last_one_ended():
    per_segment = (SEGMENT - 1) // 64
    assert len(TEXT.test) % per_segment == 0 and len(TEXT.held_out) == len(TEXT.test)
    segment = TEXT.test[:per_segment]
    np.testing.assert_array_equal(segment[:-1, -1], segment[1:, 0])
    assert len(TEXT.train) > 7 * len(TEXT.test)


def test_the_seed_chooses_what_is_held_out_and_nothing_else():
    again, other = load_text(), load_text(seed=1)
    np.testing.assert_array_equal(TEXT.train, again.train)
    np.testing.assert_array_equal(TEXT.test, other.test)
    assert not np.array_equal(TEXT.held_out, other.held_out)
    rows = [{row.tobytes() for row in np.concatenate([t.train, t.held_out])} for t in (TEXT, other)]
    assert rows[0] == rows[1]


def test_hardly_a_line_of_the_test_data_is_in_the_training_data():
    # Topics hold paragraphs of each other; without leaving these out, it would be one in five.
    long = load_text(context=SEGMENT // 2 - 1)
    tests, known = lines_of(long.test), lines_of(long.train)
    assert len(tests) > 100
    assert len(tests & known) <= 0.02 * len(tests)


def test_the_task_is_the_next_token():
    task = text_task(TEXT)
    (inputs,) = task.objective.network_inputs(task.sample("test", 3))
    np.testing.assert_array_equal(inputs, TEXT.test[:3, :-1])
    assert task.objective.metric_name == "negative_loss_per_token"
    assert task.description["vocabulary"] == 128 and task.description["dataset"] == "text"
    outputs = jnp.zeros((3, 64, 128))
    found = task.objective.evaluate(outputs, task.sample("test", 3))
    assert float(found.loss) == -float(found.metric) == pytest.approx(np.log(128), rel=1e-6)
    assert text_task(TEXT, metric="token_accuracy").objective.metric_name == "token_accuracy"


def test_bad_arguments():
    for changed, message in [
        ({"name": "novel"}, "text 'novel' is unknown; choose from text"),
        ({"context": 0}, "context=0"),
        ({"context": SEGMENT}, f"context={SEGMENT} must be below {SEGMENT}"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_text(**changed)
    assert text_names() == ("text",) and describe_text("text").context == 64


def test_a_python_without_its_reference_is_told_so(monkeypatch):
    found = builtins.__import__

    def without(name, *arguments, **options):
        if name == "pydoc_data.topics":
            raise ImportError(name)
        return found(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FileNotFoundError, match=r"pydoc_data\.topics, which this Python came with"):
        load_text()
