"""Names are imported when they are used, and every one resolves."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import rlprune_jax

ROOT = Path(rlprune_jax.__file__).parents[1]
ROOMS = sorted(path.parent.name for path in (ROOT / "rlprune_jax").glob("*/__init__.py"))


def run(program):
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_alone_loads_no_jax():
    run(
        "import sys, rlprune_jax, rlprune_jax.workflow, rlprune_jax.workflow.config\n"
        "assert 'prune' in dir(rlprune_jax)\n"
        "assert not {'jax', 'flax', 'numpy'} & set(sys.modules), 'loaded too early'\n"
    )


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_every_public_name_resolves(room):
    module = importlib.import_module(f"rlprune_jax.{room}".rstrip("."))
    names = getattr(module, "__all__", ())
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(module, name) is not None
        assert name in dir(module)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'rlprune_jax' has no attribute 'prun'"):
        rlprune_jax.prun  # noqa: B018
    with pytest.raises(ImportError):
        importlib.import_module("rlprune_jax.prun")


@pytest.mark.parametrize(
    "first", ["rlprune_jax", "rlprune_jax.workflow", "rlprune_jax.search", "rlprune_jax.graph"]
)
def test_search_is_a_room_and_can_be_called_whatever_comes_first(first):
    run(
        f"import {first}, rlprune_jax, sys\n"
        "assert rlprune_jax.search is sys.modules['rlprune_jax.search']\n"
        "assert callable(rlprune_jax.search)\n"
        "from rlprune_jax import search\n"
        "from rlprune_jax.search import make_environment\n"
        "assert 'rlprune_jax.workflow.searches' not in sys.modules\n"
    )
