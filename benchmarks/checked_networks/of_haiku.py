"""Networks of DeepMind's Haiku."""

from collections.abc import Callable
from functools import partial

import jax

from checked_networks.case import Built, Cases, images, randomise, rows, tokens
from rlprune_jax.types import PyTree, Variables

CASES = Cases("dm-haiku")


def _model(function: Callable, *inputs: PyTree, train: bool = True) -> Built:
    """Build a function ``(*inputs, training) -> outputs`` that calls Haiku's modules."""
    import haiku as hk

    network = hk.transform_with_state(function)
    start = network.init(jax.random.key(0), *inputs, True)
    variables = dict(zip(("params", "state"), start, strict=True))
    if not variables["state"]:
        variables.pop("state")

    def apply_train(
        variables: Variables, *inputs: PyTree, key: PyTree = None, training: bool = True
    ) -> PyTree:
        state = variables.get("state", {})
        outputs, after = network.apply(variables["params"], state, key, *inputs, training)
        return outputs, {"state": after} if "state" in variables else {}

    def apply(variables: Variables, *inputs: PyTree) -> PyTree:
        return apply_train(variables, *inputs, key=jax.random.key(0), training=False)[0]

    return Built(
        apply=apply,
        variables=randomise(variables, keep="counter"),
        inputs=inputs,
        apply_train=apply_train if train else None,
    )


def _resnet(v2: bool) -> Built:
    def function(x: jax.Array, training: bool) -> jax.Array:
        import haiku as hk

        network = hk.nets.ResNet(
            (1, 1, 1, 1),
            10,
            resnet_v2=v2,
            bottleneck=True,
            channels_per_group=(16, 24, 32, 40),
        )
        return network(x, is_training=training)

    return _model(function, images(32))


CASES.add("ResNet", "cnn", partial(_resnet, False))
CASES.add("ResNetV2", "cnn", partial(_resnet, True))


def _recurrent(cell: str) -> Built:
    def function(x: jax.Array, training: bool) -> jax.Array:
        import haiku as hk

        core = getattr(hk, cell)(32)
        x = x.swapaxes(0, 1)
        y, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
        return hk.Linear(10)(jax.nn.relu(hk.Linear(48)(y[-1])))

    return _model(function, rows(7, 4), train=False)


for _cell in ("LSTM", "GRU", "VanillaRNN"):
    CASES.add(_cell, "rnn", partial(_recurrent, _cell))


@CASES("rnn")
def deep_rnn() -> Built:
    """Two LSTMs in one core with skips, unrolled statically."""

    def function(x: jax.Array, training: bool) -> jax.Array:
        import haiku as hk

        core = hk.deep_rnn_with_skip_connections([hk.LSTM(24), hk.LSTM(20)])
        x = x.swapaxes(0, 1)
        y, _ = hk.static_unroll(core, x, core.initial_state(x.shape[1]))
        return hk.Linear(10)(jax.nn.relu(hk.Linear(48)(y[-1])))

    return _model(function, rows(5, 4), train=False)


@CASES("transformer")
def transformer() -> Built:
    """Haiku's attention and layer norm, with dropout."""

    def function(x: jax.Array, training: bool) -> jax.Array:
        import haiku as hk

        norm = partial(hk.LayerNorm, -1, True, True)
        start = hk.initializers.VarianceScaling(1.0)
        x = hk.Embed(29, 16)(x)
        for _ in range(2):
            y = norm()(x)
            x = x + hk.MultiHeadAttention(4, 8, w_init=start, model_size=16)(y, y, y)
            y = jax.nn.gelu(hk.Linear(40)(norm()(x)))
            x = x + hk.dropout(hk.next_rng_key(), 0.1 * training, hk.Linear(16)(y))
        return hk.Linear(10)(norm()(x).mean(1))

    return _model(function, tokens())


@CASES("transformer")
def layer_stack() -> Built:
    """Blocks by ``hk.layer_stack``, that is a scan over layers."""

    def function(x: jax.Array, training: bool) -> jax.Array:
        import haiku as hk

        x = hk.Linear(16)(x)

        @hk.layer_stack(4)
        def block(x: jax.Array) -> jax.Array:
            y = hk.RMSNorm(-1)(x)
            return x + hk.Linear(16)(jax.nn.gelu(hk.Linear(40)(y)))

        return hk.Linear(10)(block(x).mean(1))

    return _model(function, rows(7, 6), train=False)


@CASES("cnn")
def mobilenet() -> Built:
    """MobileNet of Haiku with batch norm."""

    def function(x: jax.Array, training: bool) -> jax.Array:
        import haiku as hk

        network = hk.nets.MobileNetV1((1, 2, 1), (16, 24, 32), num_classes=10, use_bn=True)
        return network(x, is_training=training)

    return _model(function, images(16))


@CASES("mlp")
def mlp() -> Built:
    """The multilayer perceptron of Haiku."""

    def function(x: jax.Array, training: bool) -> jax.Array:
        import haiku as hk

        return hk.nets.MLP([20, 16, 10])(x)

    return _model(function, rows(6), train=False)
