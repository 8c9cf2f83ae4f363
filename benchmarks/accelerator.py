"""What only an accelerator can tell, in one call: equality, rates, selection, and the main job.

Command:  python benchmarks/accelerator.py --seconds 480 [--data-dir DIR] [--out FOLDER]
          python benchmarks/accelerator.py --quick     (on a CPU)

Parts come in order of importance. Each prints a JSON line as soon as it is done, which goes to
``lines.jsonl`` in the folder too; one that fails says so in its line and the next begins; one for
which time is short is skipped with a line.

(a) ``equality``: slim against masked in full float32, and at the default precision; ``conv``: the
    values and gradients of the convolution against float64 on the CPU.
(b) ``matmul``: the card's rate, measured; ``rates NETWORK PRECISION``: images per second of
    training, of a plain forward and of candidates, and the fraction of that rate.
(c) ``selection``: exact selection, SAP's update, the PQ Index and a step with masks of 25 M
    weights, beside a read and an argsort.
(d) ``compiling``: seconds of a pruner's update by the number of leaves; those of all other programs
    stand in their own lines. ``seeds``: ResNet20 from eight seeds, in one program or in turn.
(e) ``job``: VGG16 on CIFAR-10 to a tenth of its parameters by the fast recipe, with random search,
    the dense network trained on and the widths from scratch; on made images of the same shape where
    the data are not there, and as long as time is left.

Not yet run on an accelerator (2026-11-28). ``--quick`` took 98 seconds of one core of an AMD EPYC.
"""

import dataclasses
import functools
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import rlprune_jax as rp
from rlprune_jax.devices import describe_device, gpu_advice, versions
from rlprune_jax.models.convolution import conv_general_dilated
from rlprune_jax.runs import CompileClock
from rlprune_jax.sparsity.selection import drop_smallest
from rlprune_jax.sparsity.updates import every
from rlprune_jax.training import data
from rlprune_jax.training.data import Dataset, Split
from rlprune_jax.training.image_task import image_task
from rlprune_jax.training.loops import init_train_state, make_train_step, train
from rlprune_jax.training.recalibration import recalibrate
from rlprune_jax.training.task import Task
from rlprune_jax.types import Gates, PyTree
from rlprune_jax.workflow.building import build_network, wanted_of
from rlprune_jax.workflow.candidates import (
    CandidateData,
    Evaluator,
    evaluate_candidates,
    usual_chunk,
)
from rlprune_jax.workflow.config import PRECISIONS, Precision
from rlprune_jax.workflow.fitting import equivalence
from rlprune_jax.workflow.network import Network
from rlprune_jax.workflow.precision import in_precision
from rlprune_jax.workflow.recipes import FastRecipe
from rlprune_jax.workflow.sources import NetworkOptions

Found = dict[str, PyTree]
"""What a part tells, as JSON."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the script."""

    seconds: float = 480.0
    """In all; what does not fit is skipped with a line."""
    quick: bool = False
    """Small networks and few repeats, for a CPU; 300 seconds at most."""
    data_dir: str | None = None
    """Where CIFAR-10 lies; without it images are made."""
    out: str = "accelerator"
    """Folder of evidence."""
    seed: int = 0
    """Of everything."""


class Sizes(NamedTuple):
    """Hold how large everything is."""

    networks: dict[str, NetworkOptions]
    batch: int
    steps: int
    candidates: int
    weights: int
    leaves: tuple[int, ...]
    matrix: int
    examples: int
    small: NetworkOptions
    small_steps: int
    seeds: int


FULL = Sizes(
    networks={name: NetworkOptions(model=name) for name in ("vgg16", "resnet18")},
    batch=512,
    steps=50,
    candidates=64,
    weights=25_000_000,
    leaves=(20, 200),
    matrix=8192,
    examples=50_000,
    small=NetworkOptions(model="resnet20"),
    small_steps=400,
    seeds=8,
)
QUICK = Sizes(
    networks={"cnn": NetworkOptions(model="cnn", widths=(4, 4, 8, 8))},
    batch=16,
    steps=2,
    candidates=4,
    weights=200_000,
    leaves=(5,),
    matrix=256,
    examples=600,
    small=NetworkOptions(model="mlp", widths=(8,)),
    small_steps=150,
    seeds=2,
)


