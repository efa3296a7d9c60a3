"""Names without regard to case: compared, sorted and searched by their begin, with an index behind it."""

from typing import Any

from sqlalchemy import ColumnElement, String, and_, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

#: Sorts behind everything that a name can go on with; no name has it.
_LAST = "\U0010ffff"


class folded(FunctionElement[str]):  # noqa: N801 - reads as the SQL function that it stands for
    """A name as it is compared. The order is that of code points, whatever the database's language."""

    type = String()
    inherit_cache = True


@compiles(folded, "postgresql")
def _for_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    # The outer lower() changes nothing: what is outermost may not be COLLATE, or nobody could read from the
    # database that the index is this one. Written as PostgreSQL writes it.
    return f'lower(lower({compiler.process(element.clauses, **options)}::text) COLLATE "C")'


@compiles(folded, "sqlite")
def _for_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    # Folds ASCII only, as SQLite's lower() does.
    return f"{compiler.process(element.clauses, **options)} COLLATE NOCASE"


def begins(name: Any, prefix: str) -> ColumnElement[bool]:
    """Match names that begin with ``prefix``; a range, which an index on ``folded(name)`` answers."""
    return and_(folded(name) >= folded(literal(prefix)), folded(name) < folded(literal(prefix + _LAST)))
