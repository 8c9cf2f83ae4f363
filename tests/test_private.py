"""Folders for caches are this user's alone, or are not used."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlprune_jax.cli.common import enable_compilation_cache
from rlprune_jax.private import SharedFolderError, check_private, private_folder
from rlprune_jax.training.array_cache import read_arrays, write_arrays


def test_what_is_missing_is_made_for_this_user_alone(tmp_path):
    before = os.umask(0)
    try:
        folder = private_folder(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    for each in (folder, folder.parent):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700
    assert private_folder(folder) == folder


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o720, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path, mode):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    with pytest.raises(SharedFolderError, match=rf"written by others \(mode {mode:03o}\).*chmod"):
        private_folder(tmp_path / "cache")
    # Also by another name.
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    with pytest.raises(SharedFolderError):
        private_folder(tmp_path / "link")


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o711])
def test_a_folder_that_others_can_only_read_is_taken(tmp_path, mode):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    check_private(tmp_path / "cache")


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(SharedFolderError, match=r"belongs to user \d+ and this is user \d+"):
        check_private(tmp_path)


def test_a_folder_that_others_can_replace_is_refused(tmp_path):
    (tmp_path / "open" / "cache").mkdir(parents=True, mode=0o700)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(SharedFolderError, match="can be replaced by others"):
        check_private(tmp_path / "open" / "cache")
    (tmp_path / "open").chmod(0o1777)  # as /tmp: nobody renames what is another's
    check_private(tmp_path / "open" / "cache")


def test_cached_arrays_of_a_shared_folder_do_not_count(tmp_path):
    file = tmp_path / "cache" / "x.arrays"
    assert write_arrays(file, {"x": np.ones(3)}) and read_arrays(file) is not None
    file.parent.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="can be written by others"):
        assert read_arrays(file) is None
    with pytest.warns(RuntimeWarning, match="can be written by others"):
        assert not write_arrays(file, {"x": np.zeros(3)})


def test_compiled_programs_of_a_shared_folder_are_not_used(tmp_path, monkeypatch, capsys):
    settings = []
    monkeypatch.setattr("jax.config.update", lambda *given: settings.append(given))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "open"))
    enable_compilation_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    assert settings == [("jax_compilation_cache_dir", None)]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: compiled programs are not kept: ") and "mode 777" in line
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    enable_compilation_cache()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "own")
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700


def test_no_file_of_the_working_directory_runs_in_place_of_a_library(tmp_path):
    for name in ("rich", "safetensors", "filelock", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the folder runs')\n")
    (tmp_path / "mine.py").write_text(
        "import helper, rich\ndef cost(w, g):\n    return helper.one\n"
    )
    (tmp_path / "helper.py").write_text("one = 1.0\n")
    program = (
        "import sys\n"
        "from rlprune_jax.costs import import_function\n"
        "before = list(sys.path)\n"
        "assert 'rich' not in sys.modules\n"
        "assert import_function('mine:cost')({}, {}) == 1.0\n"
        f"assert import_function({str(tmp_path / 'mine.py')!r} + ':cost')({{}}, {{}}) == 1.0\n"
        "assert sys.path == before\n"
        "import safetensors, filelock\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    # -P: Python itself puts no folder on the path.
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
