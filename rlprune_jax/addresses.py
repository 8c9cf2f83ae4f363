"""Addresses of databases, whose passwords are kept out of sight."""

import importlib.util
import re

_PASSWORD = re.compile(r"(://[^:/@\s]*):[^\s]*@")
_PARAMETER = re.compile(r"([?&](?:password|passwd|pwd|sslpassword)=)[^&\s]*", re.IGNORECASE)
_POSTGRESQL = re.compile(r"postgres(?:ql)?://")


class Address(str):
    """Hold an address that shows itself without its password.

    Use it at the door: whatever prints, stores or compares the address has the text with ``***``,
    and ``secret`` alone opens the database. A copy or a pickle of it has no secret.

    Attributes:
        secret: the address as it was given.

    Example:
        >>> address = Address("postgresql://me:word@host/study")
        >>> address, f"{address}", address.secret
        ('postgresql://me:***@host/study', 'postgresql://me:***@host/study', \
'postgresql://me:word@host/study')
    """

    secret: str

    def __new__(cls, text: str) -> "Address":
        """Make one from the address as it was given."""
        self = super().__new__(cls, hide_password(text))
        self.secret = secret_of(text)
        return self

    def __deepcopy__(self, memo: object) -> str:
        return str(self)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return str, (str(self),)


def hide_password(text: str) -> str:
    """Return text with the passwords in addresses replaced.

    Example:
        >>> hide_password("postgresql://me:secret@host/study")
        'postgresql://me:***@host/study'
        >>> hide_password("postgresql://host/study?user=me&password=secret")
        'postgresql://host/study?user=me&password=***'
    """
    return _PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


def secret_of(address: str) -> str:
    """Return an address with its password, where it is known."""
    return address.secret if isinstance(address, Address) else str(address)


def with_driver(address: str) -> str:
    """Name the installed driver in a PostgreSQL address.

    Versions of SQLAlchemy differ in which driver they take where none is named. Other addresses
    come back as they are.

    Raises:
        ValueError: no driver is installed; the message names the extra that has one.

    Example:
        >>> with_driver("sqlite:///study.db")
        'sqlite:///study.db'
    """
    if not (scheme := _POSTGRESQL.match(address)):
        return address
    for driver in ("psycopg", "psycopg2"):
        if importlib.util.find_spec(driver) is not None:
            return f"postgresql+{driver}://{address[scheme.end() :]}"
    raise ValueError(
        "PostgreSQL needs psycopg, which is not installed; pip install 'rlprune_jax[postgresql]'"
    )
