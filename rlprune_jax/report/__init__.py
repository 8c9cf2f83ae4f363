"""Pages and figures of runs, from plain numbers and arrays.

`render_report` makes the page, one HTML file that needs nothing beside it, of `Table`s and of the
figures that the functions called ``..._figure`` draw. Nothing here knows a network.
"""

from typing import TYPE_CHECKING

from rlprune_jax.lazy import lazy_names

if TYPE_CHECKING:
    from rlprune_jax.report.drawing import figure_svg as figure_svg
    from rlprune_jax.report.drawing import style as style
    from rlprune_jax.report.page import Table as Table
    from rlprune_jax.report.page import percent as percent
    from rlprune_jax.report.page import render_report as render_report
    from rlprune_jax.report.page import results_table as results_table
    from rlprune_jax.report.page import write_report as write_report
    from rlprune_jax.report.search_figures import candidates_figure as candidates_figure
    from rlprune_jax.report.search_figures import layers_figure as layers_figure
    from rlprune_jax.report.search_figures import progress_figure as progress_figure
    from rlprune_jax.report.search_figures import search_figure as search_figure
    from rlprune_jax.report.sparsity_figures import density_figure as density_figure
    from rlprune_jax.report.sparsity_figures import heat_map_figure as heat_map_figure
    from rlprune_jax.report.sparsity_figures import iterations_figure as iterations_figure
    from rlprune_jax.report.sparsity_figures import layer_densities_figure as layer_densities_figure
    from rlprune_jax.report.sparsity_figures import pruned_figure as pruned_figure
    from rlprune_jax.report.sparsity_figures import running_mean as running_mean
    from rlprune_jax.report.study_figures import correlation_figure as correlation_figure
    from rlprune_jax.report.study_figures import effects_figure as effects_figure
    from rlprune_jax.report.study_figures import front_figure as front_figure
    from rlprune_jax.report.study_figures import scaling_figure as scaling_figure

_HOMES = {
    "Table": "page",
    "candidates_figure": "search_figures",
    "correlation_figure": "study_figures",
    "density_figure": "sparsity_figures",
    "effects_figure": "study_figures",
    "figure_svg": "drawing",
    "front_figure": "study_figures",
    "heat_map_figure": "sparsity_figures",
    "iterations_figure": "sparsity_figures",
    "layer_densities_figure": "sparsity_figures",
    "layers_figure": "search_figures",
    "percent": "page",
    "progress_figure": "search_figures",
    "pruned_figure": "sparsity_figures",
    "render_report": "page",
    "results_table": "page",
    "running_mean": "sparsity_figures",
    "scaling_figure": "study_figures",
    "search_figure": "search_figures",
    "style": "drawing",
    "write_report": "page",
}

__all__ = [
    "Table",
    "candidates_figure",
    "correlation_figure",
    "density_figure",
    "effects_figure",
    "figure_svg",
    "front_figure",
    "heat_map_figure",
    "iterations_figure",
    "layer_densities_figure",
    "layers_figure",
    "percent",
    "progress_figure",
    "pruned_figure",
    "render_report",
    "results_table",
    "running_mean",
    "scaling_figure",
    "search_figure",
    "style",
    "write_report",
]

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
