"""Options of pruning: what is filled in, and what is refused, all without JAX."""

import pytest

from rlprune_jax.cli.options import PruneOptions, resolved
from rlprune_jax.models import _MODELS, _option_names
from rlprune_jax.training.data import dataset_names
from rlprune_jax.training.metrics import METRICS
from rlprune_jax.training.text import text_names
from rlprune_jax.workflow.sources import (
    ADAM_MODELS,
    DATASETS,
    METRIC_NAMES,
    MODEL_OPTIONS,
    TEXTS,
)


def options(**changed):
    return PruneOptions().replace(**{"budget": ("params=0.5",)} | changed)


def test_the_names_known_before_jax_are_those_that_there_are():
    assert dataset_names() == DATASETS
    assert text_names() == TEXTS
    assert set(ADAM_MODELS) < set(MODEL_OPTIONS)
    assert tuple(METRICS) == METRIC_NAMES
    ours = {"widths", "width", "pools"}
    found = {name: ours & set(_option_names(make)) for name, make in _MODELS.items()}
    assert {name: set(has) for name, has in MODEL_OPTIONS.items()} == found


def test_defaults_follow_the_data_set():
    digits = resolved(options()).settings
    assert digits["widths"] == (32, 64, 128, 256) and digits["calibration_images"] == 256
    assert [digits[f"{name}_steps"] for name in ("dense", "rerank", "finetune")] == [300, 60, 300]
    cifar = resolved(options(dataset="cifar10", model="vgg16")).settings
    assert cifar["calibration_images"] == 512 and cifar["dense_steps"] == 2000
    assert resolved(options(budget=("latency=2",))).search.constraint == "both"
    assert (cifar["dense_rule"], cifar["dense_rate"]) == ("sgd", 0.1)
    text = resolved(options(dataset="text", model="gpt")).settings
    assert (text["dense_rule"], text["dense_rate"]) == ("adam", 0.002)
    vit = resolved(options(model="vit_tiny", dense_rule="sgd")).settings
    assert (vit["dense_rule"], vit["dense_rate"]) == ("sgd", 0.1)
    # A network of the user's may be trained, which is known only when it is there.
    assert resolved(options(model="json:loads")).dense.dense_steps is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": ("flops=0.5",)}, "known budgets: params, macs"),
        ({"budget": ("params=0",)}, r"must be a fraction of the dense network in \(0, 1\]"),
        ({"budget": ("params=1.5",)}, "must be a fraction"),
        ({"budget": ("weight_bytes=100kg",)}, "the unit 'kg' does not fit"),
        ({"budget": ()}, "no budget is given"),
        ({"budget_fn": ("user_costs",)}, "module:function=LIMIT"),
        ({"tile": (0, 8), "budget": ("tiled_macs=0.5",)}, "tile="),
        ({"tile": (4, 4)}, r"tile=\(4, 4\) would do nothing"),
        ({"latency_steps": 9}, "latency_steps=9 would do nothing"),
        ({"cost_seconds": 0.0}, "cost_seconds=0"),
        ({"round_to": 0}, "round_to=0"),
        ({"round_to_of": ("Conv=two",)}, "round_to_of='Conv=two' is not of the form REGEX=N"),
        ({"min_keep_of": ("(=3",)}, r"min_keep_of=.*is not of the form REGEX=N"),
        ({"model": "transformer"}, "'transformer' is unknown; choose from mlp, cnn"),
        ({"model": "no_such_module:f"}, "model='no_such_module:f' cannot be imported"),
        ({"model": "json:"}, "not of the form package.module:function"),
        ({"dataset": "imagenet"}, "choose from digits"),
        ({"dataset": "mnist", "data_dir": "/nowhere"}, "data_dir='/nowhere' is no folder"),
        ({"data_dir": "/nowhere"}, "none is needed for digits"),
        (
            {"dataset": "text"},
            "model='cnn' reads images and dataset='text' is text; choose model=gpt",
        ),
        ({"model": "gpt"}, "model='gpt' reads text and dataset='digits' holds images"),
        ({"kv_layers": "key$"}, r"kv_layers=key\$ would do nothing: it is read by budgets on kv_c"),
        ({"metric": "f1"}, "metric='f1' is unknown; choose from accuracy"),
        ({"width": 0.25}, "width=0.25: cnn has no such option; it has widths"),
        ({"pools": 4}, "pools=4: cnn has no such option; it has widths"),
        ({"model": "json:loads", "widths": (3,)}, "json:loads has no such option; leave it out"),
        ({"model": "vgg11", "pools": 6}, "pools=6 must be from 0 to 5"),
        ({"model": "vgg11", "width": float("nan")}, "width=nan must be finite"),
        ({"model": "vgg11", "width": 0.5, "widths": (3,) * 8}, "give either width"),
        ({"widths": (0,)}, r"widths=\(0,\) must be above 0"),
        ({"pretrained": "/nowhere"}, "pretrained='/nowhere' does not exist"),
        ({"ignore": ("(",)}, "is no regular expression"),
        ({"evaluations": 0}, "evaluations=0"),
        ({"evaluations": 8, "candidates": 9}, "candidates=9 must be at most evaluations=8"),
        ({"candidates": 1}, "candidates=1 must be at least 2"),
        ({"chunk": 0}, "chunk=0"),
        ({"seed": 99999999999}, "seed="),
        ({"save_seconds": float("nan")}, "save_seconds=nan"),
        ({"save_seconds": -1.0}, "save_seconds=-1"),
        ({"dense_rate": 0.0}, "dense_rate=0.0 must be finite and above 0"),
        ({"dense_rate": float("inf")}, "dense_rate=inf"),
        ({"dense_steps": 0}, "dense_steps=0"),
        ({"finetune_rate": float("nan")}, "finetune_rate=nan"),
        ({"finetune_rate": -1.0}, "finetune_rate=-1"),
        ({"finetune_steps": -1}, "finetune_steps=-1 must be at least 0"),
        ({"repair_images": 0}, "repair_images=0 must be at least 1"),
        ({"repair_reward": "yes"}, "repair_reward='yes' must be one of none, fold, merge, ridge"),
        ({"granularity": "medium"}, "granularity='medium' must be one of fine, coarse"),
        ({"baselines": ("grid",)}, "baselines='grid' must be among uniform"),
        ({"baselines": ("uniform", "uniform")}, "must be each method once"),
        ({"reward_finetune": ()}, "reward_finetune"),
        ({"runs_dir": ""}, "runs_dir='' is empty"),
    ],
)
def test_what_cannot_be_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        resolved(options(**changed))


def test_an_option_that_is_not_there_is_named():
    with pytest.raises(TypeError, match="sed= is no option; options are model, widths"):
        PruneOptions().replace(sed=3)


def test_the_fast_recipe_has_larger_batches_and_a_higher_rate():
    given = {"dataset": "cifar10", "model": "vgg16", "data_dir": ".", "budget": ("params=0.5",)}
    plain, fast = (
        resolved(PruneOptions().replace(**given, recipe=name)).dense for name in ("plain", "fast")
    )
    assert (plain.dense_steps, plain.dense_batch, plain.dense_rate) == (2000, 128, 0.1)
    assert (fast.dense_steps, fast.dense_batch, fast.dense_rate) == (8800, 512, 0.4)
    with pytest.raises(ValueError, match="recipe='slow' must be one of plain, fast"):
        resolved(PruneOptions().replace(**given, recipe="slow"))
    with pytest.raises(ValueError, match="dense_batch=0 must be at least 1"):
        resolved(PruneOptions().replace(**given, dense_batch=0))
