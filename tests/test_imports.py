"""Who may import whom, and what ``import rlprune_jax`` must not load."""

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
import types
from functools import cache
from pathlib import Path

import pytest

import rlprune_jax

PACKAGE = Path(rlprune_jax.__file__).parent
ROOT = PACKAGE.parent
HEAVY = ("tensorflow", "tensorflow_datasets", "orbax", "matplotlib", "pyarrow")
# Modules that load one of the libraries above: used where they are needed, never on the way there.
HEAVY_MODULES = ("training.data", "runs.checkpoint", "report")
FACES = [path.parent.name for path in sorted(PACKAGE.glob("*/__init__.py"))]


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


def test_the_reader_of_imports_sees_all_forms():
    source = "import a.b\nfrom c import d\ndef f():\n    from . import e\n    from .g import h\n"
    assert imports(source, "p.q") == {"a.b", "c.d", "p.q.e", "p.q.g.h"}
    assert imports("from ..x import y", "p.q") == {"p.x.y"}


def test_all_modules_are_found():
    assert {"rlprune_jax", "rlprune_jax.pytree", "rlprune_jax.graph"} <= modules()
    assert sources().keys() == modules()


LIGHT = sorted(
    name
    for name in modules()
    if not within(name, HEAVY_MODULES) or name.removeprefix("rlprune_jax.") in FACES
)


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


@pytest.mark.parametrize("room", FACES)
def test_every_public_name_is_there_and_is_no_module(room):
    face = importlib.import_module(f"rlprune_jax.{room}")
    names = getattr(face, "__all__", [])
    assert len(set(names)) == len(names)
    assert [name for name in names if isinstance(getattr(face, name), types.ModuleType)] == []


BASE = {
    "addresses",
    "places",
    "sealed",
    "origin",
    "private",
    "types",
    "pytree",
    "kept",
    "per_group",
    "files",
    "devices",
    "checks",
    "lazy",
    "wording",
}

MAY_IMPORT = {
    "graph": BASE,
    "sparsity": BASE,
    "search": BASE,
    "training": BASE,
    "models": BASE,
    "runs": BASE,
    "report": BASE,
    "units": BASE | {"graph", "sparsity"},
    "costs": BASE | {"graph", "units"},
    "export": BASE | {"graph"},
    "study": BASE,
    "workflow": BASE
    | {"graph", "units", "costs", "sparsity", "search", "training", "models", "runs", "export"}
    | {"report", "study"},
    "cli": BASE
    | {"graph", "units", "costs", "sparsity", "search", "training", "models", "runs", "export"}
    | {"report", "study", "workflow"},
}
"""The rooms of the package and what each may import besides itself."""


def room_of(name):
    """``rlprune_jax.graph.trace`` lies in ``graph``; the package itself in ``""``."""
    return name.removeprefix("rlprune_jax").strip(".").split(".")[0]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room):
    allowed = MAY_IMPORT[room] | {room}
    broken = [
        (name, imported)
        for name in sorted(sources())
        if room_of(name) == room
        for imported in sorted(imported_by(name))
        if imported.startswith("rlprune_jax.") and room_of(imported) not in allowed
    ]
    assert broken == []


def test_every_room_has_a_rule():
    assert set(FACES) == set(MAY_IMPORT)
    loose = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert loose == BASE


def test_there_are_no_circles():
    """The rules themselves form no circle, so no order of imports can."""
    left = {room: rooms - BASE - {room} for room, rooms in MAY_IMPORT.items()}
    while left:
        free = {room for room, rooms in left.items() if not rooms & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {room: rooms for room, rooms in left.items() if room not in free}


@pytest.mark.parametrize(
    "library, home",
    [
        ("orbax", "rlprune_jax.runs.checkpoint"),
        ("tensorflow_datasets", "rlprune_jax.training.data"),
        ("distrax", "rlprune_jax.search.policy"),
        ("tensorflow_probability", "rlprune_jax.search.policy"),
        ("safetensors", "rlprune_jax.export.weights"),
        ("rich", "rlprune_jax.runs.progress"),
        ("cmaes", "rlprune_jax.search.cma"),
        ("optuna", "rlprune_jax.study.optuna_workers"),
        ("pyarrow", "rlprune_jax.study.results"),
    ],
)
def test_a_library_has_one_home(library, home):
    users = {name for name in sources() if any(below(used, library) for used in imported_by(name))}
    assert users <= {home}
