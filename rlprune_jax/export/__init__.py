"""Weights, plan and exported function of a slim network, and their restore.

A folder of a slim network holds ``weights.safetensors`` (`save_weights`), ``plan.json``
(`make_plan`, `write_plan`), ``model.stablehlo`` (`export_stablehlo`) and ``README.txt``
(`loading_text`); `restore_slim` reads it back, whole and unchanged or not at all.
"""

from rlprune_jax.export.description import ArraySpec, Description, standardisation
from rlprune_jax.export.errors import ExportError
from rlprune_jax.export.plan import (
    PLAN,
    Plan,
    check_plan,
    make_plan,
    plan_description,
    plan_gates,
    read_plan,
    write_plan,
)
from rlprune_jax.export.readme import README, loading_text
from rlprune_jax.export.restore import Slim, restore_slim
from rlprune_jax.export.stablehlo import (
    PLATFORMS,
    STABLEHLO,
    Artifact,
    export_stablehlo,
    load_stablehlo,
)
from rlprune_jax.export.weights import WEIGHTS, load_weights, save_weights

__all__ = [
    "PLAN",
    "PLATFORMS",
    "README",
    "STABLEHLO",
    "WEIGHTS",
    "ArraySpec",
    "Artifact",
    "Description",
    "ExportError",
    "Plan",
    "Slim",
    "check_plan",
    "export_stablehlo",
    "load_stablehlo",
    "load_weights",
    "loading_text",
    "make_plan",
    "plan_description",
    "plan_gates",
    "read_plan",
    "restore_slim",
    "save_weights",
    "standardisation",
    "write_plan",
]
