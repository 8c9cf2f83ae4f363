"""The table of what is owned and what is frozen."""

import jax
import jax.numpy as jnp

from rlprune_jax import trace_graph


def apply(v, x):
    return jnp.sort(jax.nn.relu(x @ v["a"]) @ v["b"], axis=1) @ v["c"]


VARIABLES = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 4)), "c": jnp.ones((4, 2))}


def test_rows_are_reasons_with_the_fraction_of_the_parameters_along_them():
    report = trace_graph(apply, VARIABLES, jnp.ones((1, 3))).report()
    assert (report.parameters, report.owned, report.fraction) == (43, 35, 35 / 43)
    rows = {reason: (count, fraction, names) for reason, count, fraction, names in report.rows}
    (mixed,) = [
        reason for reason in rows if reason.startswith("mixed by 'sort' at test_report.py:")
    ]
    assert rows[mixed] == (2, 28 / 43, ("b[1]", "c[0]"))
    assert rows["an output of the function"] == (1, 8 / 43, ("c[1]",))
    assert "81.4% of 43 parameters belong to a unit" in str(report)


def test_a_notebook_shows_a_table_with_escaped_reasons():
    graph = trace_graph(apply, VARIABLES, jnp.ones((1, 3)))
    html = graph._repr_html_()
    assert html == graph.report()._repr_html_()
    assert html.count("<tr>") == 1 + len(graph.report().rows)
    assert "(apply)" in html and "&#x27;sort&#x27;" in html
