"""The result of a pruning run: a value to read, print, save and store as JSON."""

import dataclasses
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rlprune_jax.costs import Latency
from rlprune_jax.files import to_json, unwritable
from rlprune_jax.sealed import DamagedFileError, parse_json, read_regular, seal_of, unseal
from rlprune_jax.types import PyTree
from rlprune_jax.wording import metric_text, metric_title
from rlprune_jax.workflow.config import AGENT
from rlprune_jax.workflow.delivery import Delivered
from rlprune_jax.workflow.network import Network
from rlprune_jax.workflow.searches import Search

VERSION = 3
"""Of ``result.json``: 2 names the metric, and may have entries that 1 has not; 3 is sealed."""


class ResultError(ValueError):
    """A stored result is damaged, incomplete or of another version."""


@dataclasses.dataclass(frozen=True)
class NetworkResult:
    """Hold what is known of one network.

    Attributes:
        metric: on the test data.
        params: parameters.
        macs: for one example.
        kept: units kept in each group; None of the dense network.
        latency_ms: milliseconds of one call by number of examples; None where it was not measured.
        file_bytes: size of a file of its weights; None where none was written.
        evaluations: candidates that its search evaluated; None of the dense network.
        best_held_out_reward: of its search, before any finetuning.
    """

    metric: float
    params: int
    macs: int
    kept: dict[str, int] | None = None
    latency_ms: dict[int, dict[str, float]] | None = None
    file_bytes: int | None = None
    evaluations: int | None = None
    best_held_out_reward: float | None = None

    def to_json(self, metric_name: str) -> dict[str, PyTree]:
        """Return plain JSON, the metric under its own name."""
        row: dict[str, PyTree] = {metric_name: self.metric}
        row |= {"params": self.params, "macs": self.macs}
        if self.latency_ms is not None:
            timed = BATCHES & set(self.latency_ms) or set(self.latency_ms)
            row["latency_ms"] = self.latency_ms[max(timed)]
            row["latency_ms_by_batch"] = {
                str(count): latency for count, latency in self.latency_ms.items()
            }
        for name in ("file_bytes", "kept", "evaluations", "best_held_out_reward"):
            if getattr(self, name) is not None:
                row[name] = getattr(self, name)
        return to_json(row)

    @classmethod
    def from_json(cls, row: Mapping[str, PyTree], metric_name: str) -> "NetworkResult":
        """Return what ``to_json`` was made of."""
        times = row.get("latency_ms_by_batch")
        return cls(
            metric=_number(row[metric_name]),
            params=row["params"],
            macs=row["macs"],
            kept=row.get("kept"),
            latency_ms=times and {int(count): latency for count, latency in times.items()},
            file_bytes=row.get("file_bytes"),
            evaluations=row.get("evaluations"),
            best_held_out_reward=row.get("best_held_out_reward"),
        )


LABELS = ("dataset", "model", "extends")
"""What a command line tells besides: what was pruned, and the run that this one goes on from."""


def _number(value: float | None) -> float:
    """Return a number as JSON keeps it, which has null for NaN and infinity."""
    return math.nan if value is None else float(value)


CONTROLS = {
    "trained_on": "dense trained on",
    "scratch": "agent's widths from scratch",
    "scratch_twice": "the same, twice as long",
}
"""What controls are called in tables."""

BATCHES = {1, 128}
"""Examples a call that every result has latencies for."""


