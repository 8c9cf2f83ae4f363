"""Load a slim network from a run directory and read its test accuracy again.

Command:  python experiments/predict.py runs/prune_rl-0123456789

Nothing of the dense network is needed but its shapes, which come from the run's configuration. The
last line is JSON: the accuracy found, the one recorded in result.json, and whether they are equal,
for the weights in slim/ and for the StableHLO artifact. Exit code 1 where they are not.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from command_line import enable_compilation_cache
from deliver import accuracy_of
from problem import AUGMENTATION, Images
from prune_rl import make_functions
from settings import Config as RunConfig

from rlprune_jax import trace_graph
from rlprune_jax.export import load_stablehlo, restore_slim
from rlprune_jax.training import data
from rlprune_jax.training.augmentation import make_prepare


@dataclasses.dataclass(frozen=True)
class Config:
    """What to load."""

    run_dir: tyro.conf.Positional[Path]
    """A finished run of prune_rl.py."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets; else the run's, else $TFDS_DATA_DIR."""


def predict(config: Config) -> dict[str, Any]:
    """Restore the network and evaluate it on the test images.

    Raises:
        ValueError: the files are not whole, changed, or of another network.
        OSError: a file or the data are missing.
    """
    run = config.run_dir
    stored = json.loads((run / "config.json").read_text())
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    settings = RunConfig(**{name: value for name, value in stored.items() if name in fields})
    recorded = json.loads((run / "result.json").read_text())["pruned"]
    place = config.data_dir or settings.data_dir
    dataset = data.load(settings.dataset, place, seed=settings.seed)
    functions = make_functions(settings, dataset.num_classes)
    prepare = make_prepare(
        jnp.array(dataset.mean), jnp.array(dataset.std), **AUGMENTATION[dataset.name]
    )
    test = Images(jnp.asarray(dataset.test.images), jnp.asarray(dataset.test.labels))
    sample = jax.eval_shape(prepare, test.images[:2])
    shapes = jax.eval_shape(functions.init, jax.random.key(0), sample)
    slim = restore_slim(run / "slim", functions.apply, trace_graph(functions.apply, shapes, sample))
    accuracy = accuracy_of(slim.apply, slim.variables, prepare, test)
    artifact = load_stablehlo(run / "slim" / "model.stablehlo")
    from_artifact = accuracy_of(lambda _, x: artifact(x), {}, prepare, test)
    return {
        "accuracy": accuracy,
        "stablehlo_accuracy": from_artifact,
        "recorded_accuracy": recorded["accuracy"],
        "reproduced": accuracy == from_artifact == recorded["accuracy"],
        "params": sum(leaf.size for leaf in jax.tree.leaves(slim.variables["params"])),
        "test_images": len(test.labels),
    }


def main() -> None:
    """Command line."""
    enable_compilation_cache()
    config = tyro.cli(Config, description=__doc__)
    try:
        line = predict(config)
    except (ValueError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(line))
    if not line["reproduced"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
