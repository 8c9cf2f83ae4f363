"""The page of an iterative pruning run, and methods compared at matched density."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlprune_jax.files import to_json
from rlprune_jax.report.page import Table, percent, render_report, write_report
from rlprune_jax.report.sparsity_figures import (
    density_figure,
    heat_map_figure,
    iterations_figure,
    layer_densities_figure,
    pruned_figure,
)
from rlprune_jax.runs import RunDirectory

MEASURED = ("density", "accuracy", "accuracy_pruned", "pq_index", "pq_index_pruned", "gini")


def curve_arrays(curves: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Method -> what is measured -> f[S, T]."""
    return {
        name: {
            key: np.array([row[key] for row in curve["iterations"]], float).T for key in MEASURED
        }
        for name, curve in curves.items()
    }


def matched_rows(curves: Mapping[str, Any], against: str) -> list[dict[str, Any]]:
    """Every method's accuracy less that of ``against`` at the same density, seed by seed.

    The other's accuracy is interpolated linearly in the logarithm of the density between its two
    nearest iterations; points beyond its range, and those with no seed's, are left out.

    Returns:
        Rows ``{"method", "iteration", "density", "difference", "std", "seeds"}``: means over the
        seeds, the standard deviation of their differences, and how many they are.
    """
    arrays = curve_arrays(curves)
    if against not in arrays:
        return []
    theirs = arrays[against]
    rows = []
    for name, ours in arrays.items():
        if name == against:
            continue
        for iteration in range(ours["density"].shape[1]):
            differences = []
            for seed in range(len(ours["density"])):
                density = ours["density"][seed, iteration]
                known = theirs["density"][seed]
                if not known.min() <= density <= known.max() or density <= 0:
                    continue
                # np.interp wants rising places; densities only ever fall.
                other = np.interp(
                    np.log(density), np.log(known[::-1]), theirs["accuracy"][seed][::-1]
                )
                differences.append(ours["accuracy"][seed, iteration] - other)
            if differences:
                rows.append(
                    {
                        "method": name,
                        "iteration": iteration,
                        "density": float(ours["density"][:, iteration].mean()),
                        "difference": float(np.mean(differences)),
                        "std": float(np.std(differences)),
                        "seeds": len(differences),
                    }
                )
    return rows


def write_page(run: RunDirectory, config: Any, result: Mapping[str, Any]) -> None:
    """Write ``report.html``.

    Args:
        run: where it goes.
        config: the dataclass of settings.
        result: what goes into ``result.json``.
    """
    arrays = curve_arrays(result["curves"])
    last = len(next(iter(arrays.values()))["density"][0]) - 1
    shown = sorted({round(place) for place in np.linspace(0, last, 4)})
    summary: dict[str, Any] = {}
    for name, curve in arrays.items():
        summary[name] = (
            percent(curve["accuracy"][:, -1].mean(), 2),
            f"with {percent(curve['density'][:, -1].mean(), 3)} of the weights left",
        )
    rows = [
        [
            name,
            iteration,
            percent(curve["density"][:, iteration].mean(), 3),
            _spread(curve["accuracy"][:, iteration]),
            _spread(curve["accuracy_pruned"][:, iteration]),
            f"{curve['pq_index'][:, iteration].mean():.3f}",
        ]
        for name, curve in arrays.items()
        for iteration in shown
    ]
    tables = [
        Table(
            "Some iterations",
            ("method", "iteration", "weights left", "accuracy", "before retraining", "PQ Index"),
            rows,
            caption="Means and standard deviations over seeds, on the full test set.",
        )
    ]
    if result["matched"]:
        tables.append(
            Table(
                "Against the lottery ticket at matched density",
                ("method", "iteration", "weights left", "difference in points", "seeds"),
                [
                    [
                        row["method"],
                        row["iteration"],
                        percent(row["density"], 3),
                        f"{100 * row['difference']:+.2f} ± {100 * row['std']:.2f}",
                        row["seeds"],
                    ]
                    for row in result["matched"]
                ],
                caption="Seed by seed; the lottery ticket's accuracy interpolated in the logarithm "
                "of its density.",
                interactive=True,
            )
        )
    write_report(
        run.report,
        render_report(
            f"{result['model']} on {result['dataset']}, pruned iteratively",
            summary,
            tables,
            _figures(result, arrays, shown),
            {
                "configuration": to_json(dataclasses.asdict(config)),
                "versions": result["versions"],
                "device": result["device"],
            },
            lead=f"{len(result['seeds'])} seeds, {result['epochs']} epochs of "
            f"{result['train_images']} images an iteration, scope {result['scope']}, "
            f"{result['seconds']:.0f} seconds in all.",
        ),
    )


def _figures(result: Mapping[str, Any], arrays: Any, shown: list[int]) -> list[Any]:
    curves = result["curves"]

    def by_layer(value: Any) -> dict[str, dict[str, np.ndarray]]:
        return {
            name: {
                path: np.array(
                    [
                        value(row["layers"][path], curve["iterations"][0]["layers"][path])
                        for row in curve["iterations"]
                    ],
                    float,
                ).T
                for path in curve["iterations"][0]["layers"]
            }
            for name, curve in curves.items()
        }

    densities = by_layer(lambda row, first: np.array(row["live"]) / np.maximum(first["live"], 1))
    indices = by_layer(lambda row, first: row["pq_index"])
    grids = {
        name: np.array([np.mean(row["pq_grid"], 0) for row in curve["iterations"]], float)
        for name, curve in curves.items()
    }
    return [
        (
            "Against the iteration",
            iterations_figure(arrays),
            "Accuracy as it is at each iteration; dashed its running mean over iterations, which "
            "the paper plotted.",
        ),
        ("Accuracy against density", density_figure(arrays), "At matched sparsity."),
        ("Before retraining", pruned_figure(arrays), "Pruned by the iteration's own weights."),
        ("Layers", layer_densities_figure(densities, "density"), "Share of each layer left."),
        ("Layers' PQ Index", layer_densities_figure(indices, "PQ Index"), "Of live weights."),
        (
            "PQ Index over (p, q)",
            heat_map_figure(grids, shown, result["grid"]["p"], result["grid"]["q"]),
            "Mean over seeds; (1, 1) is 0.",
        ),
    ]


def _spread(values: np.ndarray) -> str:
    return f"{100 * values.mean():.2f} ± {100 * values.std():.2f} %"
