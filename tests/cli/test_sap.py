"""``rlprune sap``: options without JAX, own networks and data, the files of a run."""

import json
import subprocess
import sys

import numpy as np
import pytest

from rlprune_jax.cli.sap import EXAMPLES, SapOptions, main, prune_weights, resolved
from rlprune_jax.training import data
from rlprune_jax.workflow.sources import MODEL_OPTIONS

OWN = """
import jax, jax.numpy as jnp
from rlprune_jax import Network, regression

def network(example):
    key = jax.random.key(0)
    variables = {"w": jax.random.normal(key, (3, 4)), "v": jnp.ones((4, 1))}
    return Network(lambda v, x: jnp.tanh(x @ v["w"]) @ v["v"], variables, example)

def task(seed):
    x = jax.random.normal(jax.random.key(seed), (30, 3))
    data = (x, x[:, :1])
    return regression(data, data, data)
"""
OPTIONS = {"iterations": 1, "epochs": 2, "batch_size": 20, "seeds": 2, "p": (0.5,), "q": (1.0,)}


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The command puts the working directory on the path of imports; here it goes off it again.
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_sap_parts.py").write_text(OWN)
    yield {"model": "own_sap_parts:network", "dataset": "own_sap_parts:task", **OPTIONS}
    sys.modules.pop("own_sap_parts", None)


def test_own_network_and_task(own, tmp_path, capsys):
    path = prune_weights(SapOptions().replace(**own, runs_dir=tmp_path / "runs"))
    result = json.loads((path / "result.json").read_text())
    assert result["metric_name"] == "negative_loss" and result["seeds"] == [0, 1]
    assert set(result["curves"]) == {"SAP (0.5, 1)", "lottery ticket", "one-shot"}
    assert result["train_images"] == 60 and result["pruned_before"] == "last step"
    rows = result["curves"]["one-shot"]["iterations"]
    # 16 weights; a fifth goes, rounded down.
    assert [row["live"] for row in rows] == [[16, 16], [13, 13]]
    assert np.shape(rows[0]["negative_loss"]) == (2,)
    page = (path / "report.html").read_text()
    assert page.count("<svg") == 6 and "negative loss" in page
    assert prune_weights(SapOptions().replace(**own, runs_dir=tmp_path / "runs")) == path
    assert "finished before" in capsys.readouterr().err


def refused(**options):
    with pytest.raises(ValueError) as caught:
        resolved(SapOptions().replace(**options))
    return str(caught.value)


def test_wrong_options_are_refused():
    assert refused(batch_size=5000).startswith("batch_size=5000 is above the 1437 training images")
    assert refused(train_images=5000).startswith("train_images=5000 is above the 1437 there are")
    assert refused(train_images=100).startswith("batch_size=250 is above the 100")
    assert refused(model="resnet19").startswith("model='resnet19' is unknown; choose from mlp")
    assert refused(widths=(0,)).startswith("widths=(0,) must be above 0")
    assert refused(model="linear", widths=(8,)).startswith("widths=(8,): linear has no such option")
    assert refused(dataset="digit").startswith("dataset='digit' is unknown")
    assert refused(data_dir="/nowhere").startswith("data_dir='/nowhere' is no folder")
    assert refused(runs_dir="").startswith("runs_dir='' is empty")
    assert refused(rate=0.0).startswith("rate=0.0 must be above 0 and below 1")
    assert refused(batch_statistics="foo").startswith("batch_statistics='foo' must be one of keep")
    with pytest.raises(TypeError, match="steps= is no option"):
        SapOptions().replace(steps=3)


def test_defaults_are_those_of_the_paper():
    options = resolved(SapOptions())
    assert options.settings["epochs"] == 20 and options.network.model == "mlp"
    config = options.config
    assert (config.batch_size, config.learning_rate, config.decayed) == (250, 0.1, "all")
    assert (config.p, config.q, config.iterations, config.beta) == ((0.5, 1.0), (1.0, 2.0), 30, 0.9)


def test_numbers_of_examples_are_those_of_the_data():
    digits = data.load("digits")
    assert EXAMPLES["digits"] == len(digits.train.labels) + len(digits.held_out.labels)
    assert set(EXAMPLES) == set(data.dataset_names())
    assert "linear" in MODEL_OPTIONS


def test_the_command_answers_without_jax():
    program = (
        "import sys\n"
        "from rlprune_jax.cli import sap\n"
        "try:\n"
        "    sap.main('rlprune sap', ['--p', '0.5', '--q', 'inf'])\n"
        "except SystemExit as error:\n"
        "    assert error.code == 2 and 'jax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "error: q=inf must be finite and above 0"


def test_help_groups_the_options(capsys):
    with pytest.raises(SystemExit):
        main("rlprune sap", ["--help"])
    text = capsys.readouterr().out
    for option in ("--model", "--method", "--p ", "--rewind-epoch", "--batch-statistics"):
        assert option in text
    assert "dense-steps" not in text
