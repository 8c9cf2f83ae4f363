import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlprune_jax.training.metrics import (
    METRICS,
    NegativeLoss,
    SoftmaxCrossEntropy,
    accuracy,
    cross_entropy_and_hits,
    labels_of,
    next_token_loss,
    squared_error,
    token_accuracy,
    top5_accuracy,
)


@given(seed=st.integers(0, 99), smoothing=st.sampled_from([0.0, 0.1, 0.5]))
def test_cross_entropy_equals_optax(seed, smoothing):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(6, 5)).astype(np.float32) * 10
    labels = rng.integers(0, 5, 6)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 5), smoothing)
    losses, hits = cross_entropy_and_hits(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(losses, optax.softmax_cross_entropy(logits, targets), rtol=1e-4)
    np.testing.assert_array_equal(hits, logits.argmax(-1) == labels)


def test_not_a_number_is_never_a_hit():
    logits = jnp.array([[jnp.nan, 0.0], [0.0, jnp.nan], [1.0, 0.0]])
    losses, hits = cross_entropy_and_hits(logits, jnp.array([0, 1, 0]))
    np.testing.assert_array_equal(hits, [False, False, True])
    np.testing.assert_array_equal(jnp.isnan(losses), [True, True, False])


@pytest.mark.parametrize("label", [-1, 3, 100])
def test_a_label_that_names_no_class_shows_even_when_traced(label):
    losses, hits = jax.jit(cross_entropy_and_hits)(jnp.ones((1, 3)), jnp.array([label]))
    assert bool(jnp.isnan(losses[0]))
    assert not bool(hits[0])


def test_half_precision_logits_lose_in_single_precision():
    losses, _ = cross_entropy_and_hits(jnp.zeros((2, 4), jnp.bfloat16), jnp.array([0, 1]))
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, np.log(4), rtol=1e-6)


def test_labels_are_found_in_tuples_and_dictionaries():
    assert labels_of(("x", "y")) == "y"
    assert labels_of({"image": "x", "label": "y"}) == "y"
    assert labels_of({"x": 1, "targets": 2}) == 2
    with pytest.raises(ValueError, match="no labels; call them one of"):
        labels_of({"image": 1})
    with pytest.raises(ValueError, match="has no labels"):
        labels_of(np.zeros(3))


def test_metrics_against_numpy():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 8)).astype(np.float32), rng.integers(0, 8, 50)
    batch = (None, jnp.asarray(labels))
    order = np.argsort(-logits, axis=-1)
    np.testing.assert_allclose(accuracy(logits, batch), (order[:, 0] == labels).mean(), rtol=1e-6)
    found = top5_accuracy(jnp.asarray(logits), batch)
    np.testing.assert_allclose(found, (order[:, :5] == labels[:, None]).any(-1).mean(), rtol=1e-6)
    loss = SoftmaxCrossEntropy()
    np.testing.assert_allclose(NegativeLoss(loss)(logits, batch), -loss(logits, batch))
    assert set(METRICS) == {"accuracy", "top5_accuracy", "token_accuracy", "negative_loss"}


def test_tokens_are_predicted_from_those_before():
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 5, (3, 7)))
    logits = jnp.asarray(rng.normal(size=(3, 6, 5)), jnp.float32)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()
    np.testing.assert_allclose(next_token_loss(logits, tokens), expected, rtol=1e-5)
    hits = np.asarray(logits).argmax(-1) == np.asarray(tokens)[:, 1:]
    np.testing.assert_allclose(token_accuracy(logits, tokens), hits.mean(), rtol=1e-6)
    with pytest.raises(ValueError, match=r"takes logits \[B, T - 1, vocabulary\]"):
        next_token_loss(logits[:, :-1], tokens)


def test_errors_are_squared_and_never_broadcast():
    outputs, targets = jnp.arange(6.0).reshape(3, 2), jnp.ones((3, 2))
    found = squared_error(outputs, (None, targets))
    np.testing.assert_allclose(found, ((np.arange(6.0) - 1) ** 2).mean())
    column = squared_error(jnp.arange(4.0)[:, None], (None, jnp.ones(4)))
    np.testing.assert_allclose(column, ((np.arange(4.0) - 1) ** 2).mean())
    with pytest.raises(ValueError, match=r"outputs have shape \(3, 2\) and targets \(3,\)"):
        squared_error(outputs, (None, jnp.ones(3)))


def test_classes_are_not_asked_of_a_regression():
    outputs = jnp.ones((4, 2))
    with pytest.raises(ValueError, match="accuracy takes one integer label per example"):
        accuracy(outputs, (None, jnp.ones((4, 2))))
    with pytest.raises(ValueError, match=r"cross-entropy takes logits \[B, classes\]"):
        SoftmaxCrossEntropy()(jnp.ones(4), (None, jnp.zeros(4, int)))
