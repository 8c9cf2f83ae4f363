"""The page of a run."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from rlprune_jax.files import UnwritableError
from rlprune_jax.report.page import (
    Table,
    progress_figure,
    render_report,
    results_table,
    search_figure,
    write_report,
)

LIMITS = np.array([0.1, 0.3])
BUDGETS = ["params", "macs"]


def metrics(steps=6):
    ramp = np.linspace(0, 1, steps)
    return {
        "reward_mean": 0.4 + 0.3 * ramp,
        "reward_best": np.where(ramp < 0.3, -np.inf, ramp),
        "cost_mean": np.stack([0.4 - 0.3 * ramp, 0.5 - 0.2 * ramp], -1),
        "multiplier": np.stack([1 - ramp, 0 * ramp], -1),
        "feasible_fraction": ramp,
    }


def histories(count=40):
    generator = np.random.default_rng(0)
    return {
        name: {
            "rewards": generator.uniform(size=count),
            "costs": generator.uniform(0, 0.6, size=(count, 2)) * [0.4, 1],
        }
        for name in ("agent", "uniform", "random search")
    }


class Collector(HTMLParser):
    def __init__(self):
        super().__init__()
        self.ids, self.addresses, self.open, self.text = [], [], [], ""

    def handle_starttag(self, tag, attributes):
        names = dict(attributes)
        self.ids += [names["id"]] if "id" in names else []
        for name in ("src", "href", "xlink:href"):
            self.addresses += [names[name]] if name in names else []
        if tag not in ("meta", "br", "link", "path", "use", "image", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "image", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page():
    dense = {"accuracy": 0.981, "params": 1234567, "macs": 98765432}
    agent = {"accuracy": 0.97, "params": 120000, "macs": 29000000, "satisfied": True}
    other = {"accuracy": float("nan"), "params": None, "macs": 1, "satisfied": False}
    return render_report(
        "Pruning <CNN> & more",
        {"Test accuracy": ("97.0 %", "dense 98.1 %"), "Candidates": 2048},
        [results_table(dense, {"agent": agent, "uniform": other}), Table("T", ["a"], [[0.12345]])],
        [
            ("The search", search_figure(metrics(), BUDGETS, LIMITS), "A caption."),
            ("Effort", progress_figure(histories(), LIMITS), ""),
        ],
        {"Configuration": {"seed": 0, "name": "<b>"}, "Command": "python prune.py"},
        lead="A sentence.",
    )


def test_page_needs_nothing_from_outside():
    html = page()
    collector = Collector()
    collector.feed(html)
    assert collector.open == []
    assert len(set(collector.ids)) == len(collector.ids) > 0
    assert all(address.startswith(("#", "data:")) for address in collector.addresses)
    for name in re.findall(r"url\(#([^)]*)\)", html):
        assert name in collector.ids
    assert "<script" not in html and "@import" not in html
    # What is left of the web are the names of XML formats.
    assert set(re.findall(r"https?://([^/\"]*)", html)) <= {"www.w3.org"}


def test_page_says_what_was_found():
    html = page()
    assert "Pruning &lt;CNN&gt; &amp; more" in html and "<CNN>" not in html
    for text in ("97.0 %", "dense 98.1 %", "2\u202f048", "A sentence.", "A caption.", "0.1235"):
        assert text in html
    assert "97.00 % (-1.10)" in html
    assert "120\u202f000 (9.72 %)" in html
    assert '<td class="good">✓' in html and '<td class="bad">✗' in html
    assert 'class="stress"><td>agent' in html
    assert "&#34;seed&#34;: 0" in html and "python prune.py" in html


def test_results_show_columns_that_exist():
    dense = {"accuracy": 0.9, "params": 10, "macs": 10}
    table = results_table(dense, {"agent": {**dense, "evaluations": 7}})
    assert table.columns == ["method", "test accuracy", "params", "MACs", "evaluations"]
    assert table.rows[1] == ["agent", "90.00 % (+0.00)", "10 (100.00 %)", "10 (100.00 %)", 7]
    assert table.rows[0][-1] is None


def test_empty_page():
    assert "<h1>Nothing</h1>" in render_report("Nothing", {}, [], [], {})


def test_page_is_written_whole(tmp_path):
    write_report(tmp_path / "report.html", page())
    assert (tmp_path / "report.html").read_text() == page()
    with pytest.raises(UnwritableError, match="missing"):
        write_report(tmp_path / "missing" / "report.html", "x")
