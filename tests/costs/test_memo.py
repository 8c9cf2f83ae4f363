import copy
import functools
import gc
import pickle
import weakref

import pytest

from rlprune_jax.costs.memo import remember


class Owner:
    pass


def test_a_value_goes_with_its_owner_though_it_refers_to_it():
    owner = Owner()
    remember(owner, "me", functools.partial(list, [owner]))
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None


def test_a_copy_starts_without_what_cannot_be_pickled():
    owner = Owner()
    owner.number = 3
    remember(owner, "function", lambda: lambda: 1)
    for twin in (pickle.loads(pickle.dumps(owner)), copy.deepcopy(owner)):
        assert twin.number == 3
        assert remember(twin, "function", lambda: "anew") == "anew"


def test_what_raises_is_tried_again():
    owner = Owner()
    with pytest.raises(ZeroDivisionError):
        remember(owner, "key", lambda: 1 / 0)
    assert remember(owner, "key", lambda: 2) == remember(owner, "key", lambda: 3) == 2
