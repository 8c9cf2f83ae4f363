"""Prune a Keras 3 classifier of your own, on JAX: python examples/prune_keras.py."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras
from keras import layers
from sklearn.datasets import load_digits

import rlprune_jax as rp

x, y = load_digits(return_X_y=True)
x, y = x.reshape(-1, 8, 8, 1).astype("float32") / 16, y.astype("int32")
train, held_out, test = ((x[a:b], y[a:b]) for a, b in ((0, 1197), (1197, 1497), (1497, 1797)))


def make():
    stack = [keras.Input((8, 8, 1))]
    for width in (16, 32):
        stack.append(layers.Conv2D(width, 3, padding="same", use_bias=False))
        stack += [layers.BatchNormalization(momentum=0.9), layers.ReLU(), layers.MaxPooling2D()]
    stack += [layers.GlobalAveragePooling2D(), layers.Dropout(0.1), layers.Dense(10)]
    return keras.Sequential(stack, name="net")


def network_of(model):
    kinds = {"params": model.trainable_variables, "state": model.non_trainable_variables}

    def call(variables, x, training):
        values = [[variables[kind][each.path] for each in kinds[kind]] for kind in kinds]
        outputs, state = model.stateless_call(*values, x, training=training)
        paths = [each.path for each in kinds["state"]]
        return outputs, {"state": dict(zip(paths, state, strict=True))}

    def apply(variables, x):
        return call(variables, x, training=False)[0]

    def apply_train(variables, x, key=None):  # Keras keeps the seeds of its dropout in its state
        return call(variables, x, training=True)

    variables = {kind: {each.path: each.value for each in kinds[kind]} for kind in kinds}
    return rp.Network(apply, variables, x[:1], apply_train=apply_train)


def load(folder):  # in any other process
    return network_of(make()).load_slim(folder)


if __name__ == "__main__":
    model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(*train, batch_size=64, epochs=10, verbose=0)

    network, task = network_of(model), rp.classification(train, held_out, test)
    result = rp.prune(network, task, "macs=0.4", evaluations=32, baselines=(), finetune_steps=200)
    print(result)
    result.save("slim_keras")
