import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlprune_jax.training.classification import (
    check_examples,
    check_labels_named,
    cross_entropy_and_hits,
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


IMAGES, LABELS = np.zeros((5, 2)), np.arange(5)


def test_what_fits_passes():
    assert check_examples(IMAGES, LABELS, 3) == 5
    assert check_examples(jnp.asarray(IMAGES), jnp.asarray(LABELS), 3) == 5
    assert jax.jit(lambda labels: check_examples(IMAGES, labels, 3))(LABELS) == 5
    check_labels_named(LABELS, 5)


@pytest.mark.parametrize(
    ("images", "labels", "batch_size", "error", "message"),
    [
        (np.zeros((0, 2)), LABELS[:0], 1, ValueError, "n above 0"),
        (np.zeros(5), LABELS, 1, ValueError, r"give \[n, ...\]"),
        (IMAGES, LABELS[:4], 1, ValueError, r"5 images take labels of shape \(5,\)"),
        (IMAGES, np.eye(5, dtype=int), 1, ValueError, r"labels have shape \(5, 5\)"),
        (IMAGES, LABELS.astype(float), 1, TypeError, "labels are float"),
        (IMAGES, LABELS - 1, 1, ValueError, "labels hold -1"),
        (IMAGES, LABELS, 0, ValueError, "batch_size=0"),
        (IMAGES, LABELS, -2, ValueError, "batch_size=-2"),
    ],
)
def test_what_does_not_fit_is_refused(images, labels, batch_size, error, message):
    with pytest.raises(error, match=message):
        check_examples(images, labels, batch_size)


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(
        ValueError, match="labels hold 4; the network tells 4 classes apart, 0 to 3"
    ):
        check_labels_named(LABELS, 4)