@dataclasses.dataclass(frozen=True)
class PruneResult:
    """Hold what a pruning run came to.

    Attributes:
        metric_name: of the task's metric, such as ``"accuracy"``.
        dense: the network before.
        pruned: what the agent delivered.
        baselines: what its rivals delivered, by method.
        budgets: each with ``name``, ``limit``, ``achieved``, ``unit``, ``count``, ``satisfied``; of
            a latency table also ``measured``, what the network took where the table predicted
            ``achieved``.
        search: ``evaluations``, ``seconds``, ``compile_seconds``, ``candidates_per_second``,
            ``feasible_fraction``, ``best_held_out_reward``.
        max_abs_diff: between the outputs of the slim and the masked network, in full float32.
        groups: units of each group of the dense network.
        seed: of the run.
        seconds: that it took.
        versions: of what it was computed with.
        device: that it was computed on.
        labels: what else is to be told, such as the names of data set and model.
        test_examples: examples of the test data; None where they come batch by batch.
        default_max_abs_diff: the same as the device computes by default; None where it is not
            known.
        is_equal: whether the difference is one of rounding; where it is not, the slim network is
            not what was searched for, and the files beside it say so.
        controls: what the agent's network is to be compared with, by name, each with ``metric``,
            ``loss`` and ``steps``; empty unless asked for.
        network: the slim network; None where the result was read from a file.
        delivered: what was delivered, by method; empty where the result was read from a file.
        searches: what was found, by method; empty where the result was read from a file.
        run_dir: where the run lies, or None.
    """

    metric_name: str
    dense: NetworkResult
    pruned: NetworkResult
    baselines: dict[str, NetworkResult]
    budgets: list[dict[str, PyTree]]
    search: dict[str, float]
    max_abs_diff: float
    groups: dict[str, int]
    seed: int
    seconds: float
    versions: dict[str, str]
    device: dict[str, PyTree]
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    test_examples: int | None = None
    default_max_abs_diff: float | None = None
    is_equal: bool = True
    controls: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    network: Network | None = None
    delivered: dict[str, Delivered] = dataclasses.field(default_factory=dict, repr=False)
    searches: dict[str, Search] = dataclasses.field(default_factory=dict, repr=False)
    run_dir: Path | None = None

    @property
    def is_within_budgets(self) -> bool:
        """Return whether every budget is respected.

        What is delivered always respects them.
        """
        return all(row["satisfied"] for row in self.budgets)

    @property
    def methods(self) -> dict[str, NetworkResult]:
        """The agent's network and its rivals', by method."""
        return {AGENT: self.pruned, **self.baselines}

    def save(self, path: str | os.PathLike) -> Path:
        """Write the slim network to a folder.

        Returns the folder. It holds ``weights.safetensors``, ``plan.json``, ``model.stablehlo`` and
        ``README.txt``, which says how to load them. A result that was read from a run directory
        copies them from there.

        Raises:
            ResultError: the result was read from a file alone and has no network.
            UnwritableError: the folder cannot be written.
        """
        from rlprune_jax.workflow.shipping import save_slim

        written = None if self.run_dir is None else self.run_dir / "slim"
        if self.network is not None and AGENT in self.delivered:
            defect = None if self.is_equal else self.max_abs_diff
            save_slim(self.delivered[AGENT], self.network, path, defect)
        elif written is not None and written.is_dir():
            copy_folder(written, Path(path))
        else:
            raise ResultError(
                f"the result has no network: it was read from a file, and there is no {written}; "
                "prune again, or keep slim/ beside result.json"
            )
        return Path(path)

    def to_json(self) -> dict[str, PyTree]:
        """Return the content of ``result.json``."""
        name = self.metric_name
        return to_json(
            {
                "version": VERSION,
                **self.labels,
                "metric": name,
                "dense": self.dense.to_json(name),
                "pruned": self.pruned.to_json(name),
                "budgets": self.budgets,
                "search": self.search,
                "baselines": {
                    method: found.to_json(name) for method, found in self.baselines.items()
                },
                "equivalence": {
                    "max_abs_diff": self.max_abs_diff,
                    "default_max_abs_diff": self.default_max_abs_diff,
                    "equal": self.is_equal,
                },
                "groups": self.groups,
                **({"controls": self.controls} if self.controls else {}),
                **({"test_examples": self.test_examples} if self.test_examples else {}),
                "seed": self.seed,
                "versions": self.versions,
                "device": self.device,
                "seconds": self.seconds,
            }
        )

    @classmethod
    def from_json(cls, content: Mapping[str, PyTree], where: str = "result.json") -> "PruneResult":
        """Return the result that a file holds, without its networks.

        Args:
            content: of ``result.json``.
            where: to name in an error.

        Raises:
            ResultError: an entry is missing, or the version is not known.
        """
        version = content.get("version", 1)
        if version not in range(1, VERSION + 1):
            raise ResultError(f"{where} has version {version!r}; this package reads 1 to {VERSION}")
        try:
            name = content["metric"] if version > 1 else "accuracy"
            return cls(
                metric_name=name,
                dense=NetworkResult.from_json(content["dense"], name),
                pruned=NetworkResult.from_json(content["pruned"], name),
                baselines={
                    method: NetworkResult.from_json(row, name)
                    for method, row in content["baselines"].items()
                },
                budgets=content["budgets"],
                search=content["search"],
                max_abs_diff=_number(content["equivalence"]["max_abs_diff"]),
                default_max_abs_diff=content["equivalence"].get("default_max_abs_diff"),
                is_equal=bool(content["equivalence"].get("equal", True)),
                groups=content["groups"],
                seed=content["seed"],
                seconds=_number(content.get("seconds")),
                versions=content["versions"],
                device=content["device"],
                labels={key: content[key] for key in LABELS if key in content},
                test_examples=content.get("test_examples"),
                controls=content.get("controls", {}),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            missing = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ResultError(
                f"{where} is no whole result of a pruning run: {missing}; run the command again"
            ) from error

    @classmethod
    def read(cls, path: str | os.PathLike) -> "PruneResult":
        """Read the result of a run from its directory.

        Raises:
            ResultError: there is none, or not a whole one.
        """
        file = Path(path)
        file = file / "result.json" if file.is_dir() else file
        try:
            content = parse_json(read_regular(file), file)
            # Before version 3 there were no seals.
            if seal_of(content) or not isinstance(content, dict) or content.get("version") == 3:
                content = unseal(content, file, "result")
        except OSError as error:
            raise ResultError(
                f"{file} cannot be read: {error.strerror}; is the run finished?"
            ) from error
        except DamagedFileError as error:
            raise ResultError(f"{error}; run the command again") from error
        result = cls.from_json(content, str(file))
        return dataclasses.replace(result, run_dir=file.parent)

    def __str__(self) -> str:
        name = metric_title(self.metric_name)
        rows = [("", name, "parameters", "MACs")]
        for method, found in {"dense": self.dense, **self.methods}.items():
            rows.append(
                (
                    method.replace("_", " "),
                    metric_text(found.metric, self.metric_name),
                    f"{found.params:,} ({found.params / max(self.dense.params, 1):.1%})",
                    f"{found.macs:,} ({found.macs / max(self.dense.macs, 1):.1%})",
                )
            )
        for control, trained in self.controls.items():
            text = metric_text(trained["metric"], self.metric_name)
            rows.append((CONTROLS.get(control, control), text, "", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        for row in self.budgets:
            measured = f" ({row['measured']:.4g} measured)" if "measured" in row else ""
            lines.append(
                f"budget {row['name']}: {row['achieved']:.4g}{measured} of {row['limit']:.4g} "
                f"{row['unit']}"
                f"{'' if row['satisfied'] else ', NOT respected'}"
            )
        if not self.is_equal:
            lines.append(
                f"slim and masked outputs DIFFER by {self.max_abs_diff:.3g}: a defect of "
                "rlprune_jax, please report it"
            )
        return "\n".join(lines)


def copy_folder(source: Path, target: Path) -> None:
    """Copy the files of one folder into another.

    Raises:
        UnwritableError: the folder cannot be written.
    """
    try:
        shutil.copytree(source, target, dirs_exist_ok=True)
    except shutil.SameFileError:
        return
    except OSError as error:
        raise unwritable(target, error) from error


def of_latencies(latencies: Mapping[int, Latency]) -> dict[int, dict[str, float]]:
    """Return latencies by number of examples as plain numbers."""
    return {count: dict(latency._asdict()) for count, latency in latencies.items()}


def history_arrays(searches: Mapping[str, Search]) -> dict[str, dict[str, np.ndarray]]:
    """Return every evaluation of each method.

    By method ``rewards`` [M] and ``costs`` [M, K].
    """
    return {
        method: {
            "rewards": np.asarray(found.rewards).reshape(-1),
            "costs": np.asarray(found.costs).reshape(-1, found.costs.shape[-1]),
        }
        for method, found in searches.items()
    }
