import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.training.metrics import accuracy
from rlprune_jax.training.task import (
    Task,
    TaskError,
    classification,
    find_inputs,
    next_token,
    regression,
)

X, Y = np.zeros((6, 3), np.float32), np.zeros(6, np.int32)
DATA = (X, Y)


def loss(outputs, batch):
    return jnp.mean(outputs)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((1, 2), (1,)),
        ([1, 2], (1,)),
        (((1, 2), 3), (1, 2)),
        ({"image": 1, "label": 2}, (1,)),
        ({"tokens": 1}, (1,)),
    ],
)
def test_inputs_are_found(batch, expected):
    from rlprune_jax.training.task import positional

    assert positional(find_inputs(batch)(batch)) == expected


def test_an_array_is_its_own_input():
    tokens = np.zeros((2, 3))
    assert find_inputs(tokens)(tokens) is tokens


def test_unknown_keys_ask_for_a_function():
    with pytest.raises(TaskError, match=r"keys \['a', 'b'\].*give inputs=function\(batch\)"):
        find_inputs({"a": 1, "b": 2})
    assert find_inputs({"a": 1}, len) is len


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": None}, "metric=None: a task needs a function.*metric='negative_loss'"),
        ({"loss": None}, "loss=None: a task needs a function"),
        ({"metric": "acuracy"}, "metric='acuracy' is unknown; choose from accuracy"),
        ({"train": (X, Y[:5])}, r"train holds data of unequal lengths {'0': 6, '1': 5}"),
        ({"test": (X[:0], Y[:0])}, "test holds no examples"),
        ({"held_out": (X, 3)}, "held_out: leaf '1' is a int, not an array"),
        ({"held_out": (X, np.int32(3))}, "leaf '1' is a scalar"),
        ({"train": ()}, "train=.* holds no array"),
        ({"train": {"a": X, "b": Y}}, "no input is found"),
    ],
)
def test_bad_tasks_are_refused(changes, message):
    arguments = {"loss": loss, "metric": accuracy, "train": DATA, "held_out": DATA, "test": DATA}
    with pytest.raises(TaskError, match=message):
        Task(**arguments | changes)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(6), "labels are float64; give class numbers"),
        (np.zeros((6, 2), int), r"labels have shape \(6, 2\)"),
        (np.full(6, -1), "labels hold -1; classes count from 0"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(TaskError, match=message):
        classification((X, labels), DATA, DATA)


def test_objectives_of_equal_functions_are_equal():
    one, two = classification(DATA, DATA, DATA), classification(DATA, DATA, DATA)
    assert one.objective == two.objective
    assert hash(one.objective) == hash(two.objective)
    assert one.objective != classification(DATA, DATA, DATA, label_smoothing=0.1).objective
    tokens = np.zeros((4, 5), np.int32)
    assert next_token(tokens, tokens, tokens).objective == next_token(*[tokens] * 3).objective


def test_the_metric_has_a_name():
    assert classification(DATA, DATA, DATA).objective.metric_name == "accuracy"
    assert regression(DATA, DATA, DATA).objective.metric_name == "negative_loss"
    own = Task(loss, lambda outputs, batch: 0.0, DATA, DATA, DATA, metric_name="intersection")
    assert own.objective.metric_name == "intersection"
    assert Task(loss, loss, DATA, DATA, DATA).objective.metric_name == "loss"


def test_inputs_are_prepared_and_the_batch_stays_raw():
    seen = []

    def keep(outputs, batch):
        seen.append(batch)
        return jnp.mean(outputs)

    task = Task(keep, keep, DATA, DATA, DATA, prepare=lambda x: x + 1)
    assert float(task.objective.network_inputs(DATA)[0].max()) == 1
    task.objective.evaluate(jnp.ones(3), DATA)
    assert seen[0] is DATA
    several = Task(
        keep, keep, DATA, DATA, DATA, inputs=lambda b: (b[0], b[1]), prepare=lambda x, y: (y, x)
    )
    assert [each.shape for each in several.objective.network_inputs(DATA)] == [(6,), (6, 3)]


def test_samples_and_sizes_of_arrays_and_of_sources():
    def source():
        for start in range(0, 6, 2):
            yield X[start : start + 2] + start, Y[start : start + 2]

    task = Task(loss, accuracy, source, DATA, DATA)
    assert (task.size("train"), task.size("test")) == (None, 6)
    assert task.is_streamed("train") and not task.is_streamed("test")
    found = task.sample("train", 3)
    np.testing.assert_array_equal(found[0][:, 0], [0, 0, 2])
    assert task.sample("train", 100)[0].shape == (6, 3)
    assert task.sample("test", 4)[1].shape == (4,)
    with pytest.raises(TaskError, match="train yields no batch"):
        Task(loss, accuracy, lambda: [], DATA, DATA)


def test_arrays_go_to_the_device_once():
    task = Task(loss, accuracy, DATA, DATA, DATA).on_device()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(task.train))
    again = task.on_device()
    assert again.train[0] is task.train[0]
