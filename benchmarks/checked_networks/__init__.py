"""Networks that the pruning graph is checked on, one file a family or package.

``all_cases`` lists them; what a network needs is imported when it is built.
"""

import importlib
import importlib.util

from checked_networks.case import Case

FILES = (
    "own_transformers",
    "own_convolutions",
    "own_recurrent",
    "own_others",
    "own_traps",
    "of_keras",
    "of_haiku",
    "of_transformers",
    "of_equimo",
    "of_others",
)
MODULES = {
    "dm-haiku": "haiku",
    "jax-resnet": "jax_resnet",
    "mamba2-jax": "mamba2_jax",
    "PaLM-jax": "palm_jax",
}
"""Names to import packages by, where they are not those to install them by."""


def all_cases() -> list[Case]:
    """List the networks whose packages are installed; our own come first."""
    homes = [importlib.import_module(f"checked_networks.{file}") for file in FILES]
    return [case for home in homes for case in home.CASES.all if is_installed(case.package)]


def is_installed(package: str) -> bool:
    """Tell whether a package can be imported, without doing so."""
    name = MODULES.get(package, package)
    return package == "own" or importlib.util.find_spec(name) is not None
