"""The agent beside its baselines over several seeds: one `prune_rl.py` run per seed, one table.

Command:  python experiments/compare_methods.py --seeds 5 --dataset digits --budget params=0.05

Every option of `prune_rl.py` is taken. Runs that are finished are not done again. Printed: mean and
standard deviation over seeds of test accuracy and best held-out reward, and how many evaluations
each method needed to reach the reward that random search ends with. The last line is JSON.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import prune_rl
import tyro
from command_line import enable_compilation_cache

from rlprune_jax.devices import describe_device

REFERENCE = "random_search"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    run: tyro.conf.OmitArgPrefixes[prune_rl.Config]
    """Of each run; its seed is the first."""
    seeds: int = 5
    """Number of runs, with seeds one after the other."""
    figure: Path | None = None
    """Where to draw best reward against evaluations (PNG or SVG), mean and range over seeds."""


def best_so_far(rewards: np.ndarray, costs: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Best reward f[M] within every budget after each evaluation, -inf before the first."""
    good = (costs <= limits).all(-1) & np.isfinite(rewards)
    return np.maximum.accumulate(np.where(good, rewards, -np.inf))


def summarise(results: list[dict[str, Any]], curves: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Per method: accuracies, rewards, and evaluations to the reference's last reward."""
    table = {}
    for method in ("agent", *results[0]["baselines"]):
        chosen = [r["pruned"] if method == "agent" else r["baselines"][method] for r in results]
        accuracies = np.array([each["accuracy"] for each in chosen])
        rewards = np.array([curve[method][-1] for curve in curves])
        row: dict[str, Any] = {
            "accuracy_mean": float(accuracies.mean()),
            "accuracy_std": float(accuracies.std(ddof=1)) if len(accuracies) > 1 else 0.0,
            "reward_mean": float(rewards.mean()),
            "reward_std": float(rewards.std(ddof=1)) if len(rewards) > 1 else 0.0,
            "params": float(
                np.mean(
                    [
                        e["params"] / r["dense"]["params"]
                        for e, r in zip(chosen, results, strict=True)
                    ]
                )
            ),
        }
        if REFERENCE in curves[0]:
            needed = [
                int(np.argmax(curve[method] >= curve[REFERENCE][-1])) + 1
                for curve in curves
                if curve[method][-1] >= curve[REFERENCE][-1]
            ]
            row["reached_random"] = f"{len(needed)}/{len(curves)}"
            row["evaluations_to_random"] = float(np.median(needed)) if needed else None
        table[method] = row
    return table


def draw(path: Path, curves: list[dict[str, np.ndarray]], title: str) -> None:
    """Best held-out reward against evaluations: the mean over seeds, and their range."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for method in curves[0]:
        rows = np.stack([curve[method] for curve in curves])
        if rows.shape[1] < 2:
            continue
        steps = np.arange(1, rows.shape[1] + 1)
        seen = np.isfinite(rows).all(0)
        (line,) = axes.plot(steps[seen], rows.mean(0)[seen], label=method.replace("_", " "))
        axes.fill_between(
            steps[seen],
            rows.min(0)[seen],
            rows.max(0)[seen],
            alpha=0.15,
            color=line.get_color(),
            linewidth=0,
        )
    axes.set(xscale="log", xlabel="evaluations", ylabel="best held-out reward", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(config: Config) -> None:
    """Run, summarise, draw and print."""
    enable_compilation_cache()
    results, curves = [], []
    for seed in range(config.run.seed, config.run.seed + config.seeds):
        path = prune_rl.prune(dataclasses.replace(config.run, seed=seed))
        results.append(json.loads((path / "result.json").read_text()))
        limits = np.array([budget["limit"] for budget in results[-1]["budgets"]])
        stored = np.load(path / "history.npz")
        methods = ("agent", *results[-1]["baselines"])
        curves.append(
            {
                method: best_so_far(stored[f"{method}/rewards"], stored[f"{method}/costs"], limits)
                for method in methods
            }
        )
        jax.clear_caches()
    table = summarise(results, curves)
    dense = np.array([result["dense"]["accuracy"] for result in results])
    print(f"dense {100 * dense.mean():.2f} % over {len(results)} seeds")
    print("| method | test accuracy | best held-out reward | evaluations to random's best |")
    print("|---|---|---|---|")
    for method, row in table.items():
        needed = row.get("evaluations_to_random")
        print(
            f"| {method.replace('_', ' ')} | {100 * row['accuracy_mean']:.2f} ± "
            f"{100 * row['accuracy_std']:.2f} % | {row['reward_mean']:.4f} ± "
            f"{row['reward_std']:.4f} | "
            f"{'–' if needed is None else f'{needed:.0f}'} ({row.get('reached_random', '–')}) |"
        )
    if config.figure is not None:
        budgets = ", ".join(config.run.budget)
        draw(config.figure, curves, f"{config.run.model} on {config.run.dataset}, {budgets}")
    print(
        json.dumps(
            {
                "methods": table,
                "dense_accuracy": float(dense.mean()),
                "seeds": len(results),
                "seconds": float(sum(result["seconds"] for result in results)),
                "device": describe_device(),
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
