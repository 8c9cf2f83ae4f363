"""Does a reward rank masks as finetuning does: plain, after each repair, and by retention?

Command:  python benchmarks/check_rewards.py --cases digits_cnn digits_resnet20 --seeds 2

For each case and seed a dense network is trained, then two things are asked. Masks that meet the
budget (units drawn at random, nearly uniform ones, and what a short search came across) are
rewarded in each way and finetuned: Spearman's rank correlation of the rewards with the finetuned
test accuracy, its interval by bootstrap over masks and seeds. And a search on each reward: the best
mask's reward, and its test accuracy after a short and a long finetune, from the dense weights and
from repaired ones. Also printed are the seconds that a candidate takes.

Every case and seed is written to --out when it is done and is not done again. The last line is
JSON.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.stats import spearmanr

from rlprune_jax.cli.common import enable_compilation_cache
from rlprune_jax.cli.options import PruneOptions, resolved
from rlprune_jax.search import check_archive
from rlprune_jax.types import Gates, PyTree
from rlprune_jax.workflow.building import build_network, build_task, wanted_of
from rlprune_jax.workflow.candidates import Evaluator, evaluate_candidates
from rlprune_jax.workflow.delivery import evaluate_masked
from rlprune_jax.workflow.fitting import deliverable, fit_to_budgets
from rlprune_jax.workflow.learning import Training, run_training
from rlprune_jax.workflow.learning import train_dense as trained
from rlprune_jax.workflow.pruning import (
    RETENTION,
    Pruning,
    candidate_data,
    make_pruning,
    repair_inputs,
    reward_repair,
)
from rlprune_jax.workflow.recipes import DenseRecipe, finetune_recipe
from rlprune_jax.workflow.retaining import dense_covariances, retained
from rlprune_jax.workflow.searches import search
from rlprune_jax.workflow.tuning import repaired, training_data

CASES: dict[str, dict[str, PyTree]] = {
    "digits_cnn": {"dataset": "digits", "model": "cnn", "budget": ("params=0.05",)},
    "digits_resnet20": {
        **{"dataset": "digits", "model": "resnet20", "width": 0.5, "budget": ("params=0.1",)},
    },
    "fashion_cnn": {
        **{"dataset": "fashion_mnist", "model": "cnn", "widths": (8, 16, 32, 64)},
        **{"dense_steps": 800, "budget": ("params=0.1",)},
    },
    "digits_small": {
        **{"dataset": "digits", "model": "cnn", "widths": (8, 16, 32, 64)},
        **{"dense_steps": 300, "budget": ("params=0.1",)},
    },
    "fashion_small": {
        **{"dataset": "fashion_mnist", "model": "cnn", "widths": (8, 16, 32, 64)},
        **{"dense_steps": 400, "reward_images": 256, "budget": ("params=0.05",)},
    },
    "digits_narrow_resnet20": {
        **{"dataset": "digits", "model": "resnet20", "width": 0.25},
        **{"dense_steps": 300, "budget": ("params=0.2",)},
    },
    "cifar_vgg11": {
        **{"dataset": "cifar10", "model": "vgg11", "width": 0.25},
        **{"dense_steps": 1200, "budget": ("params=0.1",)},
    },
    "quick": {
        **{"dataset": "digits", "model": "cnn", "widths": (8, 12, 16), "dense_steps": 100},
        **{"budget": ("params=0.2",)},
    },
}
"""Options of ``rlprune prune`` for each case."""


@dataclasses.dataclass(frozen=True)
class RewardOptions:
    """Options of the check."""

    cases: tuple[str, ...] = ("digits_cnn",)
    """Any of digits_cnn, digits_resnet20, fashion_cnn, cifar_vgg11, digits_small, fashion_small,
    digits_narrow_resnet20."""
    seeds: tuple[int, ...] = (0,)
    """Each trains a dense network of its own."""
    rewards: tuple[str, ...] = ("none", "fold", "merge", "ridge", "retention")
    """Repairs before the reward, or retention in its place."""
    searches: tuple[str, ...] = ("none", "merge", "retention")
    """Rewards that are searched with: after a repair, or with retention beside the metric."""
    masks: int = 36
    """Masks that are rewarded and finetuned, a third of each kind."""
    evaluations: int = 384
    """Candidates of a search."""
    steps: tuple[int, int] = (120, 360)
    """Of the short finetune, which masks are ranked by, and of the long one."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets."""
    out: Path = Path("runs/check_rewards")
    """Where results go."""
    quick: bool = False
    """One small network, few masks: whether it runs."""


class Mask(NamedTuple):
    """Hold a mask on the budget, and where it comes from."""

    kind: str
    gates: Gates


