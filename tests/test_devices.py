"""Versions and device of a run."""

import json
import re
import subprocess
from pathlib import Path

import pytest

import rlprune_jax
from rlprune_jax.devices import describe_device, versions


def test_provenance_is_json_and_names_what_computed():
    found = versions()
    assert {"python", "jax", "flax", "numpy"} <= set(found)
    device = describe_device()
    assert device["platform"] and device["count"] >= 1 and device["cores"] >= 1
    json.dumps([found, device])


def test_commit_is_that_of_the_checkout():
    git = ["git", "-C", str(Path(rlprune_jax.__file__).parent), "rev-parse", "HEAD"]
    try:
        head = subprocess.run(git, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not in a git checkout")
    assert re.fullmatch("[0-9a-f]{40}", head)
    assert versions()["commit"] == head
