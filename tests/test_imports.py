"""Who may import whom, and what ``import rlprune_jax`` must not load."""

import ast
import os
import pkgutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import rlprune_jax

PACKAGE = Path(rlprune_jax.__file__).parent
ROOT = PACKAGE.parent
HEAVY = ("tensorflow", "tensorflow_datasets", "orbax", "matplotlib", "pyarrow")
# Used by experiments only, each for the sake of one of the libraries above or of a terminal.
LEAVES = (
    "data",
    "checkpoint",
    "export",
    "restore",
    "report",
    "figures",
    "sparsity_figures",
    "study_figures",
    "drawing",
)


@cache
def modules():
    """Every module of the package, found on disk and not imported."""
    found = pkgutil.walk_packages([str(PACKAGE)], "rlprune_jax.", onerror=lambda name: None)
    return {"rlprune_jax", *(module.name for module in found)}


@cache
def sources():
    files = {}
    for name in modules():
        stem = ROOT.joinpath(*name.split("."))
        files[name] = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
    return {name: file.read_text() for name, file in files.items() if file.exists()}


def imports(source, package=""):
    """Absolute names of everything a source imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *base.split(".")]).strip(
                    "."
                )
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


@cache
def imported_by(name):
    is_package = ROOT.joinpath(*name.split(".")).is_dir()
    return imports(sources()[name], name if is_package else name.rpartition(".")[0])


def below(name, prefix):
    return name == prefix or name.startswith(prefix + ".")


def within(name, parts):
    return any(below(name, f"rlprune_jax.{part}") for part in parts)


def forbidden_imports(importers, forbidden, allowed=(), except_for=()):
    """Pairs ``(module, what it imports)`` that break a rule."""
    return [
        (name, imported)
        for name in sorted(sources())
        if within(name, importers) and not within(name, except_for)
        for imported in sorted(imported_by(name))
        if within(imported, forbidden) and not within(imported, allowed)
    ]


def test_the_reader_of_imports_sees_all_forms():
    source = "import a.b\nfrom c import d\ndef f():\n    from . import e\n    from .g import h\n"
    assert imports(source, "p.q") == {"a.b", "c.d", "p.q.e", "p.q.g.h"}
    assert imports("from ..x import y", "p.q") == {"p.x.y"}


def test_all_modules_are_found():
    assert {"rlprune_jax", "rlprune_jax.pytree", "rlprune_jax.graph"} <= modules()
    assert sources().keys() == modules()


LIGHT = sorted(name for name in modules() if not within(name, LEAVES))


def test_nothing_heavy_is_loaded():
    program = (
        "import importlib, sys\n"
        f"for name in {LIGHT}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = set({HEAVY}) & set(sys.modules)\n"
        "    assert not heavy, f'{name} loads {heavy}'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


BASE = ("types", "pytree", "files")
SPARSITY = ("masks", "scopes", "selection", "exact_counts", "scores", "moments", "pqi")
UPPER = ("candidates", "search", "study")

RULES = {
    "the base knows nothing above it": (
        BASE,
        (*SPARSITY, "pruners", "optimizer", "graph", "costs", "models", "training", *UPPER),
    ),
    "sparsity stands on the base": (
        SPARSITY,
        ("pruners", "optimizer", "costs", "models", "training", *UPPER),
    ),
    # Scores of units are read at the gates; all else here speaks of single weights.
    "of these only scores know the graph": (
        ("masks", "scopes", "selection", "exact_counts", "moments", "pqi"),
        ("graph",),
    ),
    "pruners stand on sparsity": (
        ("pruners", "optimizer"),
        ("graph", "costs", "models", "training", *UPPER),
    ),
    "operations know no network": (("ops",), ("graph", "costs", "models", "training", *UPPER)),
    "models know no pruning": (
        ("models",),
        (*SPARSITY, "pruners", "optimizer", "graph", "costs", "training", *UPPER),
    ),
    "the graph knows neither models nor costs": (
        ("graph",),
        (*SPARSITY, "pruners", "optimizer", "models", "costs", "training", *UPPER),
    ),
    "costs never import the search": (("costs",), UPPER),
    "candidates never import the search": (("candidates", "training"), ("search", "study")),
    "the search never imports a study": (("search",), ("study",)),
}


@pytest.mark.parametrize("rule", RULES)
def test_imports_point_one_way(rule):
    assert forbidden_imports(*RULES[rule]) == []


def test_the_search_knows_neither_graph_nor_models_nor_data():
    """Only deploying, which cuts the network, may look at the graph."""
    assert forbidden_imports(("search",), ("models", "data")) == []
    assert forbidden_imports(("search",), ("graph",), except_for=("search.deploy",)) == []


def test_leaves_are_used_by_experiments_only():
    others = [
        (name, imported)
        for name in sorted(sources())
        if not within(name, LEAVES)
        for imported in sorted(imported_by(name))
        if within(imported, LEAVES)
    ]
    assert others == []


@pytest.mark.parametrize(
    "library, home",
    [
        ("orbax", "rlprune_jax.checkpoint"),
        ("tensorflow_datasets", "rlprune_jax.data"),
        ("distrax", "rlprune_jax.search.policy"),
        ("tensorflow_probability", "rlprune_jax.search.policy"),
        ("safetensors", "rlprune_jax.export"),
        ("rich", "rlprune_jax.progress"),
        ("optuna", "rlprune_jax.study.optuna_workers"),
        ("pyarrow", "rlprune_jax.study.results"),
    ],
)
def test_a_library_has_one_home(library, home):
    users = {name for name in sources() if any(below(used, library) for used in imported_by(name))}
    assert users <= {home}


def test_nothing_needs_files_beside_the_repository():
    hints = ("../" + "shared", "/work/" + "shared")
    folders = [
        folder for folder in ("rlprune_jax", "tests", "experiments") if (ROOT / folder).is_dir()
    ]
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    files += [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run"]
    found = [
        str(file) for file in files if file.exists() and any(h in file.read_text() for h in hints)
    ]
    assert found == []
