"""Recurrent networks and state space models, by loops of several kinds."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from checked_networks.case import Built, Cases, equinox, linen, parameters, rows, tokens, weights
from checked_networks.case import nnx as built_nnx
from checked_networks.own_transformers import rms_norm

CASES = Cases("own")
INPUTS, WIDTH, STEPS = 4, 32, 7


class LinenRnn(nn.Module):
    """A cell of Flax run by ``nn.RNN``, then a hidden layer and a head."""

    cell: Callable[[int], nn.RNNCellBase]
    layers: int = 1
    last: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.layers):
            x = jnp.asarray(nn.RNN(self.cell(WIDTH))(x))
        x = x[:, -1] if self.last else x
        return nn.Dense(10)(nn.relu(nn.Dense(48)(x)))


def _recurrent(cell: Callable[[int], nn.RNNCellBase], layers: int, last: bool) -> Built:
    return linen(LinenRnn(cell, layers, last), rows(STEPS, INPUTS), train=False)


_CELLS: tuple[tuple[str, Callable[[int], nn.RNNCellBase], int, bool], ...] = (
    ("lstm_linen", nn.LSTMCell, 1, True),
    ("lstm_linen_optimized", nn.OptimizedLSTMCell, 2, False),
    ("gru_linen", nn.GRUCell, 1, True),
    ("gru_linen_stacked", nn.GRUCell, 2, False),
    ("mgu_linen", nn.MGUCell, 1, True),
    ("simple_rnn_linen", nn.SimpleCell, 2, True),
)
for _name, _cell, _layers, _last in _CELLS:
    CASES.add(_name, "rnn", partial(_recurrent, _cell, _layers, _last))


class Bidirectional(nn.Module):
    """Two cells that read forth and back."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        both = nn.Bidirectional(nn.RNN(nn.GRUCell(24)), nn.RNN(nn.GRUCell(24)))
        return nn.Dense(10)(nn.relu(nn.Dense(48)(both(x))))


@CASES("rnn")
def gru_linen_bidirectional() -> Built:
    """Bidirectional GRU of Flax Linen."""
    return linen(Bidirectional(), rows(STEPS, INPUTS), train=False)


