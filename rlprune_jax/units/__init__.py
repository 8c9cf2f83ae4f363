"""Gates, scores, descriptors and repair of groups of units, and structured SAP.

Gates come from widths (``keep_first``), scores (``keep_best``) or other gates (``round_gates``);
``widths`` counts what they keep. A unit is kept where its gate is at least 0.5 (``is_kept``).
"""

from rlprune_jax.units.activation_scores import activation_scores
from rlprune_jax.units.comparisons import (
    isomorphic_scopes,
    isomorphic_scores,
    marginal_costs,
    normalise_scores,
    per_cost,
)
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
from rlprune_jax.units.gradient_scores import fisher_scores, taylor_scores
from rlprune_jax.units.norm_scores import norm_scale_scores
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
from rlprune_jax.units.retention import (
    Covariances,
    mean_retention,
    retention,
    unit_covariances,
)
from rlprune_jax.units.scores import (
    UNIT_SCORES,
    check_scores,
    group_scores,
    random_scores,
)
from rlprune_jax.units.structured_sap import (
    GroupSparsity,
    group_sparsity,
    structured_sap,
    structured_sap_scores,
)
from rlprune_jax.units.weight_scores import (
    geometric_median_scores,
    lamp_scores,
    magnitude_scores,
)

__all__ = [
    "FEATURES",
    "UNIT_SCORES",
    "Covariances",
    "DenseReference",
    "GroupSparsity",
    "RepairMethod",
    "activation_scores",
    "check_scores",
    "dense_reference",
    "fisher_scores",
    "fold_means",
    "geometric_median_scores",
    "group_scores",
    "group_sparsity",
    "is_kept",
    "isomorphic_scopes",
    "isomorphic_scores",
    "keep_best",
    "keep_first",
    "kept_counts",
    "lamp_scores",
    "layer_descriptors",
    "magnitude_scores",
    "marginal_costs",
    "mean_retention",
    "merge_units",
    "norm_scale_scores",
    "normalise_scores",
    "per_cost",
    "random_scores",
    "rank",
    "repair",
    "repair_reach",
    "repair_towards",
    "retention",
    "round_gates",
    "smallest_gates",
    "structured_sap",
    "structured_sap_scores",
    "taylor_scores",
    "unit_covariances",
    "widths",
]
