"""Caches and streams on odd machines: no home, no room, nobody who reads."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rlprune_jax
from rlprune_jax import places
from rlprune_jax.places import default_cache_dir, print_last, why_unusable

ROOT = Path(rlprune_jax.__file__).parents[1]


def test_the_default_folder_of_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("RLPRUNE_CACHE_DIR", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("RLPRUNE_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "rlprune_jax"


def test_a_user_without_a_home_has_a_folder_among_the_temporary_ones(monkeypatch, tmp_path):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("RLPRUNE_CACHE_DIR", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.setattr(places.tempfile, "gettempdir", lambda: str(tmp_path))
    assert default_cache_dir() == tmp_path / f"rlprune_jax-{os.getuid()}"
    monkeypatch.setenv("RLPRUNE_CACHE_DIR", str(tmp_path / "mine"))
    assert default_cache_dir() == tmp_path / "mine"


def test_a_folder_is_used_where_something_can_be_kept(monkeypatch, tmp_path):
    assert why_unusable(tmp_path / "new" / "folder") == ""
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    assert why_unusable(tmp_path / "file" / "folder") == "Not a directory"

    def full(path, data):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert why_unusable(tmp_path / "full") == "No space left on device"
    assert list((tmp_path / "full").iterdir()) == []


def run(program, **streams):
    """Run a program after ``open_streams``, descriptors closed before Python starts."""
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom rlprune_jax.places import *\n"
    command = [sys.executable, "-c", start + "open_streams()\n" + program]
    closed = "".join(f" {number}>&-" for number in streams.pop("closed", ()))
    shell = ["sh", "-c", f'exec "$@"{closed}', "sh", *command]
    return subprocess.run(shell, text=True, timeout=60, **streams)


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path, closed):
    program = f"""
file = open({str(tmp_path / "file")!r}, "w")
assert file.fileno() > 2
print("out"); print("err", file=sys.stderr); os.write(1, b"raw"); os.write(2, b"raw")
"""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = run("import os\n" + program, closed=closed, **streams)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_stream_is_one_line_or_none():
    with open("/dev/full", "w") as full:
        done = run('print_last("runs/a")', stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (
            1,
            "error: standard output cannot be written: No space left on device; it was to be: "
            "runs/a\n",
        )
        program = 'print("note", file=sys.stderr, flush=True); print_last("runs/a")'
        done = run(program, stdout=subprocess.PIPE, stderr=full)
        assert (done.returncode, done.stdout) == (0, "runs/a\n")


def test_a_reader_that_has_gone_is_one_line(monkeypatch, capsys):
    class Gone(io.StringIO):
        def flush(self):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(SystemExit) as stopped:
        print_last("runs/a")
    assert stopped.value.code == 1
    assert capsys.readouterr().err.endswith("Broken pipe; it was to be: runs/a\n")


def test_a_limit_on_files_is_raised_or_refused(monkeypatch):
    resource = pytest.importorskip("resource")
    limits, raised = [(16, 16)], []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[0])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: raised.append(both))
    with pytest.raises(OSError, match=r"may open 16 files at a time and needs 64.*ulimit -n 64"):
        places.require_files()
    for limits[0] in ((64, 64), (1024, 4096), (resource.RLIM_INFINITY,) * 2):
        places.require_files()
    assert raised == []
    limits[0] = (16, 4096)
    places.require_files()
    assert raised == [(64, 4096)]


def test_no_duration_follows_the_clock_on_the_wall():
    """A clock that jumps changes nothing but when a worker is taken for dead."""
    users = [
        path.name
        for path in (ROOT / "rlprune_jax").rglob("*.py")
        if "time.time()" in path.read_text() or "datetime.now" in path.read_text()
    ]
    assert users == ["optuna_workers.py"]
