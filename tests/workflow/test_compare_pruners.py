"""The paper's comparison: which pruners, by which recipe, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax import Network, classification
from rlprune_jax.workflow.sap import NotIgnored, compare_pruners, sap_pruners
from rlprune_jax.workflow.sap_config import SapConfig, resolve_sap

X = jax.random.normal(jax.random.key(0), (60, 4))
DATA = (X, (X[:, 0] > 0).astype(int))
TASK = classification(DATA, DATA, DATA)
NETWORK = Network(lambda v, x: x @ v["w"], {"w": jnp.ones((4, 2)) * 0.1}, X[:2])


def test_every_method_is_run_by_the_recipe():
    config = SapConfig(
        method=("sap", "random", "lottery_ticket"),
        p=(0.5,),
        q=(1.0,),
        rate=0.5,
        iterations=1,
        batch_size=30,
        train_images=90,
        seeds=2,
    )
    result = compare_pruners(NETWORK, TASK, config)
    assert list(result.curves) == ["SAP (0.5, 1)", "random", "lottery ticket"]
    # One network for all methods before the first pruning.
    dense = [curve.array("metric")[:, 0] for curve in result.curves.values()]
    np.testing.assert_array_equal(dense[0], dense[1])
    assert result.seeds == (0, 1)
    for name in ("random", "lottery ticket"):
        assert result.curves[name].array("live").tolist() == [[8, 4]] * 2


def test_pruners_are_named_by_their_exponents():
    assert list(sap_pruners(SapConfig())) == [
        *("SAP (0.5, 1)", "SAP (1, 2)", "lottery ticket", "one-shot"),
    ]


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": ("magnitude",)}, "method='magnitude' must be one of 'sap'"),
        ({"method": ()}, "must be one or more"),
        ({"method": ("sap", "sap")}, "each once"),
        ({"scope": "filter"}, "scope='filter' must be one of global"),
        ({"p": (1.0,), "q": (1.0,)}, "p=1.0 must be below q=1.0"),
        ({"p": (0.5,)}, "go in pairs"),
        ({"p": (0.5,), "q": (INF,)}, "q=inf must be finite"),
        ({"p": (0.0,), "q": (1.0,)}, "p=0.0 must be finite and above 0"),
        ({"p": (0.5, 0.5), "q": (1.0, 1.0)}, r"hold the pair \(0.5, 1.0\) twice"),
        ({"eta_r": -1.0}, "eta_r=-1.0 must be at least 0"),
        ({"eta_r": INF}, "eta_r=inf must be at least 0 and finite"),
        ({"beta": 1.5}, "beta=1.5 must be above 0 and at most 1"),
        ({"gamma": 0.0}, "gamma=0.0 must be above 0"),
        ({"gamma": INF}, "gamma=inf must be above 0 and finite"),
        ({"rate": 0.0}, "rate=0.0 must be above 0 and below 1"),
        ({"rate": 1.0}, "rate=1.0 must be above 0 and below 1"),
        ({"iterations": 0}, "iterations=0 must be at least 1"),
        ({"seeds": 0}, "seeds=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"seed": 2**32 - 1}, "gives seeds up to"),
        ({"epochs": 0}, "epochs=0 must be above rewind_epoch=0"),
        ({"rewind_epoch": -1}, "rewind_epoch=-1 must be at least 0"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"train_images": 100}, "batch_size=250 is above the 100 training images; lower it"),
        ({"train_images": 0}, "train_images=0 must be at least 1"),
        ({"learning_rate": NAN}, "learning_rate=nan must be finite and above 0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be finite and above 0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be finite and above 0"),
        ({"decayed": "biases"}, "decayed='biases' must be one of all, kernels"),
        ({"batch_statistics": "foo"}, "batch_statistics='foo' must be one of keep"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        resolve_sap(SapConfig(**options))


def test_more_examples_than_there_are_are_refused():
    with pytest.raises(ValueError, match="batch_size=250 is above the 120 training images"):
        compare_pruners(NETWORK, TASK, SapConfig())
    with pytest.raises(ValueError, match="train_images=500 is above the 120 there are"):
        compare_pruners(NETWORK, TASK, SapConfig(train_images=500))


def test_ignored_parameters_are_not_pruned():
    chosen = NotIgnored(("head",))
    kernel = np.ones((2, 2), np.float32)
    assert chosen("body/kernel", kernel) and not chosen("head/kernel", kernel)
    assert not chosen("body/bias", np.ones(2, np.float32))
