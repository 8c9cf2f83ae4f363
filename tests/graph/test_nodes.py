import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlprune_jax.graph.nodes import INPUT, Nodes

COUNT = 12
operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("tie"),
            st.lists(st.tuples(st.integers(0, COUNT), st.integers(0, COUNT)), max_size=5),
        ),
        st.tuples(st.just("freeze"), st.lists(st.integers(0, COUNT), max_size=2)),
    ),
    max_size=8,
)


@given(operations)
def test_classes_and_freezes_are_those_of_naive_union_find(operations):
    nodes = Nodes()
    nodes.fresh(COUNT)
    classes = [{i} for i in range(COUNT + 1)]
    frozen = {INPUT}

    def class_of(i):
        return next(each for each in classes if i in each)

    for kind, items in operations:
        if kind == "tie":
            nodes.tie(*np.asarray(items, np.int64).reshape(-1, 2).T)
            for a, b in items:
                first, second = class_of(a), class_of(b)
                if first is not second:
                    classes.remove(second)
                    first |= second
        else:
            nodes.freeze(np.asarray(items, np.int64), "because")
            frozen |= set(items)
    every = np.arange(COUNT + 1)
    roots = nodes.find(every)
    for i in range(COUNT + 1):
        assert nodes.frozen(every)[i] == bool(class_of(i) & frozen)
        assert bool(nodes.reason(i)) == nodes.frozen(every)[i]
        # What is frozen is not merged with what froze it.
        if not nodes.frozen(every)[i]:
            assert set(np.flatnonzero(roots == roots[i]).tolist()) == class_of(i)
            assert nodes.census(np.ones(COUNT + 1)).sizes[i] == len(class_of(i))


def test_a_freeze_reaches_a_class_absorbed_through_another_in_the_same_call():
    nodes = Nodes()
    a, b, c = nodes.fresh(3)
    nodes.freeze(np.array([c]), "because")
    nodes.tie(np.array([c, b]), np.array([b, a]))
    assert nodes.frozen(np.array([a, b, c])).all()
    assert nodes.reason(a) == "because"


def test_the_input_keeps_its_reason_when_it_meets_another():
    nodes = Nodes()
    (a,) = nodes.fresh(1)
    nodes.freeze(np.array([a]), "because")
    nodes.tie(np.array([a]), np.array([INPUT]))
    assert nodes.reason(INPUT) == "an input of the function"


def test_growth_keeps_what_was_tied():
    nodes = Nodes()
    first = nodes.fresh(3)
    nodes.tie(first[:1], first[1:2])
    more = nodes.fresh(5000)
    nodes.tie(first[2:], more[-1:])
    assert len(nodes) == 5004
    assert nodes.find(first)[0] == nodes.find(first)[1] != nodes.find(first)[2]
    assert nodes.find(more)[-1] == nodes.find(first)[2]


def test_a_class_tied_to_an_input_says_what_tied_it_and_others_keep_the_first_cause():
    nodes = Nodes()
    a, b, c = nodes.fresh(3)
    nodes.tie(np.array([INPUT, c]), np.array([a, b]), lambda: "'add' at here")
    assert nodes.reason(a) == "an input of the function, to which 'add' at here ties it"
    nodes.freeze(np.array([b]), "mixed by 'sort'")
    nodes.tie(np.array([c]), np.array([a]), lambda: "'mul' at there")
    assert nodes.reason(c) == "mixed by 'sort'"
