"""Versions and device of a run."""

import json
import re
import subprocess
from pathlib import Path

import jax
import pytest

import rlprune_jax
from rlprune_jax import devices
from rlprune_jax.devices import describe_device, gpu_advice, is_out_of_memory, versions


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


def test_a_gpu_that_jax_does_not_use_is_told(tmp_path, monkeypatch):
    (tmp_path / "version").write_text("NVRM version")
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", tmp_path / "version")
    monkeypatch.setattr(devices, "_is_installed", lambda name: False)
    assert gpu_advice() is None  # the tests have chosen the CPU
    monkeypatch.delenv("JAX_PLATFORMS")
    assert 'no plugin for it and computes on the CPU; pip install "jax[cuda13]"' in gpu_advice()
    monkeypatch.setattr(devices, "_is_installed", lambda name: name == "jax_cuda12_plugin")
    assert "jax_cuda12_plugin is installed but does not start" in gpu_advice()
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", tmp_path / "nothing")
    assert gpu_advice() is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", tmp_path / "version")
    assert gpu_advice() is None


def test_only_memory_is_memory():
    assert is_out_of_memory(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: no"))
    assert not is_out_of_memory(ValueError("Out of memory"))
