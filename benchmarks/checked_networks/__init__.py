"""Networks that the pruning graph is checked on, one file a family or package.

``all_cases`` lists them; what one needs is imported when it is built.
"""

import importlib
import importlib.util

from checked_networks.case import Case

OWN = ("own_transformers",)
PACKAGES: dict[str, str] = {}


def all_cases() -> list[Case]:
    """List our own networks, then those of the packages that are installed."""
    files = [*OWN, *(file for file, package in PACKAGES.items() if is_installed(package))]
    return [
        case for file in files for case in importlib.import_module(f"checked_networks.{file}").CASES.all
    ]


def is_installed(package: str) -> bool:
    """Tell whether a package can be imported, without doing so."""
    return importlib.util.find_spec(package) is not None
