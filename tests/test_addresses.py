"""Addresses show themselves without their passwords, wherever they go."""

import copy
import dataclasses
import json
import pickle

import pytest

from rlprune_jax import addresses
from rlprune_jax.addresses import Address, hide_password, secret_of, with_driver

SECRET = "postgresql://me:PASSWORD@host/db"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://:p/w@host/db", "postgresql://:***@host/db"),
        ("--optuna=postgresql://u:p@h/db", "--optuna=postgresql://u:***@h/db"),
        ("postgresql://h/db?Password=p&x=1", "postgresql://h/db?Password=***&x=1"),
        ("postgresql://h/db?user=u&sslpassword=p", "postgresql://h/db?user=u&sslpassword=***"),
        ("mysql+pymysql://u:p@ss@host/db", "mysql+pymysql://u:***@host/db"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("runs/a:b@c", "runs/a:b@c"),
    ],
)
def test_passwords_are_hidden(address, shown):
    assert hide_password(address) == shown


def test_an_address_is_its_masked_text_everywhere():
    address = Address(SECRET)

    @dataclasses.dataclass
    class Options:
        optuna: str

    options = Options(address)
    shown = [
        *(str(address), repr(address), f"{address}", f"{address}", repr(options)),
        *(json.dumps(dataclasses.asdict(options)), repr(copy.deepcopy(options))),
        *(repr(pickle.loads(pickle.dumps(address))), repr(vars(options)), address + "", address[:]),
    ]
    assert not [text for text in shown if "PASSWORD" in text]
    assert secret_of(address) == secret_of(Address(address)) == SECRET
    assert secret_of("journal") == "journal" == secret_of(Address("journal"))


@pytest.mark.parametrize(
    ("installed", "found"),
    [
        ({"psycopg", "psycopg2"}, "postgresql+psycopg://u:p@h/db"),
        ({"psycopg2"}, "postgresql+psycopg2://u:p@h/db"),
    ],
)
def test_a_driver_that_is_installed_is_named(monkeypatch, installed, found):
    monkeypatch.setattr(addresses.importlib.util, "find_spec", lambda n: n in installed or None)
    assert with_driver("postgres://u:p@h/db") == with_driver("postgresql://u:p@h/db") == found
    assert with_driver("postgresql+asyncpg://h/db") == "postgresql+asyncpg://h/db"


def test_without_a_driver_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(addresses.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'rlprune_jax\[postgresql\]'"):
        with_driver("postgresql://h/db")
    assert with_driver("mysql://h/db") == "mysql://h/db"