def dense_pruning(options: RewardOptions, case: str, seed: int) -> Pruning:
    """Return the problem of a case with its network trained, which is kept in --out."""
    from rlprune_jax.export import save_weights
    from rlprune_jax.workflow.building import with_weights

    given = dict(CASES[case], seed=seed, evaluations=options.evaluations)
    if given["dataset"] != "digits":
        given["data_dir"] = options.data_dir
    chosen = resolved(PruneOptions().replace(**given))
    task = build_task(chosen.data, seed)
    network = build_network(chosen.network, wanted_of(task, seed)).network
    place = options.out / f"{case}-{seed}.safetensors"
    if place.exists():
        network = with_weights(network, str(place))
    else:
        dense = chosen.dense
        recipe = DenseRecipe(
            steps=dense.dense_steps or 0, rate=dense.dense_rate or 0.1, rule=chosen.usual_dense_rule
        )
        network = trained(network, task, recipe, seed)
        save_weights(place, network.variables)
    return make_pruning(network, task, chosen.budgets.budget, chosen.config)


def draw_masks(pruning: Pruning, count: int, seed: int) -> list[Mask]:
    """Draw masks on the budget: at random, nearly uniform, and from a short search."""
    rng = np.random.default_rng(seed)
    env = pruning.env
    scores, sizes = np.asarray(env.raw_scores), pruning.graph.sizes

    def at_random() -> np.ndarray:
        keep = rng.uniform(0.1, 1, (env.num_groups, 1))
        return rng.uniform(size=scores.shape) < keep

    def nearly_uniform() -> np.ndarray:
        mask, keep = np.zeros(scores.shape), rng.uniform(0.25, 0.6)
        for index, size in enumerate(sizes):
            ratio = np.clip(keep * np.exp(0.3 * rng.normal()), 0.05, 1)
            logs = np.log(scores[index, :size] + 1e-12)
            noisy = logs + rng.normal(size=size) * rng.choice([0, 0.3, 1]) * logs.std()
            mask[index, np.argsort(-noisy)[: max(1, round(ratio * size))]] = 1
        return mask

    def fitted(mask: PyTree) -> Gates:
        return fit_to_budgets(env, pruning.constraints, jnp.asarray(mask, jnp.float32))

    third = count // 3
    config = dataclasses.replace(pruning.config, evaluations=256)
    found = search(dataclasses.replace(pruning, config=config), "agent").archive.feasible.masks
    kinds = [
        [Mask("random", fitted(at_random())) for _ in range(third)],
        [Mask("uniform", fitted(nearly_uniform())) for _ in range(third)],
        [Mask("agent", fitted(mask)) for mask in np.asarray(found)[: count - 2 * third]],
    ]
    # In turn, so that a check that is cut short has seen all kinds.
    return [mask for row in itertools.zip_longest(*kinds) for mask in row if mask is not None]


def with_reward(pruning: Pruning, kind: str) -> Pruning:
    """Return the problem with another reward."""
    retains = kind == "retention"
    config = dataclasses.replace(
        pruning.config,
        repair_reward="none" if retains else kind,  # type: ignore[arg-type]
        reward_retention=RETENTION if retains else 0.0,
    )
    return dataclasses.replace(pruning, config=config)


def rewards_of(pruning: Pruning, kind: str, gates: Gates) -> tuple[np.ndarray, float]:
    """Return rewards of stacked gates, and seconds for each without compilation."""
    pruning = with_reward(pruning, kind)
    evaluator = Evaluator(
        pruning.network.definition, pruning.task.objective, repair=reward_repair(pruning)
    )
    data, key = candidate_data(pruning), jax.random.key(0)
    call = jax.jit(evaluate_candidates, static_argnums=0)
    covariances = dense_covariances(pruning)

    def run() -> np.ndarray:
        if covariances is not None:
            return np.asarray(retained(pruning.graph, covariances, gates))
        return np.asarray(call(evaluator, pruning.network.variables, gates, data, key).metric)

    run()
    began = time.perf_counter()
    found = run()
    return found, (time.perf_counter() - began) / len(found)


def finetuner(pruning: Pruning) -> Callable[[Gates, int, bool], float]:
    """Return ``(gates, steps, start repaired) -> test metric``."""
    network, task = pruning.network, pruning.task
    data = training_data(task, False, pruning.config.batch_size)
    inputs = repair_inputs(pruning)

    def finetune(gates: Gates, steps: int, start: bool) -> float:
        begin = network
        if start:
            fixed = repaired(network.definition, network.variables, gates, inputs)
            begin = network.replace(fixed)
        recipe = finetune_recipe(pruning.config)
        training = Training(
            name="finetune",
            network=begin,
            objective=task.objective,
            data=data,
            recipe=recipe,
            steps=steps,
            gates=gates,
        )
        tuned = run_training(training, jax.random.key(5)) if steps else begin.variables
        return float(evaluate_masked(network, task.objective, tuned, gates, task.test).metric)

    return finetune


