"""Packages that only deletion requests need: whoever lacks them reads one sentence, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from expunge.core.errors import UsageError

# extra -> the packages by the names they are imported under; the extras themselves are in pyproject.toml
_PACKAGES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "requests": frozenset({"sqlalchemy", "alembic", "mako", "cryptography", "fpdf"}),
        "postgres": frozenset({"psycopg", "psycopg_binary"}),
        "service": frozenset({"fastapi", "starlette", "uvicorn"}),
    }
)
_PURPOSE = {
    "requests": "deletion requests need",
    "postgres": "a ledger on PostgreSQL needs",
    "service": "the service of deletion requests needs",
}


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports of packages of the extra `name`: a missing one is a `UsageError` that says what to install.

    Imports that fail for another reason, a bug of ours included, pass unchanged.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _PACKAGES[name]:
            raise
        raise UsageError(f"{_PURPOSE[name]} the extra `{name}`: pip install 'expunge[{name}]'") from None
