import pytest

from rlprune_jax.workflow.studies.storage import check_storage


def test_what_can_be_opened_passes(tmp_path):
    pytest.importorskip("optuna")
    check_storage(str(tmp_path / "new" / "journal"))
    check_storage(f"sqlite:///{tmp_path}/study.db")
    assert (tmp_path / "new" / "journal").read_bytes() == b""


def test_what_cannot_be_opened_is_refused(tmp_path):
    pytest.importorskip("optuna")
    for storage in (str(tmp_path), "", f"sqlite:///{tmp_path}/none/study.db"):
        with pytest.raises(ValueError, match="cannot be opened"):
            check_storage(storage)


def test_without_optuna_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
        check_storage("journal")
