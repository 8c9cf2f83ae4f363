"""What a run was computed with."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "distrax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and its libraries.

    Use it in the record of a run. Where the code is a checkout, ``"commit"`` names its commit.
    """
    commit = _commit()
    return library_versions() if commit is None else {**library_versions(), "commit": commit}


def library_versions() -> dict[str, str]:
    """Return the versions of Python, this package and its libraries.

    Use it where the commit does not matter, which takes a while to ask for.
    """
    found = {"python": platform.python_version()}
    for package in ("rlprune_jax", *_PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def available_cores() -> int:
    """Return the number of cores that this process may use.

    All of them where the system does not say.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_device() -> dict[str, str | int]:
    """Describe the devices that JAX computes on.

    Use it in the record of a run.

    Returns:
        ``platform``, ``kind`` and ``count`` of the devices; ``processor`` and its ``cores``.
    """
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "processor": _processor(),
        "cores": available_cores(),
    }


NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
"""There where a driver of NVIDIA GPUs is loaded."""


def gpu_advice() -> str | None:
    """Return what to install where a GPU lies idle.

    None where JAX computes on an accelerator, where there is no NVIDIA driver, or where the user
    chose the CPU by ``JAX_PLATFORMS``.
    """
    if os.environ.get("JAX_PLATFORMS") or jax.default_backend() != "cpu":
        return None
    if not NVIDIA_DRIVER.exists():
        return None
    plugins = [name for name in ("jax_cuda12_plugin", "jax_cuda13_plugin") if _is_installed(name)]
    if plugins:
        return (
            f"there is an NVIDIA GPU, and {plugins[0]} is installed but does not start, so JAX "
            "computes on the CPU; install one of jax's own version and of the driver's CUDA"
        )
    return (
        "there is an NVIDIA GPU, but JAX has no plugin for it and computes on the CPU; "
        'pip install "jax[cuda13]" (or "jax[cuda12]" with an older driver)'
    )


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether XLA ran out of the device's memory."""
    text = str(error)
    return isinstance(error, jax.errors.JaxRuntimeError | MemoryError) and (
        "RESOURCE_EXHAUSTED" in text or "ut of memory" in text or isinstance(error, MemoryError)
    )


def _commit() -> str | None:
    """Return the commit of the checkout that holds this package or the running script."""
    for file in (Path(__file__), Path(sys.argv[0])):
        git = ["git", "-C", str(file.resolve().parent)]
        try:
            tracked = [*git, "ls-files", "--error-unmatch", file.name]
            subprocess.run(tracked, capture_output=True, check=True, timeout=10)
            head = [*git, "rev-parse", "HEAD"]
            answer = subprocess.run(head, capture_output=True, check=True, timeout=10, text=True)
            return answer.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            continue
    return None


def _processor() -> str:
    def names() -> Iterator[str]:
        try:
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    yield line.partition(":")[2].strip()
        except OSError:
            return

    return next(names(), platform.processor() or platform.machine())
