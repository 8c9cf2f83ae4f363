"""Run the cells of one static group in blocks.

Size by memory, strategy by measurement.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from rlprune_jax.study import program as programs
from rlprune_jax.study.program import CompiledBlock, Job
from rlprune_jax.study.settings import Value
from rlprune_jax.study.store import Chunk, Store
from rlprune_jax.types import PyTree

STRATEGIES = ("auto", "vmap", "map")
CPU_CELLS = 16  # wider blocks gain nothing on a CPU and lose more to a kill
PROBE_CELLS = 16
BRIEF_SECONDS = 0.5


Programs = dict[tuple[str, str, int, int], CompiledBlock]
"""Compiled blocks by group, strategy, settings and seeds."""


class StudyTick(Protocol):
    """Show progress."""

    def __call__(self, count: int, note: str, /) -> object:
        """Take note of so many more cells or trials, and of how they are run."""


class StaticGroup(NamedTuple):
    """Hold settings that share static structure.

    Attributes:
        name: of the group, as measurements are kept under.
        job: what runs.
        static: its static arguments.
        columns: traced numbers [h] of the group's settings.
        places: of these settings in the study, [h].
        shared: arrays on the devices.
        metrics: names of what a cell gives.
    """

    name: str
    job: Job
    static: Mapping[str, Value]
    columns: Mapping[str, np.ndarray]
    places: tuple[int, ...]
    shared: PyTree
    metrics: tuple[str, ...] = ()


class Plan(NamedTuple):
    """Say how a study wants its blocks.

    ``chunk`` settings at most, or None for as memory allows.
    """

    strategy: str
    chunk: int | None
    devices: tuple[jax.Device, ...]
    memory: int | None = None


class Runner:
    """Run missing cells of a group.

    Every block that is done is saved before the next starts.
    """

    def __init__(
        self,
        group: StaticGroup,
        seeds: Sequence[int],
        plan: Plan,
        store: Store,
        compiled: Programs | None = None,
    ):
        self.group, self.plan, self.store = group, plan, store
        self.seeds = tuple(seeds)
        keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
        self.key_data = np.asarray(jax.random.key_data(keys))
        self.compile_seconds = 0.0
        self._programs: Programs = {} if compiled is None else compiled
        self._lasting = compiled is not None

    def run(self, missing: Sequence[tuple[int, int]], tick: StudyTick) -> str:
        """Run missing cells and return the strategy.

        Cells are ``(place in the group, place of the seed)``.
        """
        left = list(missing)
        if not left:
            return "none"
        settings, seeds = self._shape(left)
        strategy, left = self._strategy(left, settings, seeds, tick)
        if not left:
            return strategy
        settings, seeds = self._fitted(strategy, settings, seeds)
        while left:
            try:
                left = self._advance(left, strategy, settings, seeds, tick)[0]
            except Exception as error:
                if not programs.is_out_of_memory(error):
                    raise
                settings, seeds = self._smaller(settings, seeds, error)
                settings, seeds = self._fitted(strategy, settings, seeds)
        return strategy

    def _advance(
        self,
        left: list[tuple[int, int]],
        strategy: str,
        settings: int,
        seeds: int,
        tick: StudyTick,
    ) -> tuple[list[tuple[int, int]], float]:
        """Run and save one block; the cells that are left, and seconds per cell of the block."""
        block = next(_blocks(left, settings, seeds))
        values, seconds = self._call(strategy, settings, seeds, *block)
        done = {(place, seed) for place in block[0] for seed in block[1]}
        self._save(block, values, seconds / len(done))
        tick(len(done), f"{strategy}, {settings} x {seeds} at once")
        return [cell for cell in left if cell not in done], seconds / (settings * seeds)

    def _shape(self, missing: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Settings and seeds of a block before memory has been asked."""
        count = len(self.plan.devices)
        seeds = len({seed for _, seed in missing})
        most = max(len(places) for places in _by_seeds(missing).values())
        settings = most if self.plan.chunk is None else min(self.plan.chunk, most)
        if self.plan.chunk is None and self.plan.devices[0].platform == "cpu":
            seeds = min(seeds, CPU_CELLS)
            settings = min(settings, max(1, CPU_CELLS // seeds) * count)
        if self._lasting and self.plan.chunk is not None:
            settings = self.plan.chunk  # a later call may have more, and is not to compile again
        else:
            settings = -(-most // -(-most // settings))  # the last block is nearly full
        return -(-settings // count) * count, seeds

    def _smaller(self, settings: int, seeds: int, error: Exception | None) -> tuple[int, int]:
        count = len(self.plan.devices)
        if settings > count:
            return max(1, settings // count // 2) * count, seeds
        if seeds > 1:
            return settings, seeds // 2
        raise RuntimeError(
            "one setting with one seed does not fit into the device's memory; make the job "
            f"smaller (fewer images or candidates): {error}"
        ) from error

    def _fitted(self, strategy: str, settings: int, seeds: int) -> tuple[int, int]:
        """Compile, look at the memory the program wants, and scale down while it is too much."""
        free = self.plan.memory or programs.bytes_free(self.plan.devices[0])
        while True:
            try:
                program = self._program(strategy, settings, seeds)
                needed = programs.bytes_needed(program, self.plan.devices)
            except Exception as error:
                if not programs.is_out_of_memory(error):
                    raise
                settings, seeds = self._smaller(settings, seeds, error)
                continue
            if needed <= free or (settings <= len(self.plan.devices) and seeds == 1):
                return settings, seeds
            count = len(self.plan.devices)
            scaled = int(settings * free / needed) // count * count
            if scaled >= count and scaled < settings:
                settings = scaled
            else:
                settings, seeds = self._smaller(count, seeds, None)

    def _strategy(
        self,
        left: list[tuple[int, int]],
        settings: int,
        seeds: int,
        tick: StudyTick,
    ) -> tuple[str, list[tuple[int, int]]]:
        """The strategy asked for, measured before, or measured now; and the cells left after it.

        One small block of each is timed, and what it computes is kept. What compiles and fits most
        easily comes first: mapping on a CPU, where vmap gains little, vmap elsewhere. The other is
        tried where what is left is long enough to win back its compilation.
        """
        if self.plan.strategy != "auto":
            return self.plan.strategy, left
        kept = self.store.measured(self.group.name)
        if isinstance(kept, dict) and kept.get("strategy") in STRATEGIES[1:]:
            return str(kept["strategy"]), left
        count = len(self.plan.devices)
        order = ("map", "vmap") if self.plan.devices[0].platform == "cpu" else ("vmap", "map")
        if len(left) <= settings * seeds:
            return order[0], left  # one block does it all: measuring would only cost
        if settings * seeds > PROBE_CELLS * count:
            seeds = min(seeds, PROBE_CELLS)
            settings = max(1, PROBE_CELLS // seeds) * count
        per_cell: dict[str, float] = {}
        for strategy in order:
            if left and not self._pays(len(left), per_cell):
                break
            left, per_cell[strategy] = self._probe(left, strategy, (settings, seeds), tick)
            if not left:
                break
        best = min(per_cell, key=lambda name: per_cell[name])
        finite = {name: seconds for name, seconds in per_cell.items() if np.isfinite(seconds)}
        self.store.keep_measured(self.group.name, {"strategy": best, "seconds_per_cell": finite})
        return best, left

    def _pays(self, left: int, per_cell: Mapping[str, float]) -> bool:
        """Whether a strategy that saves a third of the time would win back its compilation."""
        return left * min(per_cell.values(), default=np.inf) / 3 > self.compile_seconds

    def _probe(
        self,
        left: list[tuple[int, int]],
        strategy: str,
        size: tuple[int, int],
        tick: StudyTick,
    ) -> tuple[list[tuple[int, int]], float]:
        """Run a small block; the cells left after it, and seconds per cell, inf out of memory."""
        try:
            size = self._fitted(strategy, *size)
            first = next(_blocks(left, *size))
            left, seconds = self._advance(left, strategy, *size, tick)
            if seconds * size[0] * size[1] < BRIEF_SECONDS:  # a first call warms up
                seconds = self._call(strategy, *size, *first)[1] / (size[0] * size[1])
            return left, seconds
        except Exception as error:
            if not programs.is_out_of_memory(error):
                raise
            return left, np.inf

    def _program(self, strategy: str, settings: int, seeds: int) -> CompiledBlock:
        name = (self.group.name, strategy, settings, seeds)
        if name not in self._programs:
            began = time.perf_counter()
            self._programs[name] = programs.compile_block(
                self.group.job,
                self.group.columns,
                self.group.static,
                self.group.shared,
                settings=settings,
                seeds=seeds,
                strategy=strategy,
                devices=self.plan.devices,
            )
            self.compile_seconds += time.perf_counter() - began
        return self._programs[name]

    def _call(
        self,
        strategy: str,
        settings: int,
        seeds: int,
        places: Sequence[int],
        seed_places: Sequence[int],
    ) -> tuple[dict[str, np.ndarray], float]:
        """Run one block, padded by repeating its first ones; metrics f64[h, s] and seconds."""
        rows, columns = _padded(places, settings), _padded(seed_places, seeds)
        program = self._program(strategy, settings, seeds)
        numbers = {name: column[rows] for name, column in self.group.columns.items()}
        keys = jax.random.wrap_key_data(self.key_data[columns])
        began = time.perf_counter()
        metrics = program.call(numbers, keys, self.group.shared)
        values = {
            name: np.asarray(metric, np.float64)[: len(places), : len(seed_places)]
            for name, metric in metrics.items()
        }
        return values, time.perf_counter() - began

    def _save(
        self,
        block: tuple[Sequence[int], Sequence[int]],
        values: Mapping[str, np.ndarray],
        seconds: float,
    ) -> None:
        places, seeds = block
        cells = [
            self.group.places[place] * len(self.seeds) + seed for place in places for seed in seeds
        ]
        chunk: Chunk = {
            "cell": np.asarray(cells, np.int64),
            "seconds": np.full(len(cells), seconds),
        }
        chunk |= {f"metric/{name}": value.reshape(-1) for name, value in values.items()}
        self.store.save(chunk)


def _padded(places: Sequence[int], size: int) -> np.ndarray:
    return np.asarray(places)[np.arange(size) % len(places)]


def _by_seeds(missing: Sequence[tuple[int, int]]) -> dict[tuple[int, ...], list[int]]:
    """Settings that miss the same seeds, by these seeds: together they make rectangles."""
    seeds: dict[int, list[int]] = defaultdict(list)
    for place, seed in missing:
        seeds[place].append(seed)
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, wanted in seeds.items():
        groups[tuple(sorted(wanted))].append(place)
    return groups


def _blocks(
    missing: Sequence[tuple[int, int]], settings: int, seeds: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Rectangles of at most ``settings`` by ``seeds`` that cover the missing cells once each."""
    for wanted, places in _by_seeds(missing).items():
        for row in range(0, len(places), settings):
            for column in range(0, len(wanted), seeds):
                block = list(wanted[column : column + seeds])
                yield places[row : row + settings], block
