import copy
import gc
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.graph.memo import Memo, call_key


class Model:
    def apply(self, x):
        return x

    def other(self, x):
        return x


def test_a_method_is_told_by_its_object_and_its_function():
    memo, model = Memo(), Model()
    memo.put(model.apply, "key", 1)
    # Every access makes a new bound method.
    assert memo.get(model.apply, "key") == 1
    assert memo.get(model.other, "key") is None
    assert memo.get(Model().apply, "key") is None


def test_functions_are_not_kept_alive_and_the_oldest_unused_goes():
    memo = Memo(most=2)
    functions = [lambda x, i=i: x for i in range(3)]
    memo.put(functions[0], "key", 0)
    memo.put(functions[1], "key", 1)
    assert memo.get(functions[0], "key") == 0
    memo.put(functions[2], "key", 2)
    assert [memo.get(each, "key") for each in functions] == [0, None, 2]
    del functions
    gc.collect()
    assert len(memo) == 0


def test_ever_new_functions_leave_nothing_behind():
    memo = Memo()
    for _ in range(100):
        memo.put(lambda x: x, "key", object())
    assert len(memo) == 0


def test_a_copy_is_empty():
    memo = Memo()
    memo.put(Model.apply, "key", 1)
    assert len(memo) == 1
    assert len(copy.deepcopy(memo)) == len(pickle.loads(pickle.dumps(memo))) == 0


def test_what_cannot_be_held_weakly_is_not_remembered():
    class Slots:
        __slots__ = ()

        def __call__(self, x):
            return x

    memo, function = Memo(), Slots()
    memo.put(function, "key", 1)
    assert memo.get(function, "key") is None


X = np.ones((2, 3), np.float32)


def test_the_key_is_what_a_trace_depends_on():
    key = call_key({"a": X}, (True, "text"))
    assert key == call_key({"a": jnp.zeros((2, 3))}, (True, "text"))
    others = [
        call_key({"b": X}, (True, "text")),
        call_key({"a": X[:1]}, (True, "text")),
        call_key({"a": X.astype(np.float16)}, (True, "text")),
        call_key({"a": X}, (1, "text")),
        call_key({"a": X}, (False, "text")),
    ]
    with jax.default_matmul_precision("highest"):
        others.append(call_key({"a": X}, (True, "text")))
    assert key not in others
    # Inside of jit the same call is traced the same way.
    inside = []
    jax.jit(lambda x: inside.append(call_key({"a": x}, (True, "text"))))(X)
    assert inside == [key]


def test_what_cannot_be_compared_has_no_key():
    assert call_key(X, ({1, 2},)) is None
    (size,) = jax.export.symbolic_shape("b")
    assert call_key(jax.ShapeDtypeStruct((size, 3), jnp.float32)) is None


def test_named_axes_are_part_of_the_key():
    found = []
    for name in (None, "batch"):
        jax.vmap(lambda x: found.append(call_key(x)) or x, axis_name=name)(X)
    assert found[0] == call_key(X[0]) and found[0] != found[1]


@pytest.mark.parametrize("leaf", [1.0, np.float32(1), jax.random.key(0)])
def test_numbers_and_keys_are_arguments(leaf):
    assert call_key(leaf) == call_key(leaf)
    assert call_key(leaf) != call_key(X)