class NnxLstm(nnx.Module):
    """LSTM of Flax NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.rnn = nnx.RNN(nnx.LSTMCell(INPUTS, WIDTH, rngs=rngs), rngs=rngs)
        self.mid, self.head = nnx.Linear(WIDTH, 48, rngs=rngs), nnx.Linear(48, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.mid(self.rnn(x)[:, -1])))


@CASES("rnn")
def lstm_nnx() -> Built:
    """LSTM of Flax NNX by ``nnx.RNN``."""
    return built_nnx(NnxLstm(nnx.Rngs(0)), rows(STEPS, INPUTS), train=False)


class EquinoxGru(eqx.Module):
    """GRU of Equinox in a ``lax.scan``."""

    cell: eqx.nn.GRUCell
    mid: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.cell = eqx.nn.GRUCell(INPUTS, WIDTH, key=keys[0])
        self.mid = eqx.nn.Linear(WIDTH, 48, key=keys[1])
        self.head = eqx.nn.Linear(48, 10, key=keys[2])

    def __call__(self, x: jax.Array) -> jax.Array:
        start = jnp.zeros(self.cell.hidden_size)
        state, _ = jax.lax.scan(lambda state, each: (self.cell(each, state), None), start, x)
        return self.head(jax.nn.relu(self.mid(state)))


@CASES("rnn")
def gru_equinox() -> Built:
    """GRU of Equinox."""
    return equinox(EquinoxGru(jax.random.key(0)), rows(STEPS, INPUTS), train=False)


def lstm_step(v: dict, carry: tuple[jax.Array, jax.Array], x: jax.Array):
    """Step an LSTM whose four gates are one dot, split afterwards."""
    h, c = carry
    i, f, g, o = jnp.split(x @ v["x"] + h @ v["h"] + v["b"], 4, axis=-1)
    c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def _lstm_parameters(seed: int, inputs: int) -> dict[str, jax.Array]:
    return parameters(seed, x=(inputs, 4 * WIDTH), h=(WIDTH, 4 * WIDTH), b=(4 * WIDTH,))


@CASES("rnn")
def lstm_plain_scan() -> Built:
    """Two LSTM layers by ``lax.scan``, the start of the state learnt, backwards the second."""
    variables = {
        "first": _lstm_parameters(0, INPUTS),
        "second": _lstm_parameters(10, WIDTH),
        "start": parameters(20, h=(WIDTH,), c=(WIDTH,)),
        **parameters(30, head=(WIDTH, 10)),
    }

    def apply(v, x):
        def step(name):
            return lambda carry, each: lstm_step(v[name], carry, each)

        shape = (x.shape[0], v["start"]["h"].shape[0])
        start = tuple(jnp.broadcast_to(v["start"][name], shape) for name in "hc")
        x = x.swapaxes(0, 1)
        _, x = jax.lax.scan(step("first"), start, x)
        zeros = tuple(map(jnp.zeros_like, start))
        _, x = jax.lax.scan(step("second"), zeros, x, reverse=True)
        return x[0] @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(rows(STEPS, INPUTS),))


@CASES("rnn")
def rnn_fori_loop() -> Built:
    """A plain RNN by ``fori_loop``, that reads its step and writes its outputs in place."""
    variables = parameters(3, x=(INPUTS, WIDTH), h=(WIDTH, WIDTH), b=(WIDTH,), head=(WIDTH, 4))

    def apply(v, x):
        def body(step, carry):
            h, outputs = carry
            h = jnp.tanh(
                jax.lax.dynamic_index_in_dim(x, step, 1, False) @ v["x"] + h @ v["h"] + v["b"]
            )
            return h, outputs.at[:, step].set(h)

        h = jnp.zeros((x.shape[0], v["h"].shape[0]))
        outputs = jnp.zeros((x.shape[0], x.shape[1], v["h"].shape[0]))
        _, outputs = jax.lax.fori_loop(0, x.shape[1], body, (h, outputs))
        return jax.nn.relu(outputs) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(rows(STEPS, INPUTS),))


@CASES("rnn")
def gru_language_model() -> Built:
    """Embedding, GRU written by hand with an unrolled scan, layer norm of the state, tied head."""
    variables = parameters(
        3,
        embed=(29, WIDTH),
        gates=(2 * WIDTH, 2 * WIDTH),
        candidate=(2 * WIDTH, WIDTH),
        norm=(WIDTH,),
    )

    def apply(v, x):
        def step(h, each):
            both = jnp.concatenate([each, h], axis=-1)
            reset, update = jnp.split(jax.nn.sigmoid(both @ v["gates"]), 2, axis=-1)
            new = jnp.tanh(jnp.concatenate([each, reset * h], axis=-1) @ v["candidate"])
            h = rms_norm(update * h + (1 - update) * new, v["norm"])
            return h, h

        x = (5 * v["embed"][x]).swapaxes(0, 1)
        _, y = jax.lax.scan(step, jnp.zeros_like(x[0]), x, unroll=2)
        return y.swapaxes(0, 1) @ v["embed"].T

    return Built(apply=apply, variables=variables, inputs=(tokens(),))


def _ssm_parameters(seed: int, width: int, inner: int, states: int) -> dict[str, jax.Array]:
    return parameters(
        seed,
        norm=(width,),
        inner=(width, 2 * inner),
        conv=(3, 1, inner),
        conv_bias=(inner,),
        select=(inner, 4 + 2 * states),
        time=(4, inner),
        time_bias=(inner,),
        log_a=(inner, states),
        skip=(inner,),
        out=(inner, width),
    )


def mamba_block(v: dict, x: jax.Array, states: int, associative: bool) -> jax.Array:
    """Run a selective state space layer, x f32[b, t, c]."""
    y, gate = jnp.split(rms_norm(x, v["norm"]) @ v["inner"], 2, axis=-1)
    y = jax.lax.conv_general_dilated(
        y,
        v["conv"],
        (1,),
        [(2, 0)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=y.shape[-1],
    )
    y = jax.nn.silu(y + v["conv_bias"])
    time, b, c = jnp.split(y @ v["select"], [4, 4 + states], axis=-1)
    time = jax.nn.softplus(time @ v["time"] + v["time_bias"])
    decay = jnp.exp(-time[..., None] * jnp.exp(v["log_a"]))
    move = (time * y)[..., None] * b[:, :, None, :]
    if associative:

        def combine(first, second):
            return first[0] * second[0], second[0] * first[1] + second[1]

        _, state = jax.lax.associative_scan(combine, (decay, move), axis=1)
    else:

        def step(state, each):
            state = each[0] * state + each[1]
            return state, state

        start = jnp.zeros_like(move[:, 0])
        _, state = jax.lax.scan(step, start, (decay.swapaxes(0, 1), move.swapaxes(0, 1)))
        state = state.swapaxes(0, 1)
    y = (state * c[:, :, None, :]).sum(-1) + v["skip"] * y
    return x + (y * jax.nn.silu(gate)) @ v["out"]


def _mamba(associative: bool) -> Built:
    width, inner, states = 12, 20, 5
    variables = {
        "embed": weights(29, width) * 4,
        "blocks": [_ssm_parameters(20 * (1 + i), width, inner, states) for i in range(2)],
        **parameters(7, norm=(width,), head=(width, 29)),
    }

    def apply(v, x):
        x = v["embed"][x]
        for block in v["blocks"]:
            x = mamba_block(block, x, states, associative)
        return rms_norm(x, v["norm"]) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(tokens(),))


CASES.add("mamba_associative_scan", "ssm", partial(_mamba, True))
CASES.add("mamba_scan", "ssm", partial(_mamba, False))


@CASES("ssm")
def s4_fft() -> Built:
    """A diagonal state space model as a long convolution by FFT."""
    variables = {
        "embed": weights(INPUTS, WIDTH),
        "layers": [
            parameters(
                20 * (1 + i), log_a=(WIDTH, 4), b=(WIDTH, 4), c=(WIDTH, 4), mix=(WIDTH, WIDTH)
            )
            for i in range(2)
        ],
        **parameters(7, head=(WIDTH, 10)),
    }

    def apply(v, x):
        x = x @ v["embed"]
        length = x.shape[1]
        for layer in v["layers"]:
            powers = jnp.exp(-jnp.exp(layer["log_a"])[..., None] * jnp.arange(length))
            kernel = jnp.einsum("cn,cn,cnt->tc", layer["b"], layer["c"], powers)
            padded = 2 * length
            spectrum = jnp.fft.rfft(x, padded, axis=1) * jnp.fft.rfft(kernel, padded, axis=0)
            y = jnp.fft.irfft(spectrum, padded, axis=1)[:, :length]
            x = x + jax.nn.gelu(y) @ layer["mix"]
        return x.mean(1) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(rows(STEPS, INPUTS),))


@CASES("ssm")
def linear_recurrent_unit() -> Built:
    """Griffin-like gated linear recurrence with a convolution of four steps."""
    variables = {
        "embed": weights(29, WIDTH) * 4,
        **parameters(
            4,
            norm=(WIDTH,),
            x=(WIDTH, 20),
            gate=(WIDTH, 20),
            input_gate=(20, 20),
            decay_gate=(20, 20),
            decay=(20,),
            out=(20, WIDTH),
            head=(WIDTH, 29),
        ),
    }

    def apply(v, x):
        x = v["embed"][x]
        y = rms_norm(x, v["norm"])
        z, gate = y @ v["x"], jax.nn.gelu(y @ v["gate"])
        log_decay = -8 * jax.nn.sigmoid(z @ v["decay_gate"]) * jax.nn.softplus(v["decay"])
        decay = jnp.exp(log_decay)
        z = z * jax.nn.sigmoid(z @ v["input_gate"]) * jnp.sqrt(1 - decay**2 + 1e-6)

        def combine(first, second):
            return first[0] * second[0], second[0] * first[1] + second[1]

        _, z = jax.lax.associative_scan(combine, (decay, z), axis=1)
        return (x + (z * gate) @ v["out"]) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(tokens(),))
