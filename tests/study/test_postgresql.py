"""A study on a PostgreSQL server of its own: a worker is killed, no trial lost, no password shown.

The server is started where ``initdb`` is installed (Debian: ``apt-get install postgresql``) and
psycopg is there; elsewhere the tests are skipped and say so.
"""

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna
import pytest
from study_jobs import job
from test_optuna_workers import HERE, OPTIONS, SPACE, each_once

from rlprune_jax.addresses import hide_password, with_driver
from rlprune_jax.study import StudyError, optuna_workers
from rlprune_jax.study.optuna_workers import open_storage, run_worker
from rlprune_jax.workflow.studies import STUDIES
from rlprune_jax.workflow.studies.storage import check_storage

PASSWORD = "s3cret/word"
BEATS = {"HEARTBEAT_SECONDS": 1, "GRACE_SECONDS": 4}
PROGRAM = f"""
import sys, time
sys.path.insert(0, {str(HERE)!r})
from study_jobs import job
from test_optuna_workers import OPTIONS, SPACE
from rlprune_jax.study import optuna_workers
for name, value in {BEATS!r}.items():
    setattr(optuna_workers, name, value)
def tick(count, note):
    print(count, flush=True)
    time.sleep(60)
optuna_workers.run_worker(job, SPACE, (0, 1), storage=sys.argv[1], tick=tick, **OPTIONS)
"""


def programs():
    """Return the folder of the server's programs, or why there is none."""
    places = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.get_exec_path())]
    found = [each for each in places if (each / "initdb").exists()]
    if not found:
        pytest.skip("no initdb: install PostgreSQL (apt-get install postgresql) to run this")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("no psycopg: pip install 'rlprune_jax[postgresql]' to run this")
    return found[0].resolve()


@pytest.fixture(scope="module")
def server():
    """Start a server that asks for a password; yield the address of its database."""
    folder = Path(tempfile.mkdtemp(prefix="rlprune-pg-"))
    # The server refuses to run as root.
    owner = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
    bin_ = programs()
    (folder / "password").write_text(PASSWORD)
    if owner:
        shutil.chown(folder, **owner)
        shutil.chown(folder / "password", **owner)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(*command):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, **owner)
        assert done.returncode == 0, done.stdout + done.stderr

    auth = ("-A", "scram-sha-256", f"--pwfile={folder}/password", "-U", "me", "--no-sync")
    run(bin_ / "initdb", "-D", folder / "data", *auth)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    start = ("-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start")
    run(bin_ / "pg_ctl", *start)
    try:
        quoted = PASSWORD.replace("/", "%2F")
        yield f"postgresql://me:{quoted}@127.0.0.1:{port}/postgres"
    finally:
        run(bin_ / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def test_a_worker_is_killed_and_no_trial_is_lost(server, tmp_path, monkeypatch, recwarn):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), *sys.path])}
    command = [sys.executable, "-c", PROGRAM, server]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as worker:
        try:
            assert worker.stdout.readline() == "3\n"
        finally:
            worker.send_signal(signal.SIGKILL)
        said = worker.stderr.read()
    assert said == "", said  # no warning that something is experimental, and no password
    for name, value in BEATS.items():
        monkeypatch.setattr(optuna_workers, name, value)
    found = run_worker(job, SPACE, (0, 1), storage=server, **OPTIONS)
    assert found.metrics["loss"].shape == (10, 2)
    each_once(server)
    # As docs say how to read, copy and drop a study.
    storage = optuna.storages.RDBStorage(with_driver(server))
    (name,) = optuna.get_all_study_names(storage)
    file = f"sqlite:///{tmp_path}/study.db"
    optuna.copy_study(from_study_name=name, from_storage=storage, to_storage=file)
    assert len(optuna.load_study(study_name=name, storage=file).trials) >= 10
    optuna.delete_study(study_name=name, storage=storage)
    assert optuna.get_all_study_names(storage) == []


def test_the_password_is_in_no_record_and_no_error(server, monkeypatch):
    study = STUDIES["search"](optuna=server)
    shown = (str(study), repr(dataclasses.asdict(study)), json.dumps(study.record()))
    assert not [text for text in shown if "s3cret" in text]
    check_storage(study.optuna)
    open_storage(study.optuna)
    wrong = server.replace("s3cret", "s3cretive")
    with pytest.raises(ValueError, match="cannot be opened") as refused:
        check_storage(wrong)
    with pytest.raises(StudyError, match="storage postgresql") as failed:
        open_storage(wrong)
    for error in (refused.value, failed.value):
        assert "s3cret" not in str(error) and hide_password(wrong) in str(error)
        assert error.__cause__ is None