def rank_masks(options: RewardOptions, pruning: Pruning, seed: int) -> dict[str, PyTree]:
    """Reward and finetune masks of three kinds."""
    masks = draw_masks(pruning, options.masks, seed)
    gates = {name: jnp.stack([mask.gates[name] for mask in masks]) for name in masks[0].gates}
    rewards, seconds = {}, {}
    for kind in options.rewards:
        found, seconds[kind] = rewards_of(pruning, kind, gates)
        rewards[kind] = found.tolist()
        say("reward", repair=kind, mean=found.mean(), best=found.max(), seconds=seconds[kind])
    finetune = finetuner(pruning)
    short = options.steps[0]
    tested = []
    for mask in masks:
        tested.append(finetune(mask.gates, short, False))
        if len(tested) % 12 == 0 or len(tested) == len(masks):
            coefficients = {
                kind: spearmanr(values[: len(tested)], tested).statistic
                for kind, values in rewards.items()
            }
            say("rank", masks=len(tested), **coefficients)
    return {
        "kinds": [mask.kind for mask in masks],
        "rewards": rewards,
        "seconds": seconds,
        "tested": tested,
    }


def best_of_search(options: RewardOptions, pruning: Pruning, kind: str) -> dict[str, PyTree]:
    """Search with a reward, and finetune the best mask."""
    began = time.perf_counter()
    found = search(with_reward(pruning, kind), "agent")
    seconds = time.perf_counter() - began
    check_archive(found.archive)
    gates = deliverable(pruning.env, pruning.constraints, found.archive, 1)[0]
    finetune = finetuner(pruning)
    row: dict[str, PyTree] = {"reward": found.best_reward, "seconds": seconds}
    row["untrained, repaired"] = finetune(gates, 0, True)
    for steps in options.steps:
        row[f"{steps} steps"] = finetune(gates, steps, False)
        row[f"{steps} steps, repaired"] = finetune(gates, steps, True)
    say("search", repair=kind, **row)
    return row


def say(stage: str, **values: PyTree) -> None:
    """Print a row as it comes."""
    rounded = {k: round(float(v), 4) if not isinstance(v, str) else v for k, v in values.items()}
    print(json.dumps({"stage": stage, **rounded}), flush=True)


def correlations(
    results: Mapping[int, Mapping[str, PyTree]], draws: int = 1000
) -> dict[str, dict[str, list[float]]]:
    """Return Spearman's coefficient by reward: mean over seeds, and 95 % interval.

    Also of its difference to the plain reward's, on the same draws of seeds and masks.
    """
    seeds = list(results)
    kinds = list(results[seeds[0]]["rewards"])
    rng = np.random.default_rng(0)

    def of(picked: list[tuple[int, np.ndarray]]) -> np.ndarray:
        rows = []
        for seed, places in picked:
            tested = np.asarray(results[seed]["tested"])[places]
            rewards = [np.asarray(results[seed]["rewards"][kind])[places] for kind in kinds]
            rows.append([spearmanr(each, tested).statistic for each in rewards])
        return np.mean(rows, 0)

    counts = {seed: len(results[seed]["tested"]) for seed in seeds}
    whole = of([(seed, np.arange(counts[seed])) for seed in seeds])
    drawn = [
        of([(s, rng.integers(counts[s], size=counts[s])) for s in rng.choice(seeds, len(seeds))])
        for _ in range(draws)
    ]
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    gains = np.asarray(drawn) - np.asarray(drawn)[:, :1]
    worst, best = np.nanquantile(gains, [0.025, 0.975], axis=0)
    return {
        kind: {
            "spearman": [round(float(each[i]), 3) for each in (whole, low, high)],
            "gain": [round(float(each), 3) for each in (whole[i] - whole[0], worst[i], best[i])],
            "seconds": [round(np.mean([results[s]["seconds"][kind] for s in seeds]), 4)],
        }
        for i, kind in enumerate(kinds)
    }


def do(options: RewardOptions, case: str, seed: int) -> dict[str, PyTree]:
    """Do a case and seed, or read what was found before."""
    place = options.out / f"{case}-{seed}.json"
    found: dict[str, PyTree] = json.loads(place.read_text()) if place.exists() else {}
    wanted = ["ranks", *options.searches]
    if all(name in found for name in wanted):
        return found
    print(f"{case}, seed {seed}", flush=True)
    pruning = dense_pruning(options, case, seed)
    for name in wanted:
        if name in found:
            continue
        ranks = name == "ranks"
        found[name] = (
            rank_masks(options, pruning, seed) if ranks else best_of_search(options, pruning, name)
        )
        place.write_text(json.dumps(found))
    return found


def main(options: RewardOptions) -> dict[str, PyTree]:
    """Do all cases and seeds, and print what they came to."""
    enable_compilation_cache()
    if options.quick:
        options = dataclasses.replace(
            options, cases=("quick",), masks=12, evaluations=64, steps=(10, 20)
        )
    options.out.mkdir(parents=True, exist_ok=True)
    line: dict[str, PyTree] = {"device": jax.devices()[0].device_kind, "seeds": options.seeds}
    for case in options.cases:
        results = {seed: do(options, case, seed) for seed in options.seeds}
        line[case] = {
            "ranks": correlations({seed: found["ranks"] for seed, found in results.items()}),
            "searches": {
                kind: {
                    name: [round(found[kind][name], 4) for found in results.values()]
                    for name in results[options.seeds[0]][kind]
                }
                for kind in options.searches
            },
        }
    print(json.dumps(line))
    return line


if __name__ == "__main__":
    main(tyro.cli(RewardOptions, description=__doc__))
