"""How the package reads: first lines, names, sizes of functions, types."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import rlprune_jax

PACKAGE = Path(rlprune_jax.__file__).parent

LONG_FUNCTIONS = {
    "search/policy.py coarse_policy": "the closures of one policy; what they read lies around them",
    "search/ppo_lagrangian.py ppo_lagrangian": "init, ask and tell over one agent",
    "search/problem.py make_environment": "closures over one problem",
    "workflow/iterative.py iterative_pruning": "init and step over one loop",
}
MANY_ARGUMENTS = {
    "models/convolution/conv.py conv_general_dilated": "as the function that it replaces",
    "sparsity/pruners.py sap": "public, and keeps its signature",
    "search/loop.py run_search": "the parts of a search, and its options",
    "search/multipliers.py pid": "numbers of a controller, each with a default",
    "search/problem.py make_environment": "the arrays of a problem, each named by the caller",
    "study/optuna_workers.py run_worker": "a study and its storage",
    "study/run.py run_study": "public, and keeps its signature",
    "training/optimizers.py make_optimizer": "numbers of an optimizer, each with a default",
    "units/structured_sap.py structured_sap": "public, and keeps its signature",
}


@cache
def trees():
    files = sorted(PACKAGE.rglob("*.py"))
    return {str(file.relative_to(PACKAGE)): ast.parse(file.read_text()) for file in files}


def is_public(node):
    return not node.name.startswith("_")


def definitions(tree):
    """Public functions and classes of a module, and public methods of these."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and is_public(node):
            yield node.name, node
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, ast.FunctionDef) and is_public(method):
                    yield f"{node.name}.{method.name}", method


def public():
    return [
        (f"{path}:{node.lineno} {name}", node)
        for path, tree in trees().items()
        for name, node in definitions(tree)
    ]


def functions():
    return [
        (f"{path} {node.name}", node)
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def first_line(node):
    return (ast.get_docstring(node) or "").split("\n", 1)[0]


def body_lines(node):
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return node.end_lineno - body[0].lineno + 1


def argument_count(node):
    given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    return len([argument for argument in given if argument.arg not in ("self", "cls")])


def refuse(found):
    assert not found, "\n".join(found)


def test_every_public_name_is_documented():
    refuse([place for place, node in public() if not first_line(node)])


def test_first_lines_are_short():
    lines = [(place, first_line(node)) for place, node in public()]
    refuse([f"{place}: {line}" for place, line in lines if len(line.split()) > 10])


def test_first_lines_say_one_thing():
    lines = [(place, first_line(node)) for place, node in public()]
    refuse([f"{place}: {line}" for place, line in lines if ":" in line or ";" in line])


def test_no_two_public_classes_have_one_name():
    homes = defaultdict(list)
    for path, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and is_public(node):
                homes[node.name].append(path)
    refuse([f"{name}: {paths}" for name, paths in homes.items() if len(paths) > 1])


def test_functions_are_short():
    refuse(
        [
            f"{place}: {body_lines(node)} lines"
            for place, node in functions()
            if body_lines(node) > 60 and place not in LONG_FUNCTIONS
        ]
    )


def test_arguments_are_few():
    refuse(
        [
            f"{place}: {argument_count(node)} arguments"
            for place, node in functions()
            if argument_count(node) > 8 and place not in MANY_ARGUMENTS
        ]
    )


def test_exceptions_are_needed():
    found = dict(functions())
    unneeded = [place for place in LONG_FUNCTIONS if body_lines(found[place]) <= 60]
    unneeded += [place for place in MANY_ARGUMENTS if argument_count(found[place]) <= 8]
    refuse(unneeded)


def test_any_is_rare():
    counts = {
        path: sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))
        for path, tree in trees().items()
    }
    lines = sum(file.read_text().count("\n") for file in PACKAGE.rglob("*.py"))
    most = sorted(counts.items(), key=lambda item: -item[1])[:10]
    assert 1000 * sum(counts.values()) <= 10 * lines, most


def test_the_words_are_those_of_the_field():
    # Each stands for another: evaluate, predict, failed, fraction.
    words = ("judge", "foretell", "foretold", "could not be had", "share of")
    texts = {file.relative_to(PACKAGE): file.read_text() for file in PACKAGE.rglob("*.py")}
    refuse([f"{path}: {word}" for path, text in texts.items() for word in words if word in text])
