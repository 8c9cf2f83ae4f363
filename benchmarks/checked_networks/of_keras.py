"""Keras on JAX: applications in small, and models of its layers."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from checked_networks.case import Built, Cases, images, randomise, rows, tokens
from rlprune_jax.types import PyTree, Variables

CASES = Cases("keras")


def _model(make: Callable[[], PyTree], *inputs: PyTree, train: bool = True) -> Built:
    import keras

    keras.backend.clear_session()
    model = make()
    kinds = {"params": model.trainable_variables, "state": model.non_trainable_variables}

    def call(variables: Variables, inputs: tuple[PyTree, ...], training: bool) -> PyTree:
        values = [[variables[kind][each.path] for each in kinds[kind]] for kind in kinds]
        given = inputs[0] if len(inputs) == 1 else list(inputs)
        outputs, state = model.stateless_call(*values, given, training=training)
        paths = [each.path for each in kinds["state"]]
        return outputs, {"state": dict(zip(paths, state, strict=True))}

    def apply(variables: Variables, *inputs: PyTree) -> PyTree:
        return call(variables, inputs, False)[0]

    def apply_train(variables: Variables, *inputs: PyTree, key: PyTree = None) -> PyTree:
        return call(variables, inputs, True)

    variables = {
        kind: {each.path: jnp.asarray(each.value) for each in kinds[kind]} for kind in kinds
    }
    return Built(
        apply=apply,
        variables=randomise(variables),
        inputs=inputs,
        apply_train=apply_train if train else None,
    )


SMALL = {"weights": None, "input_shape": (32, 32, 3), "classes": 10, "classifier_activation": None}


def _resnet(stack: str, preact: bool) -> PyTree:
    from keras.src.applications import resnet

    blocks = getattr(resnet, stack)

    def stack_fn(x: PyTree) -> PyTree:
        x = blocks(x, 8, 2, name="conv2")
        return blocks(x, 12, 2, stride1=1, name="conv3")

    return resnet.ResNet(stack_fn, preact, True, **SMALL)


def _convnext() -> PyTree:
    from keras.src.applications.convnext import ConvNeXt

    return ConvNeXt((1, 1, 1, 1), (16, 24, 32, 40), include_preprocessing=False, **SMALL)


def _efficientnet(version: int) -> PyTree:
    from keras.src.applications import efficientnet, efficientnet_v2

    if version == 1:
        blocks = [dict(each) for each in efficientnet.DEFAULT_BLOCKS_ARGS[:4]]
        return efficientnet.EfficientNet(0.3, 0.3, 32, blocks_args=blocks, **SMALL)
    blocks = [dict(each) for each in efficientnet_v2.DEFAULT_BLOCKS_ARGS["efficientnetv2-b0"][:4]]
    return efficientnet_v2.EfficientNetV2(
        0.3, 0.3, 32, blocks_args=blocks, include_preprocessing=False, **SMALL
    )


def _application(name: str, **options: PyTree) -> PyTree:
    import keras

    return getattr(keras.applications, name)(**(SMALL | options))


def _densenet() -> PyTree:
    from keras.src.applications.densenet import DenseNet

    return DenseNet([1, 1, 1, 1], **SMALL)


def _nasnet() -> PyTree:
    from keras.src.applications.nasnet import NASNet

    options = SMALL | {"penultimate_filters": 96, "num_blocks": 1, "stem_block_filters": 8}
    return NASNet(filter_multiplier=1, skip_reduction=False, default_size=32, **options)


for _name, _family, _make in (
    ("ResNet", "cnn", partial(_resnet, "stack_residual_blocks_v1", False)),
    ("ResNetV2", "cnn", partial(_resnet, "stack_residual_blocks_v2", True)),
    ("ConvNeXt", "convnext", _convnext),
    ("EfficientNet", "cnn", partial(_efficientnet, 1)),
    ("EfficientNetV2", "cnn", partial(_efficientnet, 2)),
    ("MobileNet", "cnn", partial(_application, "MobileNet", alpha=0.25)),
    ("DenseNet", "cnn", _densenet),
    ("NASNet", "cnn", _nasnet),
):
    CASES.add(_name, _family, partial(_model, _make, images(32)))


def _recurrent(name: str, **options: PyTree) -> Built:
    def make() -> PyTree:
        from keras import Input, Sequential, layers

        return Sequential(
            [
                Input((7, 6)),
                getattr(layers, name)(16, return_sequences=True, **options),
                layers.Bidirectional(getattr(layers, name)(12, **options)),
                layers.Dense(20, activation="relu"),
                layers.Dense(10),
            ]
        )

    return _model(make, rows(7, 6), train=False)


CASES.add("LSTM", "rnn", partial(_recurrent, "LSTM"))
CASES.add("GRU", "rnn", partial(_recurrent, "GRU"))
CASES.add("SimpleRNN_unrolled", "rnn", partial(_recurrent, "SimpleRNN", unroll=True))


@CASES("transformer")
def transformer() -> Built:
    """Attention, grouped attention and layer norms of Keras, by its functional interface."""

    def make() -> PyTree:
        from keras import Input, Model, layers

        x = inputs = Input((7,), dtype="int32")
        x = layers.Embedding(29, 16)(x)
        for attention in (
            layers.MultiHeadAttention(4, 8, dropout=0.1),
            layers.GroupQueryAttention(8, 4, 2),
        ):
            y = layers.LayerNormalization()(x)
            x = x + attention(y, y)
            y = layers.RMSNormalization()(x)
            x = x + layers.Dense(16)(layers.Dense(40, activation="gelu")(y))
        x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
        return Model(inputs, layers.Dense(10)(x))

    return _model(make, tokens())


@CASES("cnn")
def many_layers() -> Built:
    """Group norm, separable and transposed convolutions, spectral and unit normalisation."""

    def make() -> PyTree:
        from keras import Input, Model, layers

        inputs = Input((16, 16, 3))
        x = layers.SeparableConv2D(12, 3, padding="same", activation="relu")(inputs)
        x = layers.GroupNormalization(4)(x)
        x = layers.Conv2DTranspose(16, 3, strides=2, padding="same")(layers.ReLU()(x))
        x = layers.BatchNormalization()(x)
        x = layers.PReLU(shared_axes=[1, 2])(layers.AveragePooling2D(4)(x))
        x = layers.UnitNormalization()(layers.Conv2D(14, 3)(x))
        x = layers.Dropout(0.2)(layers.GlobalMaxPooling2D()(x))
        return Model(inputs, layers.Dense(10)(x))

    return _model(make, images())


@CASES("rnn")
def conv_lstm() -> Built:
    """A convolutional LSTM."""

    def make() -> PyTree:
        from keras import Input, Sequential, layers

        return Sequential(
            [
                Input((4, 6, 6, 3)),
                layers.ConvLSTM2D(12, 3, padding="same"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(16, activation="relu"),
                layers.Dense(10),
            ]
        )

    return _model(make, rows(4, 6, 6, 3), train=False)