class Evidence:
    """Run parts while time lasts, and keep what they tell.

    Attributes:
        lines: of all parts so far.
    """

    def __init__(self, seconds: float, folder: str, clock: Callable[[], float] = time.monotonic):
        """Begin counting."""
        self._clock, self._end = clock, clock() + seconds
        self._file = Path(folder) / "lines.jsonl"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text("")
        self.lines: list[Found] = []

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self._end - self._clock()

    def part(self, name: str, needs: float, function: Callable[[], Found]) -> None:
        """Run a part and print its line.

        Args:
            name: of the part.
            needs: seconds that it takes about; with fewer it is skipped.
            function: returns what it tells.
        """
        if self.left < needs:
            left = max(0.0, self.left)
            self._tell(name, {"skipped": f"needs {needs:.0f} s, {left:.0f} s are left"})
            return
        began = self._clock()
        with CompileClock() as compiling:
            try:
                found = function()
            except Exception as error:  # the next part may still tell something
                traceback.print_exc()
                found = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        took = {"seconds": self._clock() - began, "compile_seconds": compiling.seconds}
        self._tell(name, {**found, **took})

    def _tell(self, name: str, found: Found) -> None:
        line = rounded({"part": name, **found})
        self.lines.append(line)
        text = json.dumps(line)
        print(text, flush=True)
        with self._file.open("a") as file:
            file.write(text + "\n")


