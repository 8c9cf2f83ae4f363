"""Gates, scores, descriptors and repair of groups of units, and structured SAP.

Gates come from widths (``keep_first``), scores (``keep_best``) or other gates (``round_gates``);
``widths`` counts what they keep. A unit is kept where its gate is at least 0.5 (``is_kept``).
"""

from rlprune_jax.units.descriptors import FEATURES, layer_descriptors
from rlprune_jax.units.gates import (
    is_kept,
    keep_best,
    keep_first,
    kept_counts,
    rank,
    round_gates,
    smallest_gates,
    widths,
)
from rlprune_jax.units.repair import (
    DenseReference,
    RepairMethod,
    dense_reference,
    fold_means,
    merge_units,
    repair,
    repair_reach,
    repair_towards,
)
from rlprune_jax.units.scores import (
    UNIT_SCORES,
    group_scores,
    magnitude_scores,
    random_scores,
    taylor_scores,
)
from rlprune_jax.units.structured_sap import (
    GroupSparsity,
    group_sparsity,
    structured_sap,
    structured_sap_scores,
)

__all__ = [
    "FEATURES",
    "UNIT_SCORES",
    "DenseReference",
    "GroupSparsity",
    "RepairMethod",
    "dense_reference",
    "fold_means",
    "group_scores",
    "group_sparsity",
    "is_kept",
    "keep_best",
    "keep_first",
    "kept_counts",
    "layer_descriptors",
    "magnitude_scores",
    "merge_units",
    "random_scores",
    "rank",
    "repair",
    "repair_reach",
    "repair_towards",
    "round_gates",
    "smallest_gates",
    "structured_sap",
    "structured_sap_scores",
    "taylor_scores",
    "widths",
]
