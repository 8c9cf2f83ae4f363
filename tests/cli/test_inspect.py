"""What ``rlprune inspect`` says agrees with the network, and with what ``prune`` accepts."""

import json

import pytest

from rlprune_jax.cli.inspect import COUNTED, InputOptions, InspectOptions, OutputOptions, inspect
from rlprune_jax.workflow.config import UnitConfig
from rlprune_jax.workflow.sources import NetworkOptions


def inspected(**groups):
    return InspectOptions(**groups, output=OutputOptions(json=True))


def test_an_mlp_by_hand():
    found = json.loads(
        inspect(
            inspected(
                network=NetworkOptions(model="mlp", widths=(12, 16)),
                units=UnitConfig(min_keep=3, round_to=4),
            )
        )
    )
    # 64 inputs, 10 outputs; 3 units rounded up to 4 in each layer.
    params = lambda a, b: 64 * a + a + a * b + b + b * 10 + 10  # noqa: E731
    assert found["groups"] == {"dense1": 12, "dense2": 16}
    assert found["params"] == found["costs"]["params"]["dense"] == params(12, 16)
    assert found["costs"]["params"]["least"] == params(4, 4)
    assert found["costs"]["macs"]["least"] == 64 * 4 + 4 * 4 + 4 * 10
    assert set(found["costs"]) == set(COUNTED)
    made = [axis["reason"] for axis in found["frozen"] if axis["role"] == "producer"]
    assert made == ["an output of the function"] and found["owned"] > 0.9


def test_the_text_names_budgets_that_can_be_met():
    text = inspect(
        InspectOptions(
            network=NetworkOptions(model="mlp", widths=(12, 16)),
            inputs=InputOptions(input_shape=(5,), classes=3),
        )
    )
    assert "dense1    12 units" in text and "frozen:" in text
    # 5*2+2 + 2*2+2 + 2*3+3 = 27 of 5*12+12 + 12*16+16 + 16*3+3 = 331, which is 8.157 %.
    assert "params=0.0816 or params=27" in text


def test_a_language_model_reads_tokens_and_keeps_keys_and_values():
    network = NetworkOptions(model="gpt", width=1 / 4)
    found = json.loads(inspect(inspected(network=network)))
    kept = found["costs"]["kv_cache_bytes"]
    # Four blocks of 4 heads, 8 channels each of keys and of values, in float32; at least 2 by 2.
    assert (kept["dense"], kept["least"]) == (4 * 2 * 4 * 8 * 4, 4 * 2 * 2 * 2 * 4)
    shorter = inspected(network=network, inputs=InputOptions(input_shape=(16,), classes=50))
    other = json.loads(inspect(shorter))
    assert found["params"] - other["params"] == 32 * (64 - 16 + 128 - 50)
    assert found["costs"]["macs"]["dense"] > 4 * other["costs"]["macs"]["dense"]
    with pytest.raises(ValueError, match="model='gpt' reads text and dataset='mnist' holds images"):
        inspect(inspected(network=network, inputs=InputOptions(dataset="mnist")))


def test_a_network_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "inspected_of_test.py").write_text(
        "import jax.numpy as jnp\nfrom rlprune_jax import Network\n"
        "def network(example):\n"
        "    v = {'a': jnp.ones((example.shape[-1], 5)), 'b': jnp.ones((5, 2))}\n"
        "    return Network(lambda v, x: (x @ v['a']) @ v['b'], v, example)\n"
    )
    monkeypatch.chdir(tmp_path)
    options = inspected(
        network=NetworkOptions(model="inspected_of_test:network"),
        inputs=InputOptions(input_shape=(7,)),
    )
    assert json.loads(inspect(options))["groups"] == {"a": 5}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"inputs": InputOptions(dataset="imagenet")}, "dataset='imagenet' is unknown"),
        ({"inputs": InputOptions(input_shape=(0, 3))}, r"input_shape=\(0, 3\) must be above 0"),
        ({"inputs": InputOptions(dataset="digits", input_shape=(3,))}, "not both"),
        ({"inputs": InputOptions(classes=0)}, "classes=0 must be at least 1"),
        ({"units": UnitConfig(round_to=0)}, "round_to=0 must be at least 1"),
        ({"network": NetworkOptions(model="vgg11")}, "are too small"),
    ],
)
def test_what_cannot_be_is_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        inspect(inspected(**groups))