def rounded(value: PyTree) -> PyTree:
    """Return JSON whose floats have four digits."""
    if isinstance(value, dict):
        return {str(name): rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    return float(f"{float(value):.4g}") if np.isfinite(value) else None


def timed(function: Callable[[], PyTree], repeats: int = 5) -> float:
    """Return the median seconds of a call that is compiled."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def made_images(count: int, seed: int) -> Dataset:
    """Make images of the shape of CIFAR-10 that a network can learn to tell apart.

    Each class has a coarse pattern that is shifted, scaled and drowned in noise.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((10, 8, 8, 3), np.float32)
    patterns = np.kron(coarse, np.ones((1, 4, 4, 1), np.float32))

    def some(labels: np.ndarray) -> np.ndarray:
        noise = rng.standard_normal((len(labels), 32, 32, 3), np.float32)
        contrast = rng.uniform(10, 40, (len(labels), 1, 1, 1)).astype(np.float32)
        shifts = rng.integers(-4, 5, (len(labels), 2))
        clean = np.stack(
            [np.roll(patterns[label], shift, (0, 1)) for label, shift in zip(labels, shifts)]  # noqa: B905
        )
        return np.clip(128 + contrast * clean + 40 * noise, 0, 255).astype(np.uint8)

    def split(count: int) -> Split:
        labels = rng.integers(0, 10, count).astype(np.int32)
        parts = [some(labels[at : at + 5000]) for at in range(0, count, 5000)]
        return Split(np.concatenate(parts), labels)

    scaled = (train := split(count * 9 // 10)).images[:5000] / 255
    return Dataset(
        name="made_images",
        num_classes=10,
        mean=tuple(map(float, scaled.mean((0, 1, 2)))),
        std=tuple(map(float, scaled.std((0, 1, 2)))),
        train=train,
        held_out=split(count // 10),
        test=split(count // 5),
    )


def load_task(config: Config, sizes: Sizes) -> Task:
    """Return the task of CIFAR-10, or of made images where it is not there."""
    from rlprune_jax.training.augmentation import CropAndFlip

    if config.data_dir is not None:
        return image_task(data.load("cifar10", config.data_dir, seed=config.seed))
    return image_task(made_images(sizes.examples, config.seed), CropAndFlip())


def made_network(options: NetworkOptions, task: Task, seed: int) -> Network:
    """Return a network, initialised, with the running statistics of its data."""
    network = build_network(options, wanted_of(task, seed)).network
    assert network.apply_train is not None
    inputs = task.objective.network_inputs(task.sample("train", 64))
    fitted = jax.jit(functools.partial(recalibrate, network.apply_train))
    return network.replace(fitted(network.variables, *inputs))


def half_gates(network: Network, count: int, seed: int) -> Gates:
    """Draw gates f32[count, units] that keep about half of the units, the first of each group."""
    keys = jax.random.split(jax.random.key(seed), len(network.graph.groups))
    return {
        group.name: jax.random.bernoulli(key, 0.5, (count, group.size))
        .astype(jnp.float32)
        .at[:, 0]
        .set(1.0)
        for group, key in zip(network.graph.groups, keys, strict=True)
    }


def equality(network: Network, task: Task) -> Found:
    """Compare slim and masked outputs."""
    gates = jax.tree.map(lambda each: each[0], half_gates(network, 1, 0))
    inputs = task.objective.network_inputs(task.sample("test", 128))
    found = equivalence(network, network.slim(gates), gates, inputs)
    return {**found._asdict(), "holds": found.holds}


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int, groups: int) -> np.ndarray:
    """Return a convolution with padding "SAME" in float64, tap by tap."""
    size, taps = x.shape[1], kernel.shape[0]
    out = -(-size // stride)
    pad = max((out - 1) * stride + taps - size, 0)
    border = (pad // 2, pad - pad // 2)
    x = np.pad(x.astype(np.float64), ((0, 0), border, border, (0, 0)))
    split = x.reshape(*x.shape[:3], groups, -1)
    kernel = kernel.astype(np.float64).reshape(taps, taps, -1, groups, kernel.shape[-1] // groups)
    total = np.zeros((x.shape[0], out, out, groups, kernel.shape[-1]))
    for row in range(taps):
        for column in range(taps):
            rows, columns = (slice(at, at + (out - 1) * stride + 1, stride) for at in (row, column))
            total += np.einsum("bhwgi,igo->bhwgo", split[:, rows, columns], kernel[row, column])
    return total.reshape(*total.shape[:3], -1)


CONVOLUTIONS = {"3x3": (3, 1, 1), "3x3/2": (3, 2, 1), "1x1": (1, 1, 1), "depthwise": (3, 1, 16)}
"""Taps, stride and groups of what is compared with float64."""


def conv(batch: int, size: int) -> Found:
    """Return the largest relative errors of the convolution and of its gradients.

    The gradient of the sum of outputs times fixed numbers is linear in each operand, so float64
    differences of the reference are exact.
    """
    rng = np.random.default_rng(0)
    found: Found = {}
    for name, (taps, stride, groups) in CONVOLUTIONS.items():
        x = rng.normal(size=(batch, size, size, 16)).astype(np.float32)
        kernel = rng.normal(size=(taps, taps, 16 // groups, 16)).astype(np.float32)
        expected = convolved(x, kernel, stride, groups)
        weights = rng.normal(size=expected.shape).astype(np.float32)

        def ours(x, kernel, stride=stride, groups=groups):
            return conv_general_dilated(
                x,
                kernel,
                (stride, stride),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )

        def total(x, kernel, ours=ours, weights=weights):
            return jnp.sum(ours(x, kernel) * weights)

        moved, bent = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
        slopes = [
            (convolved(one, other, stride, groups) * weights).sum()
            for one, other in ((moved, kernel), (x, bent))
        ]
        row: Found = {}
        for precision in ("highest", None):
            with jax.default_matmul_precision(precision):
                value = np.asarray(jax.jit(ours)(x, kernel), np.float64)
                gradients = jax.jit(jax.grad(total, (0, 1)))(x, kernel)
            error = np.abs(value - expected).max() / np.abs(expected).max()
            along = [
                float((np.asarray(gradient, np.float64) * direction).sum())
                for gradient, direction in zip(gradients, (moved, bent), strict=True)
            ]
            wrong = [abs(a - b) / max(abs(b), 1.0) for a, b in zip(along, slopes, strict=True)]
            row[precision or "default"] = {"value": error, "gradients": wrong}
        found[name] = row
    return found


def matmul(size: int) -> Found:
    """Measure products of square matrices, in operations per second."""
    found: Found = {}
    for precision in PRECISIONS:
        matrix = jnp.ones((size, size), precision)
        product = functools.partial(jax.jit(jnp.matmul), matrix, matrix)
        found[precision] = 2 * size**3 / timed(product)
    return found


class Rates(NamedTuple):
    """Hold what the rates of a network are measured with."""

    network: Network
    task: Task
    sizes: Sizes
    peak: float


def rates(given: Rates, precision: Precision) -> Found:
    """Measure images per second of training, forward pass and candidates."""
    network, sizes, objective = given.network, given.sizes, given.task.objective
    variables = network.variables
    recipe = FastRecipe(steps=1000, rate=0.01, batch_size=sizes.batch)
    optimizer = recipe.optimizer(1000)
    trained = in_precision(network.definition.training_mode, precision)
    step = make_train_step(trained, optimizer, objective)
    state = init_train_state(variables, optimizer)
    key, found = jax.random.key(0), dict[str, float]()
    clock = {}

    def compiled(name: str, function: Callable[[], PyTree], images: int) -> None:
        with CompileClock() as compiling:
            jax.block_until_ready(function())
        clock[f"{name}_compile"] = compiling.seconds
        found[name] = images / timed(function, 3)

    def training() -> PyTree:
        images, steps = given.task.train, sizes.steps
        done = train(step, state, images, batch_size=sizes.batch, num_steps=steps, key=key)
        return done[1]["loss"]

    compiled("training", training, sizes.batch * sizes.steps)
    batch = given.task.sample("train", sizes.batch)
    inputs = objective.network_inputs(batch)
    many = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 8), inputs)
    forward = jax.jit(in_precision(network.apply, precision))
    compiled("forward", lambda: forward(variables, *many), 8 * sizes.batch)
    evaluator = Evaluator(network.definition, objective, recalibration=False, precision=precision)
    seen = CandidateData(calibration=inputs, batch=batch)
    gates = half_gates(network, sizes.candidates, 1)
    evaluate = jax.jit(evaluate_candidates, static_argnums=0)

    def candidates() -> PyTree:
        return evaluate(evaluator, variables, gates, seen, key)

    compiled("candidates", candidates, sizes.candidates * sizes.batch)
    operations = 2.0 * rp.count_macs(network.graph)
    return {
        "images_per_second": found,
        "of_matmul_rate": {
            "training": 3 * operations * found["training"] / given.peak,
            "forward": operations * found["forward"] / given.peak,
        },
        "candidates_over_forward": found["candidates"] / found["forward"],
        "chunk": usual_chunk(evaluator, variables, seen),
        "batch": sizes.batch,
        **clock,
    }


def selection(count: int) -> Found:
    """Measure selection, PQ Index and masked steps beside a read and an argsort."""
    import optax

    weights = jax.random.normal(jax.random.key(0), (count,))
    params, mask = {"w": weights.reshape(-1, 1000)}, {"w": jnp.ones((count // 1000, 1000), bool)}
    pruner = rp.sap(p=0.5, q=1.0)
    state = pruner.init(params, mask)
    optimizers = {
        "adam": optax.with_extra_args_support(optax.adam(1e-3)),
        "masked_adam": optax.chain(optax.adam(1e-3), rp.masked_updates(mask)),
        "refreshing_adam": optax.chain(
            optax.adam(1e-3),
            rp.masked_updates(mask, rp.lottery_ticket(0.1), every(10**6, begin=10**6)),
        ),
    }
    read, argsort, update = jax.jit(jnp.sum), jax.jit(jnp.argsort), jax.jit(pruner.update)
    select = jax.jit(drop_smallest)
    magnitudes, alive = jnp.abs(weights), jnp.ones(count, bool)
    jobs: dict[str, Callable[[], PyTree]] = {
        "read": lambda: read(weights),
        "argsort": lambda: argsort(weights),
        "select": lambda: select(magnitudes, alive, count // 5),
        "sap_update": lambda: update(params, mask, state),
    }
    for p, q in ((0.5, 1.0), (1.0, 2.0)):
        index = jax.jit(functools.partial(rp.pq_index, p=p, q=q))
        jobs[f"pq_index_{p}_{q}"] = lambda index=index: index(params, mask)  # type: ignore[misc]
    for name, optimizer in optimizers.items():
        step = jax.jit(lambda held, o=optimizer: o.update(params, held, params, step=1))
        held = optimizer.init(params)
        jobs[name] = lambda step=step, held=held: step(held)  # type: ignore[misc]
    times = {name: 1e3 * timed(job) for name, job in jobs.items()}
    over = {
        f"{name}_over_argsort": times["argsort"] / times[name] for name in ("select", "sap_update")
    }
    return {"milliseconds": times, "weights": count, **over}


def compiling(leaves: tuple[int, ...]) -> Found:
    """Measure seconds of compiling a pruner's update, by the number of leaves."""
    found = {}
    for count in leaves:
        params = {f"w{number}": jnp.ones((64 + number, 64)) for number in range(count)}
        mask, pruner = rp.make_mask(params), rp.sap(p=0.5, q=1.0)
        state = pruner.init(params, mask)
        began = time.perf_counter()
        jax.jit(pruner.update).lower(params, mask, state).compile()
        found[str(count)] = time.perf_counter() - began
    return {"sap_update_seconds_by_leaves": found}


def many_seeds(sizes: Sizes, task: Task) -> Found:
    """Train a small network from many seeds, and tell which way was faster."""
    network = build_network(sizes.small, wanted_of(task, 0)).network
    recipe = FastRecipe(steps=sizes.small_steps, batch_size=min(256, sizes.batch), rate=0.1)
    found = rp.train_seeds(network, task, recipe, range(sizes.seeds))
    return {"way": found.way, "why": found.why, "seeds": sizes.seeds}


def job(config: Config, task: Task, network: Network, left: float, rate: float) -> Found:
    """Train, prune and finetune in the time that is left.

    A fifth of it goes to the dense training and a third to the finetunes and controls.

    Args:
        config: of the script.
        task: CIFAR-10 or made images.
        network: as initialised.
        left: seconds.
        rate: images per second of training, as measured.
    """
    batch = 16 if config.quick else 512
    affordable = int(0.2 * left * rate / batch)
    steps = max(20, min(60 if config.quick else 8_800, affordable))
    evaluations, candidates = (16, 8) if config.quick else (2048, 64)
    recipe = FastRecipe(steps=steps, batch_size=batch, rate=0.1 if config.quick else 0.4)
    began = time.perf_counter()
    dense = rp.train_dense(network, task, recipe, config.seed)
    jax.block_until_ready(dense.variables)
    trained = time.perf_counter() - began
    result = rp.prune(
        dense,
        task,
        "params=0.5" if config.quick else "params=0.1",
        seed=config.seed,
        evaluations=evaluations,
        candidates=candidates,
        baselines=("random_search",),
        rerank=2,
        rerank_steps=max(2, steps // 50),
        finetune_steps=max(4, steps // 4),
        batch_size=batch,
        controls=True,
        run_dir=str(Path(config.out) / time.strftime("job-%Y%m%d-%H%M%S")),
    )
    return {
        "data": task.description.get("dataset"),
        "dense_steps": steps,
        "dense_seconds": trained,
        "result": result.to_json(),
    }


def main(config: Config) -> list[Found]:
    """Run all parts and return their lines."""
    sizes = QUICK if config.quick else FULL
    if advice := gpu_advice():
        print(f"note: {advice}", file=sys.stderr)
    evidence = Evidence(min(config.seconds, 300.0) if config.quick else config.seconds, config.out)
    scale = 0.2 if config.quick else 1.0
    tell = evidence.part
    tell(
        "device",
        0,
        lambda: {
            "device": describe_device(),
            "versions": versions(),
            "date": time.strftime("%Y-%m-%d"),
        },
    )
    task = load_task(config, sizes).on_device()

    @functools.cache
    def network_of(name: str) -> Network:
        return made_network(sizes.networks[name], task, config.seed)

    def rates_of(name: str, most: float, precision: Precision) -> Found:
        return rates(Rates(network_of(name), task, sizes, most), precision)

    first = next(iter(sizes.networks))
    tell("equality", 20 * scale, lambda: equality(network_of(first), task))
    tell("conv", 15 * scale, lambda: conv(4, 12))
    tell("matmul", 5 * scale, lambda: matmul(sizes.matrix))
    peak = next((line for line in evidence.lines if line["part"] == "matmul"), {})
    for precision in PRECISIONS:
        most = peak.get(precision, float("nan"))
        for name in sizes.networks:
            tell(
                f"rates {name} {precision}",
                45 * scale,
                functools.partial(rates_of, name, most, precision),
            )
    tell("selection", 20 * scale, lambda: selection(sizes.weights))
    tell("compiling", 30 * scale, lambda: compiling(sizes.leaves))
    tell("seeds", 40 * scale, lambda: many_seeds(sizes, task))
    rows = [line for line in evidence.lines if line["part"].startswith("rates")]
    speeds = [line["images_per_second"]["training"] for line in rows if "images_per_second" in line]
    tell(
        "job",
        100 * scale,
        lambda: job(config, task, network_of(first), evidence.left, (speeds or [1e3])[0]),
    )
    tell("end", 0, lambda: {"seconds_left": evidence.left})
    return evidence.lines


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
