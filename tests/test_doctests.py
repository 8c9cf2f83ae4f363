"""Every example in a docstring of the package runs and gives what it says."""

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import rlprune_jax

PACKAGE = Path(rlprune_jax.__file__).parent
MODULES = [
    "rlprune_jax",
    *(module.name for module in pkgutil.walk_packages([str(PACKAGE)], "rlprune_jax.")),
]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def source_of(name):
    stem = PACKAGE.parent.joinpath(*name.split("."))
    return (stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")).read_text()


def count_examples(source):
    """Statements in the docstrings of a source, wherever doctest would look for them or not."""
    parser = doctest.DocTestParser()
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, DOCUMENTED)]
    return sum(len(parser.get_examples(ast.get_docstring(node) or "")) for node in nodes)


def test_examples_are_counted_wherever_they_stand():
    source = 'def f():\n    """F.\n\n    >>> 1\n    1\n    """\n    def g():\n        """>>> 2"""\n'
    assert count_examples(source) == 2
    assert count_examples("# >>> 1\n") == 0


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted == count_examples(source_of(name))


def test_no_example_is_skipped():
    directive = "doctest: " + "+"
    assert [name for name in MODULES if directive + "SKIP" in source_of(name)] == []
