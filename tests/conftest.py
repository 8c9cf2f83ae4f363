"""Set-up of the test session: compilation cache, reproducible property tests."""

import os
import shutil
import tempfile

# Read by JAX when it is imported, by the workers of pytest-xdist and by subprocesses of tests.
# Tolerances are for CPU; JAX_PLATFORMS=cuda in the environment tries them elsewhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_owns_cache = "RLPRUNE_TEST_CACHE" not in os.environ
if _owns_cache:
    os.environ["RLPRUNE_TEST_CACHE"] = tempfile.mkdtemp(prefix="rlprune-jax-cache-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["RLPRUNE_TEST_CACHE"]
# Small programs too: every process of a session, workers and subprocesses, compiles the same ones.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import chex  # noqa: E402
import hypothesis  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile(
    "rlprune",
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("rlprune")


def pytest_unconfigure():
    """Removes the cache that this session made."""
    if _owns_cache:
        shutil.rmtree(os.environ["RLPRUNE_TEST_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _fresh_trace_counter():
    """Lets every test use `chex.assert_max_traces` without the counts of the one before."""
    chex.clear_trace_counter()
