"""A run that is killed at random moments ends as one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("RLPRUNE_SOAK", "5"))
"""How many kills; RLPRUNE_SOAK=50 tries more than there is time for at each change."""


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_the_same(tmp_path):
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("soak.py"), tmp_path]
    environment = os.environ | {"RLPRUNE_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [*map(str, command), str(KILLS)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == [] and found["traceback"] == "", found
    killed = sum(code != 0 for code in found["ended"])
    assert killed >= max(1, KILLS // 2), "most starts were over before their kill"
    assert found["killed"] == found["whole"]
    assert found["whole"]["leftovers"] == []
    steps = [tuple(step) for step in found["killed"]["steps"]]
    assert len(set(steps)) == len(steps)
